//! JSON bodies, with errors that name the field.

use std::{
    error::Error,
    hash::{DefaultHasher, Hash, Hasher},
};

use axum::{
    body::Bytes,
    extract::{FromRequest, Request, rejection::BytesRejection},
    http::{HeaderMap, HeaderValue, header},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, error::Category};
use serde_path_to_error::Segment;
use tower_http::timeout::TimeoutError;

use super::{ApiError, MAX_BODY_BYTES};

/// As many bytes of a name that a client chose are repeated to it.
const MAX_NAME_BYTES: usize = 64;

/// A JSON body of at most `LIMIT` bytes, where the route allows as many.
pub(super) struct JsonBody<T, const LIMIT: usize = MAX_BODY_BYTES> {
    pub(super) value: T,
    /// Bodies that differ, or their routes, have, as good as always, different ones.
    pub(super) fingerprint: u64,
}

impl<S: Send + Sync, T: DeserializeOwned, const LIMIT: usize> FromRequest<S> for JsonBody<T, LIMIT> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        // Asking for the header is not pedantry: it keeps web pages from posting here behind their visitor's back.
        if media_type(request.headers())? != "application/json" {
            return Err(ApiError::not_json());
        }
        check_length(request.headers(), LIMIT)?;
        let mut hasher = route_hasher(&request);
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| match rejection {
            BytesRejection::FailedToBufferBody(error) if error.status() == 413 => ApiError::body_too_large(LIMIT),
            other if is_timeout(&other) => ApiError::body_timed_out(),
            other => ApiError::unreadable_body(&other.body_text()),
        })?;
        bytes.hash(&mut hasher);
        Ok(Self { value: parse(&bytes)?, fingerprint: hasher.finish() })
    }
}

/// What a fingerprint begins with: the same body means another thing on another route.
pub(super) fn route_hasher(request: &Request) -> DefaultHasher {
    let mut hasher = DefaultHasher::new();
    request.uri().path().hash(&mut hasher);
    hasher
}

/// What the body is said to be, without parameters.
///
/// # Errors
/// When it is said to be compressed: what it then grows to would have no bound.
pub(super) fn media_type(headers: &HeaderMap) -> Result<String, ApiError> {
    let text = |value: &HeaderValue| value.to_str().unwrap_or_default().trim().to_ascii_lowercase();
    if let Some(encoding) = headers.get_all(header::CONTENT_ENCODING).iter().map(text).find(|encoding| encoding != "identity") {
        return Err(ApiError::encoded_body(&encoding));
    }
    let content_type = headers.get(header::CONTENT_TYPE).map(text).unwrap_or_default();
    Ok(content_type.split(';').next().unwrap_or_default().trim().to_owned())
}

/// How much the client says that it will send.
pub(super) fn length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Refuses at once where the client says how much it means to send, so that it need not send it.
pub(super) fn check_length(headers: &HeaderMap, limit: usize) -> Result<(), ApiError> {
    if length(headers).is_some_and(|length| length > limit) { Err(ApiError::body_too_large(limit)) } else { Ok(()) }
}

/// Whether the client stopped in the middle.
pub(super) fn is_timeout(error: &(dyn Error + 'static)) -> bool {
    error.is::<TimeoutError>() || error.source().is_some_and(is_timeout)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // Some programs of Windows begin a text with a byte order mark.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(ApiError::broken_json("it is in UTF-16, and must be in UTF-8"));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| explain(&error))?;
    deserializer.end().map_err(|error| ApiError::broken_json(&error.to_string()))?;
    Ok(value)
}

/// The same from what has been taken apart already.
pub(super) fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(value).map_err(|error| explain(&error))
}

/// A field's name as errors repeat it.
pub(super) fn clip(name: &str) -> &str {
    &name[..name.floor_char_boundary(MAX_NAME_BYTES)]
}

/// The same without its middle, where it repeats a long value: what was expected stands at the end.
fn shortened(reason: &str) -> String {
    const ENDS: (usize, usize) = (100, 400);
    if reason.len() <= 2 * (ENDS.0 + ENDS.1) {
        return reason.to_owned();
    }
    let (start, end) = (reason.floor_char_boundary(ENDS.0), reason.ceil_char_boundary(reason.len() - ENDS.1));
    format!("{}…{}", &reason[..start], &reason[end..])
}

fn explain(error: &serde_path_to_error::Error<serde_json::Error>) -> ApiError {
    let (inner, text) = (error.inner(), error.inner().to_string());
    // The field is known; where it stands in the text helps nobody.
    let place = format!(" at line {} column {}", inner.line(), inner.column());
    let reason = text.strip_suffix(place.as_str()).unwrap_or(&text);
    // JSON knows numbers of any size.
    if inner.classify() != Category::Data && reason != "number out of range" {
        return ApiError::broken_json(&text);
    }
    // serde speaks of Rust's types.
    let reason = &shortened(reason)
        .replace("expected i64", "expected a whole number")
        .replace("expected u32", "expected a whole number from 0")
        .replace("expected f64", "expected a number");
    let named = |what: &str| reason.strip_prefix(what)?.strip_suffix('`');
    match (named("missing field `"), named("duplicate field `"), error.path().iter().next()) {
        (Some(field), ..) => ApiError::missing_param(field),
        (_, Some(field), _) => ApiError::invalid_param(field, "must be given once"),
        // The field alone, whatever part of its value is to blame.
        (.., Some(Segment::Map { key })) => ApiError::invalid_param(clip(key), reason),
        _ => ApiError::unreadable_body(reason),
    }
}
