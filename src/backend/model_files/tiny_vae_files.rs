//! The files of a tiny autoencoder: a directory in diffusers' layout, or a file in diffusers' names or in those in which TAESD publishes its
//! decoder.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Device};
use serde_json::{Value, json};

use super::{
    ModelFiles, NO_PICKLES, PartWeights, is_pickle,
    tensor_files::{Locate, TensorFiles},
};
use crate::{backend::LoadError, common::ModelFamily};

/// A tiny autoencoder, as files.
#[derive(Debug)]
pub(in crate::backend) struct TinyVaeFiles {
    path: PathBuf,
    files: Arc<TensorFiles>,
    names: Names,
    /// `config.json` and where it is, if there is one.
    config: Option<(PathBuf, Vec<u8>)>,
}

/// The naming of the tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    Diffusers,
    /// The decoder alone, with the number of each layer and nothing before it. Latents are bent by a layer of its own, number 0.
    Numbered,
}

/// How the names of the decoder's layers begin in diffusers.
const LAYERS: &str = "decoder.layers.";
/// More layers than any decoder has.
const MAX_LAYERS: usize = 256;

impl TinyVaeFiles {
    /// Opens a directory or a file, for a model of this family.
    ///
    /// # Errors
    /// When there is none, or it is no such autoencoder.
    pub(in crate::backend) fn open(path: &Path, family: ModelFamily) -> Result<Self, LoadError> {
        if path.is_dir() {
            let decoder = path.join(published_name(family));
            // The published folders have both.
            return if path.join("config.json").is_file() || !decoder.is_file() {
                Self::of_directory(path)
            } else {
                Self::of_file(&decoder)
            };
        }
        if !path.is_file() {
            return Err(LoadError::NotFound(format!("there is no tiny VAE {}: a directory or a .safetensors file", path.display())));
        }
        Self::of_file(path)
    }

    fn of_directory(path: &Path) -> Result<Self, LoadError> {
        const PART: &str = "vae";
        let (directory, name) = (ModelFiles::of_part(path), format!("{PART}/config.json"));
        let config = directory.read(&name)?.into_owned();
        let class = directory.class_name(&name)?;
        if class != "AutoencoderTiny" {
            let reason = format!("its _class_name is \"{class}\", and should be AutoencoderTiny");
            return Err(LoadError::BadConfig { path: directory.path(&name), reason });
        }
        let (path, files) = directory.part_files(PART)?;
        Ok(Self { path, files, names: Names::Diffusers, config: Some((directory.path(&name), config)) })
    }

    fn of_file(path: &Path) -> Result<Self, LoadError> {
        let bad = |reason: String| LoadError::BadConfig { path: path.to_owned(), reason };
        if is_pickle(path) {
            return Err(bad(NO_PICKLES.to_owned()));
        }
        let files = TensorFiles::open(&[path.to_owned()]).map_err(|(path, source)| LoadError::BadWeights { path, source })?;
        let has = |name: &str| files.shape(name).is_some();
        let names = if has(&format!("{LAYERS}0.weight")) {
            Names::Diffusers
        } else if has("1.weight") {
            Names::Numbered
        } else if has("0.weight") {
            return Err(bad("this is the encoder of a tiny autoencoder; its decoder is needed".to_owned()));
        } else {
            let mut first: Vec<String> = files.names().collect();
            first.sort();
            first.truncate(3);
            return Err(bad(format!("this is no tiny autoencoder that is known here: its tensors are {}, …", first.join(", "))));
        };
        Ok(Self { path: path.to_owned(), files, names, config: None })
    }

    /// The file that says how the network is built.
    pub(in crate::backend) fn config_path(&self) -> &Path {
        self.config.as_ref().map_or(&self.path, |(path, _)| path)
    }

    /// `config.json`. A file alone has none: it follows from the tensors.
    pub(in crate::backend) fn config(&self) -> Vec<u8> {
        match &self.config {
            Some((_, config)) => config.clone(),
            None => self.made_config().to_string().into_bytes(),
        }
    }

    fn made_config(&self) -> Value {
        let side = |name: &str, dim: usize| self.shape(name).and_then(|shape| shape.get(dim).copied());
        let has = |name: String| self.shape(&name).is_some();
        // After the first convolution and its activation.
        let (mut blocks, mut next) = (vec![0], 2);
        while next < MAX_LAYERS {
            if has(format!("{next}.conv.0.weight")) {
                if let Some(blocks) = blocks.last_mut() {
                    *blocks += 1;
                }
                next += 1;
            } else if !has(format!("{next}.weight")) && has(format!("{}.weight", next + 1)) {
                // An enlargement has a number and no tensors.
                blocks.push(0);
                next += 2;
            } else {
                break;
            }
        }
        let channels = side("0.weight", 0).unwrap_or_default();
        json!({
            "out_channels": side(&format!("{next}.weight"), 0),
            "decoder_block_out_channels": vec![channels; blocks.len()],
            "num_decoder_blocks": blocks,
            "latent_channels": side("0.weight", 1),
        })
    }

    /// The weights.
    pub(in crate::backend) fn weights(&self, dtype: DType, device: &Device) -> PartWeights {
        let locate = self.locate();
        let vb = self.files.reader(dtype, device, Arc::clone(&locate));
        // Pictures to begin with go through the model's own encoder.
        let needless = vec!["encoder.".to_owned()];
        PartWeights { path: self.path.clone(), vb, files: Arc::clone(&self.files), locate, owner: "its configuration", needless }
    }

    fn locate(&self) -> Locate {
        match self.names {
            Names::Diffusers => Arc::new(|name| name.to_owned().into()),
            Names::Numbered => Arc::new(|name| numbered(name).into()),
        }
    }

    /// The shape of a tensor of the decoder's layers by its name in diffusers, without what all of them begin with.
    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.files.shape(&self.locate()(&format!("{LAYERS}{name}")).name)
    }
}

/// The name of the published file of the decoder for a family. Their latents differ.
fn published_name(family: ModelFamily) -> &'static str {
    match family {
        ModelFamily::Sd1 | ModelFamily::Sd2 => "taesd_decoder.safetensors",
        ModelFamily::Sdxl => "taesdxl_decoder.safetensors",
    }
}

/// The published name of a tensor, by its name in diffusers: all layers have a number more.
fn numbered(name: &str) -> String {
    let layer = name.strip_prefix(LAYERS).and_then(|name| name.split_once('.'));
    let layer = layer.and_then(|(number, rest)| Some((number.parse::<usize>().ok()?, rest)));
    layer.map_or_else(|| name.to_owned(), |(number, rest)| format!("{}.{rest}", number + 1))
}
