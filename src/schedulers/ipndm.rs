//! iPNDM: Adams and Bashforth's formulas of up to fourth order ([Zhang & Chen](https://arxiv.org/abs/2204.13902)). After `ComfyUI`'s
//! `sample_ipndm`.

use super::{PlanRequest, SamplingPlan, SchedulerConfig, Term, multistep};

/// Weights of the slopes of this stage and those before it, by order.
const WEIGHTS: [&[f64]; 4] =
    [&[1.0], &[3.0 / 2.0, -1.0 / 2.0], &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0], &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0]];

pub(super) fn plan(config: &SchedulerConfig, request: PlanRequest) -> SamplingPlan {
    multistep::plan(config, request, |past, to| {
        let weights = WEIGHTS[past.len().min(WEIGHTS.len()) - 1];
        let mut update = vec![(Term::Sample(0), 1.0)];
        for (age, (weight, sigma)) in weights.iter().zip(past).enumerate() {
            let share = weight * (to - past[0]) / sigma;
            update.extend([(Term::Sample(age), share), (Term::Denoised(age), -share)]);
        }
        update
    })
}
