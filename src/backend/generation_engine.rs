//! The loop that turns requests into pictures, several side by side.

mod batch;
mod running;
mod step_times;
mod turn;
mod waiting;
mod writer;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
};

use batch::Batch;
use running::Running;
use tokio::{sync::mpsc::UnboundedReceiver, task::JoinHandle};
use tracing::Span;
use turn::{Picture, Turn};
use waiting::Waiting;
use writer::{Encode, News, WriterQueue};

use super::{GenerationError, GenerationRequest, InferencePipeline, Pipeline, Pulse, picture_encoder};
use crate::models::Interrupt;

/// Owns the receiver of the queue and a share of the pipeline. It alone answers requests, most of it by its writer: a second thread that
/// makes files of pixels while the next step is taken.
///
/// Orders take turns, picture by picture: one for ten pictures does not keep another waiting for all ten. New orders go behind those that
/// wait.
#[derive(Debug)]
pub struct GenerationEngine<P = InferencePipeline> {
    pipeline: Arc<P>,
    requests: UnboundedReceiver<GenerationRequest>,
    waiting: Waiting,
    pulse: Pulse,
    max_batch: usize,
    running: Running,
}

impl<P: Pipeline> GenerationEngine<P> {
    /// An engine for the requests that come out of `requests`, one picture at a time.
    #[must_use]
    pub fn new(pipeline: Arc<P>, requests: UnboundedReceiver<GenerationRequest>) -> Self {
        Self { pipeline, requests, waiting: Waiting::default(), pulse: Pulse::default(), max_batch: 1, running: Running::default() }
    }

    /// The same engine with a pulse that others look at.
    #[must_use]
    pub fn with_pulse(self, pulse: Pulse) -> Self {
        Self { running: Running::new(pulse.clone()), pulse, ..self }
    }

    /// The same engine for up to `max_batch` pictures at a time, at least one. Together they take no more than that many times the
    /// [`picture_work`](Pipeline::picture_work) of a pass: there is room for fewer larger ones. One picture alone is always served.
    #[must_use]
    pub fn with_max_batch(self, max_batch: usize) -> Self {
        Self { max_batch: max_batch.max(1), ..self }
    }

    /// Serves requests on one blocking thread, until every clone of the queue is gone and all is answered.
    ///
    /// # Panics
    /// When called outside a tokio runtime.
    #[must_use = "a panic of the loop itself is found in the handle"]
    pub fn start(self) -> JoinHandle<()> {
        tokio::task::spawn_blocking(move || self.run(&picture_encoder::encode))
    }

    fn run(mut self, encode: Encode) {
        let (pipeline, pulse) = (Arc::clone(&self.pipeline), self.pulse.clone());
        // At its end, the writer has written everything.
        thread::scope(|threads| {
            let (queue, writer) = WriterQueue::new();
            threads.spawn(|| writer.run(pipeline.model_id(), &pulse, encode));
            while let Some(request) = self.requests.blocking_recv() {
                self.waiting.add(request);
                // On a thread of rayon's pool: from outside, each of a thousand operations would switch threads twice.
                rayon::scope(|_| self.serve(&queue));
            }
        });
    }

    /// Serves all requests that wait, and those that come meanwhile. Requests join and leave between steps.
    fn serve(&mut self, writer: &WriterQueue) {
        let mut batch = Batch::new(self.max_batch as u64 * self.pipeline.picture_work());
        loop {
            self.admit(&mut batch, writer);
            if batch.pictures.is_empty() {
                return;
            }
            batch.step(&self.pulse, writer);
            self.dismiss(&mut batch, writer);
        }
    }

    /// Begins waiting requests while the batch has room. Nobody overtakes a request that has to wait for the batch.
    fn admit(&mut self, batch: &mut Batch<P::Generation>, writer: &WriterQueue) {
        while let Ok(request) = self.requests.try_recv() {
            self.waiting.add(request);
        }
        // They are told so, and leave their places, at once.
        for request in self.waiting.take_unwanted() {
            batch.pictures.extend(self.begin(request, writer));
        }
        while batch.pictures.len() < self.max_batch
            && self.waiting.next().is_some_and(|request| batch.takes(request))
            && let Some(request) = self.waiting.take()
        {
            batch.pictures.extend(self.begin(request, writer));
        }
    }

    fn begin(&self, request: GenerationRequest, writer: &WriterQueue) -> Option<Picture<P::Generation>> {
        metrics::gauge!("sdw_requests_waiting").decrement(1);
        let turn = Arc::new(Turn::new(request, self.running.begin()));
        match attempt(&[&turn], &self.pulse, |interrupt| turn.begin(&self.pipeline, interrupt)) {
            Ok((generation, timings)) => Some(Picture::new(turn, generation, timings)),
            Err(error) => {
                writer.add(&turn, News::End(Err(error)));
                None
            }
        }
    }

    /// Finishes pictures that have taken all steps, failed, or are not wanted any more.
    fn dismiss(&self, batch: &mut Batch<P::Generation>, writer: &WriterQueue) {
        let leaving: Vec<_> = batch.pictures.extract_if(.., |picture| picture.is_over()).collect();
        if !leaving.is_empty() {
            batch.forget_joined();
        }
        for picture in leaving {
            let Picture { turn, generation, mut timings, failure, ready, .. } = picture;
            timings.denoise = ready.elapsed();
            let finish = |interrupt: Interrupt| turn.finish(generation, timings, interrupt);
            let outcome = failure.map_or_else(|| attempt(&[&turn], &self.pulse, finish), Err);
            writer.add(&turn, News::End(outcome));
        }
    }
}

/// Does work of some requests, until none of them is wanted any more. An error or a panic costs no other request anything.
fn attempt<T>(turns: &[&Turn], pulse: &Pulse, work: impl FnOnce(Interrupt) -> Result<T, GenerationError>) -> Result<T, GenerationError> {
    // Asked between the layers of a network, where a step takes long.
    let is_unwanted = || {
        pulse.beat();
        turns.iter().all(|turn| !turn.is_wanted())
    };
    let span = if let [turn] = turns { turn.span.clone() } else { Span::none() };
    let work = || work(Interrupt::when(&is_unwanted));
    span.in_scope(|| {
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(GenerationError::Panicked(panic_message(panic.as_ref()))))
    })
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests;
