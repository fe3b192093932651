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
    body_bytes::{self, BodyBudget, MAX_BODY_BYTES, ParsedBody},
    fields::Fields,
};

/// A JSON body of at most `LIMIT` bytes, if the route allows as many.
pub(super) struct JsonBody<T, const LIMIT: usize = MAX_BODY_BYTES>(pub(super) ParsedBody<T>);

/// A value that is read from the fields of a JSON object.
pub(super) trait FromFields: Sized + Send + 'static {
    /// Reads the value.
    ///
    /// # Errors
    /// Names the field whose value is wrong.
    fn from_fields(fields: Fields) -> Result<Self, ApiError>;
}

impl<T: FromFields, const LIMIT: usize> FromRequest<AppState> for JsonBody<T, LIMIT> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        // Requiring the header is a defence: a web page cannot send it to another origin without asking first.
        if media_type(request.headers())? != "application/json" {
            return Err(ApiError::not_json());
        }
        check_length(request.headers(), LIMIT)?;
        let (hasher, mut budget) = (route_hasher(&request), BodyBudget::new(state.client_timeout));
        let bytes = body_bytes::collect(request.into_body(), LIMIT, &mut budget).await?;
        let length = bytes.len();
        let read = move |hasher: &mut DefaultHasher| {
            bytes.hash(hasher);
            T::from_fields(Fields::parse(in_utf8(&bytes)?)?)
        };
        Ok(Self(body_bytes::parse(length, Arc::new(Mutex::new(budget)), hasher, read).await?))
    }
}

/// Starts a fingerprint with the route, since the same body means something else on another route.
pub(super) fn route_hasher(request: &Request) -> DefaultHasher {
    let mut hasher = DefaultHasher::new();
    request.uri().path().hash(&mut hasher);
    hasher
}

/// The media type of the body, in lower case and without parameters.
///
/// # Errors
/// When the body is compressed: its size after decompression would have no bound.
pub(super) fn media_type(headers: &HeaderMap) -> Result<String, ApiError> {
    let text = |value: &HeaderValue| value.to_str().unwrap_or_default().trim().to_ascii_lowercase();
    if let Some(encoding) = headers.get_all(header::CONTENT_ENCODING).iter().map(text).find(|encoding| encoding != "identity") {
        return Err(ApiError::encoded_body(&encoding));
    }
    let content_type = headers.get(header::CONTENT_TYPE).map(text).unwrap_or_default();
    Ok(content_type.split(';').next().unwrap_or_default().trim().to_owned())
}

/// The `content-length` of the body.
pub(super) fn length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Refuses a body by its `content-length`, so that the client need not send it.
pub(super) fn check_length(headers: &HeaderMap, limit: usize) -> Result<(), ApiError> {
    if length(headers).is_some_and(|length| length > limit) { Err(ApiError::body_too_large(limit)) } else { Ok(()) }
}

/// Removes the byte order mark that some Windows programs put before UTF-8.
fn in_utf8(bytes: &[u8]) -> Result<&[u8], ApiError> {
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(ApiError::broken_json("it is in UTF-16, and must be in UTF-8"));
    }
    Ok(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes))
}
