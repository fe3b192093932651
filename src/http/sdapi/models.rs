//! `GET /sdapi/v1/sd-models`: a list of one.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    backend::ModelInfo,
    http::{
        api_error::ApiError,
        app_state::AppState,
        openapi::{A1111, KeyMissing, NotReady},
    },
};

/// A checkpoint.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Checkpoint {
    /// What `options` call it.
    title: String,
    model_name: String,
    #[schema(required)]
    hash: Option<String>,
    #[schema(required)]
    sha256: Option<String>,
    filename: String,
    #[schema(required)]
    config: Option<String>,
}

/// Whether a title, as a client has it, means the loaded model.
pub(super) fn is_loaded(title: &str, info: &ModelInfo) -> bool {
    title.trim().eq_ignore_ascii_case(&info.id)
}

/// The loaded model.
#[utoipa::path(get, path = "/sdapi/v1/sd-models", operation_id = "sdapi_models", tag = A1111, responses((status = 200, description = "One", body = Vec<Checkpoint>), KeyMissing, NotReady))]
pub(super) async fn list(State(state): State<AppState>) -> Result<Json<Vec<Checkpoint>>, ApiError> {
    let id = state.model()?.id.clone();
    Ok(Json(vec![Checkpoint { title: id.clone(), model_name: id.clone(), hash: None, sha256: None, filename: id, config: None }]))
}
