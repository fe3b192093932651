//! Samplers as tables: everything a solver does that does not depend on the picture, worked out in `f64` before the first step.
//!
//! Every solver here moves the latents to a weighted sum of things that are known by then: the latents themselves, what the
//! network said of them, and fresh noise. So a sampler is no object with state that runs alongside the generation, but a function
//! from a checkpoint's `scheduler_config.json` and a number of steps to a [`SamplingPlan`] that nobody needs to change. Two
//! requests cannot disturb each other through it, and tests read it like a table.

mod ddim;
mod dpmpp_2m;
mod euler;
mod euler_ancestral;
mod scheduler_config;
mod sigmas;

pub use scheduler_config::{BetaSchedule, PredictionType, SchedulerConfig, TimestepSpacing};

use crate::common::{InvalidValue, Sampler, Schedule, Steps};

/// A whole sampling run, from noise to latents.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingPlan {
    /// What the initial noise of standard deviation 1 is multiplied with.
    pub init_noise_sigma: f64,
    /// One evaluation of the network each, in order.
    pub stages: Vec<Stage>,
}

/// One evaluation of the network, and where the latents move after it.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// What the network is told of the noise level. Between two training timesteps for Karras sigmas.
    pub timestep: f64,
    /// What the latents are multiplied with before the network sees them (`scale_model_input`).
    pub input_scale: f64,
    /// The estimate of the picture without noise, x0, as `denoised.sample * latents + denoised.output * model_output`.
    pub denoised: Denoised,
    /// The next latents: the sum of these terms.
    pub update: Vec<(Term, f64)>,
}

/// How x0 follows from the latents and the network's output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Denoised {
    /// Weight of the latents.
    pub sample: f64,
    /// Weight of the network's output.
    pub output: f64,
    /// x0 is clamped to this range on both sides of 0 (`clip_sample`, for models that work on pixels).
    pub clip: Option<f64>,
}

/// Something that a stage may add to the next latents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Term {
    /// The latents that the stage began with.
    Sample,
    /// The output of the network, after guidance.
    Output,
    /// x0 of this stage (0), of the stage before it (1), ….
    Denoised(usize),
    /// Fresh noise of standard deviation 1, from the request's generator.
    Noise,
}

impl SamplingPlan {
    /// The plan of `sampling.steps` steps for a checkpoint.
    ///
    /// # Errors
    /// When the sampler has no such schedule, or when there are more steps than the checkpoint has timesteps.
    pub fn new(config: &SchedulerConfig, sampler: Sampler, schedule: Schedule, steps: Steps) -> Result<Self, InvalidValue> {
        if steps.get() > config.num_train_timesteps {
            let allowed = format!("a whole number from 1 to {} for this model", config.num_train_timesteps);
            return Err(InvalidValue::new("steps", steps, allowed));
        }
        sampler.check_schedule(schedule)?;
        let plan = match sampler {
            Sampler::Ddim => ddim::plan,
            Sampler::Euler => euler::plan,
            Sampler::EulerAncestral => euler_ancestral::plan,
            Sampler::Dpmpp2m => dpmpp_2m::plan,
        };
        Ok(plan(config, schedule, steps.get()))
    }

    /// How many earlier x0 the stages look back at.
    #[must_use]
    pub fn history(&self) -> usize {
        let ages = self.stages.iter().flat_map(|stage| &stage.update).map(|(term, _)| match term {
            Term::Denoised(age) => *age,
            _ => 0,
        });
        ages.max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
