//! Noise levels for the solvers that keep the variance at 1: DPM-Solver++, `UniPC`, DEIS.

use super::{
    Denoised, PredictionType, SchedulerConfig, TimestepSpacing,
    scheduler_config::FinalSigmas,
    sigmas::{self, SigmaTable},
};
use crate::common::Schedule;

/// A noise level as `alpha` parts of picture and `sigma` parts of noise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// What the picture is multiplied with.
    pub alpha: f64,
    /// What noise of standard deviation 1 is multiplied with.
    pub sigma: f64,
}

impl Level {
    /// From the ratio of the two, with squares that add up to 1.
    fn new(ratio: f64) -> Self {
        let alpha = 1.0 / (ratio * ratio + 1.0).sqrt();
        Self { alpha, sigma: ratio * alpha }
    }

    /// Half the logarithm of the signal-to-noise ratio; infinite where there is no noise.
    pub(super) fn lambda(self) -> f64 {
        self.alpha.ln() - self.sigma.ln()
    }

    /// How x0 follows from what the network says at this level.
    pub(super) fn denoised(self, prediction: PredictionType) -> Denoised {
        let (sample, output) = match prediction {
            PredictionType::Epsilon => (1.0 / self.alpha, -self.sigma / self.alpha),
            PredictionType::VPrediction => (self.alpha, -self.sigma),
        };
        Denoised { sample, output, clip: None }
    }
}

/// The levels of a run.
pub(super) struct LevelSchedule {
    pub(super) timesteps: Vec<f64>,
    /// One more than there are timesteps.
    pub(super) levels: Vec<Level>,
}

impl LevelSchedule {
    /// Curves lead through the whole range of the training.
    pub(super) fn new(config: &SchedulerConfig, schedule: Schedule, steps: usize, end: FinalSigmas) -> Self {
        Self::with_karras_timesteps(config, schedule, steps, end, f64::round_ties_even)
    }

    /// The same, with a way of one's own to make the timesteps of Karras sigmas whole.
    pub(super) fn with_karras_timesteps(
        config: &SchedulerConfig,
        schedule: Schedule,
        steps: usize,
        end: FinalSigmas,
        karras: fn(f64) -> f64,
    ) -> Self {
        let table = SigmaTable::new(config);
        let (timesteps, mut sigmas) = if let Some(curve) = sigmas::curve(config, schedule, table.max(), table.min(), steps) {
            // diffusers keeps whole timesteps, of most curves without rounding them first.
            let whole = match schedule {
                Schedule::Karras => karras,
                Schedule::AlignYourSteps => f64::trunc,
                _ => truncate,
            };
            (curve.iter().map(|sigma| whole(table.timestep_of(*sigma))).collect(), curve)
        } else {
            let timesteps = timesteps(config, schedule, steps);
            let sigmas = timesteps.iter().map(|t| table.at(*t)).collect();
            (timesteps, sigmas)
        };
        sigmas.push(table.end(end));
        Self { timesteps, levels: sigmas.into_iter().map(Level::new).collect() }
    }
}

/// The whole part of a timestep. diffusers' logarithms are in f32: the first timestep of a curve, of the highest noise level that there
/// is, comes out just below a whole one.
pub(super) fn truncate(timestep: f64) -> f64 {
    const ERROR: f64 = 1e-4;
    (timestep - ERROR).max(0.0).trunc()
}

/// Unlike other schedulers, diffusers' space one step more than is asked for here and leave out the last (trailing apart).
fn timesteps(config: &SchedulerConfig, schedule: Schedule, steps: usize) -> Vec<f64> {
    let spacing = sigmas::spacing(config, schedule, TimestepSpacing::Linspace);
    let spaced = match (schedule, spacing) {
        // Those of other programs, which leave none out and round none.
        (Schedule::Normal, _) => return sigmas::spaced(config, schedule, spacing, steps),
        (Schedule::Simple, _) | (_, TimestepSpacing::Trailing) => sigmas::spaced(config, schedule, spacing, steps),
        (_, TimestepSpacing::Leading | TimestepSpacing::Linspace) => {
            let mut timesteps = sigmas::timesteps(config, spacing, steps + 1);
            timesteps.truncate(steps);
            timesteps
        }
    };
    spaced.into_iter().map(f64::round_ties_even).collect()
}
