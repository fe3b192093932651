//! The answer to generations and edits: `OpenAI`'s fields, and this worker's own.

use std::sync::Arc;

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    content::Address,
    image_stream::{self, ImageStream},
};
use crate::{
    backend::{Complete, Timings},
    common::{ImageFormat, Seed},
    http::{
        answer::{self, Base64, Parameters, WireTimings},
        api_error::ApiError,
        app_state::AppState,
        order::AnswerForm,
        run::{Follower, Run},
    },
};

/// Answers with a stream, or with all pictures once they are finished.
pub(super) async fn answer(state: &AppState, address: &Address, mut follower: Follower) -> Result<Response, ApiError> {
    if follower.run.order.answer == AnswerForm::Stream {
        return Ok(image_stream::respond(ImageStream::new(follower)));
    }
    let pictures = follower.pictures().await?;
    if follower.run.order.answer == AnswerForm::Files {
        return ImagesResponse::respond(&follower.run, pictures).await;
    }
    state.runs.insert_job(Arc::clone(&follower.run));
    let link = |i, picture: &Arc<Complete>| ImageData::Linked { url: address.link(&follower.run, i), seed: picture.config.seed };
    let data = pictures.iter().enumerate().map(|(i, picture)| link(i, picture)).collect();
    Ok(Json(ImagesResponse { data, ..ImagesResponse::new(&follower.run, &pictures) }).into_response())
}

/// The pictures, and how they were made.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ImagesResponse {
    /// Seconds since 1970.
    created: u64,
    data: Vec<ImageData>,
    background: &'static str,
    output_format: ImageFormat,
    size: String,
    quality: &'static str,
    usage: Usage,
    parameters: Parameters,
    timings: WireTimings,
    /// Fields that were given and have no effect.
    ignored: Vec<String>,
    /// Other remarks, such as that the end of the prompt was cut off.
    warnings: Vec<String>,
}

/// A picture, or a link to it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum ImageData {
    File {
        /// The file.
        #[schema(value_type = String, content_encoding = "base64")]
        b64_json: Base64,
        seed: Seed,
    },
    Linked {
        /// Where the file is for some time.
        url: String,
        seed: Seed,
    },
}

/// Token counts, which `OpenAI` bills by. A worker counts none.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(in crate::http) struct Usage {
    total_tokens: u32,
    input_tokens: u32,
    output_tokens: u32,
    input_tokens_details: InputTokensDetails,
}

#[derive(Debug, Default, Serialize, ToSchema)]
struct InputTokensDetails {
    text_tokens: u32,
    image_tokens: u32,
}

impl ImagesResponse {
    /// Answers with finished pictures.
    ///
    /// # Errors
    /// When there is no memory for the answer.
    pub(in crate::http) async fn respond(run: &Arc<Run>, pictures: Vec<Arc<Complete>>) -> Result<Response, ApiError> {
        answer::respond(run, pictures, Self::new).await
    }

    /// Collects the fields of the answer.
    fn new(run: &Run, pictures: &[Arc<Complete>]) -> Self {
        let timings: Vec<Timings> = pictures.iter().map(|picture| picture.timings).collect();
        let mut warnings: Vec<String> = pictures.iter().flat_map(|picture| picture.warnings.clone()).collect();
        warnings.dedup();
        let parameters = Parameters::new(run, run.order.picture.config);
        Self {
            created: run.created,
            data: pictures
                .iter()
                .map(|picture| ImageData::File { b64_json: Base64::of(Arc::clone(picture)), seed: picture.config.seed })
                .collect(),
            background: "opaque",
            output_format: run.order.picture.output.format,
            size: run.order.size(),
            quality: "auto",
            usage: Usage::default(),
            parameters,
            timings: WireTimings::of(&timings),
            ignored: run.order.ignored.clone(),
            warnings,
        }
    }
}
