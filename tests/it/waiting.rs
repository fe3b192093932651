//! Clients that wait for a limited time, repeat a request, or leave.

use std::time::Duration;

use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};

use crate::{
    fake::{FakeWorker, SLOW_STEP},
    support::{Worker, long, small},
};

fn request(worker: &Worker, body: &Value) -> RequestBuilder {
    Client::new().post(worker.url("/v1/images/generations")).json(body)
}

/// Until a step is measured, it counts as half a second for 512 x 512 with guidance.
#[tokio::test]
async fn work_is_counted_by_what_the_network_is_asked() {
    for (running, seconds) in [
        (json!({ "guidance_scale": 4 }), "6"),
        (json!({ "guidance_scale": 1 }), "3"),
        (json!({ "sampler": "heun" }), "10"),
        (json!({ "sampler": "heun", "prompt": "hang AND a fox AND a pizza" }), "20"),
        (json!({ "n": 2 }), "11"),
    ] {
        let worker = FakeWorker::start(2).await;
        let held = worker.hold();
        let mut body = json!({ "prompt": "hang", "size": "512x512", "steps": 10 });
        body.as_object_mut().unwrap().extend(running.as_object().unwrap().clone());
        let request = worker.begin(worker.request(&body)).await;
        let refused = worker.post("/v1/images/generations", &json!({ "prompt": "a fox", "n": 2 })).await;
        assert_eq!((refused.status().as_u16(), refused.headers()["retry-after"].to_str().unwrap()), (429, seconds), "{running}");
        drop(held);
        assert_eq!(request.await.unwrap().unwrap().status(), 200);
    }
}

#[tokio::test]
async fn a_request_that_is_sent_again_joins_the_first() {
    let worker = Worker::ready(&[]);
    let body = json!({ "prompt": "a fox", "steps": 100, "size": "64x64" });
    let send = |key: (&'static str, &'static str)| {
        let request = request(&worker, &body).header(key.0, key.1).header("x-stainless-retry-count", "0");
        async { request.send().await.unwrap().json::<Value>().await.unwrap() }
    };
    let (first, second) = tokio::join!(send(("idempotency-key", "a")), send(("idempotency-key", "a")));
    assert_eq!(first, second, "without a seed, only the same picture is the same");
    assert_eq!(send(("idempotency-key", "a")).await, first, "also when it is finished");
    assert_ne!(send(("idempotency-key", "b")).await["data"], first["data"]);
    let named = send(("x-request-id", "req-7")).await;
    assert_eq!(send(("x-request-id", "req-7")).await, named);
    assert_eq!(worker.metric("sdw_images_total").await as u32, 3);

    let other = request(&worker, &small("a pizza")).header("idempotency-key", "a").send().await.unwrap();
    assert_eq!(other.status(), 422);
    assert_eq!(other.json::<Value>().await.unwrap()["error"]["code"], "idempotency_key_reused");
}

/// The measured steps take [`SLOW_STEP`] or longer.
#[tokio::test]
async fn a_client_whose_deadline_cannot_be_met_is_refused_at_once() {
    let worker = FakeWorker::start(8).await;
    assert_eq!(worker.request(&json!({ "prompt": "slow", "steps": 2 })).send().await.unwrap().status(), 200);
    let held = worker.hold();
    let running = worker.begin(worker.request(&json!({ "prompt": "hang", "steps": 1000 }))).await;
    let long = json!({ "prompt": "a fox", "steps": 1000 });
    for header in [("x-request-timeout-ms", "1"), ("x-stainless-read-timeout", "0.001"), ("x-stainless-timeout", "0.001")] {
        let refused = worker.request(&long).header(header.0, header.1).send().await.unwrap();
        assert_eq!(refused.status(), 429, "{header:?}");
        assert_eq!(refused.headers()["x-should-retry"], "false", "it takes longer than that even alone");
        let error = refused.json::<Value>().await.unwrap()["error"].clone();
        assert_eq!(error["code"], "would_time_out");
        assert!(error["message"].as_str().unwrap().starts_with("the client waits 0.0 s, but its turn comes in about "), "{error}");
    }
    // Here the other requests take too long, so the client may come back.
    let deadline = (900 * SLOW_STEP).as_millis().to_string();
    let short = worker.request(&json!({ "prompt": "a fox", "steps": 1 }));
    let refused = short.header("x-request-timeout-ms", deadline).send().await.unwrap();
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after") && !refused.headers().contains_key("x-should-retry"));
    assert_eq!(worker.begun(), ["slow", "hang"], "nothing was queued that was refused");
    drop(held);
    assert_eq!(running.await.unwrap().unwrap().status(), 200);
    let patient = worker.request(&long).header("x-stainless-read-timeout", "6000").send().await.unwrap();
    assert_eq!(patient.status(), 200);
}

