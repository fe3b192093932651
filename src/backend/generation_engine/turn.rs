//! One request, from its beginning to its last answer.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::OwnedSemaphorePermit;
use tracing::{Span, debug_span, field::Empty, info, info_span, warn};

use super::{
    attempt,
    running::Begun,
    step_times::StepTimes,
    writer::{Drawn, News, WriterQueue},
};
use crate::{
    backend::{Complete, Generation, GenerationError, GenerationRequest, GenerationResponse, Pipeline, Progress, Pulse, StepKind, Timings},
    common::error_chain,
    models::Interrupt,
};

/// A request that the engine has begun. The engine and its writer share it.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) request: GenerationRequest,
    /// The parent of everything that is logged about the request.
    pub(super) span: Span,
    held: Mutex<Held>,
}

/// What a request has until its last answer.
#[derive(Debug)]
struct Held {
    place: Option<OwnedSemaphorePermit>,
    begun: Option<Begun>,
    /// Why a preview could not be written.
    failure: Option<GenerationError>,
    /// How much of its news the writer has not told yet.
    untold: usize,
}

/// A request with its generation.
pub(super) struct Picture<G> {
    /// No other picture of this process has it.
    pub(super) number: u64,
    pub(super) turn: Arc<Turn>,
    pub(super) generation: G,
    pub(super) timings: Timings,
    /// Why there will be no picture, once that is known.
    pub(super) failure: Option<GenerationError>,
    /// When it became ready for its first step.
    pub(super) ready: Instant,
    steps: usize,
    step_times: StepTimes,
    /// The numbers of the previews to come.
    previews: Range<u8>,
}

/// A step that is done.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepReport {
    pub(super) step_time: Duration,
    /// How many pictures took it together.
    pub(super) batch_size: usize,
    pub(super) kind: StepKind,
}

impl Turn {
    pub(super) fn new(mut request: GenerationRequest, begun: Begun) -> Self {
        let held = Held { place: request.place.take(), begun: Some(begun), failure: None, untold: 0 };
        let config = &request.order.config;
        let drawing = || {
            info_span!(
                parent: &request.span, "generate",
                request_id = %request.request_id, steps = %config.steps, size = %config.size, seed = %config.seed,
                queue_ms = Empty, text_ms = Empty, denoise_ms = Empty, decode_ms = Empty, encode_ms = Empty
            )
        };
        let upscaling = || {
            info_span!(
                parent: &request.span, "upscale",
                request_id = %request.request_id, upscale = request.order.upscale.as_ref().map(tracing::field::display),
                queue_ms = Empty, decode_ms = Empty, encode_ms = Empty
            )
        };
        let span = if request.order.is_drawn() { drawing() } else { upscaling() };
        Self { request, span, held: Mutex::new(held) }
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

    /// All that comes after the last step, but for the file.
    pub(super) fn finish(&self, generation: impl Generation, mut timings: Timings, interrupt: Interrupt) -> Result<Drawn, GenerationError> {
        self.check_wanted()?;
        let warnings = generation.warnings().into_iter().map(shortened).collect();
        let started = Instant::now();
        let pixels = generation.finish(interrupt)?;
        let since = Instant::now();
        timings.decode = since - started;
        Ok(Drawn { pixels, timings, warnings, since })
    }

    /// Sends the last answer, and records metrics.
    pub(super) fn conclude(&self, outcome: Result<Complete, GenerationError>) {
        let _entered = self.span.enter();
        let outcome = self.held().failure.take().map_or(outcome, Err);
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
        let (place, begun) = {
            let mut held = self.held();
            (held.place.take(), held.begun.take())
        };
        drop((begun, place));
        self.respond(response);
    }

    /// Fails the request: its last answer is this error.
    pub(super) fn fail(&self, error: GenerationError) {
        self.held().failure.get_or_insert(error);
    }

    /// Whether somebody waits for the picture, and it can still be had.
    pub(super) fn is_wanted(&self) -> bool {
        self.request.is_wanted() && self.held().failure.is_none()
    }

    /// # Errors
    /// When there is to be no picture any more.
    pub(super) fn check_wanted(&self) -> Result<(), GenerationError> {
        if self.is_wanted() { Ok(()) } else { Err(GenerationError::Cancelled) }
    }

    /// Notes that there is news for the writer to tell.
    pub(super) fn note_added(&self) {
        self.held().untold += 1;
    }

    /// Notes that the writer has told it.
    pub(super) fn note_told(&self) {
        self.held().untold -= 1;
    }

    /// Whether the writer has told all that there was to tell so far.
    pub(super) fn has_heard_all(&self) -> bool {
        self.held().untold == 0
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // It is whole between any two calls, whatever panics elsewhere.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client that is gone is no error here: the next check of the request notices.
    pub(super) fn respond(&self, response: GenerationResponse) {
        let _ = self.request.response_tx.send(response);
    }
}

impl<G: Generation> Picture<G> {
    pub(super) fn new(turn: Arc<Turn>, generation: G, timings: Timings) -> Self {
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
            step_times: StepTimes::default(),
            previews,
        }
    }

    /// Whether it takes no more steps.
    pub(super) fn is_over(&self) -> bool {
        self.failure.is_some() || !self.has_steps_left() || !self.turn.is_wanted()
    }

    /// Whether it has steps to take. One of the client's that is enlarged has none from the beginning.
    pub(super) fn has_steps_left(&self) -> bool {
        self.steps < self.generation.total_steps()
    }

    /// The span of the next step.
    pub(super) fn step_span(&self) -> Span {
        debug_span!(parent: &self.turn.span, "denoise_step", step = self.steps)
    }

    /// Changes the generation. An error or a panic fails the picture.
    pub(super) fn go_on(&mut self, pulse: &Pulse, work: impl FnOnce(&mut G, Interrupt) -> Result<(), GenerationError>) {
        let generation = &mut self.generation;
        self.failure = attempt(&[&self.turn], pulse, |interrupt| work(generation, interrupt)).err();
    }

    /// Reports a step, and adds the previews that are due.
    pub(super) fn report(&mut self, pulse: &Pulse, writer: &WriterQueue, StepReport { step_time, batch_size, kind }: StepReport) {
        self.steps += 1;
        let (step, total) = (self.steps, self.generation.total_steps());
        self.step_times.note(kind, step_time);
        let remaining = self.step_times.of_all(&self.generation.kinds_to_come());
        let progress = Progress { step, total, step_time, batch_size, is_shallow: kind.is_shallow, remaining };
        writer.add(&self.turn, News::Progress(progress));

        // Preview n of p is due after n / (p + 1) of the steps, none after the last, which gives the picture itself.
        let due = step * (usize::from(self.turn.request.order.output.previews) + 1) / total;
        while usize::from(self.previews.start) < due && step < total {
            let Some(index) = self.previews.next() else { break };
            match attempt(&[&self.turn], pulse, |interrupt| self.generation.preview(interrupt)) {
                Ok(pixels) => writer.add(&self.turn, News::Preview { index, pixels }),
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
