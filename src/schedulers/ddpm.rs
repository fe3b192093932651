//! [DDPM](https://arxiv.org/abs/2006.11239), equation 7, with the smaller of the two variances. After diffusers'
//! `scheduling_ddpm.py`.

use super::{PlanRequest, SamplingPlan, SchedulerConfig, Stage, Term, TimestepSpacing, alphas::Alphas, sigmas};

/// The smallest variance.
const MIN_VARIANCE: f64 = 1e-20;

pub(super) fn plan(config: &SchedulerConfig, request: PlanRequest) -> SamplingPlan {
    let config = &SchedulerConfig { set_alpha_to_one: Some(true), ..config.clone() };
    let alphas = Alphas::new(config, true, true);
    let timesteps: Vec<f64> =
        sigmas::spaced(config, request.schedule, TimestepSpacing::Leading, request.steps).into_iter().map(f64::round_ties_even).collect();
    let stage = |i: usize| {
        let timestep = timesteps[i];
        let (from, to) = (alphas.at(timestep), alphas.at(timesteps.get(i + 1).copied().unwrap_or(-1.0)));
        let beta = 1.0 - from / to;
        let mut update =
            vec![(Term::Denoised(0), to.sqrt() * beta / (1.0 - from)), (Term::Sample(0), (from / to).sqrt() * (1.0 - to) / (1.0 - from))];
        if timestep > 0.0 {
            update.push((Term::Noise, ((1.0 - to) / (1.0 - from) * beta).max(MIN_VARIANCE).sqrt()));
        }
        Stage { timestep, level: alphas.level(timestep), input_scale: 1.0, denoised: alphas.denoised(timestep), update }
    };
    SamplingPlan { init_noise_sigma: 1.0, stages: (request.start..timesteps.len()).map(stage).collect() }
}
