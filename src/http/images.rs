//! `POST /v1/images/generations`: check, admit, queue, answer.

use std::time::{Instant, SystemTime};

use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response},
};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio_util::sync::CancellationToken;
use tracing::Span;

use super::{
    ApiError, AppState, Permit,
    extract::JsonBody,
    image_stream::{self, ImageStream},
    wire::{ImagesOrder, ImagesRequest, ImagesResponse, Parameters},
};
use crate::{
    backend::{Complete, GenerationError, GenerationRequest, GenerationResponse},
    common::{RequestId, SamplingConfig},
};

/// Pictures from a prompt, as one JSON answer or as a stream of events.
pub(super) async fn generations(
    State(state): State<AppState>,
    Extension(id): Extension<RequestId>,
    body: Result<JsonBody<ImagesRequest>, ApiError>,
) -> Result<Response, ApiError> {
    let accepted = body.and_then(|JsonBody(request)| accept(&state, &id, request));
    let pictures = accepted.inspect_err(|error| {
        metrics::counter!("sdw_rejected_total", "reason" => error.code().to_owned()).increment(1);
    })?;
    if pictures.order.stream {
        Ok(image_stream::respond(ImageStream::new(pictures)))
    } else {
        Ok(Json(pictures.collect().await?).into_response())
    }
}

/// A request on its way through the engine. Dropping it gives up what is not finished.
pub(super) struct Pictures {
    pub(super) order: ImagesOrder,
    pub(super) model: String,
    pub(super) permit: Permit,
    /// Where the answers for each picture come from, in order.
    pub(super) responses: Vec<UnboundedReceiver<GenerationResponse>>,
    /// Ends the wait for answers, however long the step that runs may take.
    pub(super) stop: CancellationToken,
}

/// Everything up to the queue: nothing is spent on a request before all of it is known to be right.
fn accept(state: &AppState, id: &RequestId, request: ImagesRequest) -> Result<Pictures, ApiError> {
    let info = state.model()?;
    let order = request.into_order(&info)?;
    let mut permit = state.admission.admit(order.count, order.config.steps.get())?;
    let accepted_at = Instant::now();
    let mut responses = Vec::new();
    for index in 0..order.count {
        let (response_tx, response_rx) = mpsc::unbounded_channel();
        let request = GenerationRequest {
            request_id: id.clone(),
            prompt: order.prompt.clone(),
            negative_prompt: order.negative_prompt.clone(),
            config: SamplingConfig { seed: order.config.seed.offset(index.into()), ..order.config },
            output: order.output,
            cancellation: state.stop.child_token(),
            accepted_at,
            span: Span::current(),
            place: permit.place(),
            response_tx,
        };
        // The engine is gone only when the worker is going.
        state.queue.add_request(request).map_err(|_| ApiError::draining())?;
        responses.push(response_rx);
    }
    Ok(Pictures { order, model: info.id.clone(), permit, responses, stop: state.stop.clone() })
}

impl Pictures {
    async fn collect(mut self) -> Result<ImagesResponse, ApiError> {
        let mut pictures = Vec::new();
        for mut responses in std::mem::take(&mut self.responses) {
            pictures.push(last(&mut responses, &mut self.permit, &self.stop).await?);
        }
        let parameters = Parameters::new(&self.model, self.order.config);
        Ok(ImagesResponse::new(unix_seconds(), parameters, pictures, self.order.ignored))
    }
}

/// Waits for the end of one picture.
async fn last(
    responses: &mut UnboundedReceiver<GenerationResponse>,
    permit: &mut Permit,
    stop: &CancellationToken,
) -> Result<Complete, ApiError> {
    loop {
        match next(responses, stop).await {
            GenerationResponse::Progress(progress) => permit.note(&progress),
            GenerationResponse::Preview { .. } => {}
            GenerationResponse::Complete(complete) => return Ok(*complete),
            GenerationResponse::Error(error) => return Err(error.into()),
        }
    }
}

/// The next response. An engine that is gone without a last word is an error like any other: no client waits for ever.
pub(super) async fn next(responses: &mut UnboundedReceiver<GenerationResponse>, stop: &CancellationToken) -> GenerationResponse {
    let gone = || GenerationResponse::Error(GenerationError::Panicked("the engine stopped".to_owned()));
    tokio::select! {
        biased;
        response = responses.recv() => response.unwrap_or_else(gone),
        () = stop.cancelled() => GenerationResponse::Error(GenerationError::Cancelled),
    }
}

/// Seconds since 1970.
pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
