//! The start of a run: a permit, a request in the queue for each picture, and a run that records the responses. Every API starts its runs
//! here.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tracing::Span;

use super::{
    admission::Refusal,
    api_error::ApiError,
    app_state::AppState,
    client_headers::{ClientHeaders, RETRY_GRACE},
    order::{AnswerForm, ImagesOrder, OnDisconnect},
    run::{Answers, Follower, Patience, Run},
};
use crate::{
    backend::{GenerationRequest, ModelInfo, Order},
    common::RequestId,
};

/// Starts a run of a validated order, or follows the run of the same request.
pub(super) fn start(
    state: &AppState,
    id: &RequestId,
    client: ClientHeaders,
    order: ImagesOrder,
    fingerprint: u64,
    info: &ModelInfo,
) -> Result<Follower, ApiError> {
    // Work that is finished in any case has no deadline.
    let deadline = client.deadline(order.answer == AnswerForm::Stream).filter(|_| order.on_disconnect == OnDisconnect::Cancel);
    let patience = match (order.on_disconnect, &client.retry_key) {
        (OnDisconnect::Finish, _) => Patience::Forever,
        (OnDisconnect::Cancel, Some(_)) => Patience::For(RETRY_GRACE),
        (OnDisconnect::Cancel, None) => Patience::For(Duration::ZERO),
    };
    let start = || start_run(state, id, order, info.id.clone(), deadline, patience);
    state.runs.join_or_start(client.retry_key, fingerprint, start)
}

/// Admits an order and queues its pictures. `deadline` is how long the client waits, if it says so.
pub(super) fn start_run(
    state: &AppState,
    id: &RequestId,
    mut order: ImagesOrder,
    model: String,
    deadline: Option<Duration>,
    patience: Patience,
) -> Result<Arc<Run>, ApiError> {
    // A stopping worker admits nothing; its clients learn the reason.
    let refused = |refusal: Refusal| state.model().err().unwrap_or_else(|| refusal.into());
    let permit = state.admission.admit(&order.picture.demand, order.count, deadline).map_err(refused)?;
    let accepted_at = Instant::now();
    // The run of a client that may repeat its request stays in the queue for the grace period.
    let grace = if let Patience::For(grace) = patience { grace } else { Duration::ZERO };
    let latest_start = deadline.and_then(|deadline| accepted_at.checked_add(deadline.saturating_add(grace)));
    let cancellation = state.stop.child_token();
    let mut answers = Answers { pictures: VecDeque::new(), permit, latest_start, stop: state.stop.clone() };
    let images = std::mem::take(&mut order.picture.images);
    for index in 0..order.count {
        let (response_tx, response_rx) = mpsc::unbounded_channel();
        let request = GenerationRequest {
            request_id: id.clone(),
            order: Order { images: Arc::clone(&images), ..order.picture.picture(index) },
            cancellation: cancellation.clone(),
            accepted_at,
            // Only the first picture has a deadline: the run has begun with it.
            latest_start: latest_start.filter(|_| index == 0),
            span: Span::current(),
            place: answers.permit.place(),
            response_tx,
        };
        // The engine ends only with the worker.
        state.queue.add_request(request).map_err(|_| ApiError::draining())?;
        answers.pictures.push_back(response_rx);
    }
    Ok(Run::new(order, model, patience, cancellation, answers))
}
