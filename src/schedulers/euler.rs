//! Euler's method on the probability-flow ODE of [Karras et al.](https://arxiv.org/abs/2206.00364), algorithm 2 without churn.
//! After diffusers' `scheduling_euler_discrete.py`.

use super::{SamplingPlan, SchedulerConfig, Stage, Term, TimestepSpacing, sigmas};
use crate::common::Schedule;

pub(super) fn plan(config: &SchedulerConfig, schedule: Schedule, steps: usize) -> SamplingPlan {
    let table = sigmas::SigmaTable::new(config);
    let spacing = config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace);
    let mut run = sigmas::SigmaSchedule::new(config, &table, sigmas::timesteps(config, spacing, steps));
    if sigmas::wants_karras(config, schedule) {
        // Unlike DPM-Solver++, between the first and the last noise level that the spacing would have visited.
        let (max, min) = (run.sigmas[0], run.sigmas[steps - 1]);
        run = sigmas::SigmaSchedule::karras(config, &table, min, max, steps);
    }
    let stage = |(timestep, sigma, next): (f64, f64, f64)| Stage {
        timestep,
        input_scale: 1.0 / (sigma * sigma + 1.0).sqrt(),
        denoised: sigmas::denoised_from_sigma(config.prediction_type, sigma),
        // x + (x - x0) / sigma * (next - sigma)
        update: vec![(Term::Sample, next / sigma), (Term::Denoised(0), 1.0 - next / sigma)],
    };
    SamplingPlan { init_noise_sigma: sigmas::init_noise_sigma(spacing, run.sigmas[0]), stages: run.steps().map(stage).collect() }
}
