//! What a denoiser looks at beside latents and timestep.

use std::sync::Arc;

use candle_core::Tensor;

use super::image_prompt::ImagePrompt;
use crate::ops::AdaptedLayers;

/// The conditions of one generation.
#[derive(Debug, Clone, Copy)]
pub struct Conditions<'a> {
    /// Text embeddings, `(samples, tokens, hidden)`.
    pub text: &'a Tensor,
    /// The pooled text, `(samples, pooled_dim)`. SDXL looks at it.
    pub pooled: Option<&'a Tensor>,
    /// Height and width of the picture in pixels. SDXL looks at them.
    pub size: (usize, usize),
    /// The guidance scale. Networks that are distilled for it look at it.
    pub guidance_scale: f64,
    /// Pictures that the network looks at beside the text.
    pub images: &'a [ImagePrompt<'a>],
    /// What the request's adapters make of the network's layers, if it has any.
    pub adapters: Option<&'a Arc<AdaptedLayers>>,
}

impl<'a> Conditions<'a> {
    /// The conditions of a network that looks at the text alone, without adapters.
    #[must_use]
    pub fn of_text(text: &'a Tensor) -> Self {
        Self { text, pooled: None, size: (0, 0), guidance_scale: 1.0, images: &[], adapters: None }
    }
}
