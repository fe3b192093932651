//! A control network at work on one picture.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use image::RgbImage;

use super::{ChosenControl, ControlLibrary, ControlNetwork, preprocess::preprocess};
use crate::{
    backend::{Demand, GenerationError, image_utils},
    common::ControlSettings,
    models::{Conditions, ControlNetModel, Hint, Interrupt, Residuals, UNetContext},
};

/// A control network with what it needs of one generation, the same in every step.
#[derive(Debug)]
pub(in crate::backend) enum ActiveControl {
    ControlNet(ActiveControlNet),
    /// It has looked at its picture, and adds the same in every step.
    T2IAdapter {
        settings: ControlSettings,
        residuals: Residuals,
    },
}

/// A ControlNet with one picture, or several if it knows several kinds.
#[derive(Debug)]
pub(in crate::backend) struct ActiveControlNet {
    network: Arc<ControlNetModel>,
    /// How each picture counts, and what is added of it.
    hints: Vec<(ControlSettings, Tensor)>,
    /// The texts of both sides of guidance, or of the only one; none if the network sees the prompt's side alone.
    all: Option<UNetContext>,
    /// The prompt's, for steps in which the network sees that side alone.
    prompt: Option<UNetContext>,
}

/// What a control network looks at beside its picture.
#[derive(Debug, Clone, Copy)]
pub(in crate::backend) struct Sides<'a> {
    /// The conditions of all samples.
    pub(in crate::backend) all: &'a Conditions<'a>,
    /// Those of the prompt, without the negative one.
    pub(in crate::backend) prompt: &'a Conditions<'a>,
    pub(in crate::backend) demand: &'a Demand,
}

impl ActiveControl {
    /// The networks of a request, each read if it is not loaded, with what they make of their `pictures`, which have the size of the result.
    ///
    /// # Errors
    /// When a network cannot be read or fails, or the pass is interrupted.
    pub(in crate::backend) fn begin(
        library: &ControlLibrary,
        chosen: &[ChosenControl],
        pictures: impl IntoIterator<Item = RgbImage>,
        sides: Sides,
        (dtype, device): (DType, &Device),
        interrupt: Interrupt,
    ) -> Result<Vec<Self>, GenerationError> {
        let mut active: Vec<Self> = Vec::with_capacity(chosen.len());
        for (control, picture) in chosen.iter().zip(pictures) {
            let settings = control.settings.clone();
            let picture = preprocess(&picture, settings.preprocess);
            let picture = image_utils::to_unit_tensor(&picture, device)?.to_dtype(dtype)?;
            match library.get(control, chosen)? {
                ControlNetwork::ControlNet(network) => {
                    let hint = network.embed(&picture, interrupt)?;
                    let same = active.iter_mut().find_map(|other| other.of_same_pass(&network, &settings));
                    match same {
                        Some(same) => same.hints.push((settings, hint)),
                        None => active.push(Self::ControlNet(ActiveControlNet::new(network, settings, hint, sides)?)),
                    }
                }
                ControlNetwork::T2IAdapter(adapter) => {
                    let residuals = adapter.forward(&picture, interrupt)?.scaled(|_, _| settings.scale.get())?;
                    active.push(Self::T2IAdapter { settings, residuals });
                }
            }
        }
        Ok(active)
    }

    /// This one, if its network looks at several pictures at once and is used in the same way.
    fn of_same_pass(&mut self, network: &Arc<ControlNetModel>, settings: &ControlSettings) -> Option<&mut ActiveControlNet> {
        let Self::ControlNet(own) = self else { return None };
        let is_same = Arc::ptr_eq(&own.network, network) && own.hints.iter().all(|(other, _)| other.guess_mode == settings.guess_mode);
        (is_same && network.config().union.is_some()).then_some(own)
    }

    /// For each of its pictures, whether it counts in a step.
    pub(in crate::backend) fn counts(&self, step: usize, demand: &Demand) -> Vec<bool> {
        match self {
            Self::ControlNet(network) => network.hints.iter().map(|(settings, _)| counts(settings, step, demand)).collect(),
            Self::T2IAdapter { settings, .. } => vec![counts(settings, step, demand)],
        }
    }

    /// What it adds in step `step` of `demand`, given the latents `(1, channels, height, width)` as the denoiser sees them.
    ///
    /// # Errors
    /// When the network fails, or the pass is interrupted.
    pub(in crate::backend) fn residuals(
        &self,
        step: usize,
        demand: &Demand,
        latents: &Tensor,
        interrupt: Interrupt,
    ) -> Result<Residuals, GenerationError> {
        match self {
            Self::ControlNet(network) => network.residuals(step, demand, latents, interrupt),
            Self::T2IAdapter { settings, residuals } if counts(settings, step, demand) => Ok(residuals.clone()),
            Self::T2IAdapter { .. } => Ok(Residuals::default()),
        }
    }
}

/// Whether a control network counts in a step.
fn counts(settings: &ControlSettings, step: usize, demand: &Demand) -> bool {
    settings.window.contains(step, demand.steps()) && settings.scale.get() != 0.0
}

impl ActiveControlNet {
    fn new(network: Arc<ControlNetModel>, settings: ControlSettings, hint: Tensor, sides: Sides) -> Result<Self, GenerationError> {
        let sees_prompt_alone = settings.guess_mode || network.config().pools();
        let all = (!sees_prompt_alone).then(|| network.context(sides.all)).transpose()?;
        let prompt = sees_prompt_alone || sides.demand.has_steps_of_prompt_alone();
        let prompt = prompt.then(|| network.context(sides.prompt)).transpose()?;
        Ok(Self { network, hints: vec![(settings, hint)], all, prompt })
    }

    fn residuals(&self, step: usize, demand: &Demand, latents: &Tensor, interrupt: Interrupt) -> Result<Residuals, GenerationError> {
        let hints = self.hints.iter().filter(|(settings, _)| counts(settings, step, demand)).map(|(settings, embedding)| Hint {
            embedding,
            kind: settings.kind.map_or(0, |kind| kind as usize),
            scale: settings.scale.get(),
        });
        let hints: Vec<Hint> = hints.collect();
        let samples = demand.kind(step).samples;
        let has_negative = samples > 1;
        let context = if has_negative { self.all.as_ref().or(self.prompt.as_ref()) } else { self.prompt.as_ref().or(self.all.as_ref()) };
        let (Some(context), [first, others @ ..]) = (context, &*hints) else { return Ok(Residuals::default()) };
        let residuals = self.network.forward(latents, demand.plan.stages[step].timestep, &hints, context, interrupt)?;

        let scale = if others.is_empty() { first.scale } else { 1.0 };
        let guesses = self.hints.iter().any(|(settings, _)| settings.guess_mode) && !self.network.config().pools();
        // From a tenth at the finest layer to all in the middle, evenly in their logarithms.
        let share = |i: usize, count: usize| 10f64.powf(i as f64 / (count - 1).max(1) as f64 - 1.0);
        let residuals = residuals.scaled(|i, count| if guesses { scale * share(i, count) } else { scale })?;
        Ok(if has_negative && self.all.is_none() { residuals.after_zeros(1, samples - 1)? } else { residuals })
    }
}
