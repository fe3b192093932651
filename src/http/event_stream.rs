//! Server-sent events, which every route with a stream answers with.

use std::{convert::Infallible, time::Duration};

use axum::{
    http::{HeaderName, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::{Stream, StreamExt};

/// Comments in long steps keep proxies from closing a stream.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Tells [nginx](https://nginx.org/en/docs/http/ngx_http_proxy_module.html#proxy_buffering), and others that read it, to hand an answer on
/// as it comes.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// An answer whose events arrive when they happen: its headers ask proxies to pass it on at once.
pub(super) fn respond(events: impl Stream<Item = Event> + Send + 'static) -> Response {
    let headers = [(X_ACCEL_BUFFERING, "no"), (header::CACHE_CONTROL, "no-cache, no-transform")];
    let stream = Sse::new(events.map(Ok::<_, Infallible>)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    (headers, stream).into_response()
}
