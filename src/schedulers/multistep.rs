//! What solvers have in common that evaluate the network once in a step, and look back at the steps before it.

use super::{PlanRequest, SamplingPlan, SchedulerConfig, Term, euler, scheduler_config::FinalSigmas, sigmas};

/// The most stages that a solver looks at.
const ORDER: usize = 4;

/// A plan of one evaluation for each step, for solvers that look back. `update` follows from the noise levels of this stage and those
/// before it, the latest first, and the next one. The last step, to no noise, leads to x0.
pub(super) fn plan(config: &SchedulerConfig, request: PlanRequest, update: impl Fn(&[f64], f64) -> Vec<(Term, f64)>) -> SamplingPlan {
    let run = sigmas::SigmaSchedule::new(config, request.schedule, request.steps, FinalSigmas::Zero);
    let stage = |i: usize| {
        let past: Vec<f64> = run.sigmas[request.start..=i].iter().rev().take(ORDER).copied().collect();
        let to = run.sigmas[i + 1];
        let falls = past.array_windows().all(|[after, before]| after < before) && to < past[0];
        let update = match to {
            0.0 => vec![(Term::Denoised(0), 1.0)],
            _ if falls => update(&past, to),
            // Runs of many steps visit a level twice: there is no slope between a level and itself.
            _ => euler::step(past[0], to),
        };
        sigmas::stage(config, run.timesteps[i], past[0], update)
    };
    SamplingPlan { init_noise_sigma: run.init_noise_sigma, stages: (request.start..request.steps).map(stage).collect() }
}
