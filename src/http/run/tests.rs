//! Runs without an engine.

use metrics_exporter_prometheus::PrometheusBuilder;

use super::*;
use crate::{
    backend::{GenerationRequest, Order, Pulse, RequestQueue},
    common::RequestId,
    http::{
        Access, Admission, AppState, Lifecycle, RunLimits, Runs,
        order::{AnswerForm, OnDisconnect},
        start::start_run,
    },
};

/// A worker with room for one picture, and the engine's end of its queue.
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
    let order = ImagesOrder {
        picture: Order::plain("a fox", 2),
        is_edit: false,
        mask: None,
        count: 1,
        answer: AnswerForm::Files,
        progress: false,
        on_disconnect: OnDisconnect::Cancel,
        ignored: Vec::new(),
    };
    start_run(state, &RequestId::random(), order, "fake".to_owned(), None, patience)
}

#[tokio::test]
async fn a_client_that_returns_has_the_whole_grace_period_again() {
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
    let _places = state.admission.admit(&Order::plain("a fox", 1).demand, 1, None).unwrap();
    assert_eq!(start(&state, Patience::Forever).unwrap_err().body().code, "shutting_down");
}
