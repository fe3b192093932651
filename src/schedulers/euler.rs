//! Euler's method on the probability-flow ODE of [Karras et al.](https://arxiv.org/abs/2206.00364), algorithm 2 without churn.
//! After diffusers' `scheduling_euler_discrete.py`.

use super::{PlanRequest, SamplingPlan, SchedulerConfig, Term, sigmas};

pub(super) fn plan(config: &SchedulerConfig, request: PlanRequest) -> SamplingPlan {
    let run = sigmas::SigmaSchedule::new(config, request.schedule, request.steps, config.final_sigmas_type);
    let stage = |(timestep, sigma, next)| sigmas::stage(config, timestep, sigma, step(sigma, next));
    SamplingPlan { init_noise_sigma: run.init_noise_sigma, stages: run.steps().skip(request.start).map(stage).collect() }
}

/// x + (x - x0) / sigma * (next - sigma)
pub(super) fn step(sigma: f64, next: f64) -> Vec<(Term, f64)> {
    vec![(Term::Sample(0), next / sigma), (Term::Denoised(0), 1.0 - next / sigma)]
}
