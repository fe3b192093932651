//! `OpenAI`'s Images API, and its list of models.

mod content;
mod edits;
mod generations;
mod image_events;
mod image_stream;
mod images_response;
mod models;
mod variations;

use axum::extract::DefaultBodyLimit;
pub(super) use image_events::{ImageEvent, ImageItem};
pub(super) use images_response::ImagesResponse;
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouterExt},
    routes,
};

use super::{app_state::AppState, body_bytes::MAX_UPLOAD_BYTES};

/// The routes of this API.
pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(models::list))
        .routes(routes!(models::show))
        .routes(routes!(generations::generations).layer(DefaultBodyLimit::max(MAX_UPLOAD_BYTES)))
        .routes(routes!(edits::edits).layer(DefaultBodyLimit::max(MAX_UPLOAD_BYTES)))
        .routes(routes!(variations::variations).layer(DefaultBodyLimit::max(MAX_UPLOAD_BYTES)))
        .routes(routes!(content::content))
}
