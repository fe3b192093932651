//! The files of a model, whatever their layout and wherever they are.

mod architectures;
mod checkpoint;
mod clip_vocabulary;
mod control_files;
mod hub;
pub(super) mod ldm_names;
mod part_file;
mod part_weights;
mod survey;
mod tensor_files;
mod textual_inversion;
mod tiny_vae_files;
mod upscaler_files;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Device};
use serde::{Deserialize, de::DeserializeOwned};

pub(super) use self::control_files::{ControlFiles, ControlNetworkKind};
pub(super) use self::tensor_files::TensorFiles;
pub(super) use self::textual_inversion::LearnedVectors;
use self::textual_inversion::TextualInversion;
pub(super) use self::tiny_vae_files::TinyVaeFiles;
pub(super) use self::upscaler_files::UpscalerFile;
use self::{checkpoint::Checkpoint, part_file::PartFile, tensor_files::Locate};
pub use self::{part_weights::PartWeights, tensor_files::dequantized};
use crate::{backend::LoadError, common::read_regular};

/// A model, presented in the layout of diffusers' `save_pretrained` whatever its own is.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    id: String,
    source: Source,
    /// Sources of parts that come from elsewhere, by the part's folder in diffusers' layout.
    elsewhere: BTreeMap<&'static str, Source>,
    embeddings: Vec<TextualInversion>,
}

/// Where a model, or one part of it, comes from.
#[derive(Debug, Clone)]
enum Source {
    /// In this binary.
    #[cfg_attr(not(feature = "builtin-model"), allow(dead_code, reason = "there is none to embed"))]
    Embedded(&'static [(&'static str, &'static [u8])]),
    Directory(PathBuf),
    Checkpoint(Arc<Checkpoint>),
    /// A part's own directory.
    PartDirectory(PathBuf),
    /// A part's weights, without a configuration.
    PartFile(Arc<PartFile>),
}

/// File names of weights, in the order of the search.
pub(super) const WEIGHTS: [&str; 4] =
    ["diffusion_pytorch_model.safetensors", "model.safetensors", "diffusion_pytorch_model.fp16.safetensors", "model.fp16.safetensors"];
/// File names of the indexes of weights in several files, searched next.
pub(super) const INDEXES: [&str; 4] = [
    "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors.index.fp16.json",
    "model.safetensors.index.fp16.json",
];
/// File names of pickled weights, which run code when they are read.
const PICKLES: [&str; 4] =
    ["diffusion_pytorch_model.bin", "pytorch_model.bin", "diffusion_pytorch_model.fp16.bin", "pytorch_model.fp16.bin"];
/// Extensions of pickled checkpoints.
const PICKLE_ENDINGS: [&str; 4] = ["ckpt", "pt", "pth", "bin"];
/// The largest configuration or vocabulary: CLIP's has 4 MB.
const MAX_TEXT_BYTES: u64 = 64 << 20;
/// The text encoder that gives the pooled text.
pub(super) const POOLING: &str = "text_encoder_2";
pub(super) const NO_PICKLES: &str = "pickled weights are not read, since reading them runs code; convert them to safetensors";

impl ModelFiles {
    /// `builtin`, a directory, a checkpoint in one file, or the name of a repository on the Hugging Face Hub, which is downloaded.
    ///
    /// # Errors
    /// When there is no such model, or its family is not supported.
    pub fn open(model: &str) -> Result<Self, LoadError> {
        Self::open_at(model, None, &[])
    }

