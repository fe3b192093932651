//! The server: routes, wire types, admission. It knows requests and responses, and nothing of tensors.

mod admission;
mod api_error;
mod client_wishes;
mod extract;
mod image_stream;
mod images;
mod jobs;
mod metrics_endpoint;
mod models;
mod probes;
mod request_context;
mod run;
mod runs;
mod wire;

use std::time::{Duration, SystemTime};

pub use admission::{Admission, Demand, Permit};
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
pub use runs::{RunLimits, Runs};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{backend::RequestQueue, common::Lifecycle};

/// A prompt and a negative prompt of the largest size, escaped, fit.
const MAX_BODY_BYTES: usize = 1 << 20;

/// Comments in long steps keep proxies from closing a stream.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// What every handler shares.
#[derive(Clone, Debug)]
pub struct AppState {
    /// The way to the engine.
    pub queue: RequestQueue,
    /// Whether there is a model yet, and whether the worker still takes work.
    pub lifecycle: watch::Receiver<Lifecycle>,
    /// Who may use the queue.
    pub admission: Admission,
    /// What clients may come back to.
    pub runs: Runs,
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
        .route("/v1/images/edits", post(images::edits))
        .route("/v1/jobs", post(jobs::submit))
        .route("/v1/jobs/{id}", get(jobs::show).delete(jobs::cancel))
        .route("/v1/jobs/{id}/stream", get(jobs::stream))
        .route("/v1/jobs/{id}/result", get(jobs::result))
        .fallback(|uri: Uri| async move { ApiError::no_such_route(uri.path()) })
        .method_not_allowed_fallback(|| async { ApiError::method_not_allowed() })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn(request_context::attach))
        .with_state(state)
}

/// Seconds since 1970.
fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
