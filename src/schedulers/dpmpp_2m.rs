//! [DPM-Solver++](https://arxiv.org/abs/2211.01095), algorithm 2: second order, multistep, midpoint. After diffusers'
//! `scheduling_dpmsolver_multistep.py` with its default `solver_order`, `solver_type` and `algorithm_type`.

use super::{
    BetaSchedule, Denoised, PredictionType, SamplingPlan, SchedulerConfig, Stage, Term, TimestepSpacing, scheduler_config::FinalSigmas,
    sigmas,
};
use crate::common::Schedule;

/// Runs of fewer steps end with a step of first order.
const SHORT_RUN: usize = 15;

/// A noise level as `alpha` parts of picture and `sigma` parts of noise, whose squares add up to 1.
#[derive(Clone, Copy)]
struct Level {
    alpha: f64,
    sigma: f64,
}

impl Level {
    /// From the ratio of the two.
    fn new(ratio: f64) -> Self {
        let alpha = 1.0 / (ratio * ratio + 1.0).sqrt();
        Self { alpha, sigma: ratio * alpha }
    }

    /// Half the logarithm of the signal-to-noise ratio; infinite where there is no noise.
    fn lambda(self) -> f64 {
        self.alpha.ln() - self.sigma.ln()
    }
}

pub(super) fn plan(config: &SchedulerConfig, schedule: Schedule, steps: usize) -> SamplingPlan {
    let table = sigmas::SigmaTable::new(config);
    let run = if sigmas::wants_karras(config, schedule) {
        let mut run = sigmas::SigmaSchedule::karras(config, &table, table.min(), table.max(), steps);
        for t in &mut run.timesteps {
            // diffusers keeps whole timesteps; those of the cosine schedule lose their fraction without being rounded first.
            *t = if config.beta_schedule == BetaSchedule::SquaredCosine { t.trunc() } else { t.round_ties_even() };
        }
        run
    } else {
        sigmas::SigmaSchedule::new(config, &table, timesteps(config, steps))
    };
    let levels: Vec<Level> = run.sigmas.iter().map(|ratio| Level::new(*ratio)).collect();
    let ends_first_order =
        config.euler_at_final || (config.lower_order_final && steps < SHORT_RUN) || config.final_sigmas_type == FinalSigmas::Zero;
    let stage = |i: usize| Stage {
        timestep: run.timesteps[i],
        input_scale: 1.0,
        denoised: denoised(config.prediction_type, levels[i]),
        update: if i == 0 || (i == steps - 1 && ends_first_order) {
            first_order(levels[i], levels[i + 1])
        } else {
            second_order(levels[i - 1], levels[i], levels[i + 1])
        },
    };
    SamplingPlan { init_noise_sigma: 1.0, stages: (0..steps).map(stage).collect() }
}

/// Unlike other schedulers, diffusers' spaces one step more than is asked for and leaves out the last (trailing apart).
fn timesteps(config: &SchedulerConfig, steps: usize) -> Vec<f64> {
    let spacing = config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace);
    let spaced = match spacing {
        TimestepSpacing::Trailing => sigmas::timesteps(config, spacing, steps),
        TimestepSpacing::Leading | TimestepSpacing::Linspace => {
            let mut timesteps = sigmas::timesteps(config, spacing, steps + 1);
            timesteps.truncate(steps);
            timesteps
        }
    };
    spaced.into_iter().map(f64::round_ties_even).collect()
}

fn denoised(prediction: PredictionType, level: Level) -> Denoised {
    let (sample, output) = match prediction {
        PredictionType::Epsilon => (1.0 / level.alpha, -level.sigma / level.alpha),
        PredictionType::VPrediction => (level.alpha, -level.sigma),
    };
    Denoised { sample, output, clip: None }
}

fn first_order(from: Level, to: Level) -> Vec<(Term, f64)> {
    let h = to.lambda() - from.lambda();
    vec![(Term::Sample, to.sigma / from.sigma), (Term::Denoised(0), -to.alpha * (-h).exp_m1())]
}

fn second_order(before: Level, from: Level, to: Level) -> Vec<(Term, f64)> {
    let h = to.lambda() - from.lambda();
    let r = (from.lambda() - before.lambda()) / h;
    if r == 0.0 || !r.is_finite() {
        // Very many steps visit a timestep twice: there is no slope between a level and itself.
        return first_order(from, to);
    }
    let weight = -to.alpha * (-h).exp_m1();
    // D0 + D1 / 2 with D0 = x0 and D1 = (x0 - previous x0) / r
    vec![(Term::Sample, to.sigma / from.sigma), (Term::Denoised(0), weight * (1.0 + 0.5 / r)), (Term::Denoised(1), -weight * 0.5 / r)]
}