    /// The same with a revision of the repository: a branch, a tag, or a commit. Parts that will come from `elsewhere` may have weights in
    /// the repository that this worker cannot read.
    ///
    /// # Errors
    /// As [`ModelFiles::open`], and when there is a revision and the model is no repository.
    pub fn open_at(model: &str, revision: Option<&str>, elsewhere: &[&str]) -> Result<Self, LoadError> {
        if hub::is_repository(model) {
            return Ok(Self::new(model.to_owned(), Source::Directory(hub::fetch(model, revision, elsewhere)?)));
        }
        if let Some(revision) = revision {
            let help = "give no --revision with it, or a repository such as owner/name";
            return Err(LoadError::NotFound(format!("{model} is no repository, and has no revision {revision}: {help}")));
        }
        if model == "builtin" {
            #[cfg(feature = "builtin-model")]
            return Ok(Self::new(model.to_owned(), Source::Embedded(crate::builtin_model::FILES)));
            #[cfg(not(feature = "builtin-model"))]
            return Err(LoadError::NotFound("this binary has no built-in model; give a directory with --model".to_owned()));
        }
        let path = PathBuf::from(model);
        if path.join("model_index.json").is_file() {
            Ok(Self::new(name_of(&path), Source::Directory(path)))
        } else if path.is_dir() {
            Err(LoadError::MissingFile(path.join("model_index.json")))
        } else if path.is_file() && is_pickle(&path) {
            Err(LoadError::BadConfig { path, reason: NO_PICKLES.to_owned() })
        } else if path.is_file() {
            Ok(Self::new(name_of(&path), Source::Checkpoint(Arc::new(Checkpoint::open(&path)?))))
        } else {
            let help = "--model takes \"builtin\", a directory in the layout of diffusers, a .safetensors file, or a repository such as owner/name \
                        where there is no directory owner";
            Err(LoadError::NotFound(format!("there is no model {model}: {help}")))
        }
    }

    fn new(id: String, source: Source) -> Self {
        Self { id, source, elsewhere: BTreeMap::new(), embeddings: Vec::new() }
    }

    /// A part's own directory, by itself.
    pub(super) fn of_part(directory: &Path) -> Self {
        Self::new(name_of(directory), Source::PartDirectory(directory.to_owned()))
    }

    /// The same model under another name.
    #[must_use]
    pub fn with_id(self, id: &str) -> Self {
        Self { id: id.to_owned(), ..self }
    }

    /// The same model with one part (`vae`, `text_encoder`, `text_encoder_2`) from elsewhere: a directory of the part or of a whole
    /// model, or a safetensors file.
    ///
    /// # Errors
    /// When there is none.
    pub fn with_part(mut self, part: &'static str, path: &Path) -> Result<Self, LoadError> {
        let source = if path.join("config.json").is_file() {
            Source::PartDirectory(path.to_owned())
        } else if path.is_dir() {
            Source::Directory(path.to_owned())
        } else if is_pickle(path) {
            return Err(LoadError::BadConfig { path: path.to_owned(), reason: NO_PICKLES.to_owned() });
        } else if path.is_file() {
            Source::PartFile(Arc::new(PartFile::open(part, path)?))
        } else {
            return Err(LoadError::NotFound(format!(
                "there is no {} {}: a directory or a .safetensors file",
                part_name(part),
                path.display()
            )));
        };
        self.elsewhere.insert(part, source);
        Ok(self)
    }

    /// The same model with the learned words of a folder.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn with_embeddings(mut self, folder: &Path) -> Result<Self, LoadError> {
        self.embeddings = textual_inversion::read_folder(folder)?;
        Ok(self)
    }

    /// # Errors
    /// When a checkpoint in one file lacks parts that come from nowhere else. Names them, and the options that give them.
    pub(super) fn check_parts(&self) -> Result<(), LoadError> {
        let Source::Checkpoint(checkpoint) = &self.source else { return Ok(()) };
        let missing: Vec<&str> = checkpoint.missing().filter(|part| !self.is_elsewhere(part)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = missing.iter().map(|part| part_name(part)).collect();
        let options: Vec<String> = missing.iter().map(|part| format!("--{}", part.replace('_', "-"))).collect();
        let them = if missing.len() == 1 { "one" } else { "them" };
        let reason = format!("this checkpoint has no {}; give {them} with {}", names.join(" and no "), options.join(" and "));
        Err(LoadError::BadConfig { path: checkpoint.path().to_owned(), reason })
    }

    /// Whether a part comes from elsewhere.
    pub(super) fn is_elsewhere(&self, part: &str) -> bool {
        self.elsewhere.contains_key(part)
    }

    /// Networks in the binary that enlarge the model's pictures.
    pub(super) fn upscalers(&self) -> &'static [(&'static str, &'static [u8])] {
        #[cfg(feature = "builtin-model")]
        let embedded = crate::builtin_model::UPSCALERS;
        #[cfg(not(feature = "builtin-model"))]
        let embedded = &[];
        if matches!(self.source, Source::Embedded(_)) { embedded } else { &[] }
    }

