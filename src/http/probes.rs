//! Probes: whether the process lives, and whether it can work.

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    accept,
    api_error::ApiError,
    app_state::AppState,
    lifecycle::Lifecycle,
    openapi::{NotReady, PROBES},
    web_page,
};

/// What this is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Root {
    name: &'static str,
    version: &'static str,
    /// `loading`, `ready` or `draining`.
    status: &'static str,
}

/// The process lives.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Alive {
    status: &'static str,
}

/// The worker takes requests.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Ready {
    status: &'static str,
    model: String,
}

/// Says what this is; to a browser, with a page that makes pictures.
///
/// An orchestrator may poll it: it answers from the moment the socket is bound. A client gets HTML if its `Accept` prefers that to JSON.
#[utoipa::path(
    get,
    path = "/",
    tag = PROBES,
    responses((status = 200, description = "From the moment the socket is bound", content((Root = "application/json"), (String = "text/html"))))
)]
pub(super) async fn root(State(state): State<AppState>, headers: HeaderMap) -> Response {
    let vary = [(header::VARY, "accept")];
    if accept::prefers_html(&headers) {
        return (vary, web_page::respond()).into_response();
    }
    let status = match &*state.lifecycle.borrow() {
        Lifecycle::Loading => "loading",
        Lifecycle::Ready(_) => "ready",
        Lifecycle::Draining => "draining",
    };
    (vary, Json(Root { name: "sd-worker", version: env!("CARGO_PKG_VERSION"), status })).into_response()
}

/// Whether the process lives, and if its engine has something to do, moves.
#[utoipa::path(get, path = "/livez", tag = PROBES, responses((status = 200, description = "It does", body = Alive), NotReady))]
pub(super) async fn livez(State(state): State<AppState>) -> Result<Json<Alive>, ApiError> {
    let silence = state.pulse.silence();
    match state.watchdog {
        Some(patience) if silence >= patience => Err(ApiError::stalled(silence)),
        _ => Ok(Json(Alive { status: "alive" })),
    }
}

/// Whether the worker takes requests.
#[utoipa::path(get, path = "/readyz", tag = PROBES, responses((status = 200, description = "It does", body = Ready), NotReady))]
pub(super) async fn readyz(State(state): State<AppState>) -> Result<Json<Ready>, ApiError> {
    let model = state.model()?;
    Ok(Json(Ready { status: "ready", model: model.id.clone() }))
}

/// The same as `/readyz`.
#[utoipa::path(get, path = "/health", tag = PROBES, responses((status = 200, description = "It does", body = Ready), NotReady))]
pub(super) async fn health(state: State<AppState>) -> Result<Json<Ready>, ApiError> {
    readyz(state).await
}
