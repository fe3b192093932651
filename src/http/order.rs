//! A validated request for pictures. Every API converts its own wire types into this.

use std::sync::Arc;

use serde::Deserialize;
use utoipa::ToSchema;

use crate::{
    backend::Order,
    common::{InputImages, MaskMeaning},
};

/// A validated request for pictures.
#[derive(Debug)]
pub(super) struct ImagesOrder {
    /// The first picture. The others have the seeds that follow.
    pub(super) picture: Order,
    /// Whether the pictures begin with an input picture. The input pictures themselves go with the requests to the engine.
    pub(super) is_edit: bool,
    /// How its mask marks the part to be repainted, if it has one.
    pub(super) mask: Option<MaskMeaning>,
    pub(super) count: u32,
    pub(super) answer: AnswerForm,
    /// Whether a stream sends progress as events, and not only as comments.
    pub(super) progress: bool,
    pub(super) on_disconnect: OnDisconnect,
    /// Fields of the request that have no effect.
    pub(super) ignored: Vec<String>,
}

impl ImagesOrder {
    /// Width and height of the finished pictures, as answers have them.
    pub(super) fn size(&self) -> String {
        let (width, height) = self.picture.finished_size();
        format!("{width}x{height}")
    }

    /// The same order, with its input pictures.
    pub(super) fn with_images(self, images: Arc<InputImages>) -> Self {
        let mask = images.init.as_ref().and_then(|init| init.mask.as_ref()).map(|mask| mask.meaning);
        Self { is_edit: images.init.is_some(), mask, picture: Order { images, ..self.picture }, ..self }
    }
}

/// How the pictures reach the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AnswerForm {
    /// As files in one answer.
    Files,
    /// As links in one answer.
    Links,
    /// As files in events.
    Stream,
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
