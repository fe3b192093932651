//! Finds the paths in the sources, and the module to which each leads. Tests inside the sources are left out.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, iter,
    path::{Path, PathBuf},
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Names of modules and items, from the outermost to the innermost.
pub(super) type Names = Vec<String>;

/// Where a path leads.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The module of this crate that defines the item, as a path from the crate's root.
    Module(Names),
    /// Another crate, or a type of the module itself.
    Elsewhere(Names),
}

/// A path as a module writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) from: Names,
    pub(super) path: Names,
    /// The name that a `use` binds.
    alias: Option<String>,
}

/// Every module with its paths.
#[derive(Debug, Default)]
pub(super) struct Crate {
    modules: BTreeSet<Names>,
    /// The path behind each name that a `use` binds in a module.
    names: BTreeMap<(Names, String), Names>,
    pub(super) references: Vec<Reference>,
}

/// Every Rust file below a path.
pub(super) fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let rust = entries.filter(|entry| entry.is_dir() || entry.extension().is_some_and(|extension| extension == "rs"));
    rust.flat_map(|entry| files(&entry)).collect()
}

/// The module of a file, as a path from the crate's root.
pub(super) fn module(file: &Path) -> Names {
    let path = file.with_extension("");
    let names = path.iter().skip(1).map(|name| name.to_str().unwrap().to_owned());
    names.filter(|name| name != "mod" && name != "lib").collect()
}

impl Crate {
    /// Reads modules from their texts.
    pub(super) fn new(texts: impl IntoIterator<Item = (Names, String)>) -> Self {
        let mut all = Self::default();
        for (module, text) in texts {
            all.read(&module, &text.parse::<TokenStream>().unwrap().into_iter().collect::<Vec<_>>());
        }
        for Reference { from, path, alias } in &all.references {
            if let Some(alias) = alias.as_ref().filter(|alias| path.len() > 1 && path[0] != **alias) {
                all.names.insert((from.clone(), alias.clone()), path.clone());
            }
        }
        all
    }

    fn read(&mut self, module: &Names, tokens: &[TokenTree]) {
        self.modules.insert(module.clone());
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            let before = at.checked_sub(1).map(|before| tokens[before].to_string()).unwrap_or_default();
            let name = token.to_string();
            match (token, tokens.get(at + 1)) {
                (TokenTree::Group(attribute), _) if before == "#" && attribute.to_string().replace(' ', "") == "[cfg(test)]" => {
                    let ends = |token: &TokenTree| token.to_string() == ";" || is_braces(token);
                    at += tokens[at..].iter().position(ends).unwrap_or_default();
                }
                // The path in `pub(in crate::http)` uses nothing.
                (TokenTree::Group(_), _) if before == "pub" => {}
                (TokenTree::Group(group), _) => self.read(module, &group.stream().into_iter().collect::<Vec<_>>()),
                (_, Some(TokenTree::Ident(child))) if name == "mod" && tokens.get(at + 2).is_some_and(is_braces) => {
                    let TokenTree::Group(body) = &tokens[at + 2] else { unreachable!() };
                    let child = module.iter().cloned().chain([child.to_string()]).collect();
                    self.read(&child, &body.stream().into_iter().collect::<Vec<_>>());
                    at += 2;
                }
                (TokenTree::Ident(_), _)
                    if (before == "use" || is_separator(tokens, at + 1))
                        && !at.checked_sub(2).is_some_and(|at| is_separator(tokens, at)) =>
                {
                    let mut paths = Vec::new();
                    at = read_path(tokens, at, &Names::new(), &mut paths) - 1;
                    let named = |alias| if before == "use" { alias } else { None };
                    self.references.extend(paths.into_iter().map(|(path, alias)| Reference {
                        from: module.clone(),
                        path,
                        alias: named(alias),
                    }));
                }
                _ => {}
            }
            at += 1;
        }
    }

    /// Where a path leads, seen from a module.
    pub(super) fn target(&self, from: &Names, path: &[String]) -> Target {
        let (mut here, mut rest) = (from.clone(), path);
        while let Some((first, after)) = rest.split_first() {
            let child: Names = here.iter().cloned().chain(iter::once(first.clone())).collect();
            match first.as_str() {
                "crate" | "sd_worker" => here.clear(),
                "self" => {}
                "super" => drop(here.pop()),
                _ if self.modules.contains(&child) => here = child,
                _ => match self.names.get(&(here.clone(), first.clone())) {
                    Some(path) => return self.target(&here, &[path, after].concat()),
                    None if rest.len() == path.len() => return Target::Elsewhere(path.to_vec()),
                    None => break,
                },
            }
            rest = after;
        }
        Target::Module(here)
    }
}

/// Reads one path, or every path in the braces of a `use`, each with the name that it binds. Returns the index after it.
fn read_path(tokens: &[TokenTree], mut at: usize, prefix: &Names, paths: &mut Vec<(Names, Option<String>)>) -> usize {
    let mut path = prefix.clone();
    loop {
        match tokens.get(at) {
            Some(TokenTree::Group(group)) if is_braces(&tokens[at]) => {
                let inside: Vec<TokenTree> = group.stream().into_iter().collect();
                for branch in inside.split(|token| token.to_string() == ",").filter(|branch| !branch.is_empty()) {
                    read_path(branch, 0, &path, paths);
                }
                return at + 1;
            }
            Some(TokenTree::Ident(name)) => path.push(name.to_string()),
            // The end of a path such as `Vec::<u8>::new` or `super::*`.
            _ => break,
        }
        at += 1;
        if !is_separator(tokens, at) {
            break;
        }
        at += 2;
    }
    path.pop_if(|name| name == "self" && !prefix.is_empty());
    let mut alias = path.last().cloned();
    if tokens.get(at).is_some_and(|token| token.to_string() == "as") {
        alias = tokens.get(at + 1).map(ToString::to_string);
    }
    paths.push((path, alias));
    at
}

/// Whether there is `::` at an index.
fn is_separator(tokens: &[TokenTree], at: usize) -> bool {
    let is_colon = |token: &TokenTree| matches!(token, TokenTree::Punct(sign) if sign.as_char() == ':');
    tokens.len() > at + 1 && tokens[at..at + 2].iter().all(is_colon)
}

fn is_braces(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace)
}
