//! `POST /v1/images/generations`: check, admit, queue, answer.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response},
};

use super::{
    ApiError, AppState,
    client_wishes::{ClientWishes, RETRY_GRACE, WaitHeaders},
    extract::{DiscardedBody, JsonBody},
    image_stream::{self, ImageStream},
    openapi::{IMAGES, ImageItem, KeyMissing, NotReady, Refused, TooLate, Unreadable, WentWrong},
    run::{Follower, Patience, Run},
    wire::{ImagesRequest, ImagesResponse, OnDisconnect},
};
use crate::common::RequestId;

/// Pictures from a prompt, as one JSON answer or as a stream of events.
#[utoipa::path(
    post,
    path = "/v1/images/generations",
    tag = IMAGES,
    params(WaitHeaders),
    request_body = ImagesRequest,
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
    let mut follower = body.and_then(|body| accept(&state, &id, wishes, body)).inspect_err(ApiError::count_rejection)?;
    if follower.run.order.stream {
        return Ok(image_stream::respond(ImageStream::new(follower)));
    }
    let pictures = follower.pictures().await?;
    Ok(Json(ImagesResponse::new(&follower.run, &pictures)).into_response())
}

/// Pictures from pictures, once there is a model for it.
#[utoipa::path(post, path = "/v1/images/edits", tag = IMAGES, responses(Unreadable, KeyMissing, NotReady))]
pub(super) async fn edits(State(state): State<AppState>, _body: DiscardedBody) -> Result<Response, ApiError> {
    let error = state.model().map_or_else(|not_ready| not_ready, |info| ApiError::unsupported_operation("image edits", &info.id));
    error.count_rejection();
    Err(error)
}

/// Everything up to the queue: nothing is spent on a request before all of it is known to be right.
fn accept(state: &AppState, id: &RequestId, wishes: ClientWishes, body: JsonBody<ImagesRequest>) -> Result<Follower, ApiError> {
    let info = state.model()?;
    let order = body.value.into_order(&info)?;
    // Work that is to be finished anyway has no deadline.
    let deadline = wishes.deadline(order.stream).filter(|_| order.on_disconnect == OnDisconnect::Cancel);
    let patience = match (order.on_disconnect, &wishes.retry_key) {
        (OnDisconnect::Finish, _) => Patience::Forever,
        (OnDisconnect::Cancel, Some(_)) => Patience::For(RETRY_GRACE),
        (OnDisconnect::Cancel, None) => Patience::For(Duration::ZERO),
    };
    let start = || Run::start(state, id, order, info.id.clone(), deadline, patience);
    match wishes.retry_key {
        Some(key) => state.runs.join_or_start(key, body.fingerprint, start),
        None => start().map(|run: Arc<Run>| run.follow(0)),
    }
}
