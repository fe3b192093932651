//! Euler's method with ancestral noise: each step goes further down than the schedule asks, and fresh noise leads back up.
//! After diffusers' `scheduling_euler_ancestral_discrete.py`.

use super::{SamplingPlan, SchedulerConfig, Stage, Term, TimestepSpacing, scheduler_config::FinalSigmas, sigmas};
use crate::common::Schedule;

pub(super) fn plan(config: &SchedulerConfig, _: Schedule, steps: usize) -> SamplingPlan {
    // diffusers' class knows only one end, and no Karras sigmas.
    let config = &SchedulerConfig { final_sigmas_type: FinalSigmas::Zero, ..config.clone() };
    let table = sigmas::SigmaTable::new(config);
    let spacing = config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace);
    let run = sigmas::SigmaSchedule::new(config, &table, sigmas::timesteps(config, spacing, steps));
    let stage = |(timestep, from, to): (f64, f64, f64)| {
        // Not below 0: next to zero terminal SNR, a very fine schedule can begin with a noise level just below its second.
        let up = (to * to * (from * from - to * to).max(0.0) / (from * from)).sqrt();
        let down = (to * to - up * up).sqrt();
        Stage {
            timestep,
            input_scale: 1.0 / (from * from + 1.0).sqrt(),
            denoised: sigmas::denoised_from_sigma(config.prediction_type, from),
            update: vec![(Term::Sample, down / from), (Term::Denoised(0), 1.0 - down / from), (Term::Noise, up)],
        }
    };
    SamplingPlan { init_noise_sigma: sigmas::init_noise_sigma(spacing, run.sigmas[0]), stages: run.steps().map(stage).collect() }
}
