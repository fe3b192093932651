//! The training timesteps as those samplers see them that visit whole ones only: DDIM, DDPM, PNDM, LCM, TCD.

use super::{Denoised, Level, PredictionType, SchedulerConfig};

/// `alphas_cumprod`, and what follows from it.
pub(super) struct Alphas<'a> {
    config: &'a SchedulerConfig,
    table: Vec<f64>,
    /// After the last step.
    end: f64,
    clips: bool,
}

impl<'a> Alphas<'a> {
    /// With what the sampler's class in diffusers does where the checkpoint does not say: whether nothing of the noise is left at the
    /// end, and whether x0 is clamped.
    pub(super) fn new(config: &'a SchedulerConfig, set_alpha_to_one: bool, clip_sample: bool) -> Self {
        let table = config.alphas_cumprod();
        let end = if config.set_alpha_to_one.unwrap_or(set_alpha_to_one) { 1.0 } else { table[0] };
        Self { config, table, end, clips: config.clip_sample.unwrap_or(clip_sample) }
    }

    /// At a timestep, or at the end of a run where it is below 0.
    pub(super) fn at(&self, timestep: f64) -> f64 {
        if timestep < 0.0 { self.end } else { self.table[(timestep as usize).min(self.table.len() - 1)] }
    }

    /// How x0 follows from what the network says at a timestep.
    pub(super) fn denoised(&self, timestep: f64) -> Denoised {
        let level = self.level(timestep);
        let (sample, output) = match self.config.prediction_type {
            PredictionType::Epsilon => (1.0 / level.alpha, -level.sigma / level.alpha),
            PredictionType::VPrediction => (level.alpha, -level.sigma),
        };
        Denoised { sample, output, clip: self.clips.then_some(self.config.clip_sample_range) }
    }

    /// How the noise follows from it: weights of the latents and of the network's output.
    pub(super) fn noise(&self, timestep: f64) -> (f64, f64) {
        let level = self.level(timestep);
        match self.config.prediction_type {
            PredictionType::Epsilon => (0.0, 1.0),
            PredictionType::VPrediction => (level.sigma, level.alpha),
        }
    }

    /// How much noise there is at a timestep.
    pub(super) fn level(&self, timestep: f64) -> Level {
        let alpha = self.at(timestep);
        Level { alpha: alpha.sqrt(), sigma: (1.0 - alpha).sqrt() }
    }

    /// The timesteps of a distilled model, which knows those of its teacher's steps only: `steps` of them, the noisiest first.
    pub(super) fn distilled_timesteps(&self, steps: usize) -> Vec<f64> {
        let teacher = self.config.teacher_steps();
        let width = self.config.num_train_timesteps / teacher;
        (0..steps).map(|i| ((teacher - i * teacher / steps) * width) as f64 - 1.0).collect()
    }
}
