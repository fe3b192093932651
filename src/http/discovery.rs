//! `GET /v1/capabilities` and `GET /info`: what this worker can do, and what it is.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    api_error::ApiError,
    app_state::AppState,
    body_bytes::{MAX_BODY_BYTES, MAX_UPLOAD_BYTES},
    openapi::{DISCOVERY, KeyMissing, NotReady},
    wire::MAX_N,
};
use crate::{
    backend::{ControlEntry, LatentFilter, MAX_INPUT_PIXELS},
    common::{CacheKind, Decoder, FeatureCache, ImageSize, Preprocess, Sampler, Steps},
};

/// What requests may ask for.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Capabilities {
    model: String,
    tasks: [&'static str; 4],
    samplers: Vec<SamplerSchedules>,
    input_formats: [&'static str; 3],
    output_formats: [&'static str; 3],
    /// Words that prompts may use beyond those of the model's own vocabulary.
    embeddings: Vec<String>,
    /// The networks that requests may name in `control`.
    controls: Vec<Control>,
    /// What `preprocess` may say in `control`.
    preprocess: [&'static str; Preprocess::ALL.len()],
    /// Whether requests may bring pictures in `reference`.
    references: bool,
    /// What `decoder` may say.
    decoders: &'static [Decoder],
    /// What `upscale` may name.
    upscalers: Vec<Upscaler>,
    /// What it may name beside them where the enlarged picture is drawn again.
    latent_upscalers: [&'static str; 6],
    /// What `kind` may say in `cache`.
    caches: [&'static str; 1],
    limits: Limits,
}

/// A network that looks at a picture.
#[derive(Debug, Serialize, ToSchema)]
struct Control {
    name: String,
    /// `controlnet` or `t2i_adapter`.
    kind: &'static str,
    /// What `type` may say, of a union of several kinds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    types: Vec<&'static str>,
}

/// What enlarges pictures.
#[derive(Debug, Serialize, ToSchema)]
struct Upscaler {
    name: String,
    /// The scale of a network. Filters have every scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    scale: Option<usize>,
}

/// A sampler with the schedules that go with it.
#[derive(Debug, Serialize, ToSchema)]
struct SamplerSchedules {
    name: &'static str,
    schedules: Vec<&'static str>,
}

/// Requests beyond these limits are refused.
#[derive(Debug, Serialize, ToSchema)]
struct Limits {
    min_side: u32,
    max_side: u32,
    size_multiple: u32,
    max_pixels: u64,
    max_steps: usize,
    max_cache_interval: u32,
    max_n: u32,
    max_body_bytes: usize,
    max_upload_bytes: usize,
    max_input_pixels: u64,
    /// The most work of one request: pictures x evaluations of the network x samples x pixels, in megapixels of 1024 x 1024.
    max_work: u64,
    queue_capacity: u32,
    max_batch: u32,
}

/// What this worker is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Info {
    name: &'static str,
    version: &'static str,
    build: &'static str,
    model: String,
    device: String,
    dtype: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    compute: Option<&'static str>,
}

/// What requests may ask for.
#[utoipa::path(get, path = "/v1/capabilities", tag = DISCOVERY, responses((status = 200, description = "Samplers with their schedules, and limits", body = Capabilities), KeyMissing, NotReady))]
pub(super) async fn capabilities(State(state): State<AppState>) -> Result<Json<Capabilities>, ApiError> {
    let info = state.model()?;
    let schedules = |sampler: Sampler| sampler.schedules().iter().map(|schedule| schedule.name()).collect();
    let samplers = Sampler::ALL.map(|sampler| SamplerSchedules { name: sampler.name(), schedules: schedules(sampler) });
    let controls = info.controls.iter().flat_map(|library| library.entries());
    let types = |entry: &ControlEntry| entry.kinds().iter().map(|kind| kind.name()).collect();
    let controls = controls.map(|entry| Control { name: entry.name().to_owned(), kind: entry.kind(), types: types(entry) });
    Ok(Json(Capabilities {
        model: info.id.clone(),
        tasks: ["text-to-image", "image-to-image", "inpainting", "upscaling"],
        samplers: samplers.into(),
        input_formats: ["png", "jpeg", "webp"],
        output_formats: ["png", "jpeg", "webp"],
        embeddings: info.embeddings.clone(),
        controls: controls.collect(),
        preprocess: Preprocess::ALL.map(Preprocess::name),
        references: info.ip_adapter.is_some(),
        decoders: info.decoders(),
        upscalers: info.upscalers.names().map(|(name, scale)| Upscaler { name: name.to_owned(), scale }).collect(),
        latent_upscalers: LatentFilter::ALL.map(|filter| filter.name),
        caches: CacheKind::ALL.map(CacheKind::name),
        limits: Limits {
            min_side: ImageSize::MIN_SIDE,
            max_side: ImageSize::MAX_SIDE,
            size_multiple: info.size_multiple,
            max_pixels: info.max_pixels,
            max_steps: info.max_steps.min(Steps::MAX as usize),
            max_cache_interval: FeatureCache::MAX_INTERVAL as u32,
            max_n: MAX_N as u32,
            max_body_bytes: MAX_BODY_BYTES,
            max_upload_bytes: MAX_UPLOAD_BYTES,
            max_input_pixels: MAX_INPUT_PIXELS,
            max_work: state.admission.max_work(),
            queue_capacity: state.admission.capacity(),
            max_batch: state.max_batch,
        },
    }))
}

/// What this worker is.
#[utoipa::path(get, path = "/info", tag = DISCOVERY, responses((status = 200, description = "Version, model and device", body = Info), KeyMissing, NotReady))]
pub(super) async fn info(State(state): State<AppState>) -> Result<Json<Info>, ApiError> {
    let model = state.model()?;
    Ok(Json(Info {
        name: "sd-worker",
        version: env!("CARGO_PKG_VERSION"),
        build: if cfg!(debug_assertions) { "debug" } else { "release" },
        model: model.id.clone(),
        device: model.device.clone(),
        dtype: model.dtype,
        compute: model.compute,
    }))
}
