//! Gives every request its name and its span.

use axum::{
    extract::Request,
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};
use tracing::{Instrument, info_span};

use crate::common::RequestId;

pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Takes the request's name from its header, or makes one, and answers with it.
pub(super) async fn attach(mut request: Request, next: Next) -> Response {
    let given = request.headers().get(&X_REQUEST_ID).and_then(|value| value.to_str().ok());
    let id = given.and_then(RequestId::from_client).unwrap_or_else(RequestId::random);
    let span = info_span!("request", request_id = %id, method = %request.method(), path = request.uri().path());
    request.extensions_mut().insert(id.clone());
    let mut response = next.run(request).instrument(span).await;
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(X_REQUEST_ID, value);
    }
    response
}
