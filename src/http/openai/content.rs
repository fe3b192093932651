//! `GET /v1/images/{id}/content`: the file that an answer links to. Whoever has the link may fetch it, without a key; nobody can guess it.

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::{FromRequestParts, Path, State, rejection::PathRejection},
    http::{HeaderValue, header, request::Parts, uri::Authority},
    response::{IntoResponse, Response},
};

use crate::{
    backend::Complete,
    common::ImageFormat,
    http::{
        api_error::ApiError,
        app_state::AppState,
        openapi::{IMAGES, NotFound, Unreadable},
        order::{AnswerForm, ImagesOrder},
        run::Run,
    },
};

/// By which address a client reached this worker: `http://host:port`, or nothing.
pub(super) struct Address(String);

impl FromRequestParts<AppState> for Address {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Self::Rejection> {
        let text = |name: &str| parts.headers.get(name)?.to_str().ok();
        let host = text(header::HOST.as_str()).or_else(|| parts.uri.authority().map(Authority::as_str));
        let host = host.filter(|host| host.parse::<Authority>().is_ok());
        // A proxy says so where it speaks TLS with the client.
        let scheme = if text("x-forwarded-proto") == Some("https") { "https" } else { "http" };
        Ok(Self(host.map(|host| format!("{scheme}://{host}")).unwrap_or_default()))
    }
}

impl Address {
    /// The link to a picture of a run that is kept.
    pub(super) fn link(&self, run: &Run, index: usize) -> String {
        format!("{}/v1/images/{}-{index}/content", self.0, run.job_id)
    }
}

/// Checks that there are links to give, if an order asks for them.
///
/// # Errors
/// When the worker keeps no results.
pub(super) fn check(order: &ImagesOrder, state: &AppState) -> Result<(), ApiError> {
    if order.answer != AnswerForm::Links || state.runs.keeps_any() {
        return Ok(());
    }
    let reason = "must be b64_json: this worker keeps no results to link to (its --keep-results or --max-results is 0)";
    Err(ApiError::invalid_param("response_format", reason))
}

/// A picture that an answer links to.
#[utoipa::path(
    get,
    path = "/v1/images/{id}/content",
    operation_id = "image_content",
    tag = IMAGES,
    params(("id" = String, Path, description = "What stands there in the link")),
    security(()),
    responses((status = 200, description = "The file", body = Vec<u8>, content_type = "image/*"), Unreadable, NotFound)
)]
pub(super) async fn content(State(state): State<AppState>, id: Result<Path<String>, PathRejection>) -> Result<Response, ApiError> {
    let Path(id) = id.map_err(|rejection| ApiError::unreadable_path(&rejection.body_text()))?;
    let picture = || {
        let (job, index) = id.rsplit_once('-')?;
        state.runs.job(job).ok()?.picture(index.parse().ok()?)
    };
    let picture = picture().ok_or_else(|| ApiError::no_such_picture(&id))?;
    let media_type = match picture.image.format {
        ImageFormat::Png => "image/png",
        ImageFormat::Jpeg => "image/jpeg",
        ImageFormat::Webp => "image/webp",
    };
    let headers = [
        (header::CONTENT_TYPE, media_type),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // A proxy must not keep what is found by a secret.
        (header::CACHE_CONTROL, "private"),
    ]
    .map(|(name, value)| (name, HeaderValue::from_static(value)));
    Ok((headers, Bytes::from_owner(File(picture))).into_response())
}

/// The file of a picture, which stays where it is kept.
struct File(Arc<Complete>);

impl AsRef<[u8]> for File {
    fn as_ref(&self) -> &[u8] {
        &self.0.image.bytes
    }
}
