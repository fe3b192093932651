//! DPM++ SDE: [DPM-Solver++](https://arxiv.org/abs/2211.01095) as an SDE, second order, single step. After diffusers'
//! `scheduling_dpmsolver_singlestep.py` with `algorithm_type="sde-dpmsolver++"`, where `n` steps are `n` evaluations: every second
//! one is halfway, and goes on from where the one before it began.

use super::{
    Level, PlanRequest, SamplingPlan, SchedulerConfig, Stage, Term, TimestepSpacing,
    dpmpp_multistep::{Equation, noise},
    levels::LevelSchedule,
    scheduler_config::FinalSigmas,
};

pub(super) fn plan(config: &SchedulerConfig, request: PlanRequest) -> SamplingPlan {
    // diffusers' class ignores the checkpoint's spacing.
    let config = &SchedulerConfig { timestep_spacing: Some(TimestepSpacing::Linspace), ..config.clone() };
    let steps = request.steps;
    let run = LevelSchedule::new(config, request.schedule, steps, config.final_sigmas_type);
    let levels = &run.levels;
    // As in diffusers: runs of an even number of steps, and runs that end without noise, end with two steps of first order.
    let ends_lower =
        (steps.is_multiple_of(2) && config.lower_order_final.unwrap_or(false)) || config.final_sigmas_type == FinalSigmas::Zero;
    let is_second_order = |i: usize| i > request.start && i % 2 == 1 && i < steps - usize::from(ends_lower);
    let stage = |i: usize| Stage {
        timestep: run.timesteps[i],
        level: levels[i],
        input_scale: 1.0,
        denoised: levels[i].denoised(config.prediction_type),
        update: if is_second_order(i) {
            second_order(levels[i - 1], levels[i], levels[i + 1])
        } else {
            Equation::Sde.first_order(levels[i], levels[i + 1])
        },
    };
    SamplingPlan { init_noise_sigma: 1.0, stages: (request.start..steps).map(stage).collect() }
}

fn second_order(from: Level, middle: Level, to: Level) -> Vec<(Term, f64)> {
    let r = (middle.lambda() - from.lambda()) / (to.lambda() - from.lambda());
    let (kept, gained) = (Equation::Sde.kept(from, to), Equation::Sde.gained(from, to));
    let slope = if r == 0.0 || !r.is_finite() { 0.0 } else { 0.5 * gained / r };
    vec![(Term::Sample(1), kept), (Term::Denoised(1), gained - slope), (Term::Denoised(0), slope), (Term::Noise, noise(from, to))]
}
