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
pub(super) struct ModelList {
    model_list: Vec<String>,
}

/// Names of preprocessors.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModuleList {
    module_list: Vec<&'static str>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Version {
    version: u32,
}

/// The networks of `--controlnet`.
#[utoipa::path(get, path = "/controlnet/model_list", operation_id = "controlnet_models", tag = A1111, responses((status = 200, description = "All of them", body = ModelList), KeyMissing, NotReady))]
pub(super) async fn model_list(State(state): State<AppState>) -> Result<Json<ModelList>, ApiError> {
    let info = state.model()?;
    let entries = info.controls.iter().flat_map(|library| library.entries());
    Ok(Json(ModelList { model_list: entries.map(|entry| entry.name().to_owned()).collect() }))
}

/// What can be done to a picture before a network looks at it.
#[utoipa::path(get, path = "/controlnet/module_list", operation_id = "controlnet_modules", tag = A1111, responses((status = 200, description = "All of them", body = ModuleList), KeyMissing))]
pub(super) async fn module_list() -> Json<ModuleList> {
    Json(ModuleList { module_list: Preprocess::ALL.map(Preprocess::name).into() })
}

/// The version of the extension whose words these are.
#[utoipa::path(get, path = "/controlnet/version", operation_id = "controlnet_version", tag = A1111, responses((status = 200, description = "A number", body = Version), KeyMissing))]
pub(super) async fn version() -> Json<Version> {
    Json(Version { version: VERSION })
}
