//! A request under way. What the engine says to it is kept, so that several clients may follow it, or one may come back.

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
use crate::backend::{Complete, GenerationError, GenerationResponse, Progress};

/// Some pictures, from the queue to the last of them.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) order: ImagesOrder,
    pub(super) model: String,
    /// The name of the job, if it is one.
    pub(super) job_id: String,
    /// Seconds since 1970.
    pub(super) created: u64,
    patience: Patience,
    log: watch::Sender<Log>,
    cancellation: CancellationToken,
    /// Listens to the engine. Ending it lets go of the engine's answers, which is what stops the engine.
    collector: OnceLock<AbortHandle>,
}

/// How long the work goes on when nobody follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// Not at all, or as long as a client may need to come back.
    For(Duration),
    /// To its end.
    Forever,
}

/// What the engine is to say to a run.
#[derive(Debug)]
pub(super) struct Answers {
    /// Of each picture, in their order.
    pub(super) pictures: VecDeque<UnboundedReceiver<GenerationResponse>>,
    pub(super) permit: Permit,
    /// When the first picture must have begun.
    pub(super) latest_start: Option<Instant>,
    /// The worker's end.
    pub(super) stop: CancellationToken,
}

impl Run {
    /// A run of an order that is in the queue.
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

    /// Writes down what the engine says, picture by picture, until the last or until something goes wrong.
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
        // The pictures' places are free before anybody hears of the end.
        drop(permit);
        self.end(Status::Completed);
    }

    /// Ends the run. Where its turn had come, so has that of its other `pictures`: the engine gives back their places at once, and before
    /// anybody hears of the end.
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

    /// Stops the work at once. False if it has ended already.
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

    /// Stops the work if nobody follows it any more, and nobody has since that departure.
    fn give_up_if_alone(&self, since: u64) {
        if self.log.send_if_modified(|log| log.followers == 0 && log.departures == since && log.end(Status::Cancelled)) {
            self.drop_collector();
        }
    }

    pub(super) fn status(&self) -> Status {
        self.log.borrow().status.clone()
    }

    /// Steps done and steps in all, once there are any.
    pub(super) fn progress(&self) -> Option<Progress> {
        self.log.borrow().progress
    }

    /// What is kept of it, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let picture = &self.order.picture;
        let texts = picture.prompt.as_str().len()
            + picture.negative_prompt.as_str().len()
            + self.order.ignored.iter().map(String::len).sum::<usize>();
        texts + self.log.borrow().bytes()
    }

    /// How long ago it ended, if it has.
    pub(super) fn ended(&self) -> Option<Duration> {
        self.log.borrow().ended_at.map(|at| at.elapsed())
    }

    /// Everything from entry `from` on, and what is to come.
    pub(super) fn follow(self: &Arc<Self>, from: u64) -> Follower {
        self.log.send_if_modified(|log| {
            log.followers += 1;
            false
        });
        Follower { run: Arc::clone(self), log: self.log.subscribe(), next: from }
    }
}

/// The next response. An engine that is gone without a last word is an error like any other: no client waits for ever. Nor does one wait
/// for a beginning that is too late, though the engine comes to that only when it is the request's turn.
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

/// Somebody who waits for the pictures. When the last one goes, so does the work, unless the run has patience.
#[derive(Debug)]
pub(super) struct Follower {
    pub(super) run: Arc<Run>,
    log: watch::Receiver<Log>,
    next: u64,
}

impl Follower {
    /// What comes next, with its number, or `None` after the end.
    pub(super) async fn next(&mut self) -> Option<(u64, Entry)> {
        let from = self.next;
        // The sender lives in the run, which lives here.
        let log = self.log.wait_for(|log| log.ended_at.is_some() || log.from(from).is_some()).await.ok()?;
        let (id, entry) = log.from(from)?.clone();
        self.next = id + 1;
        Some((id, entry))
    }

    /// All pictures.
    pub(super) async fn pictures(&mut self) -> Result<Vec<Arc<Complete>>, ApiError> {
        let mut pictures = Vec::new();
        while let Some((_, entry)) = self.next().await {
            match entry {
                Entry::Complete(complete) => pictures.push(complete),
                Entry::Failed(error) => return Err(error),
                Entry::Progress(_) | Entry::Preview { .. } => {}
            }
        }
        Ok(pictures)
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
                // Without a runtime the worker is at its end, and its work with it.
                let _ = Handle::try_current().map(|runtime| runtime.spawn(wait));
            }
        }
    }
}

#[cfg(test)]
mod tests;