    /// The learned words.
    pub(super) fn embeddings(&self) -> &[TextualInversion] {
        &self.embeddings
    }

    /// The name of the model.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where a file is, for messages.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        match self.source_of(name) {
            Source::Embedded(_) => Path::new("builtin").join(name),
            Source::Directory(path) => path.join(name),
            Source::PartDirectory(path) => path.join(name.split_once('/').map_or(name, |(_, name)| name)),
            Source::Checkpoint(checkpoint) => checkpoint.path().to_owned(),
            Source::PartFile(file) => file.path().to_owned(),
        }
    }

    /// The name of a checkpoint in one file, without its ending.
    pub(super) fn checkpoint_name(&self) -> Option<&str> {
        if let Source::Checkpoint(checkpoint) = &self.source { checkpoint.path().file_stem()?.to_str() } else { None }
    }

    /// The contents of a file.
    ///
    /// # Errors
    /// When it is missing or cannot be read.
    pub fn read(&self, name: &str) -> Result<Cow<'static, [u8]>, LoadError> {
        self.find(name)?.ok_or_else(|| LoadError::MissingFile(self.path(name)))
    }

    /// A file of JSON, deserialized.
    ///
    /// # Errors
    /// As [`ModelFiles::read`], and when the file does not fit the type. Names the field.
    pub(super) fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T, LoadError> {
        let json = self.read(name)?;
        let found = serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_slice(&json));
        found.map_err(|error| LoadError::BadConfig { path: self.path(name), reason: error.to_string() })
    }

    /// The class of a part's configuration.
    fn class_name(&self, name: &str) -> Result<String, LoadError> {
        self.json(name).map(|ClassName { class_name }| class_name)
    }

    /// Whether there is such a file.
    pub(super) fn exists(&self, name: &str) -> bool {
        match self.source_of(name) {
            Source::Directory(_) | Source::PartDirectory(_) => self.path(name).is_file(),
            _ => self.find(name).is_ok_and(|found| found.is_some()),
        }
    }

    fn source_of(&self, name: &str) -> &Source {
        let part = name.split('/').next().unwrap_or_default();
        self.elsewhere.get(part).unwrap_or(&self.source)
    }

    fn find(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>, LoadError> {
        Ok(match self.source_of(name) {
            Source::Embedded(files) => files.iter().find(|(path, _)| *path == name).map(|(_, bytes)| Cow::Borrowed(*bytes)),
            Source::Checkpoint(checkpoint) => checkpoint.read(name).map(Cow::Owned),
            Source::PartFile(file) => match (name.split_once('/'), &self.source) {
                (Some((part, "config.json")), Source::Checkpoint(own)) => own.read(name).map(|own| Cow::Owned(file.config(part, &own))),
                (Some((part, "config.json")), own) => {
                    let own = Self::new(String::new(), own.clone()).find(name)?;
                    own.map(|own| Cow::Owned(file.config(part, &own)))
                }
                _ => None,
            },
            Source::Directory(_) | Source::PartDirectory(_) => {
                let path = self.path(name);
                match read_regular(&path, MAX_TEXT_BYTES) {
                    Ok(bytes) => Some(Cow::Owned(bytes)),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                    Err(source) => return Err(LoadError::Unreadable { path, source }),
                }
            }
        })
    }

    /// The weights of a part such as `unet`, in one file or several.
    ///
    /// # Errors
    /// When there are none, or a file is cut short.
    pub fn weights(&self, part: &str, dtype: DType, device: &Device) -> Result<PartWeights, LoadError> {
        let (path, files, locate, needless): (_, _, Locate, _) = match self.source_of(part) {
            Source::Checkpoint(it) => {
                (it.path().to_owned(), Arc::clone(it.files()), it.locate(part), it.needless(self.elsewhere.keys().copied()))
            }
            Source::PartFile(it) => (it.path().to_owned(), Arc::clone(it.files()), it.locate(), it.needless(part)),
            _ => {
                let (path, files) = self.part_files(part)?;
                (path, files, Arc::new(|name| name.to_owned().into()), Vec::new())
            }
        };
        let owner = match &self.source {
            Source::Checkpoint(checkpoint) => checkpoint.variant(),
            _ => "its configuration",
        };
        let vb = files.reader(dtype, device, Arc::clone(&locate));
        Ok(PartWeights { path, vb, files, locate, owner, needless })
    }

    /// The file or the files of a part's directory.
    fn part_files(&self, part: &str) -> Result<(PathBuf, Arc<TensorFiles>), LoadError> {
        let find = |names: &[&str]| names.iter().map(|name| format!("{part}/{name}")).find(|name| self.exists(name));
        let Some(name) = find(&WEIGHTS).or_else(|| find(&INDEXES)) else {
            return Err(match find(&PICKLES) {
                Some(pickle) => LoadError::BadConfig { path: self.path(&pickle), reason: NO_PICKLES.to_owned() },
                None => LoadError::MissingFile(self.path(&format!("{part}/{}", WEIGHTS[0]))),
            });
        };
        let path = self.path(&name);
        let files = if let Source::Embedded(_) = self.source_of(part) {
            let Cow::Borrowed(bytes) = self.read(&name)? else { return Err(LoadError::MissingFile(path)) };
            TensorFiles::from_slice(bytes).map_err(|source| (path.clone(), source))
        } else {
            let is_list = INDEXES.iter().any(|index| name.ends_with(index));
            TensorFiles::open(&if is_list { self.shards(part, &name)? } else { vec![path.clone()] })
        };
        Ok((path, files.map_err(|(path, source)| LoadError::BadWeights { path, source })?))
    }

    /// The files that an index names.
    fn shards(&self, part: &str, index: &str) -> Result<Vec<PathBuf>, LoadError> {
        let bad = |reason: String| LoadError::BadConfig { path: self.path(index), reason };
        let ShardIndex { weight_map } = self.json(index)?;
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

/// The default name of a model: the last part of its path, without the extension of a file. Links are not resolved: in the hub's cache,
/// they have the names, and the files are named by their hashes.
fn name_of(path: &Path) -> String {
    let end =
        |path: &Path| if path.is_file() { path.file_stem() } else { path.file_name() }.map(|name| name.to_string_lossy().into_owned());
    // A path such as `..` has no last part.
    end(path).or_else(|| end(&path.canonicalize().ok()?)).unwrap_or_else(|| "model".to_owned())
}

/// Whether a file is pickled, by its name.
pub(super) fn is_pickle(path: &Path) -> bool {
    path.extension().is_some_and(|end| PICKLE_ENDINGS.iter().any(|pickle| end.eq_ignore_ascii_case(pickle)))
}

/// A part's name, for messages.
fn part_name(part: &str) -> &str {
    match part {
        "vae" => "VAE",
        "text_encoder" => "text encoder",
        _ => "second text encoder",
    }
}

#[derive(Deserialize)]
struct ClassName {
    #[serde(default, rename = "_class_name")]
    class_name: String,
}

/// `….safetensors.index.json`
#[derive(Deserialize)]
struct ShardIndex {
    /// The file of each tensor.
    weight_map: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use std::{env, fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn a_model_is_called_as_its_path_is() {
        let folder = tempfile::tempdir().unwrap();
        let (blob, link, directory) = (folder.path().join("3f0c9a"), folder.path().join("v1.5.safetensors"), folder.path().join("sd-v1.5"));
        fs::write(&blob, "").unwrap();
        fs::create_dir(&directory).unwrap();
        symlink(&blob, &link).unwrap();
        assert_eq!([link, directory.join("."), directory.join("../sd-v1.5/")].map(|path| name_of(&path)), ["v1.5", "sd-v1.5", "sd-v1.5"]);
        assert_eq!(name_of(&directory.join("..")), name_of(folder.path()));
        assert_eq!(name_of(Path::new(".")), env::current_dir().unwrap().file_name().unwrap().to_string_lossy());
        assert_eq!(name_of(Path::new("/")), "model");
    }
}
