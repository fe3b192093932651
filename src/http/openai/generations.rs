//! `POST /v1/images/generations`.

use axum::{Extension, extract::State, response::Response};

use super::image_events::ImageItem;
use super::images_response::{self, ImagesResponse};
use crate::{
    common::RequestId,
    http::{
        api_error::ApiError,
        app_state::AppState,
        client_headers::{ClientHeaders, WaitHeaders},
        extract::JsonBody,
        openapi::{IMAGES, KeyMissing, NotReady, Refused, TooLate, WentWrong},
        start::start,
        wire::ImagesRequest,
    },
};

/// Pictures from a prompt, as one JSON answer or as a stream of events.
#[utoipa::path(
    post,
    path = "/v1/images/generations",
    tag = IMAGES,
    params(WaitHeaders),
    request_body(
        content = ImagesRequest,
        example = json!({ "prompt": "a fox on a blue background", "seed": 7, "steps": 12, "size": "128x128" })
    ),
    responses(
        (status = 200, description = "The pictures, or with `stream` the events that lead to them", content((ImagesResponse = "application/json"), ("text/event-stream", item_schema = ImageItem))),
        KeyMissing, Refused, NotReady, WentWrong, TooLate
    )
)]
pub(super) async fn generations(
    State(state): State<AppState>,
    Extension(id): Extension<RequestId>,
    client: ClientHeaders,
    body: Result<JsonBody<ImagesRequest>, ApiError>,
) -> Result<Response, ApiError> {
    let accepted = async {
        let (JsonBody(body), info) = (body?, state.model()?);
        let order = body.value.into_order(&info, None).await?;
        start(&state, &id, client, order, body.fingerprint, &info)
    };
    images_response::answer(accepted.await.inspect_err(ApiError::count_rejection)?).await
}
