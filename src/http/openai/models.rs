//! `GET /v1/models`: the one model of this worker.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    backend::{ModelInfo, Order},
    common::{ModelFamily, ModelVariant},
    http::{
        api_error::ApiError,
        app_state::AppState,
        openapi::{DISCOVERY, KeyMissing, NotFound, NotReady, Unreadable},
    },
};

/// A model as `OpenAI`'s API lists it, with what this worker adds.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelObject {
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// Its name here and in answers.
    id: String,
    /// Its architecture.
    family: ModelFamily,
    /// What it was trained further for.
    variant: ModelVariant,
    /// Where it runs, such as `cpu` or `cuda:0`.
    device: String,
    /// Number format of the weights, such as `f32`.
    dtype: &'static str,
    /// The type in which a CPU multiplies the denoiser's matrices, such as `f32` or `bf16`.
    #[serde(skip_serializing_if = "Option::is_none")]
    compute: Option<&'static str>,
    /// The most pixels of a requested picture.
    max_pixels: u64,
    /// Sides of pictures are multiples of this.
    size_multiple: u32,
    /// The most steps: the number of timesteps in training.
    max_steps: usize,
    /// The largest `clip_skip`: the number of the text encoder's layers, or 1 in families in which it has no effect.
    max_clip_skip: usize,
    /// What a request gets that leaves it out.
    #[schema(value_type = Defaults)]
    defaults: Option<Defaults>,
}

/// Defaults of a request.
#[derive(Debug, Serialize, ToSchema)]
struct Defaults {
    size: String,
    num_inference_steps: usize,
    guidance_scale: f64,
    sampler: &'static str,
    schedule: &'static str,
    /// Only where the worker's owner has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    negative_prompt: Option<String>,
}

/// A list with one entry, or with none while the model loads.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelList {
    object: &'static str,
    data: Vec<ModelObject>,
}

impl ModelObject {
    fn new(info: &ModelInfo) -> Self {
        let defaults = Order::bare(info).ok().map(|order| Defaults {
            size: order.size().to_string(),
            num_inference_steps: order.config.steps.get(),
            guidance_scale: order.config.guidance_scale.get(),
            sampler: order.config.sampler.name(),
            schedule: order.config.schedule.name(),
            negative_prompt: Some(order.negative_prompt.as_str().to_owned()).filter(|prompt| !prompt.is_empty()),
        });
        Self {
            object: "model",
            // A checkpoint does not state its age.
            created: 0,
            owned_by: "sd-worker",
            id: info.id.clone(),
            family: info.family,
            variant: info.variant,
            device: info.device.clone(),
            dtype: info.dtype,
            compute: info.compute,
            max_pixels: info.max_pixels,
            size_multiple: info.size_multiple,
            max_steps: info.max_steps,
            max_clip_skip: info.max_clip_skip,
            defaults,
        }
    }
}

/// The one model of this worker; while it loads, none.
#[utoipa::path(get, path = "/v1/models", operation_id = "list_models", tag = DISCOVERY, responses((status = 200, description = "A list of one, or none", body = ModelList), KeyMissing))]
pub(super) async fn list(State(state): State<AppState>) -> Json<ModelList> {
    let data = state.model().map(|info| ModelObject::new(&info)).into_iter().collect();
    Json(ModelList { object: "list", data })
}

/// The model, by its name.
#[utoipa::path(
    get,
    path = "/v1/models/{*id}",
    operation_id = "show_model",
    tag = DISCOVERY,
    params(("id" = String, Path, description = "Its name; it may have slashes, as in `owner/name`")),
    responses((status = 200, description = "With what a request that says less gets", body = ModelObject), Unreadable, KeyMissing, NotFound, NotReady)
)]
pub(super) async fn show(State(state): State<AppState>, id: Result<Path<String>, PathRejection>) -> Result<Json<ModelObject>, ApiError> {
    let Path(id) = id.map_err(|rejection| ApiError::unreadable_path(&rejection.body_text()))?;
    let info = state.model()?;
    if info.id == id { Ok(Json(ModelObject::new(&info))) } else { Err(ApiError::no_such_model(&id)) }
}
