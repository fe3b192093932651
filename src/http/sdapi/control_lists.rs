//! `/controlnet/*`: the lists of A1111's extension for `ControlNet`.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    common::Preprocess,
    http::{
        api_error::ApiError,
        app_state::AppState,
        openapi::{A1111, KeyMissing, NotReady},
    },
};

/// The version of the extension whose words these are.
const VERSION: u32 = 3;

/// Names of networks.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ControlModels {
    model_list: Vec<String>,
}

/// Names of preprocessors.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ControlModules {
    module_list: Vec<&'static str>,
}

/// A version.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ControlVersion {
    version: u32,
}

/// The networks of `--controlnet`.
#[utoipa::path(get, path = "/controlnet/model_list", operation_id = "controlnet_models", tag = A1111, responses((status = 200, description = "All of them", body = ControlModels), KeyMissing, NotReady))]
pub(super) async fn model_list(State(state): State<AppState>) -> Result<Json<ControlModels>, ApiError> {
    let info = state.model()?;
    let entries = info.controls.iter().flat_map(|library| library.entries());
    Ok(Json(ControlModels { model_list: entries.map(|entry| entry.name().to_owned()).collect() }))
}

/// What can be done to a picture before a network looks at it.
#[utoipa::path(get, path = "/controlnet/module_list", operation_id = "controlnet_modules", tag = A1111, responses((status = 200, description = "All of them", body = ControlModules), KeyMissing))]
pub(super) async fn module_list() -> Json<ControlModules> {
    Json(ControlModules { module_list: Preprocess::ALL.map(Preprocess::name).into() })
}

/// The version of the extension whose words these are.
#[utoipa::path(get, path = "/controlnet/version", operation_id = "controlnet_version", tag = A1111, responses((status = 200, description = "A number", body = ControlVersion), KeyMissing))]
pub(super) async fn version() -> Json<ControlVersion> {
    Json(ControlVersion { version: VERSION })
}
