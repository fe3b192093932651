//! The linear multistep method of Adams and Bashforth, of up to fourth order, on the ODE of
//! [Karras et al.](https://arxiv.org/abs/2206.00364). After diffusers' `scheduling_lms_discrete.py`.

use super::{PlanRequest, SamplingPlan, SchedulerConfig, Stage, Term, scheduler_config::FinalSigmas, sigmas};

const ORDER: usize = 4;
/// Gauss-Legendre points on [-1, 1] and their weights: exact for cubic polynomials.
const QUADRATURE: [(f64, f64); 2] = [(-0.577_350_269_189_625_8, 1.0), (0.577_350_269_189_625_8, 1.0)];

pub(super) fn plan(config: &SchedulerConfig, request: PlanRequest) -> SamplingPlan {
    let run = sigmas::SigmaSchedule::new(config, request.schedule, request.steps, FinalSigmas::Zero);
    let stage = |(i, (timestep, sigma, _)): (usize, (f64, f64, f64))| {
        let mut update = vec![(Term::Sample(0), 1.0)];
        // As in diffusers, a run that skips steps has the polynomials of the whole run.
        for age in 0..ORDER.min(i - request.start + 1) {
            // The slope is (x - x0) / sigma.
            let weight = coefficient(&run.sigmas, i, age) / run.sigmas[i - age];
            update.extend([(Term::Sample(age), weight), (Term::Denoised(age), -weight)]);
        }
        Stage {
            timestep,
            level: sigmas::level(sigma),
            input_scale: sigmas::input_scale(sigma),
            denoised: sigmas::denoised_from_sigma(config.prediction_type, sigma),
            update,
        }
    };
    SamplingPlan { init_noise_sigma: run.init_noise_sigma, stages: run.steps().enumerate().skip(request.start).map(stage).collect() }
}

/// The weight in step `i` of the slope of `age` steps ago: the integral over the step of the polynomial that is 1 at that slope's noise
/// level and 0 at those of the others.
fn coefficient(sigmas: &[f64], i: usize, age: usize) -> f64 {
    let (from, to) = (sigmas[i], sigmas[i + 1]);
    let own = sigmas[i - age];
    let others = (0..ORDER.min(i + 1)).filter(|other| *other != age).map(|other| sigmas[i - other]);
    let polynomial = |sigma: f64| others.clone().map(|other| (sigma - other) / (own - other)).product::<f64>();
    let half = 0.5 * (to - from);
    QUADRATURE.iter().map(|(point, weight)| weight * half * polynomial(from + half * (1.0 + point))).sum()
}
