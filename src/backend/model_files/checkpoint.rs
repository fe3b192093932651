//! A checkpoint in one file, in the layout of the programs that Stable Diffusion was trained with, read as if it were a directory in
//! diffusers'.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Value, json};
use tracing::info;

use super::{
    clip_vocabulary,
    ldm_configs::{self, Network},
    ldm_names,
    tensor_files::{Locate, Place, TensorFiles},
};
use crate::{backend::LoadError, common::ModelFamily};

const UNET: &str = "model.diffusion_model.";
const VAE: &str = "first_stage_model.";
/// The text encoders of Stable Diffusion 1, 2, and the two of XL.
const CLIP: &str = "cond_stage_model.transformer.";
pub(super) const OPEN_CLIP: &str = "cond_stage_model.model.";
/// That of 2 as SGM, the program of XL, wrote it: SD-Turbo. SDXL's refiner has such a one too.
pub(super) const SGM_OPEN_CLIP: &str = "conditioner.embedders.0.model.";
const XL_CLIP: &str = "conditioner.embedders.0.transformer.";
pub(super) const XL_OPEN_CLIP: &str = "conditioner.embedders.1.model.";
/// Of the latents of every Stable Diffusion; inpainting models have a mask and a picture beside them.
const LATENT_CHANNELS: usize = 4;
/// Looks at pooled text, and at a picture's sizes.
const LABEL_EMBEDDING: &str = "model.diffusion_model.label_emb.";
/// Averages of the UNet's weights over its training.
const EMA: &str = "model_ema.";
/// How many numbers there are beside those.
const EMA_COUNTERS: usize = 2;
/// Parts of the names of tensors that models have which are not supported, and what those are called.
const UNSUPPORTED: [(&str, &str); 16] = [
    ("joint_blocks.0.", "a Stable Diffusion 3 model"),
    ("single_stream_modulation.", "a FLUX.2 model"),
    ("distilled_guidance_layer.", "a Chroma model"),
    ("double_blocks.0.img_attn.", "a FLUX model"),
    ("edm_mean", "a Playground 2.5 model"),
    ("edm_vpred.", "a CosXL model"),
    ("embedder.model.visual.", "a Stable Diffusion 2 unCLIP model"),
    ("clip_txt_mapper.", "a Stable Cascade model"),
    ("time_stack.", "a Stable Video Diffusion model"),
    ("double_layers.0.attn.", "an AuraFlow model"),
    ("cap_embedder.0.", "a Lumina model"),
    ("img_mlp.", "a Qwen-Image model"),
    ("control_model.", "a ControlNet, and no model by itself"),
    ("lora_", "a LoRA, and no model by itself"),
    ("hada_w1_a", "a LyCORIS, and no model by itself"),
    ("emb_params", "an embedding, and no model by itself: its folder is for --embeddings"),
];

/// A checkpoint in one file.
#[derive(Debug)]
pub(super) struct Checkpoint {
    path: PathBuf,
    files: Arc<TensorFiles>,
    family: ModelFamily,
}

impl Checkpoint {
    /// Opens it and finds out what it is.
    ///
    /// # Errors
    /// When it is no whole safetensors file, or no checkpoint of a family that is supported.
    pub(super) fn open(path: &Path) -> Result<Self, LoadError> {
        let files = TensorFiles::open(&[path.to_owned()]).map_err(|(path, source)| LoadError::BadWeights { path, source })?;
        let family = family(&files).map_err(|reason| LoadError::BadConfig { path: path.to_owned(), reason })?;
        let averages = files.names().filter(|name| name.starts_with(EMA)).count();
        if averages > EMA_COUNTERS {
            info!(
                "{}: its {averages} averaged weights ({EMA}*) are left out, as diffusers does: those that it ended with are used",
                path.display()
            );
        }
        Ok(Self { path: path.to_owned(), files, family })
    }

    /// The parts that it has not, by their folders in diffusers' layout: some are spread without.
    pub(super) fn missing(&self) -> impl Iterator<Item = &'static str> {
        let has = |prefix: &str| self.files.names().any(|name| name.starts_with(prefix));
        let is_xl = self.family == ModelFamily::Sdxl;
        let has_vae = ldm_configs::vae_levels(&self.network(VAE)) > 0;
        let has_text = has(self.prefix("text_encoder"));
        let parts = [("vae", has_vae), ("text_encoder", has_text), ("text_encoder_2", !is_xl || has(XL_OPEN_CLIP))];
        parts.into_iter().filter_map(|(part, is_there)| (!is_there).then_some(part))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn files(&self) -> &Arc<TensorFiles> {
        &self.files
    }

