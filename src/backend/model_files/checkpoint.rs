//! A checkpoint in one file, in the layout of the programs that trained Stable Diffusion, presented as a directory in diffusers' layout.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Value, json};
use tracing::info;

use super::{
    MAX_TEXT_BYTES,
    architectures::{Architecture, UNET},
    clip_vocabulary, ldm_names,
    tensor_files::{Locate, StoredTensor, TensorFiles},
};
use crate::{
    backend::{
        LoadError,
        families::{self, CLIP, OPEN_CLIP, SGM_OPEN_CLIP, XL_CLIP, XL_OPEN_CLIP},
    },
    common::{ModelFamily, read_regular},
};

const VAE: &str = "first_stage_model.";
/// Channels of the latents of every Stable Diffusion. Inpainting models have those of a mask and a picture beside them.
const LATENT_CHANNELS: usize = 4;
/// Averages of the UNet's weights over its training.
const EMA: &str = "model_ema.";
/// Tensors beside the averages that have the same prefix.
const EMA_COUNTERS: usize = 2;
/// A checkpoint in one file.
#[derive(Debug)]
pub(super) struct Checkpoint {
    path: PathBuf,
    files: Arc<TensorFiles>,
    architecture: &'static Architecture,
}

impl Checkpoint {
    /// Opens a file and recognises its variant.
    ///
    /// # Errors
    /// When it is no whole safetensors file, or its family is not supported.
    pub(super) fn open(path: &Path) -> Result<Self, LoadError> {
        let files = TensorFiles::open(&[path.to_owned()]).map_err(|(path, source)| LoadError::BadWeights { path, source })?;
        let architecture = architecture(&files).map_err(|reason| LoadError::BadConfig { path: path.to_owned(), reason })?;
        let averages = files.names().filter(|name| name.starts_with(EMA)).count();
        if averages > EMA_COUNTERS {
            info!(
                "{}: its {averages} averaged weights ({EMA}*) are left out, as diffusers does: those that it ended with are used",
                path.display()
            );
        }
        Ok(Self { path: path.to_owned(), files, architecture })
    }

