//! Samplers as tables: everything a solver does that does not depend on the picture, worked out in `f64` before the first step.
//!
//! Every solver here moves the latents to a weighted sum of things that are known by then: the latents themselves, what the
//! network said of them, and fresh noise. So a sampler is no object with state that runs alongside the generation, but a function
//! from a checkpoint's `scheduler_config.json` and a number of steps to a [`SamplingPlan`] that nobody needs to change. Two
//! requests cannot disturb each other through it, and tests read it like a table.

mod alphas;
mod beta_quantile;
mod ddim;
mod ddpm;
mod deis;
mod dpmpp_multistep;
mod dpmpp_sde;
mod euler;
mod euler_ancestral;
mod lcm;
mod levels;
mod lms;
mod pndm;
mod scheduler_config;
mod sigmas;
mod tcd;
mod two_evaluations;
mod unipc;

pub use levels::Level;
pub use scheduler_config::{BetaSchedule, PredictionType, SchedulerConfig, TimestepSpacing};

use crate::common::{Eta, InvalidValue, Sampler, Schedule, Steps};

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
    /// How much noise there is in the latents when it begins, for those who bring a picture to that level.
    pub level: Level,
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
    /// The latents that this stage began with (0), the stage before it (1), ….
    Sample(usize),
    /// The latents as the stage before this one left them. Only a mask that is laid over them in between makes them another thing
    /// than `Sample(0)`.
    Unmasked,
    /// The output of the network, after guidance, in this stage (0), in the stage before it (1), ….
    Output(usize),
    /// x0 of this stage (0), of the stage before it (1), ….
    Denoised(usize),
    /// Fresh noise of standard deviation 1, from the request's generator.
    Noise,
}

/// What a run is asked for.
#[derive(Debug, Clone, Copy)]
struct PlanRequest {
    /// Never the default one where the checkpoint has one of its own.
    schedule: Schedule,
    steps: usize,
    /// The first step that is taken.
    start: usize,
    eta: Option<f64>,
}

impl SamplingPlan {
    /// The plan of `steps` steps for a checkpoint, without the `start` first of them where there is a picture to begin with. Some
    /// samplers evaluate the network more than once in a step.
    ///
    /// # Errors
    /// When the sampler has no such schedule, when there are more steps than the checkpoint has timesteps, or when the sampler cannot
    /// begin with nothing but noise, as a checkpoint with `rescale_betas_zero_snr` asks it to.
    pub fn new(
        config: &SchedulerConfig,
        sampler: Sampler,
        schedule: Schedule,
        steps: Steps,
        start: usize,
        eta: Option<Eta>,
    ) -> Result<Self, InvalidValue> {
        let most = config.most_steps(sampler);
        if steps.get() > most {
            return Err(InvalidValue::new("steps", steps, format!("a whole number from 1 to {most} for this model with {sampler}")));
        }
        sampler.check_schedule(schedule)?;
        let schedule = if schedule == Schedule::Default { config.own_schedule(sampler) } else { schedule };
        let request = PlanRequest { schedule, steps: steps.get(), start, eta: eta.map(Eta::get) };
        // As in diffusers, whose other classes do not know of it.
        let rescale_betas_zero_snr = config.rescale_betas_zero_snr && sampler.knows_zero_snr();
        let config = &SchedulerConfig { rescale_betas_zero_snr, ..config.clone() };
        let plan = solver(sampler)(config, request);
        if plan.is_finite() {
            return Ok(plan);
        }
        Err(InvalidValue::new("sampler", sampler, "one that can begin with nothing but noise (zero terminal SNR), such as euler"))
    }

    fn is_finite(&self) -> bool {
        let is_finite = |stage: &Stage| {
            let Denoised { sample, output, .. } = stage.denoised;
            [stage.timestep, stage.level.alpha, stage.level.sigma, stage.input_scale, sample, output].into_iter().all(f64::is_finite)
                && stage.update.iter().all(|(_, weight)| weight.is_finite())
        };
        self.init_noise_sigma.is_finite() && self.stages.iter().all(is_finite)
    }

    /// How many earlier stages are looked back at.
    #[must_use]
    pub fn history(&self) -> usize {
        let ages = self.stages.iter().flat_map(|stage| &stage.update).map(|(term, _)| match term {
            Term::Sample(age) | Term::Output(age) | Term::Denoised(age) => *age,
            Term::Unmasked | Term::Noise => 0,
        });
        ages.max().unwrap_or(0)
    }
}

fn solver(sampler: Sampler) -> fn(&SchedulerConfig, PlanRequest) -> SamplingPlan {
    match sampler {
        Sampler::Ddim => ddim::plan,
        Sampler::Ddpm => ddpm::plan,
        Sampler::Pndm => pndm::plan,
        Sampler::Lms => lms::plan,
        Sampler::Heun => two_evaluations::heun,
        Sampler::Euler => euler::plan,
        Sampler::EulerAncestral => euler_ancestral::plan,
        Sampler::Dpm2 => two_evaluations::dpm2,
        Sampler::Dpm2Ancestral => two_evaluations::dpm2_ancestral,
        Sampler::Dpmpp2m => dpmpp_multistep::ode,
        Sampler::Dpmpp2mSde => dpmpp_multistep::sde,
        Sampler::Dpmpp2sAncestral => two_evaluations::dpmpp_2s_ancestral,
        Sampler::DpmppSde => dpmpp_sde::plan,
        Sampler::UniPc => unipc::plan,
        Sampler::Deis => deis::plan,
        Sampler::Lcm => lcm::plan,
        Sampler::Tcd => tcd::plan,
    }
}

#[cfg(test)]
mod tests;
