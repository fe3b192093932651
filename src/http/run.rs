//! A run: the work on one request. It records what the engine says, so that several clients may follow it, or one may come back.

mod log;

use std::{
    collections::VecDeque,
    sync::{Arc, OnceLock},
    time::{Duration, Instant, SystemTime},
};

use log::Log;
pub(super) use log::{Entry, Status};
use tokio::{
    runtime::Handle,
    sync::{mpsc::UnboundedReceiver, watch},
    task::AbortHandle,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use uuid::Uuid;

use super::{admission::Permit, api_error::ApiError, order::ImagesOrder};
use crate::backend::{Complete, EncodedImage, GenerationError, GenerationResponse, Progress};

/// The pictures of one request, from the queue to the last of them.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) order: ImagesOrder,
    pub(super) model: String,
    /// The job's id, if the run is a job.
    pub(super) job_id: String,
    /// Seconds since 1970.
    pub(super) created: u64,
    patience: Patience,
    log: watch::Sender<Log>,
    cancellation: CancellationToken,
    /// The task that records the engine's responses. Aborting it closes their channels, which stops the engine.
    collector: OnceLock<AbortHandle>,
}

/// How long a run goes on when no client follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// Not at all, or as long as a client may need to come back.
    For(Duration),
    /// To its end.
    Forever,
}

/// What the engine sends to a run, and until when.
#[derive(Debug)]
pub(super) struct Answers {
    /// The response channel of each picture, in order.
    pub(super) pictures: VecDeque<UnboundedReceiver<GenerationResponse>>,
    pub(super) permit: Permit,
    /// When the first picture must have begun.
    pub(super) latest_start: Option<Instant>,
    /// Cancelled when the worker stops.
    pub(super) stop: CancellationToken,
}

impl Run {
    /// Starts to record an order whose requests are in the queue.
    pub(super) fn new(
        order: ImagesOrder,
        model: String,
        patience: Patience,
        cancellation: CancellationToken,
        answers: Answers,
    ) -> Arc<Self> {
        let log = watch::Sender::new(Log::default());
        let job_id = format!("job-{}", Uuid::new_v4().simple());
        let created = unix_seconds();
        let run = Arc::new(Self { order, model, job_id, created, patience, log, cancellation, collector: OnceLock::new() });
        let collector = tokio::spawn(Arc::clone(&run).collect(answers).in_current_span());
        let _ = run.collector.set(collector.abort_handle());
        run
    }

    /// Records the engine's responses, picture by picture, until the last one or an error.
    async fn collect(self: Arc<Self>, answers: Answers) {
        let Answers { mut pictures, mut permit, mut latest_start, stop } = answers;
        while let Some(responses) = pictures.front_mut() {
            let entry = match next(responses, latest_start, &stop).await {
                GenerationResponse::Started => {
                    latest_start = None;
                    self.log.send_modify(|log| log.status = Status::Running);
                    continue;
                }
                GenerationResponse::Progress(progress) => {
                    permit.note(&progress);
                    Entry::Progress(progress)
                }
                GenerationResponse::Preview { index, image } => {
                    let step = self.log.borrow().progress.map_or(0, |progress| progress.step);
                    Entry::Preview { index, step, image: Arc::new(image) }
                }
                GenerationResponse::Complete(complete) => {
                    pictures.pop_front();
                    Entry::Complete(Arc::from(complete))
                }
                GenerationResponse::Error(error) => {
                    let is_of_engine = !matches!(self.status(), Status::Queued) && !stop.is_cancelled();
                    return self.fail(error, is_of_engine.then_some(pictures), permit).await;
                }
            };
            self.log.send_modify(|log| log.push(entry));
        }
        // The permit is returned before a client can learn of the end.
        drop(permit);
        self.end(Status::Completed);
    }

    /// Ends the run with an error. If the engine had begun the failed picture, it gives up the run's other `pictures` at once; their
    /// permits are returned before a client can learn of the end.
    async fn fail(&self, error: GenerationError, pictures: Option<VecDeque<UnboundedReceiver<GenerationResponse>>>, permit: Permit) {
        self.cancellation.cancel();
        for mut responses in pictures.into_iter().flatten() {
            while responses.recv().await.is_some() {}
        }
        drop(permit);
        self.end(Status::Failed(error.into()));
    }

    fn end(&self, status: Status) {
        self.log.send_if_modified(|log| log.end(status));
    }

    /// Stops the work at once. Returns false if the run has ended already.
    pub(super) fn cancel(&self) -> bool {
        self.cancellation.cancel();
        let cancelled = self.log.send_if_modified(|log| log.end(Status::Cancelled));
        self.drop_collector();
        cancelled
    }

    fn drop_collector(&self) {
        if let Some(collector) = self.collector.get() {
            collector.abort();
        }
    }

