//! The order of the sources: which room may use which, which crates belong to which room, and no circles.

mod scan;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use scan::{Crate, Names, Target, files, module};

/// Rooms from the top down, with the rooms that each may use.
const ROOMS: [(&str, &[&str]); 10] = [
    ("main", &["backend", "builtin_model", "cli", "common", "device", "http", "models", "ops", "schedulers"]),
    ("cli", &["backend", "builtin_model", "common", "device", "http", "models", "ops", "schedulers"]),
    ("http", &["backend", "common"]),
    ("backend", &["builtin_model", "common", "device", "models", "ops", "schedulers"]),
    ("builtin_model", &[]),
    ("models", &["ops"]),
    ("schedulers", &["common"]),
    ("device", &["common"]),
    ("ops", &[]),
    ("common", &[]),
];

/// Crates, or parts of them, that only these rooms may use.
const OUTSIDE: [(&str, &[&str]); 13] = [
    ("axum", &["http"]),
    ("candle_core", &["backend", "models", "ops", "device"]),
    ("candle_flash_attn", &["ops"]),
    ("candle_nn", &["backend", "models", "ops"]),
    ("clap", &["cli"]),
    ("http_body", &["http"]),
    ("hyper", &["http"]),
    ("hyper_util", &["http"]),
    ("tokio::runtime", &["main", "http"]),
    ("tower", &["http"]),
    ("tower_http", &["http"]),
    ("utoipa", &["http"]),
    ("utoipa_axum", &["http"]),
];

/// The whole crate, without its tests.
fn sources() -> Crate {
    let files = files(Path::new("src")).into_iter().filter(|file| !file.iter().any(|name| name == "tests" || name == "tests.rs"));
    Crate::new(files.map(|file| (module(&file), fs::read_to_string(&file).unwrap())))
}

#[test]
fn imports_point_down() {
    let (sources, mut seen) = (sources(), 0);
    for reference in &sources.references {
        let Target::Module(target) = sources.target(&reference.from, &reference.path) else { continue };
        let (Some(from), Some(to)) = (reference.from.first(), target.first()) else { continue };
        let (_, allowed) = ROOMS.iter().find(|(room, _)| room == from).unwrap();
        assert!(from == to || allowed.contains(&to.as_str()), "{} uses {}", reference.from.join("::"), reference.path.join("::"));
        seen += usize::from(from != to);
    }
    assert!(seen > 300, "only {seen} uses of another room were found: does the scanner still read them?");
}

#[test]
fn crates_stay_in_their_rooms() {
    let (sources, mut seen) = (sources(), BTreeSet::new());
    for reference in &sources.references {
        let Target::Elsewhere(path) = sources.target(&reference.from, &reference.path) else { continue };
        let path = path.join("::");
        let is_in = |part: &str| path.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
        for (part, rooms) in OUTSIDE.iter().filter(|(part, _)| is_in(part)) {
            assert!(rooms.contains(&reference.from[0].as_str()), "{} uses {path}", reference.from.join("::"));
            seen.insert(part);
        }
    }
    let unseen: Vec<_> = OUTSIDE.iter().map(|(part, _)| part).filter(|part| !seen.contains(part)).collect();
    assert!(unseen.is_empty(), "nobody uses {unseen:?}: does the scanner still read them?");
}

/// The top modules of each room, with the modules of the same room that each uses. A room's own file counts as a module for what it
/// defines, but not for what it re-exports.
fn uses_inside_rooms() -> BTreeMap<String, BTreeSet<String>> {
    let sources = sources();
    let top = |path: &Names| path[..path.len().min(2)].join("::");
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for reference in &sources.references {
        let Target::Module(target) = sources.target(&reference.from, &reference.path) else { continue };
        // Naming a module uses nothing of it yet.
        let names_module = reference.path.last() == target.last();
        let (from, to) = (top(&reference.from), top(&target));
        if !names_module && from != to && reference.from.first() == target.first() {
            uses.entry(from).or_default().insert(to);
        }
    }
    uses
}

