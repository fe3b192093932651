//! What the denoiser predicts for the pictures of a batch, in full passes and in shallow ones, and what is kept of it.

use candle_core::{DType, Tensor};

use super::{Diffusion, kept_features::NextStep};
use crate::{
    backend::{Generation, GenerationError, StepKind},
    models::{DenoiserContext, Features, Interrupt, Residuals},
};

/// The denoiser's prediction for one generation.
#[derive(Debug)]
pub struct Prediction {
    /// For each sample, `(samples, channels, height / 8, width / 8)` in f32.
    pub output: Tensor,
    /// Those of a full pass, if the generation keeps them.
    pub(super) features: Option<Features>,
}

impl Diffusion {
    /// The predictions for generations whose next steps are of one kind.
    pub(super) fn predictions(
        generations: &[&Self],
        context: &DenoiserContext,
        interrupt: Interrupt,
    ) -> Result<Vec<Prediction>, GenerationError> {
        let Some(first) = generations.first() else { return Ok(Vec::new()) };
        let (denoiser, kind) = (&first.pipeline.networks.denoiser, first.kind());
        let inputs = generations.iter().map(|generation| generation.model_input()).collect::<Result<Vec<_>, _>>()?;
        let inputs = Tensor::cat(&inputs, 0)?;
        let timesteps: Vec<f64> = generations.iter().map(|generation| generation.stage().timestep).collect();
        if kind.is_shallow {
            let kept: Vec<&Features> = generations.iter().filter_map(|generation| generation.kept_features.as_ref()?.features()).collect();
            let output = denoiser.forward_shallow(&inputs, &timesteps, context, &Features::join(&kept)?, interrupt)?;
            return each(&output, generations.len(), |_| Ok(None));
        }
        let residuals = generations.iter().map(|generation| generation.residuals(interrupt)).collect::<Result<Vec<_>, _>>()?;
        let all = Residuals::join(&residuals, kind.samples)?;
        let (output, deep) = denoiser.forward_keeping(&inputs, &timesteps, context, &all, interrupt)?;
        each(&output, generations.len(), |i| {
            let keeps = generations[i].kept_features.is_some();
            Ok(keeps.then(|| Features::of_generation(&deep, i, generations.len(), &residuals[i])).transpose()?)
        })
    }

    /// Keeps the features of this step, before the latents change.
    pub(super) fn keep(&mut self, features: Option<Features>) -> Result<(), GenerationError> {
        let Some(features) = features else { return Ok(()) };
        let (latents, controls) = (self.scaled_latents()?, self.counting_controls());
        if let Some(kept) = &mut self.kept_features {
            kept.keep(self.steps_done, controls, latents, features);
        }
        Ok(())
    }

    /// Decides, after the latents have changed, whether the next step reuses the features. After the last step, they are freed.
    pub(super) fn note_next(&mut self) -> Result<(), GenerationError> {
        let (step, steps) = (self.steps_done, self.demand.steps());
        if step == steps {
            self.kept_features = None;
        }
        if self.kept_features.is_none() {
            return Ok(());
        }
        let (latents, controls) = (&self.scaled_latents()?, self.counting_controls());
        if let Some(kept) = &mut self.kept_features {
            kept.prepare(&NextStep { step, steps, samples: self.demand.kind(step).samples, controls, latents })?;
        }
        Ok(())
    }

    /// The kinds of the steps to come, as far as they can be foreseen.
    pub(super) fn expected_kinds(&self) -> Vec<StepKind> {
        let full = (self.steps_done..self.demand.steps()).map(|step| self.demand.kind(step)).collect();
        match &self.kept_features {
            Some(kept) => kept.expected_kinds(self.steps_done, full),
            None => full,
        }
    }

    /// For each picture of the control networks, whether it counts in the next step.
    fn counting_controls(&self) -> Vec<bool> {
        self.controls.iter().flat_map(|control| control.counts(self.steps_done, &self.demand)).collect()
    }
}

/// The predictions for `count` generations, with the features that `features` gives for each.
fn each(
    output: &Tensor,
    count: usize,
    features: impl Fn(usize) -> Result<Option<Features>, GenerationError>,
) -> Result<Vec<Prediction>, GenerationError> {
    let outputs = output.to_dtype(DType::F32)?.chunk(count, 0)?;
    outputs.into_iter().enumerate().map(|(i, output)| Ok(Prediction { output, features: features(i)? })).collect()
}
