//! From files to a pipeline.

use candle_core::{DType, Device};
use serde::Deserialize;
use tracing::warn;

use super::{InferencePipeline, KnownWords, LatentPreview, LoadError, ModelFiles, Networks, PromptEncoder, PromptTokenizer, model_family};
use crate::{
    common::{GuidanceScale, ImageSize, ModelDefaults, ModelInfo, Sampler, Schedule, Steps},
    device,
    models::{AutoencoderKl, AutoencoderKlConfig, ClipTextConfig, ClipTextModel, UNet2DConditionConfig, UNet2DConditionModel},
    ops::{Storage, Weights},
    schedulers::SchedulerConfig,
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

/// `generation_config.json`, which a model may carry, named as in transformers: settings of requests that leave them out.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct GenerationConfig {
    num_inference_steps: Steps,
    guidance_scale: GuidanceScale,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        const STEPS: i64 = 20;
        const GUIDANCE_SCALE: f64 = 7.5;
        #[allow(clippy::expect_used, reason = "constants in range")]
        Self {
            num_inference_steps: Steps::try_from(STEPS).expect("in range"),
            guidance_scale: GuidanceScale::try_from(GUIDANCE_SCALE).expect("in range"),
        }
    }
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
    model_family::check_supported(files)?;
    let build_on = BuildOptions { dtype, device, storage };
    let path = |name: &str| files.path(name);
    let [text_config, unet_config, vae_config, scheduler_config] =
        ["text_encoder/config.json", "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"];

    let text = ClipTextConfig::from_json(&files.read(text_config)?).map_err(LoadError::config(path(text_config)))?;
    let unet = UNet2DConditionConfig::from_json(&files.read(unet_config)?).map_err(LoadError::config(path(unet_config)))?;
    let vae = AutoencoderKlConfig::from_json(&files.read(vae_config)?).map_err(LoadError::config(path(vae_config)))?;
    let scheduler = SchedulerConfig::from_json(&files.read(scheduler_config)?)
        .map_err(|reason| LoadError::BadConfig { path: path(scheduler_config), reason })?;
    let tokenizer = PromptTokenizer::load(files, text.max_position_embeddings)?;
    let known_words = KnownWords::load(files)?;
    check_fit(files, &text, &unet, &vae, &tokenizer)?;
    let info = ModelInfo {
        id: files.id().to_owned(),
        device: device::describe(device),
        dtype: storage.name(),
        max_pixels: options.max_pixels,
        size_multiple: vae.scale_factor() as u32,
        max_steps: scheduler.num_train_timesteps,
        defaults: defaults(files, &unet, &vae, &scheduler)?,
    };

    if info.defaults.size.pixels() > info.max_pixels {
        return Err(LoadError::Limit { max_pixels: info.max_pixels, size: info.defaults.size });
    }
    let text_encoder = build(files, "text_encoder", &build_on, |vb| ClipTextModel::new(&text, vb))?;
    let unet = build(files, "unet", &build_on, |vb| UNet2DConditionModel::new(unet, vb))?;
    let vae = build(files, "vae", &build_on, |vb| AutoencoderKl::new(vae, vb))?;
    let preview = LatentPreview::fit(&vae, dtype, device).map_err(|error| LoadError::SelfTest(error.into()))?;
    let prompt_encoder = PromptEncoder::new(tokenizer, known_words, text_encoder, device.clone());
    let networks = Networks { unet, vae };
    Ok(InferencePipeline::new(info, prompt_encoder, networks, scheduler, preview, device.clone(), dtype))
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

/// The parts of a model must speak of the same latents and the same text.
fn check_fit(
    files: &ModelFiles,
    text: &ClipTextConfig,
    unet: &UNet2DConditionConfig,
    vae: &AutoencoderKlConfig,
    tokenizer: &PromptTokenizer,
) -> Result<(), LoadError> {
    let unfit = |path: &str, reason: String| Err(LoadError::BadConfig { path: files.path(path), reason });
    if unet.in_channels == 2 * vae.latent_channels + 1 {
        let reason = format!(
            "{} channels are those of an inpainting model, which takes a mask and a masked picture as well and is not supported yet",
            unet.in_channels
        );
        return unfit("unet/config.json", reason);
    }
    if unet.in_channels != vae.latent_channels || unet.out_channels != vae.latent_channels {
        let (from, to, latent) = (unet.in_channels, unet.out_channels, vae.latent_channels);
        return unfit("unet/config.json", format!("the UNet takes {from} channels and gives {to}, but the VAE's latents have {latent}"));
    }
    if unet.cross_attention_dim != text.hidden_size {
        let (cross, hidden) = (unet.cross_attention_dim, text.hidden_size);
        return unfit("unet/config.json", format!("cross_attention_dim is {cross}, but the text encoder's hidden_size is {hidden}"));
    }
    if tokenizer.vocab_size() > text.vocab_size {
        let (tokens, vocab) = (tokenizer.vocab_size(), text.vocab_size);
        return unfit("tokenizer/tokenizer.json", format!("it has {tokens} tokens, but the text encoder knows {vocab}"));
    }
    Ok(())
}

fn defaults(
    files: &ModelFiles,
    unet: &UNet2DConditionConfig,
    vae: &AutoencoderKlConfig,
    scheduler: &SchedulerConfig,
) -> Result<ModelDefaults, LoadError> {
    let bad = |name: &str, reason: String| LoadError::BadConfig { path: files.path(name), reason };
    let side = (unet.sample_size * vae.scale_factor()) as u32;
    let size = ImageSize::new(side, side).map_err(|e| bad("unet/config.json", format!("sample_size: {e}")))?;
    let name = "generation_config.json";
    let config = match files.read(name) {
        Ok(json) => serde_json::from_slice(&json).map_err(|e| bad(name, e.to_string()))?,
        Err(LoadError::MissingFile(_)) => GenerationConfig::default(),
        Err(other) => return Err(other),
    };
    let sampler = scheduler.own_sampler().unwrap_or_else(|| {
        warn!("the checkpoint's {} is not supported; requests that name no sampler get {}", scheduler.class_name, Sampler::Euler);
        Sampler::Euler
    });
    let own = scheduler.own_schedule();
    let schedule = if sampler.check_schedule(own).is_ok() { own } else { Schedule::Default };
    Ok(ModelDefaults { size, steps: config.num_inference_steps, guidance_scale: config.guidance_scale, sampler, schedule })
}
