//! JSON bodies, with errors that name the field.

use std::{
    hash::{DefaultHasher, Hash},
    sync::Arc,
};

use axum::{
    extract::{FromRequest, Request},
    http::{HeaderMap, HeaderValue, header},
};
use tokio::sync::Mutex;

use super::{
    api_error::ApiError,
    app_state::AppState,
    body_bytes::{self, Digested, MAX_BODY_BYTES, Room},
    fields::Fields,
};

/// A JSON body of at most `LIMIT` bytes, where the route allows as many.
pub(super) struct JsonBody<T, const LIMIT: usize = MAX_BODY_BYTES>(pub(super) Digested<T>);

/// What is read from a JSON object.
pub(super) trait FromFields: Sized + Send + 'static {
    /// Reads it.
    ///
    /// # Errors
    /// Names the field whose value is wrong.
    fn from_fields(fields: Fields) -> Result<Self, ApiError>;
}

impl<T: FromFields, const LIMIT: usize> FromRequest<AppState> for JsonBody<T, LIMIT> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        // Asking for the header is not pedantry: it keeps web pages from posting here behind their visitor's back.
        if media_type(request.headers())? != "application/json" {
            return Err(ApiError::not_json());
        }
        check_length(request.headers(), LIMIT)?;
        let (hasher, mut room) = (route_hasher(&request), Room::new(state.client_timeout));
        let bytes = body_bytes::collect(request.into_body(), LIMIT, &mut room).await?;
        let length = bytes.len();
        let read = move |hasher: &mut DefaultHasher| {
            bytes.hash(hasher);
            T::from_fields(Fields::parse(in_utf8(&bytes)?)?)
        };
        Ok(Self(body_bytes::digest(length, Arc::new(Mutex::new(room)), hasher, read).await?))
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

/// Some programs of Windows begin a text with a byte order mark.
fn in_utf8(bytes: &[u8]) -> Result<&[u8], ApiError> {
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(ApiError::broken_json("it is in UTF-16, and must be in UTF-8"));
    }
    Ok(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes))
}
