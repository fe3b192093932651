//! What goes wrong in one request costs that request, and is told for what it is.

use serde_json::{Value, json};

use crate::fake::FakeWorker;

#[tokio::test]
async fn every_fault_is_a_typed_error_and_the_next_request_is_served() {
    let worker = FakeWorker::start(8).await;
    for (prompt, code) in [("panic", "internal_error"), ("nan", "not_a_number"), ("out of memory", "out_of_memory")] {
        let body = json!({ "prompt": prompt });
        let failed = worker.post("/v1/images/generations", &body).await;
        assert_eq!(failed.status(), 500);
        assert_eq!(failed.json::<Value>().await.unwrap()["error"]["code"], code);

        let streamed = json!({ "prompt": prompt, "stream": true });
        let text = worker.post("/v1/images/generations", &streamed).await.text().await.unwrap();
        let last = text.trim_end().rsplit("\n\n").next().unwrap();
        assert!(last.starts_with("event: error\n") && last.contains(code), "{last}");

        let job = json!({ "operation": "image_generation", "prompt": prompt });
        let job: Value = worker.post("/v1/jobs", &job).await.json().await.unwrap();
        let text = reqwest::get(worker.url(job["sse_url"].as_str().unwrap())).await.unwrap().text().await.unwrap();
        assert!(text.trim_end().rsplit("\n\n").next().unwrap().starts_with("data: [ERROR] "), "{text}");

        assert_eq!(worker.post("/v1/images/generations", &json!({ "prompt": "a fox" })).await.status(), 200);
    }
    worker.admission.idle().await;
}

#[tokio::test]
async fn an_engine_that_does_not_move_is_found_out() {
    let worker = FakeWorker::start(8).await;
    let alive = async || reqwest::get(worker.url("/livez")).await.unwrap();
    assert_eq!(alive().await.status(), 200, "with nothing to do there is nothing to move for");
    let gate = worker.pipeline.gate.clone();
    let held = std::thread::spawn(move || {
        let (held, wait) = (gate.lock().unwrap(), std::thread::park);
        wait();
        drop(held);
    });
    while worker.pipeline.gate.try_lock().is_ok() {}
    let body = json!({ "prompt": "hang" });
    let hanging = reqwest::Client::new().post(worker.url("/v1/images/generations")).json(&body).send();
    let hanging = tokio::spawn(hanging);
    let stalled = loop {
        let answer = alive().await;
        if answer.status() != 200 {
            break answer;
        }
    };
    assert_eq!(stalled.status(), 503);
    assert_eq!(stalled.json::<Value>().await.unwrap()["error"]["code"], "engine_stalled");
    held.thread().unpark();
    assert_eq!(hanging.await.unwrap().unwrap().status(), 200);
    while alive().await.status() != 200 {}
}
