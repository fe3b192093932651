//! Which web pages may send requests that browsers send without asking first: forms, and requests without a body.

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, header, request::Parts, uri::Authority},
};

use super::{api_error::ApiError, app_state::AppState};

/// The proof that a request is of no web page, or of one that may send it.
pub(super) struct OfNoStranger;

impl FromRequestParts<AppState> for OfNoStranger {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let host = parts.uri.authority().map(Authority::as_str);
        let host = host.or_else(|| parts.headers.get(header::HOST)?.to_str().ok());
        check(&parts.headers, host, state).map(|()| Self)
    }
}

/// Browsers name the page. It must be one of `--cors-origin`, or the worker's own, at the `host` that the request names.
///
/// # Errors
/// When it is another.
pub(super) fn check(headers: &HeaderMap, host: Option<&str>, state: &AppState) -> Result<(), ApiError> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let of_page = origin.to_str().ok().and_then(|origin| Some(origin.split_once("://")?.1));
    let is_own = host.is_some() && host == of_page;
    if is_own || state.access.cors_origins.contains(origin) { Ok(()) } else { Err(ApiError::not_for_browsers()) }
}
