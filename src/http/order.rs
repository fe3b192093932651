//! What a request asks for, once all of it is known to be right: the form in which every API hands it on.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use utoipa::ToSchema;

use super::admission::Demand;
use crate::common::{ImageSize, InputImage, MaskMeaning, NegativePrompt, OutputConfig, Prompt, SamplingConfig};

/// What a valid request asks for.
#[derive(Debug)]
pub(super) struct ImagesOrder {
    pub(super) prompt: Prompt,
    pub(super) negative_prompt: NegativePrompt,
    /// What the pictures begin with, if not with noise alone. It goes with the requests to the engine.
    pub(super) input: Option<Arc<InputImage>>,
    /// Whether there is such a picture,
    pub(super) is_edit: bool,
    /// and what of its mask was taken for the part to be painted anew, if there is one.
    pub(super) mask: Option<MaskMeaning>,
    /// Of the first picture; the others have the seeds that follow.
    pub(super) config: SamplingConfig,
    /// How often the network is evaluated for a picture.
    pub(super) evaluations: usize,
    /// For how many samples each time: the parts of the prompt, and with guidance one more.
    pub(super) samples: usize,
    pub(super) output: OutputConfig,
    pub(super) count: u32,
    pub(super) stream: bool,
    /// Whether progress is sent as events, not only as comments.
    pub(super) progress: bool,
    pub(super) on_disconnect: OnDisconnect,
    /// Fields that were given and have no effect.
    pub(super) ignored: Vec<String>,
}

impl ImagesOrder {
    /// The size of the pictures.
    pub(super) fn size(&self) -> ImageSize {
        self.output.size(self.config.size)
    }

    /// The same order for pictures that begin with a picture.
    pub(super) fn beginning_with(self, input: Arc<InputImage>) -> Self {
        let mask = input.mask.as_ref().map(|mask| mask.meaning);
        Self { input: Some(input), is_edit: true, mask, ..self }
    }

    /// What it costs. `deadline` is how long the client waits, if it says so.
    pub(super) fn demand(&self, deadline: Option<Duration>) -> Demand {
        let pixels = self.config.size.pixels() * self.samples as u64;
        Demand { pictures: self.count, steps: self.evaluations, pixels, deadline }
    }
}

/// What becomes of a request whose client goes away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnDisconnect {
    /// The work stops.
    #[default]
    Cancel,
    /// The work goes on.
    Finish,
}