    /// The parts that the file lacks, by their folders in diffusers' layout.
    pub(super) fn missing(&self) -> impl Iterator<Item = &'static str> {
        let has = |prefix: &str| self.files.names().any(|name| name.starts_with(prefix));
        let is_xl = self.architecture.family == ModelFamily::Sdxl;
        let parts = [
            ("vae", ["encoder.", "decoder."].iter().any(|side| has(&format!("{VAE}{side}")))),
            ("text_encoder", has(self.prefix("text_encoder"))),
            ("text_encoder_2", !is_xl || has(XL_OPEN_CLIP)),
        ];
        parts.into_iter().filter_map(|(part, is_there)| (!is_there).then_some(part))
    }

    /// The variant's name, for messages.
    pub(super) fn variant(&self) -> &'static str {
        self.architecture.name
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn files(&self) -> &Arc<TensorFiles> {
        &self.files
    }

    /// The file of this name in diffusers' layout, if that layout has one.
    pub(super) fn read(&self, name: &str) -> Option<Vec<u8>> {
        let json = |value: Value| Some(value.to_string().into_bytes());
        match name {
            "model_index.json" => json(self.index()),
            "unet/config.json" => json(self.unet()),
            "vae/config.json" => json(self.architecture.vae()),
            "scheduler/scheduler_config.json" => json(self.scheduler()),
            "text_encoder/config.json" => self.text_encoder("text_encoder", 0).and_then(json),
            "text_encoder_2/config.json" => self.text_encoder("text_encoder_2", 1).and_then(json),
            "tokenizer/vocab.json" | "tokenizer_2/vocab.json" => json(clip_vocabulary::vocab()),
            "tokenizer/merges.txt" | "tokenizer_2/merges.txt" => Some(clip_vocabulary::merges().into_bytes()),
            "tokenizer/tokenizer_config.json" if self.architecture.family != ModelFamily::Sd2 => {
                json(clip_vocabulary::config("<|endoftext|>"))
            }
            "tokenizer/tokenizer_config.json" | "tokenizer_2/tokenizer_config.json" => json(clip_vocabulary::config("!")),
            _ => None,
        }
    }

    /// Where the tensors of a part are.
    pub(super) fn locate(&self, part: &str) -> Locate {
        let (files, prefix) = (Arc::clone(&self.files), self.prefix(part));
        match (part, self.architecture.family) {
            ("unet", _) => {
                let exists = move |name: &str| files.shape(&format!("{UNET}{name}")).is_some();
                Arc::new(move |name| format!("{UNET}{}", ldm_names::unet(name, &exists)).into())
            }
            ("vae", _) => locate_vae(prefix),
            ("text_encoder", ModelFamily::Sd1 | ModelFamily::Sdxl) => Arc::new(move |name| format!("{prefix}{name}").into()),
            _ => locate_open_clip(prefix, files),
        }
    }

    /// Prefixes of tensors that no network reads if these parts come from elsewhere.
    pub(super) fn needless<'a>(&self, elsewhere: impl Iterator<Item = &'a str>) -> Vec<String> {
        let unused = match self.architecture.family {
            ModelFamily::Sd2 => Some(unused_layer(self.prefix("text_encoder"), self.architecture.text_layers())),
            _ => None,
        };
        elsewhere.map(|part| self.prefix(part).to_owned()).chain(unused).collect()
    }

    /// Prefix of a part's tensors.
    fn prefix(&self, part: &str) -> &'static str {
        match (part, self.architecture.family) {
            ("unet", _) => UNET,
            ("vae", _) => VAE,
            ("text_encoder", ModelFamily::Sd1) => CLIP,
            ("text_encoder", ModelFamily::Sdxl) => XL_CLIP,
            ("text_encoder", ModelFamily::Sd2) if self.files.names().any(|name| name.starts_with(SGM_OPEN_CLIP)) => SGM_OPEN_CLIP,
            ("text_encoder", ModelFamily::Sd2) => OPEN_CLIP,
            _ => XL_OPEN_CLIP,
        }
    }

    fn index(&self) -> Value {
        let is_xl = self.architecture.family == ModelFamily::Sdxl;
        json!({
            "_class_name": if is_xl { "StableDiffusionXLPipeline" } else { "StableDiffusionPipeline" },
            "force_zeros_for_empty_prompt": is_xl,
        })
    }

    fn unet(&self) -> Value {
        let sample_size = match self.architecture.family {
            ModelFamily::Sdxl if !self.is_turbo() => 128,
            ModelFamily::Sd2 if self.predicts_velocity() => 96,
            _ => 64,
        };
        self.architecture.unet(sample_size, self.in_channels(), self.guidance_dim())
    }

    fn text_encoder(&self, part: &str, index: usize) -> Option<Value> {
        self.architecture.text_encoder(index, vocab_size(&self.files, &self.locate(part)))
    }

    /// Channels of the UNet's input. Inpainting models have more.
    fn in_channels(&self) -> usize {
        let shape = self.files.shape(&format!("{UNET}input_blocks.0.0.weight"));
        shape.and_then(|shape| shape.get(1)).copied().unwrap_or(LATENT_CHANNELS)
    }

    /// Width of the embedding of the guidance scale, in models that look at it: LCM.
    fn guidance_dim(&self) -> Option<usize> {
        self.files.shape(&format!("{UNET}time_embed.cond_proj.weight"))?.get(1).copied()
    }

    /// `scheduler_config.json`, as the families have it in diffusers' layout.
    fn scheduler(&self) -> Value {
        let velocity = self.predicts_velocity();
        let is_lcm = self.guidance_dim().is_some();
        let class = match self.architecture.family {
            _ if is_lcm => "LCMScheduler",
            ModelFamily::Sdxl if self.is_turbo() => "EulerAncestralDiscreteScheduler",
            ModelFamily::Sd2 if self.is_turbo() => "EulerDiscreteScheduler",
            ModelFamily::Sdxl => "EulerDiscreteScheduler",
            ModelFamily::Sd2 if velocity => "DDIMScheduler",
            _ => "PNDMScheduler",
        };
        let is_zero_snr = velocity && self.files.shape("ztsnr").is_some();
        json!({
            "_class_name": class,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "clip_sample": false,
            "set_alpha_to_one": is_lcm,
            "skip_prk_steps": true,
            "steps_offset": 1,
            "timestep_spacing": if self.is_turbo() || is_zero_snr { "trailing" } else { "leading" },
            "prediction_type": if velocity { "v_prediction" } else { "epsilon" },
            "rescale_betas_zero_snr": is_zero_snr,
        })
    }

    /// Whether the model is distilled for few steps. Only its name tells.
    fn is_turbo(&self) -> bool {
        let name = self.path.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
        self.architecture.family != ModelFamily::Sd1
            && (name.contains("turbo") || self.metadata("modelspec.title").is_some_and(|title| title.contains("turbo")))
    }

    /// Whether the model predicts velocity: by the tensor `v_pred`, by metadata, by A1111's file of settings beside it, or, in Stable
    /// Diffusion 2, by a tensor that differs in such models. Metadata may be those of the checkpoint that this one was made of, so the
    /// tensor comes first.
    fn predicts_velocity(&self) -> bool {
        if self.files.shape("v_pred").is_some() {
            return true;
        }
        let said = ["modelspec.prediction_type", "modelspec.predict_key"].into_iter().find_map(|key| self.metadata(key));
        if let Some(prediction) = said {
            return prediction.starts_with('v');
        }
        if let Ok(settings) = read_regular(&self.path.with_extension("yaml"), MAX_TEXT_BYTES) {
            let settings = String::from_utf8_lossy(&settings);
            return settings.contains("parameterization: \"v\"") || settings.contains("parameterization: v");
        }
        self.architecture.family == ModelFamily::Sd2 && !self.is_turbo() && self.has_bias_of_velocity()
    }

    fn metadata(&self, key: &str) -> Option<String> {
        self.files.metadata(key).map(str::to_lowercase)
    }

    /// `ComfyUI`'s test: the first bias of the last transformer varies more. Inpainting models of the family predict noise.
    fn has_bias_of_velocity(&self) -> bool {
        const LIMIT: f32 = 0.09;
        if self.in_channels() != LATENT_CHANNELS {
            return false;
        }
        let last = self.architecture.last_output_block();
        let name = format!("{UNET}output_blocks.{last}.1.transformer_blocks.0.norm1.bias");
        let deviation = |tensor: candle_core::Tensor| -> candle_core::Result<f32> {
            let centered = tensor.broadcast_sub(&tensor.mean_keepdim(0)?)?;
            centered.sqr()?.mean_all()?.to_scalar::<f32>()
        };
        self.files.tensor(&name).and_then(deviation).is_ok_and(|variance| variance.sqrt() > LIMIT)
    }
}

