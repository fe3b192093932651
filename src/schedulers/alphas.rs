//! Noise levels for the samplers that visit whole training timesteps: DDIM, DDPM, PNDM, LCM, TCD.

use super::{Denoised, Level, PredictionType, SchedulerConfig};

/// `alphas_cumprod`, with what samplers derive from it.
pub(super) struct Alphas<'a> {
    config: &'a SchedulerConfig,
    table: Vec<f64>,
    /// `alpha_cumprod` after the last step.
    end: f64,
    clips: bool,
}

impl<'a> Alphas<'a> {
    /// `set_alpha_to_one` and `clip_sample` are the defaults of the sampler's class in diffusers, for checkpoints that leave them out.
    pub(super) fn new(config: &'a SchedulerConfig, set_alpha_to_one: bool, clip_sample: bool) -> Self {
        let table = config.alphas_cumprod();
        let end = if config.set_alpha_to_one.unwrap_or(set_alpha_to_one) { 1.0 } else { table[0] };
        Self { config, table, end, clips: config.clip_sample.unwrap_or(clip_sample) }
    }

    /// `alpha_cumprod` at a timestep, or after the last step if the timestep is below 0.
    pub(super) fn at(&self, timestep: f64) -> f64 {
        if timestep < 0.0 { self.end } else { self.table[(timestep as usize).min(self.table.len() - 1)] }
    }

    /// How x0 follows from a prediction at a timestep.
    pub(super) fn denoised(&self, timestep: f64) -> Denoised {
        let level = self.level(timestep);
        let (sample, output) = match self.config.prediction_type {
            PredictionType::Epsilon => (1.0 / level.alpha, -level.sigma / level.alpha),
            PredictionType::VPrediction => (level.alpha, -level.sigma),
        };
        Denoised { sample, output, clip: self.clips.then_some(self.config.clip_sample_range) }
    }

    /// How the noise follows from a prediction: weights of the latents and of the output.
    pub(super) fn noise(&self, timestep: f64) -> (f64, f64) {
        let level = self.level(timestep);
        match self.config.prediction_type {
            PredictionType::Epsilon => (0.0, 1.0),
            PredictionType::VPrediction => (level.sigma, level.alpha),
        }
    }

    /// The noise level at a timestep.
    pub(super) fn level(&self, timestep: f64) -> Level {
        let alpha = self.at(timestep);
        Level { alpha: alpha.sqrt(), sigma: (1.0 - alpha).sqrt() }
    }

    /// `steps` timesteps of a distilled model, the noisiest first, out of those of its teacher's steps.
    pub(super) fn distilled_timesteps(&self, steps: usize) -> Vec<f64> {
        let teacher = self.config.teacher_steps();
        let width = self.config.num_train_timesteps / teacher;
        (0..steps).map(|i| ((teacher - i * teacher / steps) * width) as f64 - 1.0).collect()
    }
}
