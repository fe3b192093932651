//! `POST /v1/images/variations`: pictures that begin with a picture, without a word.

use axum::{Extension, extract::State, response::Response};
use utoipa::ToSchema;

use super::{
    content::Address,
    edits::{self, Edit},
    image_events::ImageItem,
    images_response::ImagesResponse,
};
use crate::{
    common::{Prompt, RequestId, Strength},
    http::{
        api_error::ApiError,
        app_state::AppState,
        client_headers::{ClientHeaders, WaitHeaders},
        form::FormOrJson,
        openapi::{Forbidden, IMAGES, KeyMissing, NotReady, Refused, TooLate, WentWrong},
    },
};

/// The fields that a variation has beside those of `/v1/images/generations`.
#[derive(ToSchema)]
#[allow(dead_code, reason = "a description")]
pub(super) struct VariationsRequest {
    /// The picture to begin with: a file in a form; in JSON, base64 or a `data:` URL. It is scaled and cropped to `size`.
    #[schema(value_type = String, format = Binary)]
    image: Vec<u8>,
    /// What the picture shows, if that is to be said.
    prompt: Option<Prompt>,
    /// How much of the picture is changed; 0.8 where it is left out.
    strength: Option<Strength>,
}

/// Pictures like a picture.
#[utoipa::path(
    post,
    path = "/v1/images/variations",
    tag = IMAGES,
    params(WaitHeaders),
    request_body(content(
        (VariationsRequest = "multipart/form-data"),
        (VariationsRequest = "application/json", example = json!({
            "image": "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFElEQVR42mOwidqSErUFk2QYWhIAEEZXgauZLxMAAAAASUVORK5CYII=",
            "strength": 0.7, "size": "128x128"
        }))
    )),
    responses(
        (status = 200, description = "The pictures, or with `stream` the events that lead to them", content((ImagesResponse = "application/json"), ("text/event-stream", item_schema = ImageItem))),
        KeyMissing, Forbidden, Refused, NotReady, WentWrong, TooLate
    )
)]
pub(super) async fn variations(
    state: State<AppState>,
    id: Extension<RequestId>,
    address: Address,
    client: ClientHeaders,
    body: Result<FormOrJson<Edit>, ApiError>,
) -> Result<Response, ApiError> {
    edits::draw((state, id, address, client), body, |request| request.may_lack_prompt = true).await
}
