//! From files to a pipeline.

use candle_core::{DType, Device};

use super::{
    HiddenState, InferencePipeline, LatentPreview, LoadError, ModelFiles, Networks, PromptEncoder, TextEncoder,
    model_configs::{ModelConfigs, TextConfigs},
};
use crate::{
    common::{ModelFamily, ModelInfo},
    device,
    models::{AutoencoderKl, ClipTextModel, UNet2DConditionModel},
    ops::{Storage, Weights},
};

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where it runs.
    pub device: Device,
    /// How its weights are kept.
    pub storage: Storage,
    /// The largest picture that a request may ask for.
    pub max_pixels: u64,
}

/// Loads a model: reads and checks every configuration first, then the weights.
///
/// # Errors
/// Names the file that is missing, broken, or does not fit the others.
pub fn load(files: &ModelFiles, options: &LoadOptions) -> Result<InferencePipeline, LoadError> {
    let (device, storage) = (&options.device, options.storage);
    let Some(dtype) = storage.compute_type(device) else {
        return Err(LoadError::Unsupported(format!("weights in {storage} work on a CPU only, not on {}", device::describe(device))));
    };
    let configs = ModelConfigs::load(files)?;
    let state = if configs.family == ModelFamily::Sdxl { HiddenState::Penultimate } else { HiddenState::Last };
    let depths = configs.text.iter().map(|text| state.depth(text.config.num_hidden_layers));
    let info = ModelInfo {
        id: files.id().to_owned(),
        family: configs.family,
        variant: configs.variant,
        embeds_guidance: configs.unet.time_cond_proj_dim.is_some(),
        device: device::describe(device),
        dtype: storage.name(),
        max_pixels: options.max_pixels,
        size_multiple: configs.vae.scale_factor() as u32,
        max_steps: configs.scheduler.num_train_timesteps,
        max_clip_skip: depths.min().unwrap_or_default(),
        defaults: configs.defaults,
    };
    if info.defaults.size.pixels() > info.max_pixels {
        return Err(LoadError::Limit { max_pixels: info.max_pixels, size: info.defaults.size });
    }
    let build_on = BuildOptions { dtype, device, storage };
    let ModelConfigs { text, unet, vae, scheduler, force_zeros_for_empty_prompt, .. } = configs;
    let text_encoder = |TextConfigs { folder, config, tokenizer }| {
        Ok(TextEncoder::new(tokenizer, build(files, folder, &build_on, |vb| ClipTextModel::new(&config, vb))?, state))
    };
    let encoders = text.into_iter().map(text_encoder).collect::<Result<Vec<_>, LoadError>>()?;
    let unet = build(files, "unet", &build_on, |vb| UNet2DConditionModel::new(unet, vb))?;
    let vae = build(files, "vae", &build_on, |vb| AutoencoderKl::new(vae, vb))?;
    let preview = LatentPreview::fit(&vae, dtype, device).map_err(|error| LoadError::SelfTest(error.into()))?;
    let prompt_encoder = PromptEncoder::new(encoders, force_zeros_for_empty_prompt, device.clone());
    Ok(InferencePipeline::new(info, prompt_encoder, Networks { unet, vae }, scheduler, preview, device.clone(), dtype))
}

struct BuildOptions<'a> {
    dtype: DType,
    device: &'a Device,
    storage: Storage,
}

fn build<T>(
    files: &ModelFiles,
    part: &str,
    on: &BuildOptions,
    new: impl FnOnce(&Weights) -> candle_core::Result<T>,
) -> Result<T, LoadError> {
    let (path, vb) = files.weights(part, on.dtype, on.device)?;
    new(&Weights::new(vb, on.storage)).map_err(|source| LoadError::WrongWeights { path, source })
}
