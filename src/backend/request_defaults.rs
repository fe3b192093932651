//! What requests get that leave it out, in the words of the worker's owner.

use crate::common::{GuidanceScale, ImageSize, InvalidValue, NamedSampler, NamedSchedule, NegativePrompt, Steps};

/// What requests get that leave it out, where that is not what the model's own files say. Clients of some APIs cannot ask for it.
#[derive(Debug, Clone, Default)]
pub struct RequestDefaults {
    /// Denoising steps.
    pub steps: Option<Steps>,
    /// How strongly pictures follow the prompt.
    pub guidance_scale: Option<GuidanceScale>,
    /// The solver.
    pub sampler: Option<NamedSampler>,
    /// How noise levels are spaced, with samplers that can.
    pub schedule: Option<NamedSchedule>,
    /// The size of pictures that begin with none.
    pub size: Option<ImageSize>,
    /// What pictures do not show.
    pub negative_prompt: Option<NegativePrompt>,
}

impl RequestDefaults {
    /// Checks that the sampler can have the schedule.
    ///
    /// # Errors
    /// When it cannot.
    pub fn check(&self) -> Result<(), InvalidValue> {
        match (self.sampler, self.schedule) {
            (Some(named), Some(schedule)) => named.sampler.check_schedule(named.schedule(Some(schedule))?.unwrap_or_default()),
            _ => Ok(()),
        }
    }
}
