//! What the networks make of an order's prompts and pictures before the first step.

use candle_core::Tensor;

use super::InferencePipeline;
use crate::{
    backend::{
        EncodedPrompts, GenerationError, Order,
        controls::{ActiveControl, Sides},
        image_utils,
        ip_adapter::ReferenceTokens,
    },
    models::{Conditions, DenoiserContext, Interrupt},
};

/// What stays the same from step to step.
#[derive(Debug)]
pub(super) struct Conditioning {
    /// `(1, tokens, hidden)`, or with guidance `(1 + parts, tokens, hidden)`, the negative prompt's first.
    pub(super) text_embeddings: Tensor,
    /// What the denoiser makes of them and of the other conditions.
    pub(super) context: DenoiserContext,
    /// The same of the prompt alone, if there are steps outside of the guidance interval.
    pub(super) unguided: Option<DenoiserContext>,
    pub(super) controls: Vec<ActiveControl>,
    pub(super) warnings: Vec<String>,
}

impl InferencePipeline {
    /// Encodes the prompt, with guidance after the negative one, and lets the networks look at the pictures.
    pub(super) fn conditioning(&self, order: &Order, interrupt: Interrupt) -> Result<Conditioning, GenerationError> {
        let Order { prompt, negative_prompt, adapters, references, config, demand, .. } = order;
        let negatives = usize::from(demand.is_guided());
        let prompts = &[negative_prompt, prompt][1 - negatives..];
        let applied =
            self.info.adapters.as_ref().map(|library| library.apply(&adapters.chosen, interrupt)).transpose()?.unwrap_or_default();
        let encoded = self.prompt_encoder.encode(prompts, config.options.clip_skip, &applied.text, interrupt)?;
        let (text, pooled) = encoded.without_first(negatives)?;
        let tokens = self.reference_tokens(order, interrupt)?;
        let [images, images_of_prompt] = tokens.for_samples(negatives, text.dim(0)?)?;
        let (images, images_of_prompt) = (tokens.prompts(&images, references), tokens.prompts(&images_of_prompt, references));

        let conditions = Conditions {
            text: &encoded.embeddings,
            pooled: encoded.pooled.as_ref(),
            size: (config.size.height() as usize, config.size.width() as usize),
            guidance_scale: config.guidance_scale.get(),
            images: &images,
            adapters: applied.denoiser.as_ref(),
        };
        let of_prompt = Conditions { text: &text, pooled: pooled.as_ref(), images: &images_of_prompt, ..conditions };
        let denoiser = &self.networks.denoiser;
        let unguided = demand.has_steps_of_prompt_alone().then(|| denoiser.context(&of_prompt)).transpose()?;
        let controls = self.controls(order, Sides { all: &conditions, prompt: &of_prompt, demand }, interrupt)?;
        let context = denoiser.context(&conditions)?;

        let EncodedPrompts { embeddings: text_embeddings, mut warnings, .. } = encoded;
        warnings.extend_from_slice(&adapters.warnings);
        warnings.extend(order.controls.iter().filter_map(|control| control.settings.window_warning(demand.steps())));
        warnings.extend(config.guidance_warning());
        warnings.extend(self.info.size_warning(config.size, order.output.enlarged_to));
        Ok(Conditioning { text_embeddings, context, unguided, controls, warnings })
    }

    /// What the image encoder makes of the pictures that the denoiser looks at.
    fn reference_tokens(&self, order: &Order, interrupt: Interrupt) -> Result<ReferenceTokens, GenerationError> {
        match &self.info.ip_adapter {
            Some(adapter) if !order.images.references.is_empty() => adapter.tokens(&order.images, interrupt),
            _ => Ok(ReferenceTokens::default()),
        }
    }

    /// The control networks of an order, each with what it makes of its picture.
    fn controls(&self, order: &Order, sides: Sides, interrupt: Interrupt) -> Result<Vec<ActiveControl>, GenerationError> {
        let Some(library) = &self.info.controls else { return Ok(Vec::new()) };
        let pictures = order.images.controls.iter().map(|picture| image_utils::cut(picture, picture.dimensions(), order.config.size));
        ActiveControl::begin(library, &order.controls, pictures, sides, (self.dtype, &self.device), interrupt)
    }
}
