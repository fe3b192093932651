//! [DPM-Solver++](https://arxiv.org/abs/2211.01095), second order, multistep: as an ODE (its algorithm 2) and as an SDE, by the midpoint,
//! and as an SDE by Heun's formula. After diffusers' `scheduling_dpmsolver_multistep.py` with its default `solver_order`.

use super::{
    BetaSchedule, Level, PlanRequest, SamplingPlan, SchedulerConfig, Stage, Term,
    levels::{LevelSchedule, truncate},
    scheduler_config::FinalSigmas,
};

/// Runs of fewer steps end with a step of first order.
const SHORT_RUN: usize = 15;

/// The equation that is solved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Equation {
    /// The probability-flow ODE, without noise.
    Ode,
    /// The SDE, with fresh noise in every step.
    Sde,
}

/// How the second order is taken, diffusers' `solver_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Formula {
    Midpoint,
    Heun,
}

pub(super) fn ode(config: &SchedulerConfig, request: PlanRequest) -> SamplingPlan {
    plan(config, request, Equation::Ode, Formula::Midpoint)
}

pub(super) fn sde(config: &SchedulerConfig, request: PlanRequest) -> SamplingPlan {
    plan(config, request, Equation::Sde, Formula::Midpoint)
}

pub(super) fn sde_heun(config: &SchedulerConfig, request: PlanRequest) -> SamplingPlan {
    plan(config, request, Equation::Sde, Formula::Heun)
}

fn plan(config: &SchedulerConfig, request: PlanRequest, equation: Equation, formula: Formula) -> SamplingPlan {
    let steps = request.steps;
    // As in diffusers, timesteps are whole. Those of the cosine schedule are truncated, not rounded.
    let whole = if config.beta_schedule == BetaSchedule::SquaredCosine { truncate } else { f64::round_ties_even };
    let run = LevelSchedule::with_karras_timesteps(config, request.schedule, steps, config.final_sigmas_type, whole);
    let levels = &run.levels;
    let ends_first_order = config.euler_at_final
        || (config.lower_order_final.unwrap_or(true) && steps < SHORT_RUN)
        || config.final_sigmas_type == FinalSigmas::Zero;
    let stage = |i: usize| Stage {
        timestep: run.timesteps[i],
        level: levels[i],
        input_scale: 1.0,
        denoised: levels[i].denoised(config.prediction_type),
        update: if i == request.start || (i == steps - 1 && ends_first_order) {
            equation.first_order(levels[i], levels[i + 1])
        } else {
            second_order((equation, formula), levels[i - 1], levels[i], levels[i + 1])
        },
    };
    SamplingPlan { init_noise_sigma: 1.0, stages: (request.start..steps).map(stage).collect() }
}

impl Equation {
    /// A step of first order, with constant x0.
    pub(super) fn first_order(self, from: Level, to: Level) -> Vec<(Term, f64)> {
        let mut update = vec![(Term::Sample(0), self.kept(from, to)), (Term::Denoised(0), self.gained(from, to))];
        if self == Self::Sde {
            update.push((Term::Noise, noise(from, to)));
        }
        update
    }

    /// The weight of the latents in a step.
    pub(super) fn kept(self, from: Level, to: Level) -> f64 {
        let ratio = to.sigma / from.sigma;
        match self {
            Self::Ode => ratio,
            Self::Sde => ratio * (from.lambda() - to.lambda()).exp(),
        }
    }

    /// The weight of x0 in a step.
    pub(super) fn gained(self, from: Level, to: Level) -> f64 {
        let h = to.lambda() - from.lambda();
        match self {
            Self::Ode => -to.alpha * (-h).exp_m1(),
            Self::Sde => -to.alpha * (-2.0 * h).exp_m1(),
        }
    }
}

/// The weight of fresh noise in a step of the SDE.
pub(super) fn noise(from: Level, to: Level) -> f64 {
    // Not below 0: next to zero terminal SNR, a very fine schedule can begin with a noise level just below its second.
    to.sigma * (-(2.0 * (from.lambda() - to.lambda())).exp_m1()).max(0.0).sqrt()
}

fn second_order((equation, formula): (Equation, Formula), before: Level, from: Level, to: Level) -> Vec<(Term, f64)> {
    let h = to.lambda() - from.lambda();
    let r = (from.lambda() - before.lambda()) / h;
    let mut update = equation.first_order(from, to);
    if r == 0.0 || !r.is_finite() {
        // Runs of many steps visit a timestep twice: there is no slope between a level and itself.
        return update;
    }
    // D0 = x0 and D1 = (x0 - previous x0) / r
    let gained = equation.gained(from, to);
    let slope = match formula {
        Formula::Midpoint => 0.5 * gained,
        // Of the SDE: the exponent is 2 h.
        Formula::Heun => to.alpha - gained / (2.0 * h),
    } / r;
    update.extend([(Term::Denoised(0), slope), (Term::Denoised(1), -slope)]);
    update
}
