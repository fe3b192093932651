//! Noise levels for the solvers that keep the variance at 1: DPM-Solver++, `UniPC`, DEIS.

use super::{
    Level, SchedulerConfig, TimestepSpacing,
    scheduler_config::FinalSigmas,
    sigmas::{self, SigmaTable},
};
use crate::common::Schedule;

/// The levels of a run.
pub(super) struct LevelSchedule {
    pub(super) timesteps: Vec<f64>,
    /// One more than there are timesteps.
    pub(super) levels: Vec<Level>,
}

impl LevelSchedule {
    /// Curves span the whole range of the training's noise levels.
    pub(super) fn new(config: &SchedulerConfig, schedule: Schedule, steps: usize, end: FinalSigmas) -> Self {
        Self::with_karras_timesteps(config, schedule, steps, end, f64::round_ties_even)
    }

    /// The same, with `karras` to make the timesteps of Karras sigmas whole.
    pub(super) fn with_karras_timesteps(
        config: &SchedulerConfig,
        schedule: Schedule,
        steps: usize,
        end: FinalSigmas,
        karras: fn(f64) -> f64,
    ) -> Self {
        let table = SigmaTable::new(config);
        let (timesteps, mut sigmas) = if let Some(curve) = sigmas::curve(config, schedule, table.max(), table.min(), steps) {
            // As in diffusers, timesteps are whole. Those of most curves are truncated, not rounded.
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

/// The whole part of a timestep. diffusers' logarithms are in f32, so that the first timestep of a curve is just below a whole number.
pub(super) fn truncate(timestep: f64) -> f64 {
    const ERROR: f64 = 1e-4;
    (timestep - ERROR).max(0.0).trunc()
}

/// diffusers' schedulers for these solvers space one step more than is asked for and leave out the last, unless spacing is trailing.
fn timesteps(config: &SchedulerConfig, schedule: Schedule, steps: usize) -> Vec<f64> {
    let spacing = sigmas::spacing(config, schedule, TimestepSpacing::Linspace);
    let spaced = match (schedule, spacing) {
        // Schedules of other programs, which leave none out and round none.
        (Schedule::Normal | Schedule::DdimUniform, _) => return sigmas::spaced(config, schedule, spacing, steps),
        (Schedule::Simple, _) | (_, TimestepSpacing::Trailing) => sigmas::spaced(config, schedule, spacing, steps),
        (_, TimestepSpacing::Leading | TimestepSpacing::Linspace) => {
            let mut timesteps = sigmas::timesteps(config, spacing, steps + 1);
            timesteps.truncate(steps);
            timesteps
        }
    };
    spaced.into_iter().map(f64::round_ties_even).collect()
}
