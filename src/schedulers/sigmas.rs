//! Timesteps, and noise levels in the form of [Karras et al.](https://arxiv.org/abs/2206.00364): `sigma` is the noise's standard
//! deviation next to a picture of variance 1.

use super::{PredictionType, SchedulerConfig, TimestepSpacing, scheduler_config::FinalSigmas, scheduler_config::linspace};
use crate::common::Schedule;

/// The timesteps of a run, the noisiest first.
///
/// diffusers counts the trailing ones with `numpy.arange(1000, 0, -1000 / steps)`, which for some numbers of steps (61, 103, …)
/// rounds its way to one timestep too many, -1; here there are as many as were asked for.
pub(super) fn timesteps(config: &SchedulerConfig, spacing: TimestepSpacing, steps: usize) -> Vec<f64> {
    let train = config.num_train_timesteps;
    let last = (train - 1) as f64;
    let mut timesteps: Vec<f64> = match spacing {
        TimestepSpacing::Linspace => linspace(0.0, last, steps).into_iter().rev().collect(),
        TimestepSpacing::Leading => (0..steps).rev().map(|i| (i * (train / steps) + config.steps_offset) as f64).collect(),
        TimestepSpacing::Trailing => {
            let width = train as f64 / steps as f64;
            (0..steps).map(|i| (i as f64).mul_add(-width, train as f64).round_ties_even() - 1.0).collect()
        }
    };
    // steps_offset can lead one past the end of the table, which would stop diffusers' DDIM.
    for t in &mut timesteps {
        *t = t.clamp(0.0, last);
    }
    timesteps
}

/// The noise level of each training timestep, rising.
pub(super) struct SigmaTable(Vec<f64>);

impl SigmaTable {
    pub(super) fn new(config: &SchedulerConfig) -> Self {
        let mut alphas_cumprod = config.alphas_cumprod();
        if config.rescale_betas_zero_snr
            && let Some(last) = alphas_cumprod.last_mut()
        {
            // As diffusers does it: a sigma of 4096 instead of infinity.
            *last = 2_f64.powi(-24);
        }
        Self(alphas_cumprod.iter().map(|alpha| ((1.0 - alpha) / alpha).sqrt()).collect())
    }

    pub(super) fn min(&self) -> f64 {
        self.0.first().copied().unwrap_or_default()
    }

    pub(super) fn max(&self) -> f64 {
        self.0.last().copied().unwrap_or_default()
    }

    /// The noise level at a timestep, interpolated between training timesteps (`numpy.interp`).
    pub(super) fn at(&self, timestep: f64) -> f64 {
        let last = self.0.len() - 1;
        let low = (timestep.max(0.0) as usize).min(last);
        let share = (timestep - low as f64).clamp(0.0, 1.0);
        let high = (low + 1).min(last);
        self.0[low] + share * (self.0[high] - self.0[low])
    }

    /// The timestep at which there is this much noise, interpolated in the logarithm (diffusers' `_sigma_to_t`).
    pub(super) fn timestep_of(&self, sigma: f64) -> f64 {
        let last = self.0.len().saturating_sub(2);
        let low = self.0.partition_point(|s| *s <= sigma).saturating_sub(1).min(last);
        let Some(next) = self.0.get(low + 1) else { return 0.0 };
        let (a, b) = (self.0[low].ln(), next.ln());
        low as f64 + ((sigma.max(1e-10).ln() - a) / (b - a)).clamp(0.0, 1.0)
    }
}

/// Noise levels of a run: one for each step and one for its end, with the timesteps that belong to them.
pub(super) struct SigmaSchedule {
    pub(super) timesteps: Vec<f64>,
    /// One more than there are timesteps.
    pub(super) sigmas: Vec<f64>,
}

impl SigmaSchedule {
    pub(super) fn new(config: &SchedulerConfig, table: &SigmaTable, timesteps: Vec<f64>) -> Self {
        let mut sigmas: Vec<f64> = timesteps.iter().map(|t| table.at(*t)).collect();
        sigmas.push(final_sigma(config, table));
        Self { timesteps, sigmas }
    }

    /// `steps` noise levels from `max` to `min`, spaced as in equation 5 of Karras et al. with rho 7.
    pub(super) fn karras(config: &SchedulerConfig, table: &SigmaTable, min: f64, max: f64, steps: usize) -> Self {
        const RHO: f64 = 7.0;
        let roots = linspace(max.powf(1.0 / RHO), min.powf(1.0 / RHO), steps);
        let mut sigmas: Vec<f64> = roots.into_iter().map(|root| root.powf(RHO)).collect();
        let timesteps = sigmas.iter().map(|sigma| table.timestep_of(*sigma)).collect();
        sigmas.push(final_sigma(config, table));
        Self { timesteps, sigmas }
    }

    /// Timestep, noise level and next noise level of each step.
    pub(super) fn steps(&self) -> impl Iterator<Item = (f64, f64, f64)> + '_ {
        self.timesteps.iter().zip(self.sigmas.windows(2)).map(|(t, pair)| (*t, pair[0], pair[1]))
    }
}

fn final_sigma(config: &SchedulerConfig, table: &SigmaTable) -> f64 {
    match config.final_sigmas_type {
        FinalSigmas::Zero => 0.0,
        FinalSigmas::SigmaMin => table.min(),
    }
}

/// Whether a run uses Karras sigmas: by request, or because the checkpoint says so.
pub(super) fn wants_karras(config: &SchedulerConfig, schedule: Schedule) -> bool {
    schedule == Schedule::Karras || config.use_karras_sigmas
}

/// How x0 follows from latents whose noise has standard deviation `sigma` next to a picture of variance 1, that is from latents
/// before `scale_model_input`.
pub(super) fn denoised_from_sigma(prediction: PredictionType, sigma: f64) -> super::Denoised {
    let (sample, output) = match prediction {
        PredictionType::Epsilon => (1.0, -sigma),
        PredictionType::VPrediction => (1.0 / (sigma * sigma + 1.0), -sigma / (sigma * sigma + 1.0).sqrt()),
    };
    super::Denoised { sample, output, clip: None }
}

/// Standard deviation of the first latents of the Euler samplers.
pub(super) fn init_noise_sigma(spacing: TimestepSpacing, max: f64) -> f64 {
    match spacing {
        TimestepSpacing::Linspace | TimestepSpacing::Trailing => max,
        TimestepSpacing::Leading => (max * max + 1.0).sqrt(),
    }
}
