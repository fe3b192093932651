//! A validated request for pictures. Every API converts its own wire types into this.

use std::sync::Arc;

use serde::Deserialize;
use utoipa::ToSchema;

use crate::{
    backend::Order,
    common::{InputImage, MaskMeaning},
};

/// A validated request for pictures.
#[derive(Debug)]
pub(super) struct ImagesOrder {
    /// The first picture. The others have the seeds that follow.
    pub(super) picture: Order,
    /// Whether the pictures begin with an input picture. The picture itself goes with the requests to the engine.
    pub(super) is_edit: bool,
    /// How its mask marks the part to be repainted, if it has one.
    pub(super) mask: Option<MaskMeaning>,
    pub(super) count: u32,
    pub(super) stream: bool,
    /// Whether a stream sends progress as events, and not only as comments.
    pub(super) progress: bool,
    pub(super) on_disconnect: OnDisconnect,
    /// Fields of the request that have no effect.
    pub(super) ignored: Vec<String>,
}

impl ImagesOrder {
    /// The same order, with an input picture.
    pub(super) fn beginning_with(self, input: Arc<InputImage>) -> Self {
        let mask = input.mask.as_ref().map(|mask| mask.meaning);
        Self { picture: Order { input: Some(input), ..self.picture }, is_edit: true, mask, ..self }
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
