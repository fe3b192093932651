//! A validated request for pictures. Every API converts its own wire types into this.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use utoipa::ToSchema;

use super::admission::Demand;
use crate::common::{ImageSize, InputImage, MaskMeaning, NegativePrompt, OutputConfig, Prompt, SamplingConfig};

/// A validated request for pictures.
#[derive(Debug)]
pub(super) struct ImagesOrder {
    pub(super) prompt: Prompt,
    pub(super) negative_prompt: NegativePrompt,
    /// The picture to begin with, if there is one. It moves to the engine with the first request.
    pub(super) input: Option<Arc<InputImage>>,
    /// Whether there is a picture to begin with.
    pub(super) is_edit: bool,
    /// How its mask marked the part to be repainted, if there is a mask.
    pub(super) mask: Option<MaskMeaning>,
    /// The first picture's settings; each further picture has the next seed.
    pub(super) config: SamplingConfig,
    /// Evaluations of the network for a picture.
    pub(super) evaluations: usize,
    /// Samples in each evaluation: one for each part of the prompt, and one more with guidance.
    pub(super) samples: usize,
    pub(super) output: OutputConfig,
    pub(super) count: u32,
    pub(super) stream: bool,
    /// Whether a stream sends progress as events, and not only as comments.
    pub(super) progress: bool,
    pub(super) on_disconnect: OnDisconnect,
    /// Fields of the request that have no effect.
    pub(super) ignored: Vec<String>,
}

impl ImagesOrder {
    /// The size of the finished pictures.
    pub(super) fn size(&self) -> ImageSize {
        self.output.size(self.config.size)
    }

    /// The same order, beginning with a picture.
    pub(super) fn beginning_with(self, input: Arc<InputImage>) -> Self {
        let mask = input.mask.as_ref().map(|mask| mask.meaning);
        Self { input: Some(input), is_edit: true, mask, ..self }
    }

    /// The cost of the order. `deadline` is how long the client waits, if it says so.
    pub(super) fn demand(&self, deadline: Option<Duration>) -> Demand {
        let pixels = self.config.size.pixels() * self.samples as u64;
        Demand { pictures: self.count, steps: self.evaluations, pixels, deadline }
    }
}

/// What happens to a request whose client disconnects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnDisconnect {
    /// The work stops.
    #[default]
    Cancel,
    /// The work goes on.
    Finish,
}
