//! The files of a model, wherever they are.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use serde::Deserialize;

use super::{LoadError, hub, weights};

/// A model in the layout of diffusers' `save_pretrained`.
#[derive(Debug, Clone)]
pub enum ModelFiles {
    /// Embedded in this binary.
    Embedded(&'static [(&'static str, &'static [u8])]),
    /// A directory.
    Directory {
        /// Where it is.
        path: PathBuf,
        /// What the model is called.
        id: String,
    },
}

/// Names under which weights are looked for, in this order.
pub(super) const WEIGHTS: [&str; 4] =
    ["diffusion_pytorch_model.safetensors", "model.safetensors", "diffusion_pytorch_model.fp16.safetensors", "model.fp16.safetensors"];
/// Names of the lists of files that weights are spread over, looked for next.
pub(super) const INDEXES: [&str; 4] = [
    "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors.index.fp16.json",
    "model.safetensors.index.fp16.json",
];
/// Pickled weights, which run code when they are read.
const PICKLES: [&str; 4] =
    ["diffusion_pytorch_model.bin", "pytorch_model.bin", "diffusion_pytorch_model.fp16.bin", "pytorch_model.fp16.bin"];
/// How the names of pickled checkpoints end.
const PICKLE_ENDINGS: [&str; 4] = ["ckpt", "pt", "pth", "bin"];
const NO_PICKLES: &str = "pickled weights are not read, since reading them runs code; convert them to safetensors";

impl ModelFiles {
    /// `builtin`, a directory, or the name of a repository on the Hugging Face Hub, which is downloaded.
    ///
    /// # Errors
    /// When there is no such model.
    pub fn open(model: &str) -> Result<Self, LoadError> {
        if model == "builtin" {
            #[cfg(feature = "builtin-model")]
            return Ok(Self::Embedded(crate::builtin_model::FILES));
            #[cfg(not(feature = "builtin-model"))]
            return Err(LoadError::NotFound("this binary has no built-in model; give a directory with --model".to_owned()));
        }
        if hub::is_repository(model) {
            return Ok(Self::Directory { path: hub::fetch(model)?, id: model.to_owned() });
        }
        let path = PathBuf::from(model);
        if path.join("model_index.json").is_file() {
            let whole = path.canonicalize().unwrap_or_else(|_| path.clone());
            let id = whole.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
            Ok(Self::Directory { path, id })
        } else if path.is_dir() {
            Err(LoadError::MissingFile(path.join("model_index.json")))
        } else if path.extension().is_some_and(|end| PICKLE_ENDINGS.iter().any(|pickle| end.eq_ignore_ascii_case(pickle))) {
            Err(LoadError::BadConfig { path, reason: NO_PICKLES.to_owned() })
        } else if path.is_file() {
            let reason = "checkpoints in one file are not supported yet; convert it to the layout of diffusers".to_owned();
            Err(LoadError::BadConfig { path, reason })
        } else {
            let help = "--model takes \"builtin\", a directory in the layout of diffusers, or a repository such as owner/name";
            Err(LoadError::NotFound(format!("there is no model {model}: {help}")))
        }
    }

    /// The name of the model.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Embedded(_) => "builtin",
            Self::Directory { id, .. } => id,
        }
    }

    /// Where a file is, for messages.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        match self {
            Self::Embedded(_) => Path::new("builtin").join(name),
            Self::Directory { path, .. } => path.join(name),
        }
    }

    /// The contents of a file.
    ///
    /// # Errors
    /// When it is missing or cannot be read.
    pub fn read(&self, name: &str) -> Result<Cow<'static, [u8]>, LoadError> {
        match self {
            Self::Embedded(files) => {
                let file = files.iter().find(|(path, _)| *path == name);
                file.map(|(_, bytes)| Cow::Borrowed(*bytes)).ok_or_else(|| LoadError::MissingFile(self.path(name)))
            }
            Self::Directory { .. } => {
                let path = self.path(name);
                match std::fs::read(&path) {
                    Ok(bytes) => Ok(Cow::Owned(bytes)),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(LoadError::MissingFile(path)),
                    Err(source) => Err(LoadError::Unreadable { path, source }),
                }
            }
        }
    }

    /// Whether there is such a file.
    pub(super) fn exists(&self, name: &str) -> bool {
        match self {
            Self::Embedded(files) => files.iter().any(|(path, _)| *path == name),
            Self::Directory { .. } => self.path(name).is_file(),
        }
    }

    /// The safetensors file of a part such as `unet`, or the list of several, with its path. Tensors are read one by one, as they are
    /// asked for.
    ///
    /// # Errors
    /// When there is none, or it is cut short.
    pub fn weights(&self, part: &str, dtype: DType, device: &Device) -> Result<(PathBuf, VarBuilder<'static>), LoadError> {
        let find = |names: &[&str]| names.iter().map(|name| format!("{part}/{name}")).find(|name| self.exists(name));
        let Some(name) = find(&WEIGHTS).or_else(|| find(&INDEXES)) else {
            return Err(match find(&PICKLES) {
                Some(pickle) => LoadError::BadConfig { path: self.path(&pickle), reason: NO_PICKLES.to_owned() },
                None => LoadError::MissingFile(self.path(&format!("{part}/{}", WEIGHTS[0]))),
            });
        };
        let path = self.path(&name);
        if let Self::Embedded(_) = self {
            let Cow::Borrowed(bytes) = self.read(&name)? else { return Err(LoadError::MissingFile(path)) };
            let vb = weights::from_slice(bytes, dtype, device);
            return vb.map(|vb| (path.clone(), vb)).map_err(|source| LoadError::BadWeights { path, source });
        }
        let paths = if INDEXES.iter().any(|index| name.ends_with(index)) { self.shards(part, &name)? } else { vec![path.clone()] };
        match weights::from_files(&paths, dtype, device) {
            Ok(vb) => Ok((path, vb)),
            Err((path, source)) => Err(LoadError::BadWeights { path, source }),
        }
    }

    /// The files that a list names.
    fn shards(&self, part: &str, index: &str) -> Result<Vec<PathBuf>, LoadError> {
        let bad = |reason: String| LoadError::BadConfig { path: self.path(index), reason };
        let ShardIndex { weight_map } = serde_json::from_slice(&self.read(index)?).map_err(|error| bad(error.to_string()))?;
        let names: BTreeSet<String> = weight_map.into_values().collect();
        let shard = |name: String| {
            if Path::new(&name).file_name() != Some(OsStr::new(&name)) {
                return Err(bad(format!("\"{name}\" is no name of a file beside it")));
            }
            let file = format!("{part}/{name}");
            if self.exists(&file) { Ok(self.path(&file)) } else { Err(LoadError::MissingFile(self.path(&file))) }
        };
        names.into_iter().map(shard).collect()
    }
}

/// `….safetensors.index.json`
#[derive(Deserialize)]
struct ShardIndex {
    /// Which file each tensor is in.
    weight_map: BTreeMap<String, String>,
}
