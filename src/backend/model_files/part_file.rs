//! The weights of one part of a model in a file of their own, in place of the model's.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Value, json};

use super::{
    architectures::{known_open_clip, known_vae},
    checkpoint::{locate_open_clip, locate_vae, unused_layer, vocab_size},
    tensor_files::{Locate, TensorFiles},
};
use crate::backend::{
    LoadError,
    families::{OPEN_CLIP, SGM_OPEN_CLIP, XL_OPEN_CLIP},
};

/// Prefixes of a VAE's tensors, in files of their own and in whole checkpoints.
const VAE_PREFIXES: [&str; 3] = ["", "first_stage_model.", "vae."];
/// Prefixes of text encoders with transformers' names, the first and SDXL's second,
const CLIP_PREFIXES: [&str; 4] =
    ["", "cond_stage_model.transformer.", "conditioner.embedders.0.transformer.", "text_encoders.clip_l.transformer."];
const CLIP_2_PREFIXES: [&str; 2] = ["", "text_encoders.clip_g.transformer."];
/// and with `OpenCLIP`'s.
const OPEN_CLIP_PREFIXES: [&str; 3] = ["", OPEN_CLIP, SGM_OPEN_CLIP];
const OPEN_CLIP_2_PREFIXES: [&str; 2] = ["", XL_OPEN_CLIP];

/// The weights of one part of a model.
#[derive(Debug)]
pub(super) struct PartFile {
    path: PathBuf,
    files: Arc<TensorFiles>,
    names: Names,
}

/// The naming of its tensors.
#[derive(Debug, Clone, Copy)]
enum Names {
    /// As in diffusers and transformers, with a prefix.
    Diffusers(&'static str),
    /// As a VAE in checkpoints, with a prefix.
    LdmVae(&'static str),
    /// As in `OpenCLIP`, with a prefix.
    OpenClip(&'static str),
}

impl PartFile {
    /// Opens a file and recognises the naming of its tensors.
    ///
    /// # Errors
    /// When it is no whole safetensors file, or has no tensors of the part.
    pub(super) fn open(part: &str, path: &Path) -> Result<Self, LoadError> {
        let files = TensorFiles::open(&[path.to_owned()]).map_err(|(path, source)| LoadError::BadWeights { path, source })?;
        // Any tensor of a part tells. Missing ones are found when the part is read.
        let names: Vec<String> = files.names().collect();
        let has = |prefix: &str, part: &str| names.iter().any(|name| name.strip_prefix(prefix).is_some_and(|name| name.starts_with(part)));
        let find =
            |prefixes: &[&'static str], parts: &[&str]| prefixes.iter().find(|prefix| parts.iter().any(|part| has(prefix, part))).copied();
        let found = if part == "vae" {
            let diffusers = find(&VAE_PREFIXES, &["decoder.up_blocks.", "encoder.down_blocks.", "decoder.conv_norm_out."]);
            let ldm = || find(&VAE_PREFIXES, &["decoder.up.", "encoder.down.", "decoder.norm_out."]);
            diffusers.map(Names::Diffusers).or_else(|| ldm().map(Names::LdmVae))
        } else {
            let (clip, open_clip) = match part {
                "text_encoder" => (&CLIP_PREFIXES[..], &OPEN_CLIP_PREFIXES[..]),
                _ => (&CLIP_2_PREFIXES[..], &OPEN_CLIP_2_PREFIXES[..]),
            };
            let transformers = find(clip, &["text_model.encoder.", "text_model.final_layer_norm.", "encoder.layers.", "final_layer_norm."]);
            let open_clip = || find(open_clip, &["transformer.resblocks.", "ln_final."]);
            transformers.map(Names::Diffusers).or_else(|| open_clip().map(Names::OpenClip))
        };
        let path = path.to_owned();
        let Some(found) = found else {
            return Err(LoadError::BadConfig { path, reason: format!("its tensors are those of no {part} that is known here") });
        };
        let file = Self { path, files: Arc::clone(&files), names: found };
        if part == "vae" && !has(file.prefix(), "encoder.") {
            let reason = "this is the decoder of a VAE alone; its encoder is needed as well".to_owned();
            return Err(LoadError::BadConfig { path: file.path, reason });
        }
        Ok(file)
    }

    fn prefix(&self) -> &'static str {
        let (Names::Diffusers(prefix) | Names::LdmVae(prefix) | Names::OpenClip(prefix)) = self.names;
        prefix
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn files(&self) -> &Arc<TensorFiles> {
        &self.files
    }

    /// The configuration of the part: the model's own, with the network of a known VAE, or the vocabulary size of the text encoder.
    pub(super) fn config(&self, part: &str, own: &[u8]) -> Vec<u8> {
        let finest = self.files.shape(&format!("{}encoder.conv_in.weight", self.prefix())).and_then(|shape| shape.first());
        let known = match part {
            "vae" => finest.and_then(|channels| known_vae(*channels)),
            _ => vocab_size(&self.files, &self.locate()).map(|vocab_size| json!({ "vocab_size": vocab_size })),
        };
        match (serde_json::from_slice::<Value>(own), known) {
            (Ok(Value::Object(mut config)), Some(Value::Object(known))) => {
                config.extend(known);
                Value::Object(config).to_string().into_bytes()
            }
            // The reader of the configuration reports what is wrong with it.
            _ => own.to_owned(),
        }
    }

    /// Where the tensors are.
    pub(super) fn locate(&self) -> Locate {
        match self.names {
            Names::Diffusers(prefix) => Arc::new(move |name| format!("{prefix}{name}").into()),
            Names::LdmVae(prefix) => locate_vae(prefix),
            Names::OpenClip(prefix) => locate_open_clip(prefix, Arc::clone(&self.files)),
        }
    }

    /// Prefixes of other tensors that may be in the file: the rest of a whole checkpoint, the last layer of Stable Diffusion 2's text
    /// encoder, or a VAE's loss.
    pub(super) fn needless(&self, part: &str) -> Vec<String> {
        let prefix = self.prefix();
        let rest = self.files.names().filter(|name| !name.starts_with(prefix));
        let more = match (part, self.names) {
            ("text_encoder", Names::OpenClip(prefix)) => {
                let width = self.files.shape(&format!("{prefix}ln_final.weight")).and_then(|shape| shape.first());
                width.and_then(|width| known_open_clip(*width)).map(|layers| unused_layer(prefix, layers))
            }
            ("vae", _) => Some(format!("{prefix}loss.")),
            _ => None,
        };
        rest.chain(more).collect()
    }
}
