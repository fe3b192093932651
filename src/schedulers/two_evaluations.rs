//! Solvers that evaluate the network twice in a step, at its beginning and further on. The last step, to no noise, is one of Euler's:
//! `n` steps are `2 n - 1` evaluations.
//!
//! - Heun's method: algorithm 1 of [Karras et al.](https://arxiv.org/abs/2206.00364), after diffusers'
//!   `scheduling_heun_discrete.py`.
//! - DPM2, with and without ancestral noise: the midpoint method of [DPM-Solver-2](https://arxiv.org/abs/2206.00927), after
//!   diffusers' `scheduling_k_dpm_2_discrete.py` and `scheduling_k_dpm_2_ancestral_discrete.py`.
//! - DPM++ 2S a: [DPM-Solver++](https://arxiv.org/abs/2211.01095), second order, single step, with ancestral noise; after
//!   k-diffusion's `sample_dpmpp_2s_ancestral`.

use super::{PlanRequest, SamplingPlan, SchedulerConfig, Stage, Term, euler, scheduler_config::FinalSigmas, sigmas};
use crate::common::Schedule;

/// A step from the noise level `from` down to `down`, by way of `middle`.
struct Step {
    from: f64,
    middle: f64,
    down: f64,
}

/// The second evaluation, and the use of both.
#[derive(Clone, Copy, PartialEq)]
enum Method {
    /// At the end; the mean of both slopes.
    Heun,
    /// Halfway in the logarithm; its slope alone.
    Midpoint,
    /// The same, with the exponential integrator.
    SingleStep,
}

pub(super) fn heun(config: &SchedulerConfig, request: PlanRequest) -> SamplingPlan {
    plan(config, request, Method::Heun, false)
}

pub(super) fn dpm2(config: &SchedulerConfig, request: PlanRequest) -> SamplingPlan {
    plan(config, request, Method::Midpoint, false)
}

pub(super) fn dpm2_ancestral(config: &SchedulerConfig, request: PlanRequest) -> SamplingPlan {
    plan(config, request, Method::Midpoint, true)
}

pub(super) fn dpmpp_2s_ancestral(config: &SchedulerConfig, request: PlanRequest) -> SamplingPlan {
    plan(config, request, Method::SingleStep, true)
}

fn plan(config: &SchedulerConfig, request: PlanRequest, method: Method, ancestral: bool) -> SamplingPlan {
    let run = sigmas::SigmaSchedule::new(config, request.schedule, request.steps, FinalSigmas::Zero);
    let table = sigmas::SigmaTable::new(config);
    // As in diffusers, timesteps are whole for this one.
    let rounds = method == Method::Midpoint && request.schedule == Schedule::Karras;
    let stage = |timestep: f64, sigma: f64, level: f64, update: Vec<(Term, f64)>| Stage {
        timestep,
        level: sigmas::level(level),
        input_scale: sigmas::input_scale(sigma),
        denoised: sigmas::denoised_from_sigma(config.prediction_type, sigma),
        update,
    };
    let mut stages = Vec::with_capacity(2 * request.steps);
    for (timestep, from, to) in run.steps().skip(request.start) {
        let timestep = if rounds { timestep.round_ties_even() } else { timestep };
        let (down, up) = if ancestral { sigmas::ancestral_step(from, to) } else { (to, 0.0) };
        let middle = if method == Method::Heun { to } else { (from * down).sqrt() };
        stages.push(stage(timestep, from, from, euler::step(from, middle)));
        if to > 0.0 {
            let mut update = method.second(&Step { from, middle, down });
            if ancestral {
                update.push((Term::Noise, up));
            }
            // As in diffusers, an input picture is at the level of the step's end already in its middle.
            let level = if method == Method::Midpoint { to } else { middle };
            stages.push(stage(table.timestep_of(middle), middle, level, update));
        }
    }
    SamplingPlan { init_noise_sigma: run.init_noise_sigma, stages }
}

/// A step of Heun's method between two noise levels, of which `timestep_of` says the timesteps.
pub(super) fn heun_step(config: &SchedulerConfig, from: f64, to: f64, timestep_of: impl Fn(f64) -> f64) -> Vec<Stage> {
    let mut stages = vec![sigmas::stage(config, timestep_of(from), from, euler::step(from, to))];
    if to > 0.0 {
        stages.push(sigmas::stage(config, timestep_of(to), to, Method::Heun.second(&Step { from, middle: to, down: to })));
    }
    stages
}

impl Method {
    /// From the second evaluation to the end of the step.
    fn second(self, &Step { from, middle, down }: &Step) -> Vec<(Term, f64)> {
        let way = down - from;
        match self {
            Self::Heun => vec![
                (Term::Sample(1), 1.0 + 0.5 * way / from),
                (Term::Denoised(1), -0.5 * way / from),
                (Term::Sample(0), 0.5 * way / middle),
                (Term::Denoised(0), -0.5 * way / middle),
            ],
            Self::Midpoint => vec![(Term::Sample(1), 1.0), (Term::Sample(0), way / middle), (Term::Denoised(0), -way / middle)],
            Self::SingleStep => vec![(Term::Sample(1), down / from), (Term::Denoised(0), 1.0 - down / from)],
        }
    }
}