#[tokio::test]
async fn what_has_not_begun_when_its_client_stops_waiting_is_dropped() {
    let worker = FakeWorker::start(8).await;
    let held = worker.hold();
    // No step is measured yet, so the worker cannot tell how long others take.
    let running = worker.begin(worker.request(&json!({ "prompt": "hang" }))).await;
    let late = worker.request(&json!({ "prompt": "late" })).header("x-request-timeout-ms", "50").send();
    let job = json!({ "operation": "image_generation", "prompt": "late" });
    let job = Client::new().post(worker.url("/v1/jobs")).json(&job).header("x-request-timeout-ms", "50").send();
    let (late, job) = tokio::join!(late, job);
    let late = late.unwrap();
    assert_eq!(late.status(), 504);
    let error = late.json::<Value>().await.unwrap()["error"].clone();
    assert_eq!((&error["code"], &error["type"]), (&"timed_out".into(), &"server_error".into()));
    let job: Value = job.unwrap().json().await.unwrap();
    let events = reqwest::get(worker.url(job["sse_url"].as_str().unwrap())).await.unwrap().text().await.unwrap();
    assert!(events.trim_end().ends_with("data: [ERROR] its turn did not come in the time that the client waits"), "{events}");
    // Both clients were told while the engine hung.
    drop(held);
    assert_eq!(running.await.unwrap().unwrap().status(), 200);
    worker.admission.idle().await;
    assert_eq!(worker.begun(), ["hang"]);
}

#[tokio::test]
async fn what_has_begun_in_time_is_finished() {
    let worker = FakeWorker::start(8).await;
    let (held, deadline) = (worker.hold(), Duration::from_secs(2));
    let several = worker.request(&json!({ "prompt": "hang", "n": 3 })).header("x-request-timeout-ms", deadline.as_millis().to_string());
    let several = worker.begin(several).await;
    tokio::time::sleep(deadline).await;
    drop(held);
    let answer = several.await.unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.json::<Value>().await.unwrap()["data"].as_array().unwrap().len(), 3, "those that follow have begun with the first");
}

#[tokio::test]
async fn a_client_that_times_out_finds_its_picture_when_it_asks_again() {
    let worker = FakeWorker::start(8).await;
    let held = worker.hold();
    let request = || worker.request(&json!({ "prompt": "hang", "seed": 7 })).header("idempotency-key", "a");
    let first = worker.begin(request()).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    let second = tokio::spawn(request().send());
    drop(held);
    assert_eq!(second.await.unwrap().unwrap().status(), 200);
    assert_eq!(worker.begun(), ["hang"], "it is the same work");
}

#[tokio::test]
async fn a_client_that_goes_may_want_its_work_finished() {
    let worker = FakeWorker::start(8).await;
    let mut body = json!({ "prompt": "slow", "steps": 50, "on_disconnect": "finish" });
    let running = worker.begin(worker.request(&body)).await;
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    worker.admission.idle().await;
    assert_eq!(worker.finished(), ["slow"]);
    body["on_disconnect"] = "explode".into();
    assert_eq!(worker.request(&body).send().await.unwrap().status(), 400);
}

/// The step takes seconds, and is cancelled in its middle.
#[tokio::test]
async fn a_cancelled_step_does_not_run_to_its_end() {
    let worker = Worker::unlimited(&[]);
    let mut slow = long("a fox");
    slow["size"] = "1024x1024".into();
    for _ in 0..3 {
        let running = worker.start(&slow).await;
        running.abort();
        worker.wait_for_metric("sdw_requests_running", |value| value < 1.0).await;
    }
    assert_eq!(worker.metric("sdw_step_seconds_count").await.to_bits(), 0, "no step was finished");
    assert_eq!(worker.metric("sdw_cancelled_total{reason=\"disconnect\"}").await as u32, 3);
}
