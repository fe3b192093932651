//! `POST /v1/shutdown`: the same as SIGTERM.

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, header},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    api_error::ApiError,
    app_state::AppState,
    openapi::{Forbidden, KeyMissing, PROCESS},
};

/// The answer that precedes the end.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Stopping {
    status: &'static str,
}

/// Asks the worker to finish its runs and to stop.
#[utoipa::path(post, path = "/v1/shutdown", tag = PROCESS, responses((status = 200, description = "It does", body = Stopping), KeyMissing, Forbidden))]
pub(super) async fn shutdown(State(state): State<AppState>, headers: HeaderMap) -> Result<Json<Stopping>, ApiError> {
    // Browsers send an `origin` with every POST. No web page may stop a worker.
    if headers.contains_key(header::ORIGIN) {
        return Err(ApiError::not_for_browsers());
    }
    state.shutdown.cancel();
    Ok(Json(Stopping { status: "draining" }))
}
