//! A request under way. What the engine says to it is kept, so that several clients may follow it, or one may come back.

mod log;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};

use log::Log;
pub(super) use log::{Entry, Status};
use tokio::{
    runtime::Handle,
    sync::{
        mpsc::{self, UnboundedReceiver},
        watch,
    },
    task::AbortHandle,
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};
use uuid::Uuid;

use super::{ApiError, AppState, Permit, admission::Refusal, unix_seconds, wire::ImagesOrder};
use crate::{
    backend::{Complete, GenerationError, GenerationRequest, GenerationResponse, Progress},
    common::{RequestId, SamplingConfig},
};

/// Who puts its pictures into the queue.
static QUEUEING: Mutex<()> = Mutex::new(());

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

impl Run {
    /// Admits and queues what is asked for. `deadline` is how long the client will wait, if it says so.
    pub(super) fn start(
        state: &AppState,
        id: &RequestId,
        mut order: ImagesOrder,
        model: String,
        deadline: Option<Duration>,
        patience: Patience,
    ) -> Result<Arc<Self>, ApiError> {
        // A worker that stops takes all places.
        let refused = |refusal: Refusal| state.model().err().unwrap_or_else(|| refusal.into());
        let mut permit = state.admission.admit(order.demand(deadline)).map_err(refused)?;
        let accepted_at = Instant::now();
        // A client that may ask again for the same keeps its place until then.
        let grace = if let Patience::For(grace) = patience { grace } else { Duration::ZERO };
        let latest_start = deadline.and_then(|deadline| accepted_at.checked_add(deadline.saturating_add(grace)));
        let cancellation = state.stop.child_token();
        let input = order.input.take();
        let mut pictures = VecDeque::new();
        // The pictures of a run stand one behind the other.
        let _alone = QUEUEING.lock();
        for index in 0..order.count {
            let (response_tx, response_rx) = mpsc::unbounded_channel();
            let request = GenerationRequest {
                request_id: id.clone(),
                prompt: order.prompt.clone(),
                negative_prompt: order.negative_prompt.clone(),
                input: input.clone(),
                config: SamplingConfig { seed: order.config.seed.offset(index.into()), ..order.config },
                output: order.output,
                cancellation: cancellation.clone(),
                accepted_at,
                // Of several pictures, the first: those that follow have begun with it.
                latest_start: latest_start.filter(|_| index == 0),
                span: Span::current(),
                place: permit.place(),
                response_tx,
            };
            // The engine is gone only when the worker is going.
            state.queue.add_request(request).map_err(|_| ApiError::draining())?;
            pictures.push_back(response_rx);
        }
        let log = watch::Sender::new(Log::default());
        let job_id = format!("job-{}", Uuid::new_v4().simple());
        let created = unix_seconds();
        let run = Arc::new(Self { order, model, job_id, created, patience, log, cancellation, collector: OnceLock::new() });
        let collector = tokio::spawn(Arc::clone(&run).collect(pictures, permit, latest_start, state.stop.clone()).in_current_span());
        let _ = run.collector.set(collector.abort_handle());
        Ok(run)
    }

    /// Writes down what the engine says, picture by picture, until the last or until something goes wrong.
    async fn collect(
        self: Arc<Self>,
        mut pictures: VecDeque<UnboundedReceiver<GenerationResponse>>,
        mut permit: Permit,
        mut latest_start: Option<Instant>,
        stop: CancellationToken,
    ) {
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
        let order = &self.order;
        let texts =
            order.prompt.as_str().len() + order.negative_prompt.as_str().len() + order.ignored.iter().map(String::len).sum::<usize>();
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
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::{
        backend::{Pulse, RequestQueue},
        common::{ImageSize, OutputConfig, Sampler, SamplingOptions, Schedule},
        http::{Access, Admission, Lifecycle, RunLimits, Runs, wire::OnDisconnect},
    };

    /// A worker of one place, and what its engine would get.
    fn worker(lifecycle: Lifecycle) -> (AppState, UnboundedReceiver<GenerationRequest>) {
        let (queue, requests) = RequestQueue::new();
        let state = AppState {
            queue,
            lifecycle: watch::channel(lifecycle).1,
            admission: Admission::new(1),
            runs: Runs::new(RunLimits { keep: Duration::from_mins(1), most: 10, bytes: 1 << 20 }),
            access: Access::default(),
            client_timeout: Duration::from_mins(1),
            max_batch: 1,
            pulse: Pulse::default(),
            watchdog: None,
            metrics: PrometheusBuilder::new().build_recorder().handle(),
            shutdown: CancellationToken::new(),
            stop: CancellationToken::new(),
        };
        (state, requests)
    }

    fn start(state: &AppState, patience: Patience) -> Result<Arc<Run>, ApiError> {
        let config = SamplingConfig {
            size: ImageSize::new(64, 64).unwrap(),
            steps: "2".parse().unwrap(),
            guidance_scale: "1".parse().unwrap(),
            seed: 0.into(),
            sampler: Sampler::Euler,
            schedule: Schedule::Default,
            options: SamplingOptions::default(),
        };
        let order = ImagesOrder {
            prompt: "a fox".to_owned().try_into().unwrap(),
            negative_prompt: crate::common::NegativePrompt::default(),
            input: None,
            is_edit: false,
            mask: None,
            config,
            evaluations: 2,
            samples: 1,
            output: OutputConfig::default(),
            count: 1,
            stream: false,
            progress: false,
            on_disconnect: OnDisconnect::Cancel,
            ignored: Vec::new(),
        };
        Run::start(state, &RequestId::random(), order, "fake".to_owned(), None, patience)
    }

    #[tokio::test]
    async fn who_comes_back_has_the_whole_time_once_more() {
        let (state, _requests) = worker(Lifecycle::Loading);
        let run = start(&state, Patience::For(Duration::from_mins(1))).unwrap();
        drop(run.follow(0));
        drop(run.follow(0));
        run.give_up_if_alone(1);
        assert!(matches!(run.status(), Status::Queued), "the time of the first departure is over, that of the second is not");
        run.give_up_if_alone(2);
        assert!(matches!(run.status(), Status::Cancelled));
    }

    #[tokio::test]
    async fn a_worker_that_stops_says_so_when_its_places_are_taken() {
        let (state, _requests) = worker(Lifecycle::Draining);
        let _places = state.admission.admit(crate::http::Demand { pictures: 1, steps: 1, pixels: 1, deadline: None }).unwrap();
        assert_eq!(start(&state, Patience::Forever).unwrap_err().body().code, "shutting_down");
    }
}
