//! `/sdapi/v1/options`: what a client may ask about, and the one thing that it may set.

use axum::{Json, extract::State};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::models;
use crate::http::{
    api_error::ApiError,
    app_state::AppState,
    body_bytes::ParsedBody,
    extract::{FromFields, JsonBody},
    fields::Fields,
    openapi::{A1111, KeyMissing, NotReady, Refused},
};

/// Options whose names clients look for.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Options {
    /// The title of the loaded model.
    sd_model_checkpoint: String,
    sd_checkpoint_hash: &'static str,
    sd_vae: &'static str,
    #[serde(rename = "CLIP_stop_at_last_layers")]
    clip_stop_at_last_layers: u8,
    samples_format: &'static str,
}

/// Options to be set.
pub(super) struct NewOptions {
    checkpoint: Option<String>,
}

impl FromFields for NewOptions {
    fn from_fields(mut fields: Fields) -> Result<Self, ApiError> {
        let checkpoint = fields.take_one(|name| name == "sd_model_checkpoint")?;
        let text = |value: &serde_json::value::RawValue| {
            serde_json::from_str(value.get()).map_err(|_| ApiError::invalid_param("sd_model_checkpoint", "must be text"))
        };
        Ok(Self { checkpoint: checkpoint.map(text).transpose()? })
    }
}

/// What is set.
#[utoipa::path(get, path = "/sdapi/v1/options", operation_id = "sdapi_options", tag = A1111, responses((status = 200, description = "The loaded model, and A1111's defaults", body = Options), KeyMissing, NotReady))]
pub(super) async fn show(State(state): State<AppState>) -> Result<Json<Options>, ApiError> {
    Ok(Json(Options {
        sd_model_checkpoint: state.model()?.id.clone(),
        sd_checkpoint_hash: "",
        sd_vae: "Automatic",
        clip_stop_at_last_layers: 1,
        samples_format: "png",
    }))
}

/// Accepts the loaded model as the checkpoint, and refuses another. All other options stay as they are: requests have their own in
/// `override_settings`.
#[utoipa::path(post, path = "/sdapi/v1/options", operation_id = "sdapi_set_options", tag = A1111, request_body(content = std::collections::BTreeMap<String, Value>, example = json!({ "sd_vae": "Automatic" })), responses((status = 200, description = "`null`", body = Option<Value>), KeyMissing, Refused, NotReady))]
pub(super) async fn set(
    State(state): State<AppState>,
    body: Result<JsonBody<NewOptions>, ApiError>,
) -> Result<Json<Option<Value>>, ApiError> {
    let JsonBody(ParsedBody { value: NewOptions { checkpoint }, .. }) = body?;
    let info = state.model()?;
    match checkpoint.filter(|title| !title.is_empty() && !models::is_loaded(title, &info)) {
        Some(other) => Err(ApiError::other_checkpoint(&other, &info.id)),
        None => Ok(Json(None)),
    }
}
