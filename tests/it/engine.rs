//! The engine, driven with a pipeline that makes no pictures.

mod together;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use sd_worker::{
    backend::{GenerationEngine, GenerationRequest, GenerationResponse, Order, RequestQueue},
    common::{ImageFormat, ImageSize, OutputConfig, Sampler, SamplingConfig, SamplingOptions, Schedule, Seed},
};
use tokio::sync::mpsc::{self, UnboundedReceiver};

use crate::fake::{self, FakePipeline};

fn request(prompt: &str, steps: i64, previews: u8) -> (GenerationRequest, UnboundedReceiver<GenerationResponse>) {
    let output = OutputConfig { format: ImageFormat::Png, quality: 90, previews, enlarged_to: None };
    of_order(Order { output, ..order(prompt, steps, |_| {}) })
}

/// A picture of 64 x 64 without guidance, unless `change` makes it another one.
fn order(prompt: &str, steps: i64, change: impl FnOnce(&mut SamplingConfig)) -> Order {
    let mut config = SamplingConfig {
        size: ImageSize::new(64, 64).unwrap(),
        steps: steps.try_into().unwrap(),
        guidance_scale: 1.0.try_into().unwrap(),
        seed: Seed::from(1),
        sampler: Sampler::Euler,
        schedule: Schedule::Default,
        options: SamplingOptions::default(),
    };
    change(&mut config);
    Order::of(prompt, "", config, &fake::info()).unwrap()
}

fn wide(config: &mut SamplingConfig) {
    config.size = ImageSize::new(128, 64).unwrap();
}

fn guided(config: &mut SamplingConfig) {
    config.guidance_scale = 4.0.try_into().unwrap();
}

fn of_order(order: Order) -> (GenerationRequest, UnboundedReceiver<GenerationResponse>) {
    let (response_tx, responses) = mpsc::unbounded_channel();
    (GenerationRequest { response_tx, ..GenerationRequest::unheard(order) }, responses)
}

/// Serves `requests` one after the other, with everything queued before the engine starts, until the queue is closed.
async fn serve_all(requests: Vec<GenerationRequest>) -> Arc<FakePipeline> {
    let pipeline = Arc::new(FakePipeline::default());
    serve_all_with(&pipeline, requests).await;
    pipeline
}

async fn serve_all_with(pipeline: &Arc<FakePipeline>, requests: Vec<GenerationRequest>) {
    serve_together(1, pipeline, requests, Vec::new()).await;
}

/// Up to `max_batch` at a time. `guests` come in the first step of the request "invite".
async fn serve_together(max_batch: usize, pipeline: &Arc<FakePipeline>, requests: Vec<GenerationRequest>, guests: Vec<GenerationRequest>) {
    let (queue, receiver) = RequestQueue::new();
    for request in requests {
        queue.add_request(request).unwrap();
    }
    *pipeline.guests.lock().unwrap() = Some((queue, guests)).filter(|(_, guests)| !guests.is_empty());
    let engine = GenerationEngine::new(Arc::clone(pipeline), receiver).with_max_batch(max_batch).start();
    tokio::time::timeout(Duration::from_mins(1), engine).await.expect("a closed queue ends the loop").unwrap();
}

/// All answers to one request, in short.
fn transcript(mut responses: UnboundedReceiver<GenerationResponse>) -> Vec<String> {
    let mut lines = Vec::new();
    while let Ok(response) = responses.try_recv() {
        lines.push(match response {
            GenerationResponse::Started => continue,
            GenerationResponse::Progress(progress) => format!("step {}/{}", progress.step, progress.total),
            GenerationResponse::Preview { index, .. } => format!("preview {index}"),
            GenerationResponse::Complete(complete) => format!("complete, {}", complete.warnings.join(", ")),
            GenerationResponse::Error(error) => format!("error: {error}"),
        });
    }
    lines
}

#[tokio::test]
async fn requests_are_served_in_order_and_answered_through_their_own_channel() {
    let (first, first_responses) = request("one", 2, 0);
    let (second, second_responses) = request("two", 1, 0);
    let pipeline = serve_all(vec![first, second]).await;
    assert_eq!(*pipeline.begun.lock().unwrap(), ["one", "two"]);
    assert_eq!(transcript(first_responses), ["step 1/2", "step 2/2", "complete, only a fake of one"]);
    assert_eq!(transcript(second_responses), ["step 1/1", "complete, only a fake of two"]);
}

