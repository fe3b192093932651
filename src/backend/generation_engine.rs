//! The loop that turns requests into pictures, several of one shape side by side.

mod turn;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    slice,
    sync::Arc,
    time::Instant,
};

use tokio::{sync::mpsc::UnboundedReceiver, task::JoinHandle};
use tracing::{Span, warn};
use turn::{Picture, Turn};

use super::{Complete, Generation, GenerationError, GenerationRequest, InferencePipeline, Pipeline, Pulse};
use crate::{common::error_chain, models::Interrupt};

/// Owns the receiving end of the queue and a share of the pipeline, and is the only one who answers requests.
#[derive(Debug)]
pub struct GenerationEngine<P = InferencePipeline> {
    pipeline: Arc<P>,
    requests: UnboundedReceiver<GenerationRequest>,
    pulse: Pulse,
    max_batch: usize,
    /// Requests whose turn has come and that have no last answer yet.
    running: usize,
}

/// Pictures of one shape that take their steps together.
struct Batch<G: Generation> {
    pictures: Vec<Picture<G>>,
    /// For as long as they are the same.
    context: Option<G::Context>,
}

impl<P: Pipeline> GenerationEngine<P> {
    /// An engine for the requests that come out of `requests`, one at a time.
    #[must_use]
    pub fn new(pipeline: Arc<P>, requests: UnboundedReceiver<GenerationRequest>) -> Self {
        Self { pipeline, requests, pulse: Pulse::default(), max_batch: 1, running: 0 }
    }

    /// The same engine with a pulse that others look at.
    #[must_use]
    pub fn with_pulse(self, pulse: Pulse) -> Self {
        Self { pulse, ..self }
    }

    /// The same engine for up to so many requests at a time, at least one.
    #[must_use]
    pub fn with_max_batch(self, max_batch: usize) -> Self {
        Self { max_batch: max_batch.max(1), ..self }
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
        while let Some(request) = self.requests.blocking_recv() {
            // On a thread of the pool: from outside, each of a thousand operations would cost two switches of threads.
            rayon::scope(|_| self.serve(request));
        }
    }

    /// Serves a request and whoever comes meanwhile, until nobody is left. Between steps, requests join and leave.
    fn serve(&mut self, request: GenerationRequest) {
        let mut next = Some(request);
        let mut batch = Batch { pictures: Vec::new(), context: None };
        loop {
            self.let_in(&mut batch, &mut next);
            if batch.pictures.is_empty() {
                return;
            }
            batch.step(&self.pulse);
            self.let_go(&mut batch);
        }
    }

    /// Lets in who is next, as long as there is room. Who is of another shape waits until the others are done, and nobody overtakes.
    fn let_in(&mut self, batch: &mut Batch<P::Generation>, next: &mut Option<GenerationRequest>) {
        while batch.pictures.len() < self.max_batch {
            *next = next.take().or_else(|| self.requests.try_recv().ok());
            let Some(request) = next.take_if(|request| self.may_join(batch, request)) else { return };
            if let Some(picture) = self.begin(request) {
                batch.pictures.push(picture);
                batch.context = None;
            }
        }
    }

    /// Who will not be served any more need not wait to be told so.
    fn may_join(&self, batch: &Batch<P::Generation>, request: &GenerationRequest) -> bool {
        let shape = |request: &GenerationRequest| self.pipeline.shape(request);
        let fits = |first: &Picture<P::Generation>| caught(|| Ok(shape(&first.turn.request) == shape(request))).unwrap_or(false);
        !request.is_wanted() || request.is_late() || batch.pictures.first().is_none_or(fits)
    }

    fn begin(&mut self, request: GenerationRequest) -> Option<Picture<P::Generation>> {
        metrics::gauge!("sdw_requests_waiting").decrement(1);
        self.count_running(self.running + 1);
        self.pulse.beat();
        let turn = Turn::new(request);
        match attempt(&[&turn], &self.pulse, |interrupt| turn.begin(&self.pipeline, interrupt)) {
            Ok((generation, timings)) => Some(Picture::new(turn, generation, timings)),
            Err(error) => {
                self.conclude(turn, Err(error));
                None
            }
        }
    }

