//! Multistep sampling of [latent consistency models](https://arxiv.org/abs/2310.04378), algorithm 3. After diffusers'
//! `scheduling_lcm.py`.

use super::{PlanRequest, SamplingPlan, SchedulerConfig, Stage, Term, alphas::Alphas};

/// Standard deviation of the data, in the boundary condition.
const SIGMA_DATA: f64 = 0.5;

pub(super) fn plan(config: &SchedulerConfig, request: PlanRequest) -> SamplingPlan {
    let alphas = Alphas::new(config, true, false);
    let timesteps = alphas.distilled_timesteps(request.steps);
    let stage = |i: usize| {
        let timestep = timesteps[i];
        // At timestep 0, the picture is the latents as they are.
        let scaled = timestep * config.timestep_scaling;
        let total = scaled * scaled + SIGMA_DATA * SIGMA_DATA;
        let (skip, out) = (SIGMA_DATA * SIGMA_DATA / total, scaled / total.sqrt());
        let next = timesteps.get(i + 1).map(|next| alphas.at(*next));
        let signal = next.map_or(1.0, f64::sqrt);
        let mut update = vec![(Term::Denoised(0), signal * out), (Term::Sample(0), signal * skip)];
        update.extend(next.map(|alpha| (Term::Noise, (1.0 - alpha).sqrt())));
        Stage { timestep, level: alphas.level(timestep), input_scale: 1.0, denoised: alphas.denoised(timestep), update }
    };
    SamplingPlan { init_noise_sigma: 1.0, stages: (request.start..timesteps.len()).map(stage).collect() }
}
