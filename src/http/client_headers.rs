//! Headers that say how long a client waits, and how it repeats a request.

use std::{convert::Infallible, time::Duration};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, request::Parts},
};

use utoipa::IntoParams;

use super::runs::Key;

/// How long a run waits for its client to repeat the request. The official clients do so after at most 8 seconds.
pub(super) const RETRY_GRACE: Duration = Duration::from_secs(10);

/// Reads the headers of the official clients and their plain equivalents. A value that does not parse counts as absent.
#[derive(Debug, Default)]
pub(super) struct ClientHeaders {
    /// How long the client waits for the whole answer.
    pub(super) request_timeout: Option<Duration>,
    /// How long the client waits for the next byte; without a stream, that is the whole answer.
    pub(super) read_timeout: Option<Duration>,
    /// The key under which the client repeats a request.
    pub(super) retry_key: Option<Key>,
}

/// The same headers, for the description of the API.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code, reason = "a description")]
pub(super) struct WaitHeaders {
    /// A name for the request in logs and in the answer's header of this name: up to 128 letters, digits, `-`, `_`, `.` and `:`.
    #[param(rename = "x-request-id")]
    request_id: Option<String>,
    /// How many milliseconds the client waits for the whole answer. A request that would take longer is refused at once.
    #[param(rename = "x-request-timeout-ms")]
    request_timeout_ms: Option<String>,
    /// A key under which the request may be repeated without being done twice.
    #[param(rename = "idempotency-key")]
    idempotency_key: Option<String>,
    /// The caller's trace, as in W3C Trace Context.
    traceparent: Option<String>,
}

impl ClientHeaders {
    /// How long the client waits for a picture.
    pub(super) fn deadline(&self, stream: bool) -> Option<Duration> {
        let read_timeout = self.read_timeout.filter(|_| !stream);
        [self.request_timeout, read_timeout].into_iter().flatten().min()
    }

    fn from_headers(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim).filter(|text| !text.is_empty());
        let seconds = |name| text(name)?.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let named = || text("x-stainless-retry-count").and_then(|_| text("x-request-id"));
        Self {
            request_timeout: text("x-request-timeout-ms").and_then(|millis| millis.parse().ok()).map(Duration::from_millis),
            read_timeout: seconds("x-stainless-read-timeout").or_else(|| seconds("x-stainless-timeout")),
            retry_key: text("idempotency-key").or_else(named).map(|key| Key::Retry(key.to_owned())),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for ClientHeaders {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::from_headers(&parts.headers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(headers: &[(&'static str, &str)]) -> ClientHeaders {
        ClientHeaders::from_headers(&headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect())
    }

    #[test]
    fn the_shortest_wait_counts_and_a_stream_is_never_silent() {
        let both = client(&[("x-stainless-read-timeout", "2.5"), ("x-request-timeout-ms", "4000")]);
        assert_eq!(both.deadline(false), Some(Duration::from_millis(2500)));
        assert_eq!(both.deadline(true), Some(Duration::from_secs(4)));
        assert_eq!(client(&[("x-stainless-timeout", "600")]).deadline(false), Some(Duration::from_mins(10)));
        for nonsense in ["", "soon", "-1", "NaN", "inf", "1e300"] {
            assert_eq!(client(&[("x-stainless-timeout", nonsense)]).deadline(false), None, "{nonsense}");
        }
    }

    #[test]
    fn a_name_is_a_key_only_from_those_who_count_their_tries() {
        let key = |name: &str| Some(Key::Retry(name.to_owned()));
        assert_eq!(client(&[("idempotency-key", "a"), ("x-request-id", "b")]).retry_key, key("a"));
        assert_eq!(client(&[("x-request-id", "b"), ("x-stainless-retry-count", "1")]).retry_key, key("b"));
        assert_eq!(client(&[("x-request-id", "b")]).retry_key, None);
    }
}
