//! What a solver works out: a table of stages.

use super::PredictionType;
use crate::common::Schedule;

/// A whole sampling run, from noise to latents.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingPlan {
    /// Factor of the initial noise of standard deviation 1.
    pub init_noise_sigma: f64,
    /// One evaluation of the network each, in order.
    pub stages: Vec<Stage>,
}

/// One evaluation of the network, and where the latents move after it.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// The noise level of the latents before this stage. An input picture is brought to the level of the first one.
    pub level: Level,
    /// The network's timestep. With Karras sigmas it lies between two training timesteps.
    pub timestep: f64,
    /// Factor of the latents before the network looks at them (`scale_model_input`).
    pub input_scale: f64,
    /// The estimate of the picture without noise, x0, as `denoised.sample * latents + denoised.output * model_output`.
    pub denoised: Denoised,
    /// The next latents: the sum of these terms.
    pub update: Vec<(Term, f64)>,
}

/// How x0 follows from the latents and the network's output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Denoised {
    /// Weight of the latents.
    pub sample: f64,
    /// Weight of the network's output.
    pub output: f64,
    /// x0 is clamped to this range on both sides of 0 (`clip_sample`, for models that work on pixels).
    pub clip: Option<f64>,
}

/// Something that a stage may add to the next latents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Term {
    /// The latents that this stage began with (0), the stage before it (1), ….
    Sample(usize),
    /// The latents after the stage before this one, before a mask was laid over them. Without a mask, they are `Sample(0)`.
    Unmasked,
    /// The output of the network, after guidance, in this stage (0), in the stage before it (1), ….
    Output(usize),
    /// The output of the network for the negative prompt alone, in this stage; where there is none, [`Output(0)`](Self::Output).
    Unguided,
    /// x0 of this stage (0), of the stage before it (1), ….
    Denoised(usize),
    /// Fresh noise of standard deviation 1, from the request's generator.
    Noise,
}

/// A noise level as `alpha` parts of picture and `sigma` parts of noise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// Factor of the picture.
    pub alpha: f64,
    /// Factor of noise of standard deviation 1.
    pub sigma: f64,
}

impl Level {
    /// The level whose sigma is `ratio` times its alpha, with squares that add up to 1.
    pub(super) fn new(ratio: f64) -> Self {
        let alpha = 1.0 / (ratio * ratio + 1.0).sqrt();
        Self { alpha, sigma: ratio * alpha }
    }

    /// Half the logarithm of the signal-to-noise ratio; infinite where there is no noise.
    pub(super) fn lambda(self) -> f64 {
        self.alpha.ln() - self.sigma.ln()
    }

    /// How x0 follows from a prediction at this level.
    pub(super) fn denoised(self, prediction: PredictionType) -> Denoised {
        let (sample, output) = match prediction {
            PredictionType::Epsilon => (1.0 / self.alpha, -self.sigma / self.alpha),
            PredictionType::VPrediction => (self.alpha, -self.sigma),
        };
        Denoised { sample, output, clip: None }
    }
}

/// The settings of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlanRequest {
    /// `Default` only where the checkpoint has no schedule of its own.
    pub(super) schedule: Schedule,
    pub(super) steps: usize,
    /// Number of steps to skip at the beginning.
    pub(super) start: usize,
    pub(super) eta: Option<f64>,
}

impl SamplingPlan {
    /// Whether all numbers are finite.
    pub(super) fn is_finite(&self) -> bool {
        let is_finite = |stage: &Stage| {
            let Denoised { sample, output, .. } = stage.denoised;
            [stage.timestep, stage.level.alpha, stage.level.sigma, stage.input_scale, sample, output].into_iter().all(f64::is_finite)
                && stage.update.iter().all(|(_, weight)| weight.is_finite())
        };
        self.init_noise_sigma.is_finite() && self.stages.iter().all(is_finite)
    }

    /// How many stages back the terms reach.
    #[must_use]
    pub fn history(&self) -> usize {
        let ages = self.stages.iter().flat_map(|stage| &stage.update).map(|(term, _)| match term {
            Term::Sample(age) | Term::Output(age) | Term::Denoised(age) => *age,
            Term::Unguided | Term::Unmasked | Term::Noise => 0,
        });
        ages.max().unwrap_or(0)
    }
}
