//! A control network at work on one picture.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use image::RgbImage;

use super::{ChosenControl, ControlLibrary, ControlNetwork, preprocess::preprocess};
use crate::{
    backend::{Demand, GenerationError, image_utils},
    common::ControlSettings,
    models::{Conditions, ControlNetModel, Interrupt, Residuals, UNetContext},
};

/// A control network with what it needs of one generation, the same in every step.
#[derive(Debug)]
pub(in crate::backend) struct ActiveControl {
    network: Arc<ControlNetwork>,
    settings: ControlSettings,
    seen: Seen,
}

/// What a network makes of picture and text, once.
#[derive(Debug)]
enum Seen {
    ControlNet {
        hint: Tensor,
        /// The texts of both sides of guidance, or of the only one.
        all: Option<UNetContext>,
        /// The prompt's, for steps in which the network sees that side alone.
        prompt: Option<UNetContext>,
    },
    T2IAdapter(Residuals),
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
    /// Loads the network if it has to, and lets it look at its picture, which has the size of the result.
    ///
    /// # Errors
    /// When the network cannot be read or fails, or the pass is interrupted.
    pub(in crate::backend) fn begin(
        library: &ControlLibrary,
        chosen: &ChosenControl,
        picture: &RgbImage,
        sides: Sides,
        (dtype, device): (DType, &Device),
        interrupt: Interrupt,
    ) -> Result<Self, GenerationError> {
        let (network, settings) = (library.get(chosen.entry())?, chosen.settings.clone());
        let picture = preprocess(picture, settings.preprocess);
        let picture = image_utils::to_unit_tensor(&picture, device)?.to_dtype(dtype)?;
        let seen = match &*network {
            ControlNetwork::ControlNet(network) => {
                let sees_prompt_alone = guesses(network, &settings);
                let all = (!sees_prompt_alone).then(|| network.context(sides.all)).transpose()?;
                let prompt = sees_prompt_alone || sides.demand.has_steps_of_prompt_alone();
                let prompt = prompt.then(|| network.context(sides.prompt)).transpose()?;
                Seen::ControlNet { hint: network.hint(&picture, interrupt)?, all, prompt }
            }
            ControlNetwork::T2IAdapter(adapter) => {
                Seen::T2IAdapter(adapter.forward(&picture, interrupt)?.scaled(|_, _| settings.scale.get())?)
            }
        };
        Ok(Self { network, settings, seen })
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
        if !self.settings.window.contains(step, demand.steps()) || self.settings.scale.get() == 0.0 {
            return Ok(Residuals::default());
        }
        let (network, hint, all, prompt) = match (&*self.network, &self.seen) {
            (ControlNetwork::ControlNet(network), Seen::ControlNet { hint, all, prompt }) => (network, hint, all, prompt),
            (_, Seen::T2IAdapter(residuals)) => return Ok(residuals.clone()),
            (ControlNetwork::T2IAdapter(_), Seen::ControlNet { .. }) => return Ok(Residuals::default()),
        };
        let has_negative = demand.kind(step).samples > 1;
        let context = if has_negative { all.as_ref().or(prompt.as_ref()) } else { prompt.as_ref().or(all.as_ref()) };
        let Some(context) = context else { return Ok(Residuals::default()) };
        let residuals = network.forward(latents, demand.plan.stages[step].timestep, hint, context, interrupt)?;
        let scale = self.settings.scale.get();
        let residuals = if self.settings.guess_mode && !network.config().pools() {
            // From a tenth at the finest layer to all in the middle, evenly in their logarithms.
            residuals.scaled(|i, count| scale * 10f64.powf(i as f64 / (count - 1).max(1) as f64 - 1.0))?
        } else {
            residuals.scaled(|_, _| scale)?
        };
        Ok(if has_negative && all.is_none() { residuals.after_zeros(1)? } else { residuals })
    }
}

/// Whether a network sees the prompt's side of guidance alone.
fn guesses(network: &ControlNetModel, settings: &ControlSettings) -> bool {
    settings.guess_mode || network.config().pools()
}
