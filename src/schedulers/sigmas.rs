//! Timesteps, and noise levels in the form of [Karras et al.](https://arxiv.org/abs/2206.00364): `sigma` is the noise's standard
//! deviation next to a picture of variance 1.

use super::{
    Level, PredictionType, SchedulerConfig, Stage, Term, TimestepSpacing,
    beta_quantile::beta_quantile,
    scheduler_config::{FinalSigmas, linspace},
};
use crate::common::Schedule;

/// The timesteps of a run, the noisiest first.
///
/// diffusers counts the trailing ones with `numpy.arange(1000, 0, -1000 / steps)`, which for some numbers of steps (61, 103, …)
/// rounds to one timestep too many, -1. Here there are as many as were asked for.
pub(super) fn timesteps(config: &SchedulerConfig, spacing: TimestepSpacing, steps: usize) -> Vec<f64> {
    let train = config.num_train_timesteps;
    let last = (train - 1) as f64;
    let mut timesteps: Vec<f64> = match spacing {
        TimestepSpacing::Linspace => linspace(0.0, last, steps).into_iter().rev().collect(),
        TimestepSpacing::Leading => (0..steps).rev().map(|i| (i * (train / steps) + config.steps_offset) as f64).collect(),
        TimestepSpacing::Trailing => {
            // The steps of numpy.arange, so that halves round alike.
            let width = train as f64 - (train as f64 - train as f64 / steps as f64);
            (0..steps).map(|i| (train as f64 - i as f64 * width).round_ties_even() - 1.0).collect()
        }
    };
    // steps_offset can exceed the table, which is an error in diffusers' DDIM.
    for t in &mut timesteps {
        *t = t.clamp(0.0, last);
    }
    timesteps
}

/// The noise level of each training timestep, in rising order.
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

    /// The noise level after the last step.
    pub(super) fn end(&self, end: FinalSigmas) -> f64 {
        match end {
            FinalSigmas::Zero => 0.0,
            FinalSigmas::SigmaMin => self.min(),
        }
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

    /// The timestep of a noise level, interpolated in the logarithm (diffusers' `_sigma_to_t`).
    pub(super) fn timestep_of(&self, sigma: f64) -> f64 {
        let last = self.0.len().saturating_sub(2);
        let low = self.0.partition_point(|s| *s <= sigma).saturating_sub(1).min(last);
        let Some(next) = self.0.get(low + 1) else { return 0.0 };
        let (a, b) = (self.0[low].ln(), next.ln());
        low as f64 + ((sigma.max(1e-10).ln() - a) / (b - a)).clamp(0.0, 1.0)
    }
}

/// Noise levels of a run, one for each step and one for its end, with their timesteps.
pub(super) struct SigmaSchedule {
    pub(super) timesteps: Vec<f64>,
    /// One more than there are timesteps.
    pub(super) sigmas: Vec<f64>,
    /// Standard deviation of the first latents.
    pub(super) init_noise_sigma: f64,
}

impl SigmaSchedule {
    /// As in diffusers' classes after k-diffusion: curves span the noise levels that the spacing visits.
    pub(super) fn new(config: &SchedulerConfig, schedule: Schedule, steps: usize, end: FinalSigmas) -> Self {
        let table = SigmaTable::new(config);
        let spacing = spacing(config, schedule, TimestepSpacing::Linspace);
        let mut timesteps = spaced(config, schedule, TimestepSpacing::Linspace, steps);
        let mut sigmas: Vec<f64> = timesteps.iter().map(|t| table.at(*t)).collect();
        if let Some(curve) = curve(config, schedule, sigmas[0], sigmas[steps - 1], steps) {
            timesteps = curve.iter().map(|sigma| table.timestep_of(*sigma)).collect();
            sigmas = curve;
        }
        let max = sigmas.iter().copied().fold(0.0, f64::max);
        sigmas.push(table.end(end));
        let init_noise_sigma = if spacing == TimestepSpacing::Leading { (max * max + 1.0).sqrt() } else { max };
        Self { timesteps, sigmas, init_noise_sigma }
    }

    /// Timestep, noise level and next noise level of each step.
    pub(super) fn steps(&self) -> impl Iterator<Item = (f64, f64, f64)> + '_ {
        self.timesteps.iter().zip(self.sigmas.windows(2)).map(|(t, pair)| (*t, pair[0], pair[1]))
    }
}

/// The stage of latents at noise level `sigma`.
pub(super) fn stage(config: &SchedulerConfig, timestep: f64, sigma: f64, update: Vec<(Term, f64)>) -> Stage {
    Stage {
        timestep,
        level: level(sigma),
        input_scale: input_scale(sigma),
        denoised: denoised_from_sigma(config.prediction_type, sigma),
        update,
    }
}

