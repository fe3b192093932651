//! The id and the tracing span of each request.

use std::time::Instant;

use axum::{
    extract::Request,
    http::{HeaderName, HeaderValue, Method},
    middleware::Next,
    response::Response,
};
use tracing::{Instrument, debug, field::Empty, info, info_span};

use super::trace_context::TraceContext;
use crate::common::RequestId;

pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Takes the request's id from its header, or makes one, and returns it in the answer.
pub(super) async fn attach(mut request: Request, next: Next) -> Response {
    let given = request.headers().get(&X_REQUEST_ID).and_then(|value| value.to_str().ok());
    let id = given.and_then(RequestId::from_client).unwrap_or_else(RequestId::random);
    let span = info_span!("request", request_id = %id, method = %request.method(), path = request.uri().path(), trace_id = Empty, parent_id = Empty);
    if let Some(trace) = TraceContext::from_headers(request.headers()) {
        trace.adopt(&span);
    }
    request.extensions_mut().insert(id.clone());
    let (started, asks) = (Instant::now(), request.method() == Method::GET);
    let mut response = next.run(request).instrument(span.clone()).await;
    // GET requests are mostly polls, so they log at DEBUG. For a stream, the time is that of its beginning.
    let (status, ms) = (response.status().as_u16(), started.elapsed().as_millis() as u64);
    span.in_scope(|| if asks { debug!(status, ms, "answered") } else { info!(status, ms, "answered") });
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(X_REQUEST_ID, value);
    }
    response
}
