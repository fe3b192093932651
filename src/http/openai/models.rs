//! `GET /v1/models`: the one model of this worker.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::backend::ModelInfo;
use crate::http::{
    api_error::ApiError,
    app_state::AppState,
    openapi::{DISCOVERY, KeyMissing, NotFound, NotReady, Unreadable},
};

/// A model as `OpenAI`'s API lists it, with what this worker adds.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelObject {
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    #[serde(flatten)]
    info: ModelInfo,
    defaults: Defaults,
}

/// Settings of a request that leaves them out.
#[derive(Debug, Serialize, ToSchema)]
struct Defaults {
    size: String,
    num_inference_steps: usize,
    guidance_scale: f64,
    sampler: &'static str,
    schedule: &'static str,
}

/// A list with one entry, or none while loading.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelList {
    object: &'static str,
    data: Vec<ModelObject>,
}

impl ModelObject {
    fn new(info: &Arc<ModelInfo>) -> Self {
        let defaults = &info.defaults;
        let defaults = Defaults {
            size: defaults.size.to_string(),
            num_inference_steps: defaults.steps.get(),
            guidance_scale: defaults.guidance_scale.get(),
            sampler: defaults.sampler.name(),
            schedule: defaults.schedule.name(),
        };
        // Nobody knows when a checkpoint was made.
        Self { object: "model", created: 0, owned_by: "sd-worker", info: ModelInfo::clone(info), defaults }
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
