//! The weights of one part of a model in a file of their own, for a model that has others or none.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;

use super::{
    checkpoint::locate_vae,
    ldm_configs::{self, Network},
    ldm_names,
    tensor_files::{Locate, TensorFiles},
};
use crate::backend::LoadError;

/// What the names of a VAE's tensors begin with, in files of their own and in whole checkpoints.
const VAE_PREFIXES: [&str; 3] = ["", "first_stage_model.", "vae."];
/// The same of CLIP's text encoder.
const CLIP_PREFIXES: [&str; 4] =
    ["", "cond_stage_model.transformer.", "conditioner.embedders.0.transformer.", "text_encoders.clip_l.transformer."];

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
            diffusers(&CLIP_PREFIXES, &["text_model.final_layer_norm.weight", "final_layer_norm.weight"])
        };
        let path = path.to_owned();
        match found {
            Some(names) => Ok(Self { path, files, names }),
            None => Err(LoadError::BadConfig { path, reason: format!("its tensors are those of no {part} that is known here") }),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn files(&self) -> &Arc<TensorFiles> {
        &self.files
    }

    /// The configuration of the part: that of the model's own, but for a VAE what is in the shapes of the tensors.
    pub(super) fn config(&self, part: &str, own: &[u8]) -> Vec<u8> {
        let shapes = match (part, self.names) {
            ("vae", Names::Diffusers(prefix)) => ldm_configs::vae(&self.network(prefix), str::to_owned),
            ("vae", Names::LdmVae(prefix, levels)) => ldm_configs::vae(&self.network(prefix), |name| ldm_names::vae(name, levels)),
            _ => return own.to_owned(),
        };
        match (serde_json::from_slice::<Value>(own), shapes) {
            (Ok(Value::Object(mut config)), Value::Object(shapes)) => {
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
        }
    }

    /// How the names begin of what else may be in the file: the rest of a whole checkpoint.
    pub(super) fn needless(&self) -> Vec<String> {
        let (Names::Diffusers(prefix) | Names::LdmVae(prefix, _)) = self.names;
        if prefix.is_empty() { Vec::new() } else { self.files.names().filter(|name| !name.starts_with(prefix)).collect() }
    }

    fn network(&self, prefix: &str) -> Network<'_> {
        Network { files: &self.files, prefix: prefix.to_owned() }
    }
}
