//! Whether the process lives, and whether it can work.

use axum::{Json, extract::State};
use serde_json::{Value, json};

use super::{ApiError, AppState};
use crate::common::Lifecycle;

/// Says what this is. An orchestrator may poll it: it answers from the moment the socket is bound.
pub(super) async fn root(State(state): State<AppState>) -> Json<Value> {
    let status = match &*state.lifecycle.borrow() {
        Lifecycle::Loading => "loading",
        Lifecycle::Ready(_) => "ready",
        Lifecycle::Draining => "draining",
    };
    Json(json!({ "name": "sd-worker", "version": env!("CARGO_PKG_VERSION"), "status": status }))
}

/// The process lives, and if its engine has something to do, it moves.
pub(super) async fn livez(State(state): State<AppState>) -> Result<Json<Value>, ApiError> {
    let silence = state.pulse.silence();
    match state.watchdog {
        Some(patience) if silence >= patience => Err(ApiError::stalled(silence)),
        _ => Ok(Json(json!({ "status": "alive" }))),
    }
}

/// The worker takes requests.
pub(super) async fn readyz(State(state): State<AppState>) -> Result<Json<Value>, ApiError> {
    let model = state.model()?;
    Ok(Json(json!({ "status": "ready", "model": model.id })))
}
