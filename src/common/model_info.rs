//! What the world may know of the loaded model.

use serde::Serialize;
use utoipa::ToSchema;

use super::{GuidanceScale, ImageSize, InvalidValue, ModelFamily, ModelVariant, Sampler, SamplingConfig, Schedule, Steps};

/// The loaded model: its name, what it runs on, and what it does when a request does not say.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ModelInfo {
    /// Name in `/v1/models` and in answers.
    pub id: String,
    /// Its architecture.
    pub family: ModelFamily,
    /// What it was trained further for.
    pub variant: ModelVariant,
    /// Whether the network itself looks at the guidance scale, as distilled ones do: then there are no two sides to guide between, and
    /// no negative prompt.
    #[serde(skip)]
    pub embeds_guidance: bool,
    /// Where it runs, such as `cpu` or `cuda:0`.
    pub device: String,
    /// Number format of the weights, such as `f32`.
    pub dtype: &'static str,
    /// The largest number of pixels that a request may ask for.
    pub max_pixels: u64,
    /// Sides of pictures are multiples of this.
    pub size_multiple: u32,
    /// The most steps: as many as there were timesteps in training.
    pub max_steps: usize,
    /// The largest `clip_skip`: as many as the text encoder has layers.
    pub max_clip_skip: usize,
    /// Settings of a request that leaves them out.
    #[serde(skip)]
    pub defaults: ModelDefaults,
}

impl ModelInfo {
    /// Whether a guidance scale leads away from the negative prompt, in a second evaluation of the network.
    #[must_use]
    pub fn is_guided(&self, scale: GuidanceScale) -> bool {
        scale.is_guided() && !self.embeds_guidance
    }

    /// Makes sure that the model can do what is asked, before anything is spent on it.
    ///
    /// # Errors
    /// Names the setting that it cannot follow.
    pub fn check(&self, config: &SamplingConfig) -> Result<(), InvalidValue> {
        let (size, steps) = (config.size, config.steps);
        if size.pixels() > self.max_pixels {
            return Err(InvalidValue::new("size", size, format!("at most {} pixels on this worker", self.max_pixels)));
        }
        if !size.width().is_multiple_of(self.size_multiple) || !size.height().is_multiple_of(self.size_multiple) {
            return Err(InvalidValue::new("size", size, format!("multiples of {} for this model", self.size_multiple)));
        }
        if steps.get() > self.max_steps {
            return Err(InvalidValue::new("steps", steps, format!("a whole number from 1 to {} for this model", self.max_steps)));
        }
        if let Some(skip) = config.options.clip_skip.filter(|skip| skip.layers() >= self.max_clip_skip) {
            return Err(InvalidValue::new("clip_skip", skip, format!("a whole number from 1 to {} for this model", self.max_clip_skip)));
        }
        config.sampler.check_schedule(config.schedule)
    }
}

/// Settings of a request that leaves them out.
#[derive(Debug, Clone, Copy)]
pub struct ModelDefaults {
    /// The size that the model was trained for.
    pub size: ImageSize,
    /// Denoising steps.
    pub steps: Steps,
    /// Guidance scale.
    pub guidance_scale: GuidanceScale,
    /// The checkpoint's own sampler.
    pub sampler: Sampler,
    /// The checkpoint's own schedule.
    pub schedule: Schedule,
}
