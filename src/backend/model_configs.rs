//! Every configuration of a model, read and checked before any of its weights.

use serde::{Deserialize, de::IgnoredAny};
use tracing::warn;

use super::{
    FewSteps, LoadError, ModelDefaults, ModelFiles, PromptTokenizer,
    families::{self, SUPPORTED_NAMES},
    model_files::POOLING,
};
use crate::{
    common::{GuidanceScale, ImageSize, InvalidValue, ModelFamily, ModelVariant, Sampler, Steps},
    models::{AutoencoderKlConfig, ClipTextConfig, DenoiserConfig, TextNetworkConfig},
    schedulers::{PredictionType, SchedulerConfig, TimestepSpacing},
};

const INDEX: &str = "model_index.json";
const UNET: &str = "unet/config.json";
const VAE: &str = "vae/config.json";
const SCHEDULER: &str = "scheduler/scheduler_config.json";
const GENERATION: &str = "generation_config.json";
/// The configurations of a model's parts.
#[derive(Debug)]
pub(super) struct ModelConfigs {
    pub(super) family: ModelFamily,
    pub(super) variant: ModelVariant,
    pub(super) force_zeros_for_empty_prompt: bool,
    /// One text encoder, or the two of SDXL.
    pub(super) text: Vec<TextConfigs>,
    pub(super) denoiser: DenoiserConfig,
    pub(super) vae: AutoencoderKlConfig,
    pub(super) scheduler: SchedulerConfig,
    pub(super) defaults: ModelDefaults,
}

/// A text encoder with its tokenizer.
#[derive(Debug)]
pub(super) struct TextConfigs {
    /// The folder of its weights.
    pub(super) folder: &'static str,
    pub(super) config: TextNetworkConfig,
    pub(super) tokenizer: PromptTokenizer,
}

/// `model_index.json`.
#[derive(Deserialize)]
struct ModelIndex {
    #[serde(rename = "_class_name", default)]
    class_name: String,
    force_zeros_for_empty_prompt: Option<bool>,
    #[serde(default)]
    requires_aesthetics_score: bool,
    /// Families after the UNet have a transformer.
    transformer: Option<IgnoredAny>,
}

/// `generation_config.json`, which a model may carry, named as in transformers: settings of requests that leave them out.
#[derive(Deserialize, Default)]
struct GenerationConfig {
    num_inference_steps: Option<Steps>,
    guidance_scale: Option<GuidanceScale>,
    /// Whether the model draws well at its own size alone.
    #[serde(default)]
    own_size_only: bool,
}

impl ModelConfigs {
    /// Reads all of them.
    ///
    /// # Errors
    /// Names the file that is missing, broken, or does not fit the others, or the family that is not supported.
    pub(super) fn load(files: &ModelFiles) -> Result<Self, LoadError> {
        let index = ModelIndex::load(files)?;
        files.check_parts()?;
        let denoiser = DenoiserConfig::unet_from_json(&files.read(UNET)?).map_err(LoadError::config(files.path(UNET)))?;
        let vae = AutoencoderKlConfig::from_json(&files.read(VAE)?).map_err(LoadError::config(files.path(VAE)))?;
        let mut scheduler = SchedulerConfig::from_json(&files.read(SCHEDULER)?)
            .map_err(|reason| LoadError::BadConfig { path: files.path(SCHEDULER), reason })?;
        let (folder, tokenizer) = ("text_encoder", "tokenizer");
        let first = TextConfigs::load(files, folder, tokenizer)?;
        let family = families::by_configs(&denoiser, &first.config);
        let facts = families::of(family);
        scheduler.is_xl = family == ModelFamily::Sdxl;
        let more = facts.text_folders[1..].iter().map(|(folder, tokenizer)| TextConfigs::load(files, folder, tokenizer));
        let text = [Ok(first)].into_iter().chain(more).collect::<Result<Vec<_>, _>>()?;
        if facts.text_folders.len() == 1 && files.is_elsewhere(POOLING) {
            return Err(LoadError::Unsupported("--text-encoder-2 is for SDXL: this model has one text encoder".to_owned()));
        }
        check_fit(files, &text, &denoiser, &vae)?;
        let variant = variant(&denoiser, &vae, &scheduler);
        let defaults = defaults(files, family, variant, &denoiser, &vae, &scheduler)?;
        let force_zeros_for_empty_prompt = index.force_zeros_for_empty_prompt.unwrap_or(facts.force_zeros_for_empty_prompt);
        Ok(Self { family, variant, force_zeros_for_empty_prompt, text, denoiser, vae, scheduler, defaults })
    }
}

