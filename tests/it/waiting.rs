//! Clients that are in a hurry, that ask again, or that leave.

use std::time::Instant;

use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};

use crate::{
    fake::FakeWorker,
    support::{Worker, long, small, steps},
};

fn request(worker: &Worker, body: &Value) -> RequestBuilder {
    Client::new().post(worker.url("/v1/images/generations")).json(body)
}

#[tokio::test]
async fn who_would_not_wait_long_enough_is_told_at_once() {
    let worker = Worker::ready(&[]);
    worker.generate(&small("a first one, to measure by")).await;
    let running = worker.start(&long("a fox")).await;
    for header in [("x-request-timeout-ms", "1"), ("x-stainless-read-timeout", "0.001"), ("x-stainless-timeout", "0.001")] {
        let refused = request(&worker, &long("another")).header(header.0, header.1).send().await.unwrap();
        assert_eq!(refused.status(), 429, "{header:?}");
        assert_eq!(refused.headers()["x-should-retry"], "false", "it takes longer than that even alone");
        let error = refused.json::<Value>().await.unwrap()["error"].clone();
        assert_eq!(error["code"], "would_time_out");
        assert!(error["message"].as_str().unwrap().starts_with("the client waits 0.0 s, but its turn comes in about "), "{error}");
    }
    // It is the others that take too long: there is a point in coming back.
    let refused = request(&worker, &small("short")).header("x-request-timeout-ms", "500").send().await.unwrap();
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after") && !refused.headers().contains_key("x-should-retry"));
    running.abort();
    let patient = request(&worker, &small("patient")).header("x-stainless-read-timeout", "600").send().await.unwrap();
    assert_eq!(patient.status(), 200);
    assert!(worker.metric("sdw_rejected_total{reason=\"would_time_out\"}").await >= 3.0);
}

/// Until a step has been measured, it is taken for half a second, for 512 x 512 with guidance.
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
        let request = Client::new().post(worker.url("/v1/images/generations")).json(&body).send();
        let request = tokio::spawn(request);
        while !worker.admission.is_busy() {
            tokio::task::yield_now().await;
        }
        let refused = worker.post("/v1/images/generations", &json!({ "prompt": "a fox", "n": 2 })).await;
        assert_eq!((refused.status().as_u16(), refused.headers()["retry-after"].to_str().unwrap()), (429, seconds), "{running}");
        drop(held);
        assert_eq!(request.await.unwrap().unwrap().status(), 200);
    }
}

#[tokio::test]
async fn what_has_not_begun_when_its_client_stops_waiting_is_dropped() {
    let worker = Worker::unlimited(&[]);
    let mut slow = long("slow");
    slow["size"] = "1024x1024".into();
    // Until its first step is done, nothing is known of how long others take.
    let running = worker.start(&slow).await;
    let late = request(&worker, &small("late")).header("x-request-timeout-ms", "50").send();
    let job = json!({ "operation": "image_generation", "prompt": "late", "steps": 2, "width": 64, "height": 64 });
    let job = Client::new().post(worker.url("/v1/jobs")).json(&job).header("x-request-timeout-ms", "50").send();
    let (late, job) = tokio::join!(late, job);
    let late = late.unwrap();
    assert_eq!(late.status(), 504);
    let error = late.json::<Value>().await.unwrap()["error"].clone();
    assert_eq!((&error["code"], &error["type"]), (&"timed_out".into(), &"server_error".into()));
    let job: Value = job.unwrap().json().await.unwrap();
    let events = worker.get(job["sse_url"].as_str().unwrap()).await.text().await.unwrap();
    assert!(events.trim_end().ends_with("data: [ERROR] its turn did not come in the time that the client waits"), "{events}");
    assert_eq!(worker.metric("sdw_step_seconds_count").await.to_bits(), 0, "they were told while the first one was in its first step");
    running.abort();
    worker.wait_for_metric("sdw_cancelled_total{reason=\"deadline\"}", |value| value > 1.0).await;
    assert_eq!(worker.metric("sdw_images_total").await.to_bits(), 0);
}

#[tokio::test]
async fn what_has_begun_in_time_is_finished() {
    let worker = Worker::ready(&[]);
    let mut several = steps("a fox", 100);
    several["n"] = 3.into();
    let answer = request(&worker, &several).header("x-request-timeout-ms", "100").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let timings = answer.json::<Value>().await.unwrap()["timings"].clone();
    assert!(timings["total_ms"].as_u64().unwrap() > 100, "{timings}");
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

#[tokio::test]
async fn a_client_that_times_out_finds_its_picture_when_it_asks_again() {
    let worker = Worker::ready(&[]);
    let body = steps("a fox", 300);
    let first = tokio::spawn(request(&worker, &body).header("idempotency-key", "a").send());
    worker.wait_for_metric("sdw_requests_running", |value| value > 0.0).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    let second = request(&worker, &body).header("idempotency-key", "a").send().await.unwrap();
    assert_eq!(second.status(), 200);
    assert_eq!(worker.metric("sdw_step_seconds_count").await as u32, 300, "not one step was done twice");
}

#[tokio::test]
async fn a_client_that_goes_may_want_its_work_finished() {
    let worker = Worker::ready(&[]);
    let mut body = steps("a fox", 100);
    body["on_disconnect"] = "finish".into();
    let running = worker.start(&body).await;
    running.abort();
    worker.wait_for_metric("sdw_images_total", |value| value > 0.0).await;
    body["on_disconnect"] = "explode".into();
    assert_eq!(worker.post(&body).await.status(), 400);
}

/// How long the pipeline goes on when it is told to stop in the middle of a step that takes much longer.
#[tokio::test]
async fn a_cancelled_step_does_not_run_to_its_end() {
    let worker = Worker::unlimited(&[]);
    let mut slow = long("a fox");
    slow["size"] = "1024x1024".into();
    let mut waits = Vec::new();
    for _ in 0..3 {
        let running = worker.start(&slow).await;
        let started = Instant::now();
        running.abort();
        worker.wait_for_metric("sdw_requests_running", |value| value < 1.0).await;
        waits.push(started.elapsed());
    }
    println!("idle after {waits:?}");
    assert_eq!(worker.metric("sdw_step_seconds_count").await.to_bits(), 0, "no step was finished");
    assert_eq!(worker.metric("sdw_cancelled_total{reason=\"disconnect\"}").await as u32, 3);
}
