//! Cross-origin requests: browsers ask whether a page may send one. Pages of origins that were not named may not.

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use tower::ServiceExt;
use tower_http::cors::{AllowHeaders, CorsLayer};

use super::{api_error, request_context};

/// Lets pages of these origins use the routes.
pub(super) fn open_to(router: Router, origins: Vec<HeaderValue>) -> Router {
    if origins.is_empty() {
        return router;
    }
    let layer = CorsLayer::new().allow_origin(origins).allow_methods([Method::GET, Method::POST, Method::DELETE]);
    // `OpenAI`'s client sends a dozen headers of its own, and reads when to try again.
    let read = [request_context::X_REQUEST_ID, header::RETRY_AFTER, api_error::X_SHOULD_RETRY];
    let layer = layer.allow_headers(AllowHeaders::mirror_request()).expose_headers(read);
    let options = middleware::from_fn_with_state(router.clone(), options);
    router.layer(layer).layer(options)
}

/// The CORS layer answers every `OPTIONS` itself and leaves out the route's methods, so both answers are joined.
async fn options(State(routes): State<Router>, request: Request, next: Next) -> Response {
    if request.method() != Method::OPTIONS {
        return next.run(request).await;
    }
    let mut asked = Request::builder().method(Method::OPTIONS).uri(request.uri());
    for (name, value) in request.headers() {
        asked = asked.header(name, value);
    }
    let Ok(asked) = asked.body(Body::empty()) else { return StatusCode::BAD_REQUEST.into_response() };
    let Ok(mut answer) = routes.oneshot(asked).await;
    if answer.status() == StatusCode::NO_CONTENT {
        answer.headers_mut().extend(next.run(request).await.headers().clone());
        answer.headers_mut().remove(header::CONTENT_LENGTH);
    }
    answer
}