impl ModelIndex {
    fn load(files: &ModelFiles) -> Result<Self, LoadError> {
        let bad = |reason: String| LoadError::BadConfig { path: files.path(INDEX), reason };
        let index: Self = files.json(INDEX)?;
        let class = &index.class_name;
        let refiner = index.requires_aesthetics_score.then_some("SDXL refiner");
        match refiner.or_else(|| families::refused_pipeline(class)) {
            Some(family) => {
                Err(bad(format!("this is a model of the family {family} ({class}), which is not supported; {SUPPORTED_NAMES} are")))
            }
            None if index.transformer.is_some() => Err(bad(format!(
                "this is a model of {class} with a transformer in place of a UNet, which is not supported; {SUPPORTED_NAMES} are"
            ))),
            None => Ok(index),
        }
    }
}

impl TextConfigs {
    fn load(files: &ModelFiles, folder: &'static str, tokenizer: &str) -> Result<Self, LoadError> {
        let path = format!("{folder}/config.json");
        let mut config = ClipTextConfig::from_json(&files.read(&path)?).map_err(LoadError::config(files.path(&path)))?;
        config.projection_dim = config.projection_dim.filter(|_| folder == POOLING);
        let tokenizer_path = files.path(tokenizer);
        let tokenizer = PromptTokenizer::load(files, tokenizer, config.max_position_embeddings)?;
        let vocab_size = config.vocab_size;
        if let Some((token, id)) = tokenizer.last_token().filter(|(_, id)| *id as usize >= vocab_size) {
            let reason = format!("the token \"{token}\" has the id {id}, but the text encoder's vocab_size is {vocab_size}");
            return Err(LoadError::BadConfig { path: tokenizer_path, reason });
        }
        Ok(Self { folder, config: TextNetworkConfig::Clip(config), tokenizer })
    }
}

/// Whether the denoiser looks at a mask and a masked picture beside the latents.
fn is_inpainting(denoiser: &DenoiserConfig, vae: &AutoencoderKlConfig) -> bool {
    denoiser.in_channels() == 2 * vae.latent_channels + 1
}

/// The parts of a model must agree on the widths of latents and text.
fn check_fit(files: &ModelFiles, text: &[TextConfigs], denoiser: &DenoiserConfig, vae: &AutoencoderKlConfig) -> Result<(), LoadError> {
    let unfit = |reason: String| Err(LoadError::BadConfig { path: files.path(UNET), reason });
    let (from, to, latent) = (denoiser.in_channels(), denoiser.out_channels(), vae.latent_channels);
    if (from != latent && !is_inpainting(denoiser, vae)) || to != latent {
        return unfit(format!("the UNet takes {from} channels and gives {to}, but the VAE's latents have {latent}"));
    }
    let (cross, hidden) = (denoiser.text_dim(), text.iter().map(|text| text.config.hidden_size()).sum::<usize>());
    if cross != hidden {
        let encoders = if text.len() == 1 { "the text encoder's hidden_size is" } else { "the text encoders' hidden_size together is" };
        return unfit(format!("cross_attention_dim is {cross}, but {encoders} {hidden}"));
    }
    if let (Some(looked_at), Some(last)) = (denoiser.pooled_dim(), text.last()) {
        let given = last.config.pooled_dim();
        if Some(looked_at) != given {
            let given = given.unwrap_or_default();
            return unfit(format!("it looks at pooled text of width {looked_at}, but {POOLING}'s projection_dim is {given}"));
        }
    }
    Ok(())
}

