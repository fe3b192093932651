//! `POST /v1/images/generations`: check, admit, queue, answer.

use std::time::Duration;

use axum::{Extension, extract::State, response::Response};

use super::{
    ApiError, AppState,
    answer::ImagesResponse,
    client_wishes::{ClientWishes, RETRY_GRACE, WaitHeaders},
    extract::JsonBody,
    image_stream::{self, ImageStream},
    openapi::{IMAGES, ImageItem, KeyMissing, NotReady, Refused, TooLate, WentWrong},
    run::{Follower, Patience, Run},
    wire::{ImagesOrder, ImagesRequest, OnDisconnect},
};
use crate::{backend::ModelInfo, common::RequestId};

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
    wishes: ClientWishes,
    body: Result<JsonBody<ImagesRequest>, ApiError>,
) -> Result<Response, ApiError> {
    let accepted = body.and_then(|JsonBody(body)| {
        let info = state.model()?;
        let order = body.value.into_order(&info, None)?;
        start(&state, &id, wishes, order, body.fingerprint, &info)
    });
    answer(accepted.inspect_err(ApiError::count_rejection)?).await
}

/// The answer to whoever follows a run.
pub(super) async fn answer(mut follower: Follower) -> Result<Response, ApiError> {
    if follower.run.order.stream {
        return Ok(image_stream::respond(ImageStream::new(follower)));
    }
    let pictures = follower.pictures().await?;
    ImagesResponse::respond(&follower.run, pictures).await
}

/// Queues an order, all of which is known to be right by now, or follows the run of the same.
pub(super) fn start(
    state: &AppState,
    id: &RequestId,
    wishes: ClientWishes,
    order: ImagesOrder,
    fingerprint: u64,
    info: &ModelInfo,
) -> Result<Follower, ApiError> {
    // Work that is to be finished anyway has no deadline.
    let deadline = wishes.deadline(order.stream).filter(|_| order.on_disconnect == OnDisconnect::Cancel);
    let patience = match (order.on_disconnect, &wishes.retry_key) {
        (OnDisconnect::Finish, _) => Patience::Forever,
        (OnDisconnect::Cancel, Some(_)) => Patience::For(RETRY_GRACE),
        (OnDisconnect::Cancel, None) => Patience::For(Duration::ZERO),
    };
    let start = || Run::start(state, id, order, info.id.clone(), deadline, patience);
    state.runs.join_or_start(wishes.retry_key, fingerprint, start)
}