    /// Lets go who has a picture, who cannot have one, and who does not want one any more.
    fn let_go(&mut self, batch: &mut Batch<P::Generation>) {
        let leaving: Vec<_> = batch.pictures.extract_if(.., |picture| picture.is_over()).collect();
        if !leaving.is_empty() {
            batch.context = None;
        }
        for Picture { turn, generation, mut timings, failure, ready, .. } in leaving {
            timings.denoise = ready.elapsed();
            let finish = |interrupt: Interrupt| turn.finish(generation, timings, self.pipeline.model_id(), interrupt);
            let outcome = failure.map_or_else(|| attempt(&[&turn], &self.pulse, finish), Err);
            self.conclude(turn, outcome);
        }
    }

    fn conclude(&mut self, turn: Turn, outcome: Result<Complete, GenerationError>) {
        self.count_running(self.running - 1);
        if self.running == 0 {
            self.pulse.rest();
        }
        // Not even a log that cannot be written may end the loop.
        let _ = catch_unwind(AssertUnwindSafe(|| turn.conclude(outcome)));
    }

    fn count_running(&mut self, running: usize) {
        self.running = running;
        metrics::gauge!("sdw_requests_running").set(running as f64);
    }
}

impl<G: Generation> Batch<G> {
    /// A step for all. What goes wrong is kept with the picture that it happened to.
    fn step(&mut self, pulse: &Pulse) {
        let started = Instant::now();
        let spans: Vec<Span> = self.pictures.iter().map(Picture::step_span).collect();
        let outputs = predict(&self.pictures, &mut self.context, pulse);
        for (picture, output) in self.pictures.iter_mut().zip(outputs) {
            picture.go_on(pulse, |generation| generation.update(output?));
        }
        let step_time = started.elapsed();
        drop(spans);

        let batch_size = self.pictures.iter().filter(|picture| picture.failure.is_none()).count();
        if batch_size > 0 {
            metrics::histogram!("sdw_step_seconds").record(step_time);
            metrics::histogram!("sdw_batch_size").record(batch_size as f64);
        }
        for picture in self.pictures.iter_mut().filter(|picture| picture.failure.is_none()) {
            picture.report(pulse, step_time, batch_size);
        }
    }
}

/// What the network says of each picture. If it fails for all together, it is asked about each alone, so that it costs only who is to
/// blame.
fn predict<G: Generation>(
    pictures: &[Picture<G>],
    context: &mut Option<G::Context>,
    pulse: &Pulse,
) -> Vec<Result<G::Output, GenerationError>> {
    let (turns, generations): (Vec<&Turn>, Vec<&G>) = pictures.iter().map(|picture| (&picture.turn, &picture.generation)).unzip();
    let together = attempt(&turns, pulse, |interrupt| {
        let context = match context {
            Some(context) => context,
            None => context.insert(G::join(&generations)?),
        };
        let outputs = G::predict(&generations, context, interrupt).inspect_err(|error| {
            if turns.len() > 1 && turns.iter().any(|turn| turn.request.is_wanted()) {
                warn!(error = error_chain(error), pictures = turns.len(), "a step of several pictures failed, and is tried one by one");
            }
        })?;
        assert_eq!(outputs.len(), generations.len(), "an output for each");
        Ok(outputs)
    });
    match together {
        Ok(outputs) => outputs.into_iter().map(Ok).collect(),
        Err(error) if pictures.len() == 1 => vec![Err(error)],
        Err(_) => pictures.iter().flat_map(|picture| predict(slice::from_ref(picture), &mut None, pulse)).collect(),
    }
}

/// Does work of some requests, until nobody waits for any of them any more. Neither an error nor a panic costs anybody else anything.
fn attempt<T>(turns: &[&Turn], pulse: &Pulse, work: impl FnOnce(Interrupt) -> Result<T, GenerationError>) -> Result<T, GenerationError> {
    let nobody_waits = || {
        pulse.beat();
        turns.iter().all(|turn| !turn.request.is_wanted())
    };
    let span = if let [turn] = turns { turn.span.clone() } else { Span::none() };
    span.in_scope(|| caught(|| work(Interrupt::when(&nobody_waits))))
}

fn caught<T>(work: impl FnOnce() -> Result<T, GenerationError>) -> Result<T, GenerationError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(GenerationError::Panicked(panic_message(panic.as_ref()))))
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests;
