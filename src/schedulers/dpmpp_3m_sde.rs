//! DPM++ 3M SDE: [DPM-Solver++](https://arxiv.org/abs/2211.01095) as an SDE, third order, multistep. After k-diffusion's
//! `sample_dpmpp_3m_sde` with its default `eta` of 1.

use super::{PlanRequest, SamplingPlan, SchedulerConfig, Term, multistep};

pub(super) fn plan(config: &SchedulerConfig, request: PlanRequest) -> SamplingPlan {
    multistep::plan(config, request, |past, to| {
        let lengths: Vec<f64> = past.iter().skip(1).zip(&past[..past.len() - 1]).map(|(before, after)| (before / after).ln()).collect();
        let (from, h) = (past[0], (past[0] / to).ln());
        let (kept, gained) = ((-2.0 * h).exp(), -(-2.0 * h).exp_m1());
        // Of the first and the second derivative of x0.
        let first = 1.0 - gained / (2.0 * h);
        let second = first / (2.0 * h) - 0.5;
        let mut update = vec![(Term::Sample(0), kept), (Term::Denoised(0), gained)];
        match *lengths {
            [] => {}
            [h1] => update.extend(difference(0, first * h / h1)),
            [h1, h2, ..] => {
                let (r0, r1) = (h1 / h, h2 / h);
                // d1 = a + (a - b) r0 / (r0 + r1) and d2 = (a - b) / (r0 + r1), with a and b the differences over r0 and r1
                let bent = (first * r0 - second) / (r0 + r1);
                update.extend(difference(0, (first + bent) / r0));
                update.extend(difference(1, -bent / r1));
            }
        }
        update.push((Term::Noise, to * (-(-2.0 * (from / to).ln()).exp_m1()).sqrt()));
        update
    })
}

/// A multiple of how x0 changed from a stage to the one after it.
fn difference(age: usize, weight: f64) -> [(Term, f64); 2] {
    [(Term::Denoised(age), weight), (Term::Denoised(age + 1), -weight)]
}
