//! JSON bodies, with errors that name the field.

use std::{
    convert::Infallible,
    error::Error,
    hash::{DefaultHasher, Hash, Hasher},
};

use axum::{
    body::Bytes,
    extract::{FromRequest, Request, rejection::BytesRejection},
    http::header,
};
use futures::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use tower_http::timeout::TimeoutError;

use super::{ApiError, MAX_BODY_BYTES};

/// A JSON body.
pub(super) struct JsonBody<T> {
    pub(super) value: T,
    /// Bodies that differ have, as good as always, different ones.
    pub(super) fingerprint: u64,
}

/// A body that is read to its end and forgotten, so that a client that still sends it hears the answer.
pub(super) struct DiscardedBody;

impl<S: Send + Sync> FromRequest<S> for DiscardedBody {
    type Rejection = Infallible;

    async fn from_request(request: Request, _: &S) -> Result<Self, Infallible> {
        let mut left = MAX_BODY_BYTES;
        let mut chunks = request.into_body().into_data_stream();
        while let Some(Ok(chunk)) = chunks.next().await {
            match left.checked_sub(chunk.len()) {
                Some(rest) => left = rest,
                None => break,
            }
        }
        Ok(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        // Asking for the header is not pedantry: it keeps web pages from posting here behind their visitor's back.
        let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if essence != "application/json" {
            return Err(ApiError::not_json());
        }
        // Said at once where the client says how much it means to send, so that it need not send it.
        let length = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        if length.is_some_and(|length: usize| length > MAX_BODY_BYTES) {
            return Err(ApiError::body_too_large(MAX_BODY_BYTES));
        }
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| match rejection {
            BytesRejection::FailedToBufferBody(error) if error.status() == 413 => ApiError::body_too_large(MAX_BODY_BYTES),
            other if is_timeout(&other) => ApiError::body_timed_out(),
            other => ApiError::unreadable_body(&other.body_text()),
        })?;
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        Ok(Self { value: parse(&bytes)?, fingerprint: hasher.finish() })
    }
}

/// Whether the client stopped in the middle.
fn is_timeout(error: &(dyn Error + 'static)) -> bool {
    error.is::<TimeoutError>() || error.source().is_some_and(is_timeout)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
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
    })?;
    deserializer.end().map_err(|error| ApiError::broken_json(&error.to_string()))?;
    Ok(value)
}