    /// Stops the work if no client follows the run, and none has joined since the given departure.
    fn give_up_if_alone(&self, since: u64) {
        if self.log.send_if_modified(|log| log.followers == 0 && log.departures == since && log.end(Status::Cancelled)) {
            self.drop_collector();
        }
    }

    pub(super) fn status(&self) -> Status {
        self.log.borrow().status.clone()
    }

    /// The latest progress, if a step is done.
    pub(super) fn progress(&self) -> Option<Progress> {
        self.log.borrow().progress
    }

    /// A picture that is done, counted from 0.
    pub(super) fn picture(&self, index: usize) -> Option<Arc<Complete>> {
        self.log.borrow().pictures().nth(index).map(Arc::clone)
    }

    /// How many pictures are done.
    pub(super) fn finished(&self) -> usize {
        self.log.borrow().pictures().count()
    }

    /// The latest preview of a picture that is not done, if it is kept.
    pub(super) fn latest_preview(&self) -> Option<Arc<EncodedImage>> {
        self.log.borrow().latest_preview()
    }

    /// The memory of its order and its log, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let ignored: usize = self.order.ignored.iter().map(String::len).sum();
        self.order.picture.bytes() + ignored + self.log.borrow().bytes()
    }

    /// How long ago the run ended, if it has.
    pub(super) fn ended(&self) -> Option<Duration> {
        self.log.borrow().ended_at.map(|at| at.elapsed())
    }

    /// Follows the run from entry `from` on.
    pub(super) fn follow(self: &Arc<Self>, from: u64) -> Follower {
        self.log.send_if_modified(|log| {
            log.followers += 1;
            false
        });
        Follower { run: Arc::clone(self), log: self.log.subscribe(), next: from }
    }
}

/// The next response. An engine that ends without a last response counts as an error, and so does a start that is too late: the engine
/// itself notices a passed deadline only at the request's turn.
async fn next(
    responses: &mut UnboundedReceiver<GenerationResponse>,
    latest_start: Option<Instant>,
    stop: &CancellationToken,
) -> GenerationResponse {
    let gone = || GenerationResponse::Error(GenerationError::Panicked("the engine stopped".to_owned()));
    tokio::select! {
        biased;
        response = responses.recv() => response.unwrap_or_else(gone),
        () = stop.cancelled() => GenerationResponse::Error(GenerationError::Cancelled),
        () = until(latest_start) => GenerationResponse::Error(GenerationError::TooLate),
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// Seconds since 1970.
pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A client's view of a run. Dropping the last one stops the run, unless the run has patience.
#[derive(Debug)]
pub(super) struct Follower {
    pub(super) run: Arc<Run>,
    log: watch::Receiver<Log>,
    next: u64,
}

impl Follower {
    /// The next entry with its number, or `None` after the end.
    pub(super) async fn next(&mut self) -> Option<(u64, Entry)> {
        let from = self.next;
        // The sender lives as long as the run, which this follower holds.
        let log = self.log.wait_for(|log| log.ended_at.is_some() || log.from(from).is_some()).await.ok()?;
        let (id, entry) = log.from(from)?.clone();
        self.next = id + 1;
        Some((id, entry))
    }

    /// Waits for all pictures.
    pub(super) async fn pictures(&mut self) -> Result<Vec<Arc<Complete>>, ApiError> {
        let (pictures, error) = self.pictures_and_error().await;
        error.map_or(Ok(pictures), Err)
    }

    /// The same, but pictures that were done before the run was cancelled are enough.
    pub(super) async fn pictures_so_far(&mut self) -> Result<Vec<Arc<Complete>>, ApiError> {
        let (pictures, error) = self.pictures_and_error().await;
        error.filter(|_| !matches!(self.run.status(), Status::Cancelled)).map_or(Ok(pictures), Err)
    }

    async fn pictures_and_error(&mut self) -> (Vec<Arc<Complete>>, Option<ApiError>) {
        let mut pictures = Vec::new();
        while let Some((_, entry)) = self.next().await {
            match entry {
                Entry::Complete(complete) => pictures.push(complete),
                Entry::Failed(error) => return (pictures, Some(error)),
                Entry::Progress(_) | Entry::Preview { .. } => {}
            }
        }
        (pictures, None)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut departure = 0;
        self.run.log.send_if_modified(|log| {
            log.followers -= 1;
            log.departures += 1;
            departure = log.departures;
            log.forget_previews();
            false
        });
        match self.run.patience {
            Patience::Forever => {}
            Patience::For(Duration::ZERO) => self.run.give_up_if_alone(departure),
            Patience::For(time) => {
                let run = Arc::clone(&self.run);
                let wait = async move {
                    tokio::time::sleep(time).await;
                    run.give_up_if_alone(departure);
                };
                // Without a runtime, the process is ending anyway.
                let _ = Handle::try_current().map(|runtime| runtime.spawn(wait));
            }
        }
    }
}

#[cfg(test)]
mod tests;