/// What a model was trained further for, by its denoiser and its scheduler.
fn variant(denoiser: &DenoiserConfig, vae: &AutoencoderKlConfig, scheduler: &SchedulerConfig) -> ModelVariant {
    if is_inpainting(denoiser, vae) {
        ModelVariant::Inpainting
    } else if denoiser.embeds_guidance() || scheduler.own_sampler() == Some(Sampler::Lcm) {
        ModelVariant::Lcm
    } else if scheduler.timestep_spacing == Some(TimestepSpacing::Trailing)
        && scheduler.prediction_type == PredictionType::Epsilon
        && !scheduler.rescale_betas_zero_snr
    {
        // Turbo's one step begins at the last timestep. Other models that begin there predict velocity: there is no picture in the latents.
        ModelVariant::Turbo
    } else {
        ModelVariant::Base
    }
}

/// Steps and guidance scale of a request that leaves them out, as diffusers' pipelines and the models' cards have them.
fn usual(family: ModelFamily, variant: ModelVariant, embeds_guidance: bool) -> (i64, f64) {
    match (variant, family) {
        (ModelVariant::Turbo, _) => (1, 0.0),
        (ModelVariant::Lcm, _) => (4, if embeds_guidance { 8.5 } else { 1.0 }),
        (ModelVariant::Base | ModelVariant::Inpainting, family) => (20, families::of(family).guidance_scale),
    }
}

fn defaults(
    files: &ModelFiles,
    family: ModelFamily,
    variant: ModelVariant,
    denoiser: &DenoiserConfig,
    vae: &AutoencoderKlConfig,
    scheduler: &SchedulerConfig,
) -> Result<ModelDefaults, LoadError> {
    let bad = |name: &str, reason: String| LoadError::BadConfig { path: files.path(name), reason };
    let side = (denoiser.sample_size() * vae.scale_factor()) as u32;
    let size = ImageSize::new(side, side).map_err(|e| bad(UNET, format!("sample_size: {e}")))?;
    let config = if files.exists(GENERATION) { files.json(GENERATION)? } else { GenerationConfig::default() };
    let (steps, guidance_scale) = usual(family, variant, denoiser.embeds_guidance());
    let in_range = |e: InvalidValue| bad(GENERATION, e.to_string());
    let sampler = scheduler.own_sampler().unwrap_or_else(|| {
        warn!("the checkpoint's {} is not supported; requests that name no sampler get {}", scheduler.class_name, Sampler::Euler);
        Sampler::Euler
    });
    if scheduler.class_name == "PNDMScheduler" && !scheduler.skip_prk_steps {
        warn!(
            "the checkpoint asks for a scheduler that begins with steps of Runge and Kutta (skip_prk_steps is not true); pndm has none here"
        );
    }
    let own = ModelDefaults {
        size,
        own_size_only: config.own_size_only,
        steps: config.num_inference_steps.map_or_else(|| Steps::try_from(steps), Ok).map_err(in_range)?,
        guidance_scale: config.guidance_scale.map_or_else(|| GuidanceScale::try_from(guidance_scale), Ok).map_err(in_range)?,
        sampler,
        schedule: scheduler.own_schedule(sampler),
    };
    // A checkpoint that another was merged into looks like any of its family.
    let few = files.checkpoint_name().filter(|_| variant == ModelVariant::Base).and_then(FewSteps::of_name);
    Ok(few.map_or(own, |few| {
        warn!("by its name, the checkpoint is for few steps; requests that do not say get {few}");
        let (steps, guidance_scale) = (few.steps.unwrap_or(own.steps), few.guidance_scale.unwrap_or(own.guidance_scale));
        ModelDefaults { steps, guidance_scale, sampler: few.sampler, schedule: few.schedule, ..own }
    }))
}
