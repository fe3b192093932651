//! The weights of one part of a model in a file of their own, for a model that has others or none.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;

use super::{
    checkpoint::{OPEN_CLIP, SGM_OPEN_CLIP, XL_OPEN_CLIP, below, locate_vae},
    ldm_configs::{self, Network},
    ldm_names,
    tensor_files::{Locate, TensorFiles},
};
use crate::backend::LoadError;

/// What the names of a VAE's tensors begin with, in files of their own and in whole checkpoints.
const VAE_PREFIXES: [&str; 3] = ["", "first_stage_model.", "vae."];
/// The same of text encoders with transformers' names, the first and SDXL's second,
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

/// What its tensors are called.
#[derive(Debug, Clone, Copy)]
enum Names {
    /// As in diffusers and transformers, behind a prefix.
    Diffusers(&'static str),
    /// As a VAE of so many levels in checkpoints, behind a prefix.
    LdmVae(&'static str, usize),
    /// As in `OpenCLIP`, behind a prefix.
    OpenClip(&'static str),
}

impl PartFile {
    /// Opens it and finds out how its tensors are called.
    ///
    /// # Errors
    /// When it is no whole safetensors file, or holds no such part.
    pub(super) fn open(part: &str, path: &Path) -> Result<Self, LoadError> {
        let files = TensorFiles::open(&[path.to_owned()]).map_err(|(path, source)| LoadError::BadWeights { path, source })?;
        let has = |prefix: &str, name: &str| files.shape(&format!("{prefix}{name}")).is_some();
        let diffusers = |prefixes: &[&'static str], names: &[&str]| {
            prefixes.iter().find(|prefix| names.iter().any(|name| has(prefix, name))).map(|prefix| Names::Diffusers(prefix))
        };
        let found = if part == "vae" {
            let ldm = VAE_PREFIXES.iter().find(|prefix| has(prefix, "decoder.norm_out.weight"));
            let levels = |prefix: &str| ldm_configs::vae_levels(&Network { files: &files, prefix: prefix.to_owned() });
            diffusers(&VAE_PREFIXES, &["decoder.conv_norm_out.weight"]).or(ldm.map(|prefix| Names::LdmVae(prefix, levels(prefix))))
        } else {
            let (clip, open_clip) = match part {
                "text_encoder" => (&CLIP_PREFIXES[..], &OPEN_CLIP_PREFIXES[..]),
                _ => (&CLIP_2_PREFIXES[..], &OPEN_CLIP_2_PREFIXES[..]),
            };
            let open_clip = open_clip.iter().find(|prefix| has(prefix, "ln_final.weight"));
            diffusers(clip, &["text_model.final_layer_norm.weight", "final_layer_norm.weight"])
                .or(open_clip.map(|prefix| Names::OpenClip(prefix)))
        };
        let path = path.to_owned();
        let Some(names) = found else {
            return Err(LoadError::BadConfig { path, reason: format!("its tensors are those of no {part} that is known here") });
        };
        let file = Self { path, files, names };
        if part == "vae" && file.network(file.prefix()).shape("encoder.conv_in.weight").is_none() {
            let reason = "this is the decoder of a VAE alone; its encoder is needed as well".to_owned();
            return Err(LoadError::BadConfig { path: file.path, reason });
        }
        Ok(file)
    }

    fn prefix(&self) -> &'static str {
        let (Names::Diffusers(prefix) | Names::LdmVae(prefix, _) | Names::OpenClip(prefix)) = self.names;
        prefix
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn files(&self) -> &Arc<TensorFiles> {
        &self.files
    }

    /// The configuration of the part: that of the model's own, but what is in the shapes of the tensors for a VAE, and for a text encoder
    /// of another size than its own, which is that of a model without one too.
    pub(super) fn config(&self, part: &str, own: &[u8]) -> Vec<u8> {
        let shapes = match (part, self.names) {
            ("vae", Names::Diffusers(prefix)) => ldm_configs::vae(&self.network(prefix), str::to_owned),
            ("vae", Names::LdmVae(prefix, levels)) => ldm_configs::vae(&self.network(prefix), |name| ldm_names::vae(name, levels)),
            ("text_encoder", Names::OpenClip(prefix)) => ldm_configs::sd2_open_clip(&self.network(prefix)),
            (_, Names::OpenClip(prefix)) => ldm_configs::open_clip(&self.network(prefix)),
            (_, Names::Diffusers(prefix) | Names::LdmVae(prefix, _)) => ldm_configs::clip(&self.network(prefix)),
        };
        match (serde_json::from_slice::<Value>(own), shapes) {
            (Ok(Value::Object(mut config)), Value::Object(mut shapes)) => {
                if part != "vae" && config.get("hidden_size") == shapes.get("hidden_size") {
                    return own.to_owned();
                }
                shapes.remove("hidden_act"); // no shape tells
                config.extend(shapes);
                Value::Object(config).to_string().into_bytes()
            }
            // Whoever reads it says what is wrong with it.
            _ => own.to_owned(),
        }
    }

    /// Where the tensors are.
    pub(super) fn locate(&self) -> Locate {
        match self.names {
            Names::Diffusers(prefix) => Box::new(move |name| format!("{prefix}{name}").into()),
            Names::LdmVae(prefix, levels) => locate_vae(prefix, levels),
            Names::OpenClip(prefix) => Box::new(|name| below(prefix, ldm_names::open_clip(name))),
        }
    }

    /// How the names begin of what else may be in the file: the rest of a whole checkpoint, or what trained a VAE.
    pub(super) fn needless(&self, part: &str) -> Vec<String> {
        let prefix = self.prefix();
        let rest = self.files.names().filter(|name| !name.starts_with(prefix));
        let more = match (part, self.names) {
            ("text_encoder", Names::OpenClip(prefix)) => ldm_configs::sd2_unused_layers(&self.network(prefix)),
            ("vae", _) => vec![format!("{prefix}loss.")],
            _ => Vec::new(),
        };
        rest.chain(more).collect()
    }

    fn network(&self, prefix: &str) -> Network<'_> {
        Network { files: &self.files, prefix: prefix.to_owned() }
    }
}