#[tokio::test]
async fn an_error_costs_one_request() {
    let (bad, bad_responses) = request("fail", 1, 0);
    let (good, good_responses) = request("good", 1, 0);
    serve_all(vec![bad, good]).await;
    assert_eq!(transcript(bad_responses), ["error: the prompt could not be read: no such luck"]);
    assert_eq!(transcript(good_responses), ["step 1/1", "complete, only a fake of good"]);
}

#[tokio::test]
async fn a_panic_costs_one_request() {
    for (prompt, answers) in [("panic at begin", &[][..]), ("panic at step 2", &["step 1/5"][..])] {
        let (bad, bad_responses) = request(prompt, 5, 0);
        let (good, good_responses) = request("good", 1, 0);
        serve_all(vec![bad, good]).await;
        let mut lines = transcript(bad_responses);
        let last = lines.pop().unwrap();
        assert!(last.starts_with("error: the generation panicked: "), "{last}");
        assert_eq!(lines, answers);
        assert_eq!(transcript(good_responses).last().unwrap(), "complete, only a fake of good");
    }
}

#[tokio::test]
async fn a_client_that_is_gone_before_its_turn_never_reaches_the_pipeline() {
    let (gone, responses) = request("gone", 5, 0);
    drop(responses);
    let (cancelled, cancelled_responses) = request("cancelled", 5, 0);
    cancelled.cancellation.cancel();
    let (good, _good_responses) = request("good", 1, 0);
    let pipeline = serve_all(vec![gone, cancelled, good]).await;
    assert_eq!(*pipeline.begun.lock().unwrap(), ["good"]);
    assert_eq!(transcript(cancelled_responses), ["error: the request was cancelled"]);
}

#[tokio::test]
async fn what_comes_too_late_never_reaches_the_pipeline() {
    let (mut late, late_responses) = request("late", 5, 0);
    late.latest_start = Some(Instant::now());
    let (mut early, _early_responses) = request("early", 1, 0);
    early.latest_start = Some(Instant::now() + Duration::from_hours(1));
    let pipeline = serve_all(vec![late, early]).await;
    assert_eq!(*pipeline.begun.lock().unwrap(), ["early"]);
    assert_eq!(transcript(late_responses), ["error: its turn did not come in the time that the client waits"]);
}

#[tokio::test]
async fn a_cancelled_request_stops_at_its_next_step() {
    let (request, responses) = request("cancel at step 3", 100, 0);
    let pipeline = serve_all(vec![request]).await;
    assert_eq!(pipeline.steps.load(Ordering::SeqCst), 3);
    assert_eq!(transcript(responses), ["step 1/100", "step 2/100", "step 3/100", "error: the request was cancelled"]);
}

#[tokio::test]
async fn a_dropped_receiver_stops_the_request_at_its_next_step() {
    let (leaving, responses) = request("leave at step 3", 1000, 0);
    let (next, next_responses) = request("next", 1, 0);
    let pipeline = Arc::new(FakePipeline::with_client(responses));
    serve_all_with(&pipeline, vec![leaving, next]).await;
    assert_eq!(pipeline.steps.load(Ordering::SeqCst), 3 + 1, "three steps, and the one of the next request");
    assert_eq!(transcript(next_responses), ["step 1/1", "complete, only a fake of next"]);
}

#[tokio::test]
async fn a_client_that_leaves_in_the_last_step_costs_no_decoding() {
    let (leaving, responses) = request("leave at step 3", 3, 0);
    let pipeline = Arc::new(FakePipeline::with_client(responses));
    serve_all_with(&pipeline, vec![leaving]).await;
    assert_eq!(pipeline.finished.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn previews_are_spread_over_the_steps_and_never_after_the_last() {
    for (steps, previews, expected) in [
        (4, 3, vec!["step 1/4", "preview 0", "step 2/4", "preview 1", "step 3/4", "preview 2", "step 4/4"]),
        (5, 1, vec!["step 1/5", "step 2/5", "step 3/5", "preview 0", "step 4/5", "step 5/5"]),
        (2, 3, vec!["step 1/2", "preview 0", "preview 1", "step 2/2"]),
        (1, 3, vec!["step 1/1"]),
    ] {
        let (request, responses) = request("p", steps, previews);
        serve_all(vec![request]).await;
        let mut lines = transcript(responses);
        assert_eq!(lines.pop().unwrap(), "complete, only a fake of p");
        assert_eq!(lines, expected, "{steps} steps, {previews} previews");
    }
}

#[tokio::test]
async fn a_queue_without_engine_gives_the_request_back() {
    let (queue, receiver) = RequestQueue::new();
    drop(receiver);
    let (request, _responses) = request("late", 1, 0);
    assert_eq!(queue.add_request(request).unwrap_err().order.prompt.as_str(), "late");
}
