//! The loop that turns requests into pictures.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use image::{RgbImage, imageops};
use tokio::{sync::mpsc::UnboundedReceiver, task::JoinHandle};
use tracing::{Span, field::Empty, info, info_span, warn};

use super::{
    Complete, GenerationError, GenerationRequest, GenerationResponse, ImageMetadata, InferencePipeline, Progress, Pulse, Timings,
    image_utils,
};
use crate::{
    common::{ImageSize, error_chain},
    models::{Interrupt, interruptible},
};

/// What the engine needs of a pipeline: to begin a generation. Tests have one that makes no pictures.
pub trait Pipeline: Send + Sync + 'static {
    /// A generation under way.
    type Generation: Generation;

    /// Does what comes before the first step: encodes the prompt, draws the noise.
    ///
    /// # Errors
    /// When the request asks for what the model cannot do, or the model fails.
    fn begin(self: &Arc<Self>, request: &GenerationRequest) -> Result<Self::Generation, GenerationError>;

    /// Name of the model, for the picture's metadata.
    fn model_id(&self) -> &str;
}

/// One picture under way. Its owner moves it forward.
pub trait Generation {
    /// Steps in all.
    fn total_steps(&self) -> usize;

    /// Denoises once. Called `total_steps` times.
    ///
    /// # Errors
    /// When the model fails.
    fn step(&mut self) -> Result<(), GenerationError>;

    /// A rough picture of the current state, cheap next to a step.
    ///
    /// # Errors
    /// When the model fails.
    fn preview(&self) -> Result<RgbImage, GenerationError>;

    /// The picture, after the last step.
    ///
    /// # Errors
    /// When the model fails, or the picture is black or not a picture.
    fn finish(self) -> Result<RgbImage, GenerationError>;

    /// What the client should know, such as a prompt that was cut.
    fn warnings(&self) -> Vec<String>;
}

/// Owns the receiving end of the queue and a share of the pipeline, and is the only one who answers requests.
#[derive(Debug)]
pub struct GenerationEngine<P = InferencePipeline> {
    pipeline: Arc<P>,
    requests: UnboundedReceiver<GenerationRequest>,
    pulse: Pulse,
}

impl<P: Pipeline> GenerationEngine<P> {
    /// An engine for the requests that come out of `requests`.
    #[must_use]
    pub fn new(pipeline: Arc<P>, requests: UnboundedReceiver<GenerationRequest>) -> Self {
        Self { pipeline, requests, pulse: Pulse::default() }
    }

    /// The same engine with a pulse that others look at.
    #[must_use]
    pub fn with_pulse(self, pulse: Pulse) -> Self {
        Self { pulse, ..self }
    }

    /// Serves requests in order on one blocking thread, until every clone of the queue is gone.
    ///
    /// # Panics
    /// When called outside a tokio runtime.
    #[must_use = "a panic of the loop itself is found in the handle"]
    pub fn start(self) -> JoinHandle<()> {
        tokio::task::spawn_blocking(move || self.run())
    }

    fn run(mut self) {
        let running = metrics::gauge!("sdw_requests_running");
        while let Some(request) = self.requests.blocking_recv() {
            metrics::gauge!("sdw_requests_waiting").decrement(1);
            running.set(1);
            self.pulse.beat();
            let span = info_span!(
                parent: &request.span, "generate",
                request_id = %request.request_id, steps = %request.config.steps, size = %request.config.size, seed = %request.config.seed,
                queue_ms = Empty, text_ms = Empty, denoise_ms = Empty, decode_ms = Empty, encode_ms = Empty
            );
            let _entered = span.enter();
            let run = || interruptible(interrupt(&request, &self.pulse), || serve(&self.pipeline, &request));
            // On a thread of the pool: from outside, each of a thousand operations would cost two switches of threads.
            let outcome = catch_unwind(AssertUnwindSafe(|| rayon::scope(|_| span.in_scope(run))))
                .unwrap_or_else(|panic| Err(GenerationError::Panicked(panic_message(panic.as_ref()))))
                // Whatever an interrupted network says: that is why it stopped.
                .map_err(|error| match error {
                    GenerationError::TooLate => error,
                    error if request.is_wanted() => error,
                    _ => GenerationError::Cancelled,
                });
            running.set(0);
            self.pulse.rest();
            // Not even a log that cannot be written may end the loop.
            let _ = catch_unwind(AssertUnwindSafe(|| conclude(&request, outcome)));
        }
    }
}

