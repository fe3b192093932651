//! `POST /v1/images/generations`.

use axum::{Extension, extract::State, response::Response};

use super::{
    content::{self, Address},
    image_events::ImageItem,
    images_response::{self, ImagesResponse},
};
use crate::{
    common::RequestId,
    http::{
        api_error::ApiError,
        app_state::AppState,
        body_bytes::{MAX_UPLOAD_BYTES, ParsedBody},
        client_headers::{ClientHeaders, WaitHeaders},
        extract::JsonBody,
        images_body::ImagesBody,
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
    address: Address,
    client: ClientHeaders,
    body: Result<JsonBody<ImagesBody, MAX_UPLOAD_BYTES>, ApiError>,
) -> Result<Response, ApiError> {
    let accepted = async {
        let JsonBody(ParsedBody { value: body, fingerprint, budget }) = body?;
        let info = state.model()?;
        let order = body.into_order(&info).await?;
        content::check(&order, &state)?;
        drop(budget);
        start(&state, &id, client, order, fingerprint, &info)
    };
    images_response::answer(&state, &address, accepted.await.inspect_err(ApiError::count_rejection)?).await
}
