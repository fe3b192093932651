//! The events of a stream of pictures.

use serde::Serialize;
use utoipa::ToSchema;

use super::images_response::Usage;
use crate::{
    common::{ImageFormat, Seed},
    http::{
        answer::{Base64, Parameters, WireTimings},
        api_error::ErrorBody,
    },
};

/// An event. Its `type` repeats the event's name, as in `OpenAI`'s streams; edits have event names of their own.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "type")]
pub(in crate::http) enum ImageEvent {
    #[serde(rename = "image_generation.partial_image")]
    PartialImage(Preview),
    #[serde(rename = "image_edit.partial_image")]
    EditPartialImage(Preview),
    #[serde(rename = "image_generation.completed")]
    Completed(Box<Completed>),
    #[serde(rename = "image_edit.completed")]
    EditCompleted(Box<Completed>),
    #[serde(rename = "image_generation.progress")]
    Progress(ProgressEvent),
    #[serde(rename = "image_edit.progress")]
    EditProgress(ProgressEvent),
    /// The last event of a run that failed.
    #[serde(rename = "error")]
    Error { error: ErrorBody },
}

/// A preview of an unfinished picture.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Preview {
    #[schema(value_type = String, content_encoding = "base64")]
    pub(super) b64_json: Base64,
    pub(super) created_at: u64,
    pub(super) size: String,
    pub(super) quality: &'static str,
    pub(super) background: &'static str,
    pub(super) output_format: ImageFormat,
    pub(super) partial_image_index: u8,
}

/// A finished picture.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Completed {
    #[schema(value_type = String, content_encoding = "base64")]
    pub(super) b64_json: Base64,
    pub(super) created_at: u64,
    pub(super) size: String,
    pub(super) quality: &'static str,
    pub(super) background: &'static str,
    pub(super) output_format: ImageFormat,
    pub(super) usage: Usage,
    pub(super) seed: Seed,
    pub(super) parameters: Parameters,
    pub(super) timings: WireTimings,
    pub(super) ignored: Vec<String>,
    pub(super) warnings: Vec<String>,
}

/// Sent only on request, since the official clients pass unknown events on to their callers.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ProgressEvent {
    pub(super) step: usize,
    pub(super) total: usize,
    pub(super) seconds_per_step: f64,
    pub(super) eta_ms: u64,
}

impl ImageEvent {
    /// The event's name.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::PartialImage(_) => "image_generation.partial_image",
            Self::EditPartialImage(_) => "image_edit.partial_image",
            Self::Completed(_) => "image_generation.completed",
            Self::EditCompleted(_) => "image_edit.completed",
            Self::Progress(_) => "image_generation.progress",
            Self::EditProgress(_) => "image_edit.progress",
            Self::Error { .. } => "error",
        }
    }
}

/// One event of a stream of pictures.
#[derive(ToSchema)]
#[allow(dead_code, reason = "a description")]
pub(in crate::http) struct ImageItem {
    /// What `type` in the data says.
    event: String,
    /// An `ImageEvent` as JSON.
    #[schema(content_media_type = "application/json")]
    data: String,
}
