//! [DEIS](https://arxiv.org/abs/2204.13902), second order, with polynomials in the logarithm of rho, the ratio of noise to picture.
//! After diffusers' `scheduling_deis_multistep.py` with its default settings.

use super::{Level, PlanRequest, SamplingPlan, SchedulerConfig, Stage, Term, levels::LevelSchedule, scheduler_config::FinalSigmas};

/// Runs of fewer steps end with a step of first order.
const SHORT_RUN: usize = 15;

pub(super) fn plan(config: &SchedulerConfig, request: PlanRequest) -> SamplingPlan {
    let steps = request.steps;
    // The logarithm is infinite without noise.
    let run = LevelSchedule::new(config, request.schedule, steps, FinalSigmas::SigmaMin);
    let levels = &run.levels;
    let stage = |i: usize| {
        let is_first_order = i == request.start || (i + 1 == steps && config.lower_order_final.unwrap_or(true) && steps < SHORT_RUN);
        let before = (!is_first_order).then(|| levels[i - 1]);
        Stage {
            timestep: run.timesteps[i],
            level: levels[i],
            input_scale: 1.0,
            denoised: levels[i].denoised(config.prediction_type),
            update: update(before, levels[i], levels[i + 1]),
        }
    };
    SamplingPlan { init_noise_sigma: 1.0, stages: (request.start..steps).map(stage).collect() }
}

fn update(before: Option<Level>, from: Level, to: Level) -> Vec<(Term, f64)> {
    let rho = |level: Level| level.sigma / level.alpha;
    let slopes = before.filter(|before| rho(*before) > rho(from)).map(|before| {
        let weight = |b: f64, c: f64| integral(rho(to), b, c) - integral(rho(from), b, c);
        (weight(rho(from), rho(before)), Some((weight(rho(before), rho(from)), before)))
    });
    let (newest, older) = slopes.unwrap_or((rho(to) - rho(from), None));
    let mut update = vec![(Term::Sample(0), to.alpha / from.alpha)];
    let mut add_noise = |age: usize, level: Level, weight: f64| {
        // The noise in the latents: (x - alpha x0) / sigma.
        let weight = to.alpha * weight / level.sigma;
        update.extend([(Term::Sample(age), weight), (Term::Denoised(age), -weight * level.alpha)]);
    };
    add_noise(0, from, newest);
    if let Some((weight, before)) = older {
        add_noise(1, before, weight);
    }
    update
}

/// The integral up to `t` of the line in the logarithm that is 1 at `b` and 0 at `c`.
fn integral(t: f64, b: f64, c: f64) -> f64 {
    t * (t.ln() - c.ln() - 1.0) / (b.ln() - c.ln())
}
