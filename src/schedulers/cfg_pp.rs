//! [CFG++](https://arxiv.org/abs/2406.08070): guidance decides where a step leads, and the noise that it leaves is that of the negative
//! prompt alone.

use super::{PlanRequest, SamplingPlan, SchedulerConfig, Stage, Term, scheduler_config::FinalSigmas, sigmas};

/// Euler's method, as `ComfyUI`'s `sample_euler_cfg_pp`.
pub(super) fn euler(config: &SchedulerConfig, request: PlanRequest) -> SamplingPlan {
    plan(config, request, config.final_sigmas_type, |_, to| (to, 0.0))
}

/// Euler's method with ancestral noise, as `ComfyUI`'s `sample_euler_ancestral_cfg_pp`.
pub(super) fn euler_ancestral(config: &SchedulerConfig, request: PlanRequest) -> SamplingPlan {
    plan(config, request, FinalSigmas::Zero, sigmas::ancestral_step)
}

/// Steps that lead down to one noise level, and up by fresh noise.
fn plan(config: &SchedulerConfig, request: PlanRequest, last: FinalSigmas, levels: impl Fn(f64, f64) -> (f64, f64)) -> SamplingPlan {
    let run = sigmas::SigmaSchedule::new(config, request.schedule, request.steps, last);
    let stage = |(timestep, from, to): (f64, f64, f64)| {
        let (down, up) = levels(from, to);
        let stage = sigmas::stage(config, timestep, from, Vec::new());
        // x0 + (x - the negative prompt's x0) / sigma * down
        let (left, negative) = (down / from, stage.denoised);
        let mut update =
            vec![(Term::Denoised(0), 1.0), (Term::Sample(0), left * (1.0 - negative.sample)), (Term::Unguided, -left * negative.output)];
        if up > 0.0 {
            update.push((Term::Noise, up));
        }
        Stage { update, ..stage }
    };
    SamplingPlan { init_noise_sigma: run.init_noise_sigma, stages: run.steps().skip(request.start).map(stage).collect() }
}
