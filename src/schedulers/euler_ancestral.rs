//! Euler's method with ancestral noise: each step goes further down than the schedule asks, and fresh noise leads back up.
//! After diffusers' `scheduling_euler_ancestral_discrete.py`.

use super::{PlanRequest, SamplingPlan, SchedulerConfig, Term, euler, scheduler_config::FinalSigmas, sigmas};

pub(super) fn plan(config: &SchedulerConfig, request: PlanRequest) -> SamplingPlan {
    let run = sigmas::SigmaSchedule::new(config, request.schedule, request.steps, FinalSigmas::Zero);
    let stage = |(timestep, from, to): (f64, f64, f64)| {
        let (down, up) = sigmas::ancestral_step(from, to);
        let mut update = euler::step(from, down);
        update.push((Term::Noise, up));
        sigmas::stage(config, timestep, from, update)
    };
    SamplingPlan { init_noise_sigma: run.init_noise_sigma, stages: run.steps().skip(request.start).map(stage).collect() }
}