    /// What a file of a directory in diffusers' layout would say, if there were one.
    pub(super) fn read(&self, name: &str) -> Option<Vec<u8>> {
        let json = |value: Value| Some(value.to_string().into_bytes());
        let is_xl = self.family == ModelFamily::Sdxl;
        match name {
            "model_index.json" => json(self.index()),
            "unet/config.json" => json(self.unet(ldm_configs::projection_dim(&self.network(XL_OPEN_CLIP)))),
            "vae/config.json" => json(self.vae()),
            "scheduler/scheduler_config.json" => json(self.scheduler()),
            "text_encoder/config.json" => json(self.text_encoder()),
            "text_encoder_2/config.json" if is_xl => json(ldm_configs::open_clip(&self.network(XL_OPEN_CLIP))),
            "tokenizer/vocab.json" | "tokenizer_2/vocab.json" => json(clip_vocabulary::vocab()),
            "tokenizer/merges.txt" | "tokenizer_2/merges.txt" => Some(clip_vocabulary::merges().into_bytes()),
            "tokenizer/tokenizer_config.json" if self.family != ModelFamily::Sd2 => json(clip_vocabulary::config("<|endoftext|>")),
            "tokenizer/tokenizer_config.json" | "tokenizer_2/tokenizer_config.json" => json(clip_vocabulary::config("!")),
            _ => None,
        }
    }

    /// Where the tensors of a part are.
    pub(super) fn locate(&self, part: &str) -> Locate {
        let (files, prefix) = (Arc::clone(&self.files), self.prefix(part));
        match (part, self.family) {
            ("unet", _) => {
                let layers = ldm_configs::layers_per_block(&self.network(UNET));
                let name = move |name: &str| ldm_names::unet(name, layers, |name| files.shape(&format!("{UNET}{name}")).is_some());
                Box::new(move |of| format!("{UNET}{}", name(of)).into())
            }
            ("vae", _) => locate_vae(prefix, ldm_configs::vae_levels(&self.network(prefix))),
            ("text_encoder", ModelFamily::Sd1 | ModelFamily::Sdxl) => Box::new(move |name| format!("{prefix}{name}").into()),
            _ => Box::new(move |name| below(prefix, ldm_names::open_clip(name))),
        }
    }

