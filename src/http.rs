//! The HTTP server: routes, wire types, admission. It knows requests and responses, and no tensors.
//!
//! Each API has a folder: `openai`, `jobs` and `sdapi`. The modules beside them serve every API: bodies, admission, runs, errors.

mod accept;
mod access;
mod admission;
mod answer;
mod api_error;
mod app_state;
mod body_bytes;
mod client_headers;
mod connections;
mod cors;
mod delivery;
mod discovery;
mod docs;
mod event_stream;
mod extract;
mod fields;
mod form;
mod hosts;
mod images_body;
mod jobs;
mod json_error;
mod lifecycle;
mod loras;
mod metrics_endpoint;
mod object_or_text;
mod off_thread;
mod openai;
mod openapi;
mod order;
mod origins;
mod paced_body;
mod page;
mod probes;
mod request_context;
mod run;
mod runs;
mod schemas;
mod sdapi;
mod shutdown;
mod start;
mod trace_context;
mod unread_body;
mod uploads;
mod upscale;
mod web_page;
mod wire;
mod wire_cache;
mod wire_controls;
mod wire_loras;
mod wire_references;
mod wire_upscale;

use std::sync::Arc;

pub use access::{Access, ApiKey};
pub use admission::{Admission, MEGAPIXEL, Permit};
use api_error::ApiError;
pub use app_state::AppState;
use axum::{
    Extension, Router,
    extract::DefaultBodyLimit,
    http::{Method, StatusCode, Uri},
    middleware,
    response::{IntoResponse, Response},
};
use body_bytes::MAX_BODY_BYTES;
pub use connections::{ConnectionLimits, serve};
pub use hosts::AllowedHosts;
pub use lifecycle::Lifecycle;
pub use metrics_endpoint::install_recorder;
pub use origins::origin;
pub use runs::{RunLimits, Runs};
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

/// All routes.
pub fn router(state: AppState) -> Router {
    let (router, api) = OpenApiRouter::with_openapi(docs::Frame::openapi())
        .routes(routes!(probes::root))
        .routes(routes!(probes::livez))
        .routes(routes!(probes::readyz))
        .routes(routes!(probes::health))
        .routes(routes!(metrics_endpoint::render))
        .routes(routes!(discovery::info))
        .routes(routes!(discovery::capabilities))
        .routes(routes!(loras::list))
        .routes(routes!(docs::openapi))
        .routes(routes!(docs::docs))
        .routes(routes!(shutdown::shutdown))
        .merge(openai::routes())
        .merge(upscale::routes())
        .merge(jobs::routes())
        .merge(sdapi::routes())
        .split_for_parts();
    let router = router
        .layer(Extension(Arc::new(docs::Description::new(api))))
        .fallback(|uri: Uri| async move { ApiError::no_such_route(uri.path()) })
        .method_not_allowed_fallback(other_method)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn_with_state(state.client_timeout, paced_body::pace))
        .layer(middleware::from_fn_with_state(state.access.clone(), access::check))
        .with_state(state.clone());
    cors::open_to(router, state.access.cors_origins)
        .layer(middleware::from_fn(request_context::attach))
        .layer(middleware::from_fn_with_state(state.client_timeout, unread_body::discard))
}

/// Answers a method that a route does not have. `OPTIONS` succeeds on every route; axum lists the route's methods in the header `allow`.
async fn other_method(method: Method) -> Response {
    if method == Method::OPTIONS { StatusCode::NO_CONTENT.into_response() } else { ApiError::method_not_allowed().into_response() }
}
