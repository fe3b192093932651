//! An adapter file as modules.

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::Error;

use super::{
    AdaptedNetwork, AdapterError, AdapterInfo, Module, info,
    key::{Part, TensorKey, underscored},
    module::Source,
    parts::{Layout, Parts, StoredPart, Wrong},
    peft_config::PeftConfig,
};
use crate::{backend::model_files::TensorFiles, common::open_regular};

/// How many names a message has at most.
const NAMES: usize = 3;
/// The longest header. One of 3000 tensors, with tags of thousands of pictures, has a megabyte.
const MAX_HEADER_BYTES: u64 = 8 << 20;

/// A file of adapters. Its header and the shapes in it are checked; values are read when modules are asked for them. The file stays open.
#[derive(Debug, Clone)]
pub struct AdapterFile {
    source: Arc<Source>,
    modules: Vec<Module>,
    unknown: Vec<String>,
    info: AdapterInfo,
}

/// The tensors of a module while they are collected.
#[derive(Debug, Default)]
struct Group {
    /// The shortest spelling of its name.
    layer: String,
    parts: Parts,
}

impl AdapterFile {
    /// Opens a `.safetensors` file and checks all of it but the values.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, has no adapter of a known kind, or has tensors whose shapes do not go together.
    pub fn open(path: &Path) -> Result<Self, AdapterError> {
        check_header(path)?;
        Self::new(path, TensorFiles::open(&[path.to_owned()]).map_err(|(path, error)| unopened(path, error))?)
    }

    /// As [`AdapterFile::open`], of a file in memory that messages call `path`.
    ///
    /// # Errors
    /// As [`AdapterFile::open`].
    pub(super) fn embedded(path: &Path, bytes: &'static [u8]) -> Result<Self, AdapterError> {
        Self::new(path, TensorFiles::from_slice(bytes).map_err(|error| unopened(path.to_owned(), error))?)
    }

    fn new(path: &Path, files: Arc<TensorFiles>) -> Result<Self, AdapterError> {
        let source = Arc::new(Source { path: path.to_owned(), files });
        let mut unknown = Vec::new();
        let groups = groups(&source, &mut unknown)?;
        let config = PeftConfig::read(&source.files);
        let mut modules = Vec::new();
        for ((network, _), group) in groups {
            match group.parts.layout(&group.layer).map_err(|wrong| wrong_tensor(&source, wrong))? {
                Some(layout) => modules.push(module(&source, &config, network, group, layout)?),
                None => unknown.extend(group.parts.names().map(str::to_owned)),
            }
        }
        unknown.sort();
        if modules.is_empty() {
            let names = unknown.iter().take(NAMES).cloned().collect::<Vec<_>>().join(", ");
            return Err(AdapterError::NoModules { path: path.to_owned(), count: unknown.len(), names });
        }
        let info = info::read(&source.files, &modules);
        Ok(Self { source, modules, unknown, info })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.source.path
    }

    /// What the file does to each layer, sorted by network and layer.
    #[must_use]
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// The names, sorted, of tensors of an unknown kind. They have no effect.
    #[must_use]
    pub fn unknown(&self) -> &[String] {
        &self.unknown
    }

    /// What the file says of itself.
    #[must_use]
    pub fn info(&self) -> &AdapterInfo {
        &self.info
    }
}

/// Refuses a header that takes seconds to parse, and gigabytes.
fn check_header(path: &Path) -> Result<(), AdapterError> {
    let unreadable = |source| AdapterError::Unreadable { path: path.to_owned(), source };
    let (mut start, (mut file, len)) = ([0; 8], open_regular(path).map_err(unreadable)?);
    // A file that is shorter is refused where it is parsed.
    let bytes = if file.read_exact(&mut start).is_ok() { u64::from_le_bytes(start) } else { 0 };
    if bytes > MAX_HEADER_BYTES && len >= bytes {
        return Err(AdapterError::LongHeader { path: path.to_owned(), bytes, most: MAX_HEADER_BYTES });
    }
    Ok(())
}

/// All tensors by module. Others are added to `unknown`.
fn groups(source: &Source, unknown: &mut Vec<String>) -> Result<BTreeMap<(AdaptedNetwork, String), Group>, AdapterError> {
    let mut names: Vec<String> = source.files.names().collect();
    names.sort();
    let mut groups: BTreeMap<(AdaptedNetwork, String), Group> = BTreeMap::new();
    for name in names {
        let Some(key) = TensorKey::parse(&name) else {
            if !is_scale(&source.files, &name) {
                unknown.push(name);
            }
            continue;
        };
        let group = groups.entry((key.network, underscored(key.layer))).or_default();
        if group.layer.is_empty() || key.layer.len() < group.layer.len() {
            key.layer.clone_into(&mut group.layer);
        }
        let shape = source.files.shape(&name).unwrap_or_default().to_vec();
        let part = key.part;
        if let Err(second) = group.parts.add(part, StoredPart { name, shape }) {
            let first = group.parts.get(part).map_or("another tensor", |first| &first.name);
            return Err(wrong_tensor(source, second.wrong(format!("is another spelling of {first}; a file should have one of them"))));
        }
    }
    Ok(groups)
}

fn module(
    source: &Arc<Source>,
    config: &PeftConfig,
    network: AdaptedNetwork,
    group: Group,
    layout: Layout,
) -> Result<Module, AdapterError> {
    let stored = group.parts.get(Part::Alpha).map(|alpha| source.files.scalar(&alpha.name));
    let stored = stored.transpose().map_err(|error| AdapterError::WrongValues { path: source.path.clone(), source: error.into() })?;
    let alpha = stored.or_else(|| config.alpha(network, &group.layer, layout.rank?));
    Module::new(Arc::clone(source), network, group.layer, layout, alpha, group.parts)
}

/// Whether a tensor has the factors of another one of 8 bits, with which that one is read.
fn is_scale(files: &TensorFiles, name: &str) -> bool {
    let after = name.strip_suffix("_scale").map(str::to_owned);
    let before = name.strip_suffix("scale_weight").map(|layer| format!("{layer}weight"));
    [after, before].into_iter().flatten().any(|tensor| files.shape(&tensor).is_some() && TensorKey::parse(&tensor).is_some())
}

fn wrong_tensor(source: &Source, Wrong { tensor, problem }: Wrong) -> AdapterError {
    AdapterError::WrongTensor { path: source.path.clone(), tensor, problem }
}

fn unopened(path: PathBuf, error: Error) -> AdapterError {
    match error {
        Error::Io(source) => AdapterError::Unreadable { path, source },
        source => AdapterError::Damaged { path, source: source.into() },
    }
}