/// The spacing of timesteps: the request's, the checkpoint's, or the default of the sampler's class in diffusers.
pub(super) fn spacing(config: &SchedulerConfig, schedule: Schedule, default: TimestepSpacing) -> TimestepSpacing {
    match schedule {
        Schedule::Normal => TimestepSpacing::Linspace,
        Schedule::SgmUniform | Schedule::Simple => TimestepSpacing::Trailing,
        Schedule::DdimUniform => TimestepSpacing::Leading,
        _ => config.timestep_spacing.unwrap_or(default),
    }
}

/// The timesteps of a run with that spacing, the noisiest first.
pub(super) fn spaced(config: &SchedulerConfig, schedule: Schedule, default: TimestepSpacing, steps: usize) -> Vec<f64> {
    match schedule {
        Schedule::Simple => simple_timesteps(config, steps),
        // Whatever the checkpoint's offset is.
        Schedule::DdimUniform => timesteps(&SchedulerConfig { steps_offset: 1, ..config.clone() }, TimestepSpacing::Leading, steps),
        // As in other programs: the last timestep. numpy.linspace would give the first.
        Schedule::Normal if steps == 1 => vec![(config.num_train_timesteps - 1) as f64],
        _ => timesteps(config, spacing(config, schedule, default), steps),
    }
}

/// `steps` noise levels from `max` to `min`, if the schedule is a curve.
pub(super) fn curve(config: &SchedulerConfig, schedule: Schedule, max: f64, min: f64, steps: usize) -> Option<Vec<f64>> {
    let curve = match schedule {
        Schedule::Default | Schedule::Normal | Schedule::SgmUniform | Schedule::Simple | Schedule::DdimUniform => return None,
        Schedule::Karras => karras(max, min, steps),
        Schedule::KlOptimal => linspace(max.atan(), min.atan(), steps).into_iter().map(f64::tan).collect(),
        Schedule::Exponential => linspace(max.ln(), min.ln(), steps).into_iter().map(f64::exp).collect(),
        Schedule::Beta => linspace(1.0, 0.0, steps).into_iter().map(|share| min + beta_quantile(share) * (max - min)).collect(),
        Schedule::AlignYourSteps => align_your_steps(config.is_xl, steps),
    };
    Some(curve)
}

/// The sigmas of [Karras et al.](https://arxiv.org/abs/2206.00364), equation 5, with rho 7.
pub(super) fn karras(max: f64, min: f64, steps: usize) -> Vec<f64> {
    const RHO: f64 = 7.0;
    linspace(max.powf(1.0 / RHO), min.powf(1.0 / RHO), steps).into_iter().map(|root| root.powf(RHO)).collect()
}

/// The best noise levels for ten steps ([Sabour et al.](https://arxiv.org/abs/2404.14507)), interpolated in the
/// logarithm for other numbers of steps, as its authors do.
fn align_your_steps(is_xl: bool, steps: usize) -> Vec<f64> {
    const SD: [f64; 11] = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029];
    const XL: [f64; 11] = [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029];
    let levels = if is_xl { XL } else { SD };
    let intervals = levels.len() - 1;
    let level = |i: usize| {
        let place = (i * intervals) as f64 / steps as f64;
        let low = (place as usize).min(intervals - 1);
        let share = place - low as f64;
        (levels[low].ln() * (1.0 - share) + levels[low + 1].ln() * share).exp()
    };
    (0..steps).map(level).collect()
}

/// `ComfyUI`'s spacing: training timesteps at equal distances back from the last, rounded up.
fn simple_timesteps(config: &SchedulerConfig, steps: usize) -> Vec<f64> {
    let train = config.num_train_timesteps;
    (0..steps).map(|i| (train - 1 - i * train / steps) as f64).collect()
}

/// How x0 follows from latents at noise level `sigma`, before `scale_model_input`.
pub(super) fn denoised_from_sigma(prediction: PredictionType, sigma: f64) -> super::Denoised {
    let (sample, output) = match prediction {
        PredictionType::Epsilon => (1.0, -sigma),
        PredictionType::VPrediction => (1.0 / (sigma * sigma + 1.0), -sigma / (sigma * sigma + 1.0).sqrt()),
    };
    super::Denoised { sample, output, clip: None }
}

/// The level of latents whose noise has standard deviation `sigma`, beside a picture of variance 1.
pub(super) fn level(sigma: f64) -> Level {
    Level { alpha: 1.0, sigma }
}

/// Factor that brings latents to a variance of 1.
pub(super) fn input_scale(sigma: f64) -> f64 {
    1.0 / (sigma * sigma + 1.0).sqrt()
}

/// The noise level that an ancestral step goes down to, and the noise that leads back up, on the way `from` one noise level `to` another.
pub(super) fn ancestral_step(from: f64, to: f64) -> (f64, f64) {
    // Not below 0: next to zero terminal SNR, a very fine schedule can begin with a noise level just below its second.
    let up = (to * to * (from * from - to * to).max(0.0) / (from * from)).sqrt();
    ((to * to - up * up).max(0.0).sqrt(), up)
}
