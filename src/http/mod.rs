//! The server: routes, wire types, admission. It knows requests and responses, and nothing of tensors.

mod admission;
mod api_error;
mod extract;
mod image_stream;
mod images;
mod metrics_endpoint;
mod models;
mod probes;
mod request_context;
mod wire;

pub use admission::{Admission, Permit};
use api_error::ApiError;
use axum::{
    Router,
    extract::DefaultBodyLimit,
    http::Uri,
    middleware,
    routing::{get, post},
};
pub use metrics_endpoint::install_recorder;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{backend::RequestQueue, common::Lifecycle};

/// A prompt and a negative prompt of the largest size, escaped, fit.
const MAX_BODY_BYTES: usize = 1 << 20;

/// What every handler shares.
#[derive(Clone, Debug)]
pub struct AppState {
    /// The way to the engine.
    pub queue: RequestQueue,
    /// Whether there is a model yet, and whether the worker still takes work.
    pub lifecycle: watch::Receiver<Lifecycle>,
    /// Who may use the queue.
    pub admission: Admission,
    /// Renders `/metrics`.
    pub metrics: PrometheusHandle,
    /// Cancels everything that runs, when the worker has waited long enough.
    pub stop: CancellationToken,
}

/// All routes.
pub fn router(state: AppState) -> Router {
    Router::new()
        .route("/", get(probes::root))
        .route("/livez", get(probes::livez))
        .route("/readyz", get(probes::readyz))
        .route("/health", get(probes::readyz))
        .route("/metrics", get(metrics_endpoint::render))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::show))
        .route("/v1/images/generations", post(images::generations))
        .fallback(|uri: Uri| async move { ApiError::no_such_route(uri.path()) })
        .method_not_allowed_fallback(|| async { ApiError::method_not_allowed() })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn(request_context::attach))
        .with_state(state)
}
