//! [DDIM](https://arxiv.org/abs/2010.02502), equation 12 with eta 0. After diffusers' `scheduling_ddim.py`.

use super::{Denoised, PredictionType, SamplingPlan, SchedulerConfig, Stage, Term, TimestepSpacing, sigmas};
use crate::common::Schedule;

pub(super) fn plan(config: &SchedulerConfig, _: Schedule, steps: usize) -> SamplingPlan {
    let alphas_cumprod = config.alphas_cumprod();
    let final_alpha = if config.set_alpha_to_one { 1.0 } else { alphas_cumprod[0] };
    let spacing = config.timestep_spacing.unwrap_or(TimestepSpacing::Leading);
    let width = (config.num_train_timesteps / steps) as f64;
    let stage = |timestep: f64| {
        // Whole training timesteps only; diffusers rounds the evenly spaced ones as well.
        let timestep = timestep.round_ties_even();
        let previous = timestep - width;
        let alpha = alphas_cumprod[timestep as usize];
        let alpha_previous = if previous >= 0.0 { alphas_cumprod[previous as usize] } else { final_alpha };
        let (signal, noise) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        let (denoised, epsilon) = match config.prediction_type {
            PredictionType::Epsilon => ((1.0 / signal, -noise / signal), (0.0, 1.0)),
            PredictionType::VPrediction => ((signal, -noise), (noise, signal)),
        };
        let direction = (1.0 - alpha_previous).sqrt();
        Stage {
            timestep,
            input_scale: 1.0,
            denoised: Denoised { sample: denoised.0, output: denoised.1, clip: config.clip_sample.then_some(config.clip_sample_range) },
            update: vec![
                (Term::Denoised(0), alpha_previous.sqrt()),
                (Term::Sample, direction * epsilon.0),
                (Term::Output, direction * epsilon.1),
            ],
        }
    };
    let timesteps = sigmas::timesteps(config, spacing, steps);
    SamplingPlan { init_noise_sigma: 1.0, stages: timesteps.into_iter().map(stage).collect() }
}