/// Locates the tensors of a VAE below `prefix` in the layout of checkpoints.
pub(super) fn locate_vae(prefix: &'static str) -> Locate {
    Arc::new(move |name| format!("{prefix}{}", ldm_names::vae(name)).into())
}

/// Locates the tensors of an `OpenCLIP` below `prefix`.
pub(super) fn locate_open_clip(prefix: &'static str, files: Arc<TensorFiles>) -> Locate {
    let exists = move |name: &str| files.shape(&format!("{prefix}{name}")).is_some();
    Arc::new(move |name| below(prefix, ldm_names::open_clip(name, &exists)))
}

/// Size of the vocabulary of a text encoder.
pub(super) fn vocab_size(files: &TensorFiles, locate: &Locate) -> Option<usize> {
    // The oldest checkpoints have no `text_model.`.
    let names = ["text_model.embeddings.token_embedding.weight", "embeddings.token_embedding.weight"];
    names.iter().find_map(|name| files.shape(&locate(name).name)?.first().copied())
}

/// Prefix of the last layer of Stable Diffusion 2's `OpenCLIP`, which is not used. Files that were converted from diffusers' layout lack it.
pub(super) fn unused_layer(prefix: &str, layers: usize) -> String {
    format!("{prefix}transformer.resblocks.{layers}.")
}

