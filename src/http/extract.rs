//! JSON bodies, with errors that name the field.

use std::{
    error::Error,
    hash::{DefaultHasher, Hash, Hasher},
};

use axum::{
    body::Bytes,
    extract::{FromRequest, Request, rejection::BytesRejection},
    http::{HeaderMap, header},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, error::Category};
use tower_http::timeout::TimeoutError;

use super::{ApiError, MAX_BODY_BYTES};

/// A JSON body of at most `LIMIT` bytes, where the route allows as many.
pub(super) struct JsonBody<T, const LIMIT: usize = MAX_BODY_BYTES> {
    pub(super) value: T,
    /// Bodies that differ have, as good as always, different ones.
    pub(super) fingerprint: u64,
}

impl<S: Send + Sync, T: DeserializeOwned, const LIMIT: usize> FromRequest<S> for JsonBody<T, LIMIT> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        // Asking for the header is not pedantry: it keeps web pages from posting here behind their visitor's back.
        if media_type(request.headers()) != "application/json" {
            return Err(ApiError::not_json());
        }
        check_length(request.headers(), LIMIT)?;
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| match rejection {
            BytesRejection::FailedToBufferBody(error) if error.status() == 413 => ApiError::body_too_large(LIMIT),
            other if is_timeout(&other) => ApiError::body_timed_out(),
            other => ApiError::unreadable_body(&other.body_text()),
        })?;
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        Ok(Self { value: parse(&bytes)?, fingerprint: hasher.finish() })
    }
}

/// What the body is said to be, without parameters.
pub(super) fn media_type(headers: &HeaderMap) -> String {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Refuses at once where the client says how much it means to send, so that it need not send it.
pub(super) fn check_length(headers: &HeaderMap, limit: usize) -> Result<(), ApiError> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: usize| length > limit) { Err(ApiError::body_too_large(limit)) } else { Ok(()) }
}

/// Whether the client stopped in the middle.
pub(super) fn is_timeout(error: &(dyn Error + 'static)) -> bool {
    error.is::<TimeoutError>() || error.source().is_some_and(is_timeout)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| explain(&error))?;
    deserializer.end().map_err(|error| ApiError::broken_json(&error.to_string()))?;
    Ok(value)
}

/// The same from what has been taken apart already.
pub(super) fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(value).map_err(|error| explain(&error))
}

fn explain(error: &serde_path_to_error::Error<serde_json::Error>) -> ApiError {
    let (path, reason) = (error.path().to_string(), error.inner().to_string());
    if error.inner().classify() != Category::Data {
        return ApiError::broken_json(&reason);
    }
    // The field is known; where it stands in the text helps nobody.
    let reason = reason.split(" at line ").next().unwrap_or_default();
    // serde speaks of Rust's types.
    let reason = &reason
        .replace("expected i64", "expected a whole number")
        .replace("expected u32", "expected a whole number from 0")
        .replace("expected f64", "expected a number");
    match (path.as_str(), reason.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`'))) {
        (_, Some(field)) => ApiError::missing_param(field),
        (".", None) => ApiError::unreadable_body(reason),
        (param, None) => ApiError::invalid_param(param, reason),
    }
}
