//! The server: routes, wire types, admission. It knows requests and responses, and nothing of tensors.

mod access;
mod admission;
mod answer;
mod api_error;
mod body_bytes;
mod client_wishes;
mod connections;
mod cors;
mod delivery;
mod discovery;
mod docs;
mod edits;
mod event_stream;
mod extract;
mod fields;
mod hosts;
mod image_events;
mod image_stream;
mod images;
mod jobs;
mod lifecycle;
mod metrics_endpoint;
mod models;
mod off_thread;
mod openapi;
mod origins;
mod paced_body;
mod probes;
mod request_context;
mod run;
mod runs;
mod shutdown;
mod trace_context;
mod unread_body;
mod uploads;
mod wire;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

pub use access::{Access, ApiKey};
pub use admission::{Admission, Demand, MEGAPIXEL, Permit};
use api_error::ApiError;
use axum::{
    Extension, Router,
    extract::DefaultBodyLimit,
    http::{Method, StatusCode, Uri},
    middleware,
    response::{IntoResponse, Response},
};
pub use connections::{ConnectionLimits, serve};
pub use hosts::AllowedHosts;
pub use lifecycle::Lifecycle;
pub use metrics_endpoint::install_recorder;
use metrics_exporter_prometheus::PrometheusHandle;
pub use origins::origin;
pub use runs::{RunLimits, Runs};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use utoipa::OpenApi;
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouterExt},
    routes,
};

use crate::backend::{Pulse, RequestQueue};

/// A prompt and a negative prompt of the largest size, escaped, fit.
const MAX_BODY_BYTES: usize = 1 << 20;

/// A picture as large as `OpenAI`'s API takes it, and in base64 one of 37 MB.
const MAX_UPLOAD_BYTES: usize = 50 << 20;

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
    /// Who may ask.
    pub access: Access,
    /// How long a client may be silent in the middle of a body.
    pub client_timeout: Duration,
    /// How many pictures of one size the engine works on together.
    pub max_batch: u32,
    /// Whether the engine moves, and how long it may not.
    pub pulse: Pulse,
    /// `None`: for ever.
    pub watchdog: Option<Duration>,
    /// Renders `/metrics`.
    pub metrics: PrometheusHandle,
    /// Asks the worker to finish what runs and to end.
    pub shutdown: CancellationToken,
    /// Cancels everything that runs, when the worker has waited long enough.
    pub stop: CancellationToken,
}

/// All routes.
pub fn router(state: AppState) -> Router {
    let upload_limit = DefaultBodyLimit::max(MAX_UPLOAD_BYTES);
    let (router, api) = OpenApiRouter::with_openapi(openapi::Frame::openapi())
        .routes(routes!(probes::root))
        .routes(routes!(probes::livez))
        .routes(routes!(probes::readyz))
        .routes(routes!(probes::health))
        .routes(routes!(metrics_endpoint::render))
        .routes(routes!(discovery::info))
        .routes(routes!(discovery::capabilities))
        .routes(routes!(docs::openapi))
        .routes(routes!(docs::docs))
        .routes(routes!(shutdown::shutdown))
        .routes(routes!(models::list))
        .routes(routes!(models::show))
        .routes(routes!(images::generations))
        .routes(routes!(edits::edits).layer(upload_limit))
        .routes(routes!(jobs::submit).layer(upload_limit))
        .routes(routes!(jobs::show, jobs::cancel))
        .routes(routes!(jobs::stream))
        .routes(routes!(jobs::result))
        .split_for_parts();
    let router = router
        .layer(Extension(Arc::new(docs::Description::new(api))))
        .fallback(|uri: Uri| async move { ApiError::no_such_route(uri.path()) })
        .method_not_allowed_fallback(other_method)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn_with_state(state.client_timeout, paced_body::pace))
        .layer(middleware::from_fn_with_state(state.clone(), access::check))
        .with_state(state.clone());
    cors::open_to(router, state.access.cors_origins.clone())
        .layer(middleware::from_fn(request_context::attach))
        .layer(middleware::from_fn_with_state(state, unread_body::forget))
}

/// What a route says where it does not take the method, or is asked which it takes; axum names those in the header `allow`.
async fn other_method(method: Method) -> Response {
    if method == Method::OPTIONS { StatusCode::NO_CONTENT.into_response() } else { ApiError::method_not_allowed().into_response() }
}

/// Seconds since 1970.
fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
