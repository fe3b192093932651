//! [Trajectory consistency distillation](https://arxiv.org/abs/2402.19159), algorithm 4, where eta is called gamma. After diffusers'
//! `scheduling_tcd.py`.

use super::{PlanRequest, SamplingPlan, SchedulerConfig, Stage, Term, alphas::Alphas};

/// Eta of a request that leaves it out.
const ETA: f64 = 0.3;

pub(super) fn plan(config: &SchedulerConfig, request: PlanRequest) -> SamplingPlan {
    // diffusers' class never clamps.
    let config = &SchedulerConfig { clip_sample: Some(false), ..config.clone() };
    let alphas = Alphas::new(config, true, false);
    let eta = request.eta.unwrap_or(ETA);
    let timesteps = alphas.distilled_timesteps(request.steps);
    let stage = |i: usize| {
        let timestep = timesteps[i];
        let next = timesteps.get(i + 1).copied();
        // Below the next timestep; noise leads back up to it. In f32, as in diffusers.
        let target = ((1.0 - eta) as f32 * next.unwrap_or(0.0) as f32).floor();
        let alpha = alphas.at(target.into());
        let up = next.filter(|_| eta > 0.0).map(|next| alphas.at(next) / alpha);
        let scale = up.map_or(1.0, f64::sqrt);
        let (signal, noise) = (scale * alpha.sqrt(), scale * (1.0 - alpha).sqrt());
        let (sample, output) = alphas.noise(timestep);
        let mut update = vec![(Term::Denoised(0), signal), (Term::Sample(0), noise * sample), (Term::Output(0), noise * output)];
        update.extend(up.map(|up| (Term::Noise, (1.0 - up).max(0.0).sqrt())));
        Stage { timestep, level: alphas.level(timestep), input_scale: 1.0, denoised: alphas.denoised(timestep), update }
    };
    SamplingPlan { init_noise_sigma: 1.0, stages: (request.start..timesteps.len()).map(stage).collect() }
}
