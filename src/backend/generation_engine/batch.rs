//! Pictures that take their steps together.

use std::time::Instant;

use tracing::{Span, warn};

use super::{
    attempt,
    turn::{Picture, StepReport, Turn},
    writer::WriterQueue,
};
use crate::{
    backend::{Generation, GenerationError, GenerationRequest, Pulse, StepKind},
    common::error_chain,
};

/// The pictures that were begun, the oldest first.
pub(super) struct Batch<G: Generation> {
    pub(super) pictures: Vec<Picture<G>>,
    /// The most pixels of all samples in a pass. A single picture may have more.
    budget: u64,
    joined: Option<Joined<G>>,
}

/// The context of some pictures, which is good for as long as they step together.
struct Joined<G: Generation> {
    numbers: Vec<u64>,
    /// That of the full steps that it is for; it is for shallow ones, too.
    kind: StepKind,
    context: G::Context,
}

impl<G: Generation> Batch<G> {
    pub(super) fn new(budget: u64) -> Self {
        Self { pictures: Vec::new(), budget, joined: None }
    }

    /// Whether a request may be begun now: its first step goes with the next pass, and the pass stays within the budget. A request that
    /// will not be served any more is taken at once, to be told so.
    pub(super) fn takes(&self, request: &GenerationRequest) -> bool {
        let Some(oldest) = self.pictures.first() else { return true };
        let demand = &request.order.demand;
        let peaks: u64 = self.pictures.iter().map(|picture| picture.turn.request.order.demand.peak()).sum();
        let fits = demand.kind(0) == oldest.generation.kind() && peaks + demand.peak() <= self.budget;
        fits || !request.is_wanted() || request.is_late()
    }

    /// Frees the joined context, before a picture that leaves is decoded in the same memory.
    pub(super) fn forget_joined(&mut self) {
        self.joined = None;
    }

    /// A step of the oldest picture that is to take one, and of all others whose next step is of the same kind. The others wait: no picture is held up by a
    /// younger one. What goes wrong is kept with the picture that it happened to.
    pub(super) fn step(&mut self, pulse: &Pulse, writer: &WriterQueue) {
        let started = Instant::now();
        let Some(kind) = self.pictures.iter().find(|picture| picture.has_steps_left()).map(|oldest| oldest.generation.kind()) else {
            return;
        };
        let steps = |picture: &&mut Picture<G>| picture.has_steps_left() && picture.generation.kind() == kind;
        let mut stepping: Vec<&mut Picture<G>> = self.pictures.iter_mut().filter(steps).collect();
        let spans: Vec<Span> = stepping.iter().map(|picture| picture.step_span()).collect();
        let pictures: Vec<&Picture<G>> = stepping.iter().map(|picture| &**picture).collect();
        let outputs = predict(&pictures, kind, &mut self.joined, pulse);
        for (picture, output) in stepping.iter_mut().zip(outputs) {
            picture.go_on(pulse, |generation, _| generation.update(output?));
        }
        let step_time = started.elapsed();
        drop(spans);

        stepping.retain(|picture| picture.failure.is_none());
        let batch_size = stepping.len();
        if batch_size > 0 {
            metrics::histogram!("sdw_step_seconds").record(step_time);
            metrics::histogram!("sdw_batch_size").record(batch_size as f64);
        }
        for picture in stepping {
            picture.report(pulse, writer, StepReport { step_time, batch_size, kind });
            if picture.failure.is_none() {
                picture.go_on(pulse, Generation::prepare);
            }
        }
    }
}

/// The prediction for each picture. If the pass fails for several, it is repeated for each alone, so that only those fail that have to.
fn predict<G: Generation>(
    pictures: &[&Picture<G>],
    kind: StepKind,
    joined: &mut Option<Joined<G>>,
    pulse: &Pulse,
) -> Vec<Result<G::Output, GenerationError>> {
    let (turns, generations): (Vec<&Turn>, Vec<&G>) = pictures.iter().map(|picture| (&*picture.turn, &picture.generation)).unzip();
    let numbers: Vec<u64> = pictures.iter().map(|picture| picture.number).collect();
    let together = attempt(&turns, pulse, |interrupt| {
        let context = match joined {
            Some(joined) if joined.kind == kind.full() && joined.numbers == numbers => &joined.context,
            _ => {
                // The old context goes before there is a new one.
                *joined = None;
                &joined.insert(Joined { numbers, kind: kind.full(), context: G::join(&generations)? }).context
            }
        };
        let outputs = G::predict(&generations, context, interrupt).inspect_err(|error| {
            if turns.len() > 1 && turns.iter().any(|turn| turn.is_wanted()) {
                warn!(error = error_chain(error), pictures = turns.len(), "a step of several pictures failed, and is repeated one by one");
            }
        })?;
        assert_eq!(outputs.len(), generations.len(), "an output for each");
        Ok(outputs)
    });
    match together {
        Ok(outputs) => outputs.into_iter().map(Ok).collect(),
        Err(error) if pictures.len() == 1 => vec![Err(error)],
        Err(_) => pictures.iter().flat_map(|picture| predict(&[*picture], kind, &mut None, pulse)).collect(),
    }
}