#[test]
fn modules_of_a_room_use_each_other_in_no_circle() {
    let mut uses = uses_inside_rooms();
    assert!(uses.values().map(BTreeSet::len).sum::<usize>() > 200, "few uses were found: does the scanner still read them?");
    // A module that uses nothing of the rest, or that nothing of the rest uses, is in no circle.
    loop {
        let (users, used): (BTreeSet<String>, BTreeSet<String>) =
            (uses.keys().cloned().collect(), uses.values().flatten().cloned().collect());
        uses.retain(|user, others| {
            others.retain(|other| users.contains(other));
            !others.is_empty() && used.contains(user)
        });
        if uses.len() == users.len() {
            break;
        }
    }
    assert!(uses.is_empty(), "these use each other in a circle: {uses:#?}");
}

#[test]
fn every_room_is_known() {
    let entries = fs::read_dir("src").unwrap().map(|entry| entry.unwrap().path());
    let rooms: BTreeSet<String> = entries
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .filter(|room| !["lib", "README"].contains(&room.as_str()))
        .collect();
    assert_eq!(rooms, ROOMS.iter().map(|(room, _)| (*room).to_owned()).collect());
}

#[test]
fn a_module_with_children_is_a_file_beside_their_folder() {
    for file in files(Path::new("src")).into_iter().chain(files(Path::new("tests"))) {
        assert!(!file.ends_with("mod.rs"), "{} should have the name of its folder", file.display());
    }
}

#[test]
fn files_stay_small() {
    for file in files(Path::new("src")).into_iter().chain(files(Path::new("tests"))) {
        let lines = fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines <= 450, "{} has {lines} lines", file.display());
    }
}

#[test]
fn the_queue_is_a_sender_and_nothing_else() {
    let queue = fs::read_to_string("src/backend/request_queue.rs").unwrap();
    let fields = queue.split("pub struct RequestQueue {").nth(1).unwrap().split('}').next().unwrap();
    assert_eq!(fields.trim(), "sender: UnboundedSender<GenerationRequest>,");
}

#[test]
fn the_scanner_follows_paths_to_where_they_lead() {
    let texts = [
        ("http", "mod a; mod b; pub use a::One; use std::fmt;"),
        (
            "http::a",
            "use super::b::{self, Two, three as four}; use crate::{common::{self, X}, ops}; fn f() { common::Y; b::Three; four(); fmt::Debug }",
        ),
        (
            "http::b",
            "use super::One; pub use axum::Router; mod inside { use super::super::a; fn f(x: crate::models::M) {} } #[cfg(test)] mod tests { use clap::Parser; }",
        ),
        ("common", "pub(in crate::common) struct X; // crate::http::One\n const TEXT: &str = \"crate::http::Two\";"),
        ("main", "fn main() { sd_worker::http::b::Router::new(); }"),
    ];
    let names = |path: &str| path.split("::").map(str::to_owned).collect::<Names>();
    let sources = Crate::new(texts.map(|(module, text)| (names(module), text.to_owned())));
    let mut seen: Vec<(String, String)> = Vec::new();
    for reference in &sources.references {
        let target = match sources.target(&reference.from, &reference.path) {
            Target::Module(target) => target.join("::"),
            Target::Elsewhere(path) => format!("[{}]", path.join("::")),
        };
        seen.push((format!("{}: {}", reference.from.join("::"), reference.path.join("::")), target));
    }
    let expected = [
        ("http: a::One", "http::a"),
        ("http: std::fmt", "[std::fmt]"),
        ("http::a: super::b", "http::b"),
        ("http::a: super::b::Two", "http::b"),
        ("http::a: super::b::three", "http::b"),
        ("http::a: crate::common", "common"),
        ("http::a: crate::common::X", "common"),
        ("http::a: crate::ops", ""),
        ("http::a: common::Y", "common"),
        ("http::a: b::Three", "http::b"),
        ("http::a: fmt::Debug", "[fmt::Debug]"),
        ("http::b: super::One", "http::a"),
        ("http::b: axum::Router", "[axum::Router]"),
        ("http::b::inside: super::super::a", "http::a"),
        ("http::b::inside: crate::models::M", ""),
        ("main: sd_worker::http::b::Router::new", "[axum::Router::new]"),
    ];
    let seen: Vec<(&str, &str)> = seen.iter().map(|(reference, target)| (reference.as_str(), target.as_str())).collect();
    assert_eq!(seen, expected);
}
