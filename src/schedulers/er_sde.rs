//! [ER-SDE](https://arxiv.org/abs/2309.06169), third order. After `ComfyUI`'s `sample_er_sde`, with its default noise.

use super::{PlanRequest, SamplingPlan, SchedulerConfig, Term, multistep};

/// Points of the numerical integrals.
const POINTS: usize = 200;

pub(super) fn plan(config: &SchedulerConfig, request: PlanRequest) -> SamplingPlan {
    multistep::plan(config, request, |past, to| {
        let from = past[0];
        let (way, scaled) = (to - from, scaler(to));
        let ratio = scaled / scaler(from);
        let mut update = vec![(Term::Sample(0), ratio), (Term::Denoised(0), 1.0 - ratio)];
        let integral = |of: fn(f64) -> f64| -> f64 {
            let width = -way / POINTS as f64;
            (0..POINTS).map(|i| to + i as f64 * width).map(|at| of(at - from) / scaler(at) * width).sum()
        };
        // Of the first derivative of x0 by the noise level, and of the second.
        let first = way + integral(|_| 1.0) * scaled;
        let second = way * way / 2.0 + integral(|way| way) * scaled;
        if let [from, before, ..] = *past {
            update.extend(slope(0, first / (from - before)));
        }
        if let [from, before, first_of_all, ..] = *past {
            let weight = second / ((from - first_of_all) / 2.0);
            update.extend(slope(0, weight / (from - before)));
            update.extend(slope(1, -weight / (before - first_of_all)));
        }
        update.push((Term::Noise, (to * to - (from * ratio).powi(2)).max(0.0).sqrt()));
        update
    })
}

/// How much noise there is, in the words of the paper.
fn scaler(sigma: f64) -> f64 {
    sigma * (sigma.powf(0.3).exp() + 10.0)
}

/// A multiple of how x0 changed from a stage to the one after it.
fn slope(age: usize, weight: f64) -> [(Term, f64); 2] {
    [(Term::Denoised(age), weight), (Term::Denoised(age + 1), -weight)]
}
