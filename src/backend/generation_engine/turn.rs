//! One request, from its beginning to its last answer.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use image::{RgbImage, imageops};
use tracing::{Span, debug_span, field::Empty, info, info_span, warn};

use super::attempt;
use crate::{
    backend::{
        Complete, Generation, GenerationError, GenerationRequest, GenerationResponse, ImageMetadata, Pipeline, Progress, Pulse, Timings,
        picture_encoder,
    },
    common::{ImageSize, error_chain},
    models::Interrupt,
};

/// A request that the engine has begun.
pub(super) struct Turn {
    pub(super) request: GenerationRequest,
    /// The parent of everything that is logged about the request.
    pub(super) span: Span,
}

/// A request with its generation.
pub(super) struct Picture<G> {
    /// No other picture of this process has it.
    pub(super) number: u64,
    pub(super) turn: Turn,
    pub(super) generation: G,
    pub(super) timings: Timings,
    /// Why there will be no picture, once that is known.
    pub(super) failure: Option<GenerationError>,
    /// When it became ready for its first step.
    pub(super) ready: Instant,
    steps: usize,
    /// The numbers of the previews to come.
    previews: Range<u8>,
}

/// A step that is done.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepReport {
    pub(super) step_time: Duration,
    /// How many pictures took it together.
    pub(super) batch_size: usize,
    pub(super) is_shallow: bool,
}

impl Turn {
    pub(super) fn new(request: GenerationRequest) -> Self {
        let config = &request.order.config;
        let span = info_span!(
            parent: &request.span, "generate",
            request_id = %request.request_id, steps = %config.steps, size = %config.size, seed = %config.seed,
            queue_ms = Empty, text_ms = Empty, denoise_ms = Empty, decode_ms = Empty, encode_ms = Empty
        );
        Self { request, span }
    }

    /// All that comes before the first step.
    pub(super) fn begin<P: Pipeline>(&self, pipeline: &Arc<P>, interrupt: Interrupt) -> Result<(P::Generation, Timings), GenerationError> {
        let queue = self.request.accepted_at.elapsed();
        metrics::histogram!("sdw_queue_seconds").record(queue);
        if self.request.is_late() {
            return Err(GenerationError::TooLate);
        }
        self.check_wanted()?;
        self.respond(GenerationResponse::Started);
        let started = Instant::now();
        let generation = pipeline.begin(&self.request, interrupt)?;
        let timings = Timings { queue, text: started.elapsed(), ..Timings::default() };
        self.check_wanted()?;
        Ok((generation, timings))
    }

    /// All that comes after the last step.
    pub(super) fn finish(
        &self,
        generation: impl Generation,
        mut timings: Timings,
        model_id: &str,
        interrupt: Interrupt,
    ) -> Result<Complete, GenerationError> {
        self.check_wanted()?;
        let warnings = generation.warnings().into_iter().map(shortened).collect();
        let started = Instant::now();
        let picture = generation.finish(interrupt)?;
        timings.decode = started.elapsed();

        let started = Instant::now();
        let metadata = ImageMetadata::new(&self.request.order, model_id);
        let image = picture_encoder::encode(&picture, self.request.order.output, Some(&metadata))?;
        timings.encode = started.elapsed();
        Ok(Complete { image, config: self.request.order.config, timings, warnings })
    }

    /// Sends the last answer, and records metrics.
    pub(super) fn conclude(mut self, outcome: Result<Complete, GenerationError>) {
        let span = self.span.clone();
        let _entered = span.enter();
        let outcome = outcome.map_err(|error| match error {
            GenerationError::TooLate => error,
            error if self.request.is_wanted() => error,
            // An interrupted network fails with an error of its own.
            _ => GenerationError::Cancelled,
        });
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
                    _ if self.request.cancellation.is_cancelled() => "cancelled",
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
        // Before the answer: a client that hears it may ask again at once.
        drop(self.request.place.take());
        self.respond(response);
    }

    /// # Errors
    /// When nobody waits for the picture any more.
    fn check_wanted(&self) -> Result<(), GenerationError> {
        if self.request.is_wanted() { Ok(()) } else { Err(GenerationError::Cancelled) }
    }

    /// A client that is gone is no error here: the next check of the request notices.
    fn respond(&self, response: GenerationResponse) {
        let _ = self.request.response_tx.send(response);
    }
}

impl<G: Generation> Picture<G> {
    pub(super) fn new(turn: Turn, generation: G, timings: Timings) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let previews = 0..turn.request.order.output.previews;
        Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            turn,
            generation,
            timings,
            failure: None,
            ready: Instant::now(),
            steps: 0,
            previews,
        }
    }

    /// Whether it takes no more steps.
    pub(super) fn is_over(&self) -> bool {
        self.failure.is_some() || self.steps >= self.generation.total_steps() || !self.turn.request.is_wanted()
    }

    /// The span of the next step.
    pub(super) fn step_span(&self) -> Span {
        debug_span!(parent: &self.turn.span, "denoise_step", step = self.steps)
    }

    /// Changes the generation. An error or a panic fails the picture.
    pub(super) fn go_on(&mut self, pulse: &Pulse, work: impl FnOnce(&mut G) -> Result<(), GenerationError>) {
        let generation = &mut self.generation;
        self.failure = attempt(&[&self.turn], pulse, |_| work(generation)).err();
    }

    /// Reports a step, and sends the previews that are due.
    pub(super) fn report(&mut self, pulse: &Pulse, StepReport { step_time, batch_size, is_shallow }: StepReport) {
        self.steps += 1;
        let (step, total) = (self.steps, self.generation.total_steps());
        self.turn.respond(GenerationResponse::Progress(Progress { step, total, step_time, batch_size, is_shallow }));

        // Preview n of p is due after n / (p + 1) of the steps, none after the last, which gives the picture itself.
        let order = &self.turn.request.order;
        let (output, size) = (order.output, order.size());
        let due = step * (usize::from(output.previews) + 1) / total;
        while usize::from(self.previews.start) < due && step < total {
            let Some(index) = self.previews.next() else { break };
            let render = |interrupt: Interrupt| {
                let preview = self.generation.preview(interrupt)?;
                picture_encoder::encode(&enlarge(&preview, size), output, None)
            };
            match attempt(&[&self.turn], pulse, render) {
                Ok(image) => self.turn.respond(GenerationResponse::Preview { index, image }),
                Err(error) => {
                    self.failure = Some(error);
                    return;
                }
            }
        }
    }
}

/// A warning, cut where it repeats a long part of the request.
fn shortened(mut warning: String) -> String {
    const MOST: usize = 1000;
    if warning.len() > MOST {
        warning.truncate(warning.floor_char_boundary(MOST));
        warning.push('…');
    }
    warning
}

/// A preview at the size of the picture, so that a client can show it in the picture's place.
fn enlarge(preview: &RgbImage, size: ImageSize) -> RgbImage {
    imageops::resize(preview, size.width(), size.height(), imageops::FilterType::Triangle)
}

/// Records the timings in the request's span.
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