    /// How the names begin of tensors that are there and are looked at by nobody, where these parts are taken from elsewhere.
    pub(super) fn needless<'a>(&self, elsewhere: impl Iterator<Item = &'a str>) -> Vec<String> {
        let unused = match self.family {
            ModelFamily::Sd2 => ldm_configs::sd2_unused_layers(&self.network(self.prefix("text_encoder"))),
            _ => Vec::new(),
        };
        elsewhere.map(|part| self.prefix(part).to_owned()).chain(unused).collect()
    }

    /// How the names of a part's tensors begin.
    fn prefix(&self, part: &str) -> &'static str {
        match (part, self.family) {
            ("unet", _) => UNET,
            ("vae", _) => VAE,
            ("text_encoder", ModelFamily::Sd1) => CLIP,
            ("text_encoder", ModelFamily::Sdxl) => XL_CLIP,
            ("text_encoder", ModelFamily::Sd2) if self.files.names().any(|name| name.starts_with(SGM_OPEN_CLIP)) => SGM_OPEN_CLIP,
            ("text_encoder", ModelFamily::Sd2) => OPEN_CLIP,
            _ => XL_OPEN_CLIP,
        }
    }

    fn network(&self, prefix: &str) -> Network<'_> {
        Network { files: &self.files, prefix: prefix.to_owned() }
    }

    fn index(&self) -> Value {
        let is_xl = self.family == ModelFamily::Sdxl;
        json!({
            "_class_name": if is_xl { "StableDiffusionXLPipeline" } else { "StableDiffusionPipeline" },
            "force_zeros_for_empty_prompt": is_xl,
        })
    }

    fn text_encoder(&self) -> Value {
        let network = self.network(self.prefix("text_encoder"));
        match self.family {
            ModelFamily::Sd1 | ModelFamily::Sdxl => ldm_configs::clip(&network),
            ModelFamily::Sd2 => ldm_configs::sd2_open_clip(&network),
        }
    }

    /// `pooled_dim` is the width of SDXL's pooled text.
    pub(super) fn unet(&self, pooled_dim: usize) -> Value {
        let pooled = (self.family == ModelFamily::Sdxl).then_some(pooled_dim);
        let sample_size = match self.family {
            ModelFamily::Sdxl if !self.is_turbo() => 128,
            ModelFamily::Sd2 if self.predicts_velocity() => 96,
            _ => 64,
        };
        ldm_configs::unet(&self.network(UNET), sample_size, pooled)
    }

    fn vae(&self) -> Value {
        let network = self.network(VAE);
        let levels = ldm_configs::vae_levels(&network);
        let mut config = ldm_configs::vae(&network, |name| ldm_names::vae(name, levels));
        config["scaling_factor"] = if self.family == ModelFamily::Sdxl { 0.13025 } else { 0.18215 }.into();
        config
    }

    /// The schedulers that the families have in diffusers' layout.
    fn scheduler(&self) -> Value {
        let velocity = self.predicts_velocity();
        let is_lcm = ldm_configs::guidance_dim(&self.network(UNET)).is_some();
        let class = match self.family {
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

    /// Distilled for few steps. Nothing in the file tells it from what it was distilled from but its name.
    fn is_turbo(&self) -> bool {
        let name = self.path.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
        self.family != ModelFamily::Sd1
            && (name.contains("turbo") || self.metadata("modelspec.title").is_some_and(|title| title.contains("turbo")))
    }

    /// Whether it predicts velocity: by a tensor that says so, by what its maker or `ComfyUI` wrote into it, by a file of settings beside
    /// it as A1111 has them, or, in Stable Diffusion 2, by a tensor that learned to be different. The first comes first because metadata
    /// outlive what is made of a checkpoint.
    fn predicts_velocity(&self) -> bool {
        if self.files.shape("v_pred").is_some() {
            return true;
        }
        let said = ["modelspec.prediction_type", "modelspec.predict_key"].into_iter().find_map(|key| self.metadata(key));
        if let Some(prediction) = said {
            return prediction.starts_with('v');
        }
        if let Ok(settings) = fs::read_to_string(self.path.with_extension("yaml")) {
            return settings.contains("parameterization: \"v\"") || settings.contains("parameterization: v");
        }
        self.family == ModelFamily::Sd2 && !self.is_turbo() && self.has_bias_of_velocity()
    }

    fn metadata(&self, key: &str) -> Option<String> {
        self.files.metadata(key).map(str::to_lowercase)
    }

    /// As `ComfyUI` tells them: the first bias of the last transformer varies more. Inpainting models of the family predict noise.
    fn has_bias_of_velocity(&self) -> bool {
        const LIMIT: f32 = 0.09;
        let network = self.network(UNET);
        if network.shape("input_blocks.0.0.weight").is_none_or(|shape| shape.get(1) != Some(&LATENT_CHANNELS)) {
            return false;
        }
        let last = network.count(|i| format!("output_blocks.{i}.0.in_layers.0.weight")).saturating_sub(1);
        let name = format!("{UNET}output_blocks.{last}.1.transformer_blocks.0.norm1.bias");
        let deviation = |tensor: candle_core::Tensor| -> candle_core::Result<f32> {
            let centered = tensor.broadcast_sub(&tensor.mean_keepdim(0)?)?;
            centered.sqr()?.mean_all()?.to_scalar::<f32>()
        };
        self.files.tensor(&name).and_then(deviation).is_ok_and(|variance| variance.sqrt() > LIMIT)
    }
}

/// Where a VAE's tensors are that is kept below `prefix` in the layout of checkpoints.
pub(super) fn locate_vae(prefix: &str, levels: usize) -> Locate {
    let prefix = prefix.to_owned();
    Box::new(move |name| format!("{prefix}{}", ldm_names::vae(name, levels)).into())
}

pub(super) fn below(prefix: &str, mut place: Place) -> Place {
    place.name.insert_str(0, prefix);
    place
}

/// What a file holds, by its tensors' names.
fn family(files: &TensorFiles) -> Result<ModelFamily, String> {
    let names: Vec<String> = files.names().collect();
    let supported = super::SUPPORTED;
    let has = |prefix: &str| names.iter().any(|name| name.starts_with(prefix));
    let unsupported = UNSUPPORTED.iter().find(|(part, _)| names.iter().any(|name| name.contains(part)));
    let refiner = (has(SGM_OPEN_CLIP) && has(LABEL_EMBEDDING)).then_some("an SDXL refiner");
    if let Some(what) = unsupported.map(|(_, what)| *what).or(refiner) {
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
    // Where the text encoders are not in the file, the UNet tells: XL's looks at pooled text, and that of 2 has linear projections.
    let is_linear = files.shape(&format!("{UNET}middle_block.1.proj_in.weight")).is_some_and(|shape| shape.len() == 2);
    let signs = [
        (has(XL_OPEN_CLIP), ModelFamily::Sdxl),
        (has(OPEN_CLIP) || has(SGM_OPEN_CLIP), ModelFamily::Sd2),
        (has(CLIP), ModelFamily::Sd1),
        (has(LABEL_EMBEDDING), ModelFamily::Sdxl),
        (is_linear, ModelFamily::Sd2),
    ];
    Ok(signs.into_iter().find_map(|(is_there, family)| is_there.then_some(family)).unwrap_or(ModelFamily::Sd1))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::{DType, Device, Tensor};
    use proptest::prelude::*;

    use crate::backend::{ModelFiles, model_configs::ModelConfigs};

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
                prop_assert!(ModelConfigs::load(&files).is_err(), "there are never all tensors");
                for part in ["unet", "vae", "text_encoder", "text_encoder_2"] {
                    let vb = files.weights(part, DType::F32, &Device::Cpu).unwrap().vb;
                    prop_assert!(!vb.contains_tensor("no.such"));
                }
            }
        }
    }
}
