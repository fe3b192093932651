//! Server-sent events.

use std::{convert::Infallible, time::Duration};

use axum::{
    http::{HeaderName, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::{Stream, StreamExt};

/// A comment at this interval keeps proxies from closing a stream during a long step.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Tells [nginx](https://nginx.org/en/docs/http/ngx_http_proxy_module.html#proxy_buffering) and other proxies not to buffer an answer.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// An answer whose events reach the client as they happen: its headers ask proxies to pass them on at once.
pub(super) fn respond(events: impl Stream<Item = Event> + Send + 'static) -> Response {
    let headers = [(X_ACCEL_BUFFERING, "no"), (header::CACHE_CONTROL, "no-cache, no-transform")];
    let stream = Sse::new(events.map(Ok::<_, Infallible>)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    (headers, stream).into_response()
}