/// One request, from its turn to its picture.
fn serve<P: Pipeline>(pipeline: &Arc<P>, request: &GenerationRequest) -> Result<Complete, GenerationError> {
    let mut timings = Timings { queue: request.accepted_at.elapsed(), ..Timings::default() };
    metrics::histogram!("sdw_queue_seconds").record(timings.queue);
    if request.is_late() {
        return Err(GenerationError::TooLate);
    }
    check_wanted(request)?;
    respond(request, GenerationResponse::Started);

    let started = Instant::now();
    let mut generation = pipeline.begin(request)?;
    timings.text = started.elapsed();

    let started = Instant::now();
    denoise(&mut generation, request)?;
    timings.denoise = started.elapsed();
    let warnings = generation.warnings();
    check_wanted(request)?;

    let started = Instant::now();
    let picture = generation.finish()?;
    timings.decode = started.elapsed();

    let started = Instant::now();
    let metadata = ImageMetadata::new(request, pipeline.model_id());
    let image = image_utils::encode(&picture, request.output, Some(&metadata))?;
    timings.encode = started.elapsed();

    Ok(Complete { image, config: request.config, timings, warnings })
}

/// The last response, and what is remembered of the request.
fn conclude(request: &GenerationRequest, outcome: Result<Complete, GenerationError>) {
    let (name, response) = match outcome {
        Ok(complete) => {
            trace(&complete.timings);
            info!(total_ms = complete.timings.total().as_millis(), "picture finished");
            record(&complete.timings);
            ("ok", GenerationResponse::Complete(Box::new(complete)))
        }
        Err(error @ (GenerationError::Cancelled | GenerationError::TooLate)) => {
            let reason = match error {
                GenerationError::TooLate => "deadline",
                _ if request.cancellation.is_cancelled() => "cancelled",
                _ => "disconnect",
            };
            metrics::counter!("sdw_cancelled_total", "reason" => reason).increment(1);
            info!(reason, "stopped");
            ("cancelled", GenerationResponse::Error(error))
        }
        Err(error) => {
            warn!(error = error_chain(&error), "no picture");
            ("error", GenerationResponse::Error(error))
        }
    };
    metrics::counter!("sdw_requests_total", "outcome" => name).increment(1);
    respond(request, response);
}

/// All steps, with progress after each and previews between some.
fn denoise(generation: &mut impl Generation, request: &GenerationRequest) -> Result<(), GenerationError> {
    let total = generation.total_steps();
    let mut previews = 0..request.output.previews;
    for step in 1..=total {
        check_wanted(request)?;
        let started = Instant::now();
        generation.step()?;
        let step_time = started.elapsed();
        metrics::histogram!("sdw_step_seconds").record(step_time);
        respond(request, GenerationResponse::Progress(Progress { step, total, step_time }));

        // The nth of p previews comes after n / (p + 1) of the steps, none after the last: that is the picture itself.
        let due = step * (usize::from(request.output.previews) + 1) / total;
        while usize::from(previews.start) < due && step < total {
            let Some(index) = previews.next() else { break };
            let image = image_utils::encode(&enlarge(&generation.preview()?, request.config.size), request.output, None)?;
            respond(request, GenerationResponse::Preview { index, image });
        }
    }
    Ok(())
}

/// A preview at the picture's own size, so that a client can show it in the picture's place.
fn enlarge(preview: &RgbImage, size: ImageSize) -> RgbImage {
    imageops::resize(preview, size.width(), size.height(), imageops::FilterType::Triangle)
}

/// Stops where nobody waits for the picture any more.
fn check_wanted(request: &GenerationRequest) -> Result<(), GenerationError> {
    if request.is_wanted() { Ok(()) } else { Err(GenerationError::Cancelled) }
}

/// The same between two layers of a network, where a step takes long: a sign of life each time.
fn interrupt(request: &GenerationRequest, pulse: &Pulse) -> Interrupt {
    let (cancellation, response_tx, pulse) = (request.cancellation.clone(), request.response_tx.clone(), pulse.clone());
    Arc::new(move || {
        pulse.beat();
        cancellation.is_cancelled() || response_tx.is_closed()
    })
}

/// A client that is gone is no error: the next step notices.
fn respond(request: &GenerationRequest, response: GenerationResponse) {
    let _ = request.response_tx.send(response);
}

/// Where the time went, in the request's span.
fn trace(timings: &Timings) {
    let (span, millis) = (Span::current(), |time: Duration| time.as_millis() as u64);
    span.record("queue_ms", millis(timings.queue)).record("text_ms", millis(timings.text)).record("denoise_ms", millis(timings.denoise));
    span.record("decode_ms", millis(timings.decode)).record("encode_ms", millis(timings.encode));
}

fn record(timings: &Timings) {
    let phases = [("text", timings.text), ("denoise", timings.denoise), ("decode", timings.decode), ("encode", timings.encode)];
    for (phase, time) in phases {
        metrics::histogram!("sdw_phase_seconds", "phase" => phase).record(time);
    }
    metrics::histogram!("sdw_generation_seconds").record(timings.work());
    metrics::counter!("sdw_images_total").increment(1);
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests;