fn below(prefix: &str, mut place: StoredTensor) -> StoredTensor {
    place.name.insert_str(0, prefix);
    place
}

/// Recognises a file by its tensors' names.
fn architecture(files: &TensorFiles) -> Result<&'static Architecture, String> {
    let names: Vec<String> = files.names().collect();
    let supported = families::SUPPORTED_NAMES;
    let has = |prefix: &str| names.iter().any(|name| name.starts_with(prefix));
    if let Some(what) = families::refused_file(&names) {
        return Err(format!("this is {what}; checkpoints of {supported} are supported"));
    }
    if !has(UNET) {
        let first: Vec<&str> = names.iter().take(3).map(String::as_str).collect();
        let hint = if has("encoder.") || has(VAE) || has("decoder.") { ": a VAE is for --vae" } else { "" };
        return Err(format!(
            "this is no checkpoint of {supported}: none of its tensors is of {UNET}*; they are {}, …{hint}. A part of a model in \
             diffusers' layout is loaded by the directory of the whole",
            first.join(", ")
        ));
    }
    Architecture::of(files, families::by_tensors(has))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::{DType, Device, Tensor};
    use proptest::prelude::*;

    use crate::backend::{self, LoadOptions, ModelFiles};

    /// Names that configurations are read from.
    const NAMES: [&str; 22] = [
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.input_blocks.1.0.in_layers.2.weight",
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.norm1.weight",
        "model.diffusion_model.input_blocks.2.0.op.weight",
        "model.diffusion_model.input_blocks.3.0.in_layers.2.weight",
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.middle_block.1.proj_in.weight",
        "model.diffusion_model.output_blocks.0.0.in_layers.0.weight",
        "model.diffusion_model.output_blocks.0.1.transformer_blocks.0.norm1.bias",
        "model.diffusion_model.out.2.weight",
        "model.diffusion_model.label_emb.0.0.weight",
        "first_stage_model.encoder.down.0.block.0.conv1.weight",
        "first_stage_model.encoder.conv_in.weight",
        "first_stage_model.decoder.conv_in.weight",
        "first_stage_model.decoder.conv_out.weight",
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
        "cond_stage_model.model.token_embedding.weight",
        "cond_stage_model.model.positional_embedding",
        "conditioner.embedders.1.model.token_embedding.weight",
        "conditioner.embedders.1.model.text_projection",
        "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
        "v_pred",
    ];

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever is in a file, it is a model or an error.
        #[test]
        fn no_file_panics(shapes in proptest::collection::hash_map(0..NAMES.len(), proptest::collection::vec(0usize..70, 0..5), 0..22)) {
            let tensor = |shape: Vec<usize>| {
                let shape: Vec<usize> = shape.iter().enumerate().map(|(i, dim)| if i > 1 { dim % 4 } else { *dim }).collect();
                Tensor::zeros(shape, DType::F16, &Device::Cpu).unwrap()
            };
            let tensors: HashMap<_, _> = shapes.into_iter().map(|(name, shape)| (NAMES[name].to_owned(), tensor(shape))).collect();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("x.safetensors");
            candle_core::safetensors::save(&tensors, &path).unwrap();
            if let Ok(files) = ModelFiles::open(path.to_str().unwrap()) {
                prop_assert!(backend::load(&files, &LoadOptions::default()).is_err(), "there are never all tensors");
                for part in ["unet", "vae", "text_encoder", "text_encoder_2"] {
                    let vb = files.weights(part, DType::F32, &Device::Cpu).unwrap().vb;
                    prop_assert!(!vb.contains_tensor("no.such"));
                }
            }
        }
    }
}
