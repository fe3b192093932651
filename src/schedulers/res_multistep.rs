//! RES, second order, multistep: an exponential integrator ([Zhang et al.](https://arxiv.org/abs/2308.02157)). After `ComfyUI`'s
//! `sample_res_multistep`, without noise.

use super::{PlanRequest, SamplingPlan, SchedulerConfig, Term, euler, multistep};

pub(super) fn plan(config: &SchedulerConfig, request: PlanRequest) -> SamplingPlan {
    multistep::plan(config, request, |past, to| {
        let [from, before, ..] = *past else { return euler::step(past[0], to) };
        let h = (from / to).ln();
        let c2 = -(before / from).ln() / h;
        let phi1 = (-h).exp_m1() / -h;
        let phi2 = (phi1 - 1.0) / -h;
        vec![(Term::Sample(0), (-h).exp()), (Term::Denoised(0), h * (phi1 - phi2 / c2)), (Term::Denoised(1), h * phi2 / c2)]
    })
}
