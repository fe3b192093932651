//! The answer to `POST /v1/images/generations` and its like: `OpenAI`'s fields, and ours.

use std::{fmt, sync::Arc, time::Duration};

use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use base64::{display::Base64Display, prelude::BASE64_STANDARD};
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::{ApiError, off_thread, run::Run};
use crate::{
    backend::{Complete, Timings},
    common::{GuidanceScale, ImageFormat, MaskMeaning, Sampler, SamplingConfig, SamplingOptions, Schedule, Seed, Steps},
};

/// What an answer has beside its pictures, in bytes, as a rule.
const SMALL_ANSWER: usize = 4096;

/// The pictures, and how they were made.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ImagesResponse {
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
    /// What else there is to know, such as that the end of a prompt was cut.
    warnings: Vec<String>,
}

/// A picture.
#[derive(Debug, Serialize, ToSchema)]
struct ImageData {
    /// The file.
    #[schema(value_type = String, content_encoding = "base64")]
    b64_json: Base64,
    seed: Seed,
}

/// A file as text. It is written as it is turned into that, and takes no memory twice.
pub(super) struct Base64(Arc<dyn AsRef<[u8]> + Send + Sync>);

impl Base64 {
    /// Of a picture, finished or not.
    pub(super) fn of(file: Arc<impl AsRef<[u8]> + Send + Sync + 'static>) -> Self {
        Self(file)
    }
}

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new((*self.0).as_ref(), &BASE64_STANDARD))
    }
}

impl fmt::Debug for Base64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", (*self.0).as_ref().len())
    }
}

/// Tokens are what `OpenAI` bills; here there are none.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Usage {
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

/// The settings that the pictures were made with.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct Parameters {
    model: String,
    seed: Seed,
    steps: Steps,
    guidance_scale: GuidanceScale,
    sampler: Sampler,
    schedule: Schedule,
    width: u32,
    height: u32,
    #[serde(flatten)]
    options: SamplingOptions,
    /// What of the mask was taken for the part to be painted anew, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    mask: Option<MaskMeaning>,
    /// The size at which the picture was drawn, if it was enlarged after that.
    #[serde(skip_serializing_if = "Option::is_none")]
    drawn_size: Option<String>,
    /// What enlarged it.
    #[serde(skip_serializing_if = "Option::is_none")]
    upscaler: Option<&'static str>,
}

impl Parameters {
    /// Of one of a run's pictures.
    pub(super) fn new(run: &Run, config: SamplingConfig) -> Self {
        let SamplingConfig { size: drawn, steps, guidance_scale, seed, sampler, schedule, options } = config;
        let (size, enlarged_to) = (run.order.size(), run.order.output.enlarged_to);
        Self {
            model: run.model.clone(),
            seed,
            steps,
            guidance_scale,
            sampler,
            schedule,
            width: size.width(),
            height: size.height(),
            options,
            mask: run.order.mask,
            drawn_size: enlarged_to.map(|_| drawn.to_string()),
            upscaler: enlarged_to.map(|_| "lanczos"),
        }
    }
}

/// Milliseconds.
#[allow(clippy::struct_field_names, reason = "the names are the contract's")]
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub(super) struct WireTimings {
    queue_ms: u64,
    text_ms: u64,
    denoise_ms: u64,
    decode_ms: u64,
    encode_ms: u64,
    total_ms: u64,
}

impl WireTimings {
    /// Of pictures that were accepted together, and made one after the other or with their steps side by side.
    pub(super) fn of(all: &[Timings]) -> Self {
        let sum = |time: fn(&Timings) -> Duration| all.iter().map(time).sum::<Duration>();
        let (queue, total) = (all.first().map(|first| first.queue), all.iter().map(Timings::total).max());
        let [queue, text, decode, encode, total] =
            [queue.unwrap_or_default(), sum(|t| t.text), sum(|t| t.decode), sum(|t| t.encode), total.unwrap_or_default()]
                .map(|time| time.as_millis() as u64);
        let denoise_ms = total.saturating_sub(queue + text + decode + encode);
        Self { queue_ms: queue, text_ms: text, denoise_ms, decode_ms: decode, encode_ms: encode, total_ms: total }
    }
}

impl ImagesResponse {
    /// The answer with finished pictures.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(super) async fn respond(run: &Arc<Run>, pictures: Vec<Arc<Complete>>) -> Result<Response, ApiError> {
        let (run, length) = (Arc::clone(run), pictures.iter().map(|picture| picture.image.bytes.len()).sum());
        let write = move || {
            let mut answer = Vec::new();
            answer.try_reserve_exact(length / 3 * 4 + SMALL_ANSWER * (1 + pictures.len())).map_err(|_| ApiError::no_memory_for_answer())?;
            serde_json::to_writer(&mut answer, &Self::new(&run, &pictures)).map_err(|error| ApiError::unwritable(&error))?;
            Ok(answer)
        };
        let answer = off_thread::offload(length, write).await.unwrap_or_else(|error| Err(ApiError::unwritable(&error)))?;
        Ok(([(header::CONTENT_TYPE, "application/json")], answer).into_response())
    }

    /// Puts finished pictures together.
    fn new(run: &Run, pictures: &[Arc<Complete>]) -> Self {
        let timings: Vec<Timings> = pictures.iter().map(|picture| picture.timings).collect();
        let mut warnings: Vec<String> = pictures.iter().flat_map(|picture| picture.warnings.clone()).collect();
        warnings.dedup();
        let parameters = Parameters::new(run, run.order.config);
        Self {
            created: run.created,
            data: pictures
                .iter()
                .map(|picture| ImageData { b64_json: Base64::of(Arc::clone(picture)), seed: picture.config.seed })
                .collect(),
            background: "opaque",
            output_format: run.order.output.format,
            size: run.order.size().to_string(),
            quality: "auto",
            usage: Usage::default(),
            parameters,
            timings: WireTimings::of(&timings),
            ignored: run.order.ignored.clone(),
            warnings,
        }
    }
}
