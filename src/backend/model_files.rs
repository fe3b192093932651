//! The files of a model, wherever they are.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device};
use candle_nn::VarBuilder;

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
/// Pickled weights, which run code when they are read.
const PICKLES: [&str; 2] = ["diffusion_pytorch_model.bin", "pytorch_model.bin"];

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

    fn exists(&self, name: &str) -> bool {
        match self {
            Self::Embedded(files) => files.iter().any(|(path, _)| *path == name),
            Self::Directory { .. } => self.path(name).is_file(),
        }
    }

    /// The safetensors file of a part such as `unet`, with its path, which is read tensor by tensor as it is asked for them.
    ///
    /// # Errors
    /// When there is none, or it is cut short.
    pub fn weights(&self, part: &str, dtype: DType, device: &Device) -> Result<(PathBuf, VarBuilder<'static>), LoadError> {
        let find = |names: &[&str]| names.iter().map(|name| format!("{part}/{name}")).find(|name| self.exists(name));
        let Some(name) = find(&WEIGHTS) else {
            return Err(match find(&PICKLES) {
                Some(pickle) => LoadError::BadConfig {
                    path: self.path(&pickle),
                    reason: "pickled weights are not read, since reading them runs code; convert them to safetensors".to_owned(),
                },
                None => LoadError::MissingFile(self.path(&format!("{part}/{}", WEIGHTS[0]))),
            });
        };
        let path = self.path(&name);
        let vb = match self {
            Self::Embedded(_) => {
                let Cow::Borrowed(bytes) = self.read(&name)? else { return Err(LoadError::MissingFile(path)) };
                weights::from_slice(bytes, dtype, device)
            }
            Self::Directory { .. } => weights::from_file(&path, dtype, device),
        };
        match vb {
            Ok(vb) => Ok((path, vb)),
            Err(source) => Err(LoadError::BadWeights { path, source }),
        }
    }
}
