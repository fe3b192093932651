//! The queue between the server and the engine, and what travels through it.

use std::time::{Duration, Instant};

use tokio::sync::{
    OwnedSemaphorePermit,
    mpsc::{self, UnboundedReceiver, UnboundedSender},
};
use tokio_util::sync::CancellationToken;
use tracing::Span;

use super::{GenerationError, Order};
use crate::common::{ImageFormat, RequestId, SamplingConfig};

/// The sender of an unbounded channel, and nothing else. Clones are cheap.
///
/// `http::Admission` bounds how many requests wait, before they come here: a refusal costs nothing, and adding never waits.
#[derive(Debug, Clone)]
pub struct RequestQueue {
    sender: UnboundedSender<GenerationRequest>,
}

impl RequestQueue {
    /// A queue, and the receiver that belongs to the engine. The engine stops when every clone of the queue is gone.
    #[must_use]
    pub fn new() -> (Self, UnboundedReceiver<GenerationRequest>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self { sender }, receiver)
    }

    /// Adds a request. Its answers come through its own `response_tx`.
    ///
    /// # Errors
    /// Gives the request back if the engine is gone.
    pub fn add_request(&self, request: GenerationRequest) -> Result<(), Box<GenerationRequest>> {
        // Before the send: the engine may decrement it at once.
        let waiting = metrics::gauge!("sdw_requests_waiting");
        waiting.increment(1);
        self.sender.send(request).map_err(|error| {
            waiting.decrement(1);
            Box::new(error.0)
        })
    }
}

/// One picture to make, with everything that is needed to make it and to answer.
#[derive(Debug)]
pub struct GenerationRequest {
    /// Name in logs.
    pub request_id: RequestId,
    /// The picture.
    pub order: Order,
    /// Stops the generation, in the middle of a step too. A dropped receiver of `response_tx` does the same.
    pub cancellation: CancellationToken,
    /// When the request was accepted.
    pub accepted_at: Instant,
    /// The latest time at which the work may begin, if there is one.
    pub latest_start: Option<Instant>,
    /// The request's span, so that what the engine logs is found under it.
    pub span: Span,
    /// A permit of `http::Admission`, returned just before the last answer, or when the request is dropped.
    pub place: Option<OwnedSemaphorePermit>,
    /// Takes the answers: `Started`, any number of `Progress` and `Preview`, then one `Complete` or `Error`.
    pub response_tx: UnboundedSender<GenerationResponse>,
}

impl GenerationRequest {
    /// A request whose answers nobody hears, for callers that move its generation forward themselves.
    #[must_use]
    pub fn unheard(order: Order) -> Self {
        Self {
            request_id: RequestId::random(),
            order,
            cancellation: CancellationToken::new(),
            accepted_at: Instant::now(),
            latest_start: None,
            span: Span::none(),
            place: None,
            response_tx: mpsc::unbounded_channel().0,
        }
    }

    /// Whether somebody waits for the picture.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        !self.cancellation.is_cancelled() && !self.response_tx.is_closed()
    }

    /// Whether it is too late to begin.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.latest_start.is_some_and(|latest| Instant::now() >= latest)
    }
}

/// An answer of the engine to a request.
#[derive(Debug)]
pub enum GenerationResponse {
    /// The engine has begun.
    Started,
    /// A step is done.
    Progress(Progress),
    /// A rough picture of the current latents.
    Preview {
        /// Counts the previews of a request from 0.
        index: u8,
        /// The picture, at its full size.
        image: EncodedImage,
    },
    /// The picture. The last response.
    Complete(Box<Complete>),
    /// There will be no picture. The last response.
    Error(GenerationError),
}

/// How far a generation is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Steps done.
    pub step: usize,
    /// Steps in all.
    pub total: usize,
    /// How long the last step took.
    pub step_time: Duration,
    /// How many pictures took that step in one pass.
    pub batch_size: usize,
    /// Whether it reused the features of an earlier step, and took less time than others.
    pub is_shallow: bool,
    /// How long the steps to come take, if each takes as long as the latest of its kind.
    pub remaining: Duration,
}

/// A picture as a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedImage {
    /// The format of `bytes`.
    pub format: ImageFormat,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// The file.
    pub bytes: Vec<u8>,
}

impl AsRef<[u8]> for EncodedImage {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsRef<[u8]> for Complete {
    fn as_ref(&self) -> &[u8] {
        &self.image.bytes
    }
}

/// A finished picture.
#[derive(Debug)]
pub struct Complete {
    /// The picture.
    pub image: EncodedImage,
    /// How it was sampled.
    pub config: SamplingConfig,
    /// How long each stage took.
    pub timings: Timings,
    /// What the client should know, such as a prompt that was cut.
    pub warnings: Vec<String>,
}

/// How long each stage of a generation took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// Waiting for other requests.
    pub queue: Duration,
    /// Encoding the prompt, and the picture to begin with if there is one.
    pub text: Duration,
    /// All steps, and the work on other pictures between them.
    pub denoise: Duration,
    /// From latents to pixels.
    pub decode: Duration,
    /// From pixels to a file, and waiting for other files.
    pub encode: Duration,
}

impl Timings {
    /// From acceptance to the finished file.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.queue + self.work()
    }

    /// What the engine spent on it.
    #[must_use]
    pub fn work(&self) -> Duration {
        self.text + self.denoise + self.decode + self.encode
    }
}
