//! `/v1/jobs`: submit, follow, come back, fetch, cancel.

use std::time::{Duration, Instant};

use reqwest::{Client, Method, Response};
use serde_json::{Value, json};

use crate::support::{Worker, bytes, picture, small};

/// A job that takes long enough to be observed while it runs.
fn long_job() -> Value {
    json!({ "operation": "image_generation", "prompt": "a fox", "steps": 1000, "width": 64, "height": 64 })
}

fn short_job() -> Value {
    json!({
        "operation": "image_generation", "prompt": "a fox", "steps": 2, "seed": 1, "width": 64, "height": 64, "guidance_scale": 4,
        "sampler": "ddim", "schedule": "default", "hive_id": "hive-1", "worker_id": "worker-1", "loras": []
    })
}

async fn submit(worker: &Worker, job: &Value) -> String {
    let response = send(worker, Method::POST, "/v1/jobs", job).await;
    assert_eq!(response.status(), 200);
    let answer: Value = response.json().await.unwrap();
    let id = answer["job_id"].as_str().unwrap().to_owned();
    assert!(id.starts_with("job-"), "{id}");
    assert_eq!(answer["sse_url"], format!("/v1/jobs/{id}/stream"));
    id
}

async fn send(worker: &Worker, method: Method, path: &str, body: &Value) -> Response {
    Client::new().request(method, worker.url(path)).json(body).send().await.unwrap()
}

async fn state(worker: &Worker, id: &str) -> Value {
    worker.get(&format!("/v1/jobs/{id}")).await.json().await.unwrap()
}

async fn wait_for_state(worker: &Worker, id: &str, status: &str) -> Value {
    loop {
        let state = state(worker, id).await;
        if state["status"] == status {
            return state;
        }
        assert!(["queued", "running"].contains(&state["status"].as_str().unwrap()), "{state}");
    }
}

async fn cancel(worker: &Worker, id: &str) -> (u16, Value) {
    let response = send(worker, Method::DELETE, &format!("/v1/jobs/{id}"), &json!({})).await;
    (response.status().as_u16(), response.json().await.unwrap())
}

/// The numbers and the data of a stream, read line by line as orchestrators do.
async fn lines(response: Response) -> (Vec<u64>, Vec<String>) {
    assert_eq!(response.status(), 200);
    let text = response.text().await.unwrap();
    let of = |field: &str| text.lines().filter_map(|line| line.strip_prefix(field).map(str::to_owned)).collect::<Vec<_>>();
    (of("id: ").iter().map(|id| id.parse().unwrap()).collect(), of("data: "))
}

async fn stream(worker: &Worker, id: &str) -> (Vec<u64>, Vec<String>) {
    lines(worker.get(&format!("/v1/jobs/{id}/stream")).await).await
}

#[tokio::test]
async fn a_job_is_followed_left_and_found_again() {
    let worker = Worker::ready(&[]);
    let mut job = short_job();
    job["partial_images"] = 1.into();
    let id = submit(&worker, &job).await;
    let (ids, data) = stream(&worker, &id).await;
    assert_eq!(ids, [0, 1, 2, 3]);
    let (marker, events) = data.split_last().unwrap();
    assert_eq!(marker, "[DONE]");
    let events: Vec<Value> = events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    assert_eq!(events[0], json!({ "type": "progress", "step": 1, "total": 2, "percent": 50.0 }));
    assert_eq!((&events[1]["type"], &events[1]["step"], &events[1]["format"]), (&"preview".into(), &1.into(), &"png".into()));
    assert_eq!(events[2], json!({ "type": "progress", "step": 2, "total": 2, "percent": 100.0 }));
    let complete = &events[3];
    assert_eq!((&complete["type"], &complete["seed"]), (&"complete".into(), &1.into()));
    assert_eq!((&complete["width"], &complete["height"], &complete["format"]), (&64.into(), &64.into(), &"png".into()));
    assert!(complete["timings"]["total_ms"].is_u64());
    assert_eq!(complete["ignored"], json!([]));

    // The same stream again from its beginning, without the preview, which has been dropped; and from where a client left it.
    let without_preview = |data: &[String]| data.iter().filter(|event| !event.contains("\"preview\"")).cloned().collect::<Vec<_>>();
    assert_eq!(stream(&worker, &id).await.1, without_preview(&data));
    let url = worker.url(&format!("/v1/jobs/{id}/stream"));
    let back = |last: &'static str| Client::new().get(&url).header("last-event-id", last).send();
    assert_eq!(lines(back("1").await.unwrap()).await, (vec![2, 3], data[2..].to_vec()), "the preview has the number 1");
    assert_eq!(lines(back("3").await.unwrap()).await, (vec![], vec!["[DONE]".to_owned()]));

    // The same answer as from the generations route.
    let result: Value = worker.get(&format!("/v1/jobs/{id}/result")).await.json().await.unwrap();
    let asked = worker.generate(&small("a fox")).await;
    assert_eq!(result["data"], asked["data"]);
    assert_eq!(result["data"][0]["b64_json"], complete["image"]);
    assert_eq!(result["parameters"], asked["parameters"]);
    assert_eq!(picture(&result["data"][0]).width(), 64);
    let state = state(&worker, &id).await;
    assert_eq!((&state["status"], &state["error"]), (&"completed".into(), &Value::Null));
    assert_eq!(state["progress"], json!({ "step": 2, "total": 2, "percent": 100.0 }));
}

#[tokio::test]
async fn a_stream_that_is_opened_while_the_job_runs_shows_all_of_it() {
    let worker = Worker::ready(&[]);
    let mut job = short_job();
    job["steps"] = 200.into();
    let id = submit(&worker, &job).await;
    wait_for_state(&worker, &id, "running").await;
    let (early, late) = tokio::join!(stream(&worker, &id), stream(&worker, &id));
    assert_eq!(early, late);
    assert_eq!(early.0, (0..201).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_job_without_settings_has_those_of_the_contract() {
    let worker = Worker::ready(&[]);
    let id = submit(&worker, &json!({ "operation": "image_generation", "prompt": "a fox", "width": 64, "height": 72 })).await;
    assert_eq!(stream(&worker, &id).await.1.last().unwrap(), "[DONE]");
    let result: Value = worker.get(&format!("/v1/jobs/{id}/result")).await.json().await.unwrap();
    let parameters = &result["parameters"];
    assert_eq!((&parameters["steps"], &parameters["guidance_scale"]), (&20.into(), &7.5.into()));
    assert_eq!(result["size"], "64x72");
}

#[tokio::test]
async fn a_running_job_and_a_waiting_one_are_cancelled() {
    let worker = Worker::ready(&[]);
    let running = submit(&worker, &long_job()).await;
    wait_for_state(&worker, &running, "running").await;
    let waiting = submit(&worker, &long_job()).await;
    assert_eq!(state(&worker, &waiting).await["status"], "queued");
    assert_eq!(worker.get(&format!("/v1/jobs/{waiting}/result")).await.status(), 409);
    for id in [&waiting, &running] {
        let open = worker.get(&format!("/v1/jobs/{id}/stream")).await;
        assert_eq!(cancel(&worker, id).await, (200, json!({ "job_id": id, "status": "cancelled" })));
        let (_, data) = lines(open).await;
        assert_eq!(data.last().unwrap(), "[CANCELLED]");
        assert_eq!(state(&worker, id).await["error"]["code"], "cancelled");
        assert_eq!(worker.get(&format!("/v1/jobs/{id}/result")).await.status(), 410);
        let (status, error) = cancel(&worker, id).await;
        assert_eq!((status, &error["error"]["code"]), (404, &"job_over".into()), "a second time there is nothing to cancel");
    }
    worker.wait_for_metric("sdw_cancelled_total{reason=\"cancelled\"}", |value| value > 1.0).await;
    // The waiting job never reached the pipeline: the next one finds an empty queue.
    let next = submit(&worker, &short_job()).await;
    wait_for_state(&worker, &next, "completed").await;
    assert!(worker.metric("sdw_step_seconds_count").await < 1000.0);
}

#[tokio::test]
async fn a_job_goes_on_when_nobody_follows_it() {
    let worker = Worker::ready(&[]);
    let mut job = short_job();
    job["steps"] = 100.into();
    let id = submit(&worker, &job).await;
    let mut open = worker.get(&format!("/v1/jobs/{id}/stream")).await;
    open.chunk().await.unwrap();
    drop(open);
    wait_for_state(&worker, &id, "completed").await;
}

#[tokio::test]
async fn results_are_kept_for_a_time_and_only_so_many() {
    let worker = Worker::ready(&["--max-results", "2"]);
    let mut ids = Vec::new();
    for _ in 0..3 {
        let id = submit(&worker, &short_job()).await;
        stream(&worker, &id).await;
        ids.push(id);
    }
    let found = |id: &str| format!("/v1/jobs/{id}/result");
    assert_eq!(worker.get(&found(&ids[0])).await.status(), 404, "the oldest went");
    assert_eq!(worker.get(&found(&ids[1])).await.status(), 200);
    assert_eq!(worker.get(&found(&ids[2])).await.status(), 200);

    let forgetful = Worker::ready(&["--keep-results", "0"]);
    let id = submit(&forgetful, &long_job()).await;
    let open = forgetful.get(&format!("/v1/jobs/{id}/stream")).await;
    cancel(&forgetful, &id).await;
    assert_eq!(lines(open).await.1.last().unwrap(), "[CANCELLED]", "a stream that is open is not cut");
    assert_eq!(forgetful.get(&format!("/v1/jobs/{id}")).await.status(), 404);
}

#[tokio::test]
async fn results_expire() {
    let keep = Duration::from_secs(2);
    let worker = Worker::ready(&["--keep-results", &keep.as_secs().to_string()]);
    let started = Instant::now();
    let id = submit(&worker, &short_job()).await;
    stream(&worker, &id).await;
    while worker.get(&format!("/v1/jobs/{id}/result")).await.status() == 200 {
        assert!(started.elapsed() < Duration::from_mins(1), "it is kept for ever");
    }
    assert!(started.elapsed() >= keep, "it is gone after {:?}", started.elapsed());
    assert_eq!(worker.get(&format!("/v1/jobs/{id}")).await.status(), 404);
}

#[tokio::test]
async fn results_are_kept_as_long_as_they_have_so_many_bytes_and_no_more() {
    let mut job = short_job();
    (job["width"], job["height"], job["partial_images"]) = (128.into(), 128.into(), 3.into());
    let worker = Worker::ready(&[]);
    let id = submit(&worker, &job).await;
    stream(&worker, &id).await;
    let result: Value = worker.get(&format!("/v1/jobs/{id}/result")).await.json().await.unwrap();
    // Without previews, each of which is as large as the picture.
    let limit = bytes(&result["data"][0]).len() * 5 / 2;

    let worker = Worker::ready(&["--max-result-bytes", &limit.to_string()]);
    let mut ids = Vec::new();
    for _ in 0..4 {
        let id = submit(&worker, &job).await;
        stream(&worker, &id).await;
        ids.push(id);
    }
    let mut kept = Vec::new();
    for id in &ids {
        kept.push(worker.get(&format!("/v1/jobs/{id}/result")).await.status().as_u16());
    }
    assert_eq!(kept, [404, 404, 200, 200]);
    let worker = Worker::ready(&["--max-result-bytes", "0"]);
    let id = submit(&worker, &job).await;
    stream(&worker, &id).await;
    assert_eq!(worker.get(&format!("/v1/jobs/{id}/result")).await.status(), 200, "the newest is kept whatever it has");
}

#[tokio::test]
async fn a_stopping_worker_ends_the_streams_of_its_jobs() {
    let mut worker = Worker::ready(&["--drain-timeout", "0"]);
    let id = submit(&worker, &long_job()).await;
    let open = worker.get(&format!("/v1/jobs/{id}/stream")).await;
    worker.signal("TERM");
    let (_, data) = lines(open).await;
    assert_eq!(data.last().unwrap(), "[ERROR] this worker is shutting down");
    assert!(data[data.len() - 2].contains(r#""type":"error""#) && data[data.len() - 2].contains("shutting_down"));
    assert_eq!(worker.wait().code(), Some(0));
}

#[tokio::test]
async fn jobs_that_cannot_be_done_are_refused_with_the_reason() {
    let worker = Worker::ready(&["--queue-capacity", "1"]);
    let mut refusals = Vec::new();
    for job in [
        json!({ "operation": "image_transform", "prompt": "a fox", "input_image": "AAAA", "strength": 0.8 }),
        json!({ "operation": "image_inpaint", "prompt": "a fox", "init_image": "AAAA", "mask_image": "AAAA" }),
        json!({ "operation": "image_upscale", "prompt": "a fox" }),
        json!({ "prompt": "a fox" }),
        json!({ "operation": "image_generation" }),
        json!({ "operation": "image_generation", "prompt": "a fox", "steps": 0 }),
        json!({ "operation": "image_generation", "prompt": "a fox", "width": 65 }),
        json!({ "operation": "image_generation", "prompt": "a fox", "height": -8 }),
        json!({ "operation": "image_generation", "prompt": "a fox", "loras": [{ "path": "a.safetensors" }] }),
        json!([]),
    ] {
        let response = send(&worker, Method::POST, "/v1/jobs", &job).await;
        let status = response.status().as_u16();
        let error = response.json::<Value>().await.unwrap()["error"].clone();
        refusals.push(format!("{job} -> {status} {error}"));
    }
    insta::assert_snapshot!(refusals.join("\n"));

    let busy = submit(&worker, &long_job()).await;
    let full = send(&worker, Method::POST, "/v1/jobs", &short_job()).await;
    assert_eq!(full.status(), 429);
    assert!(full.headers().contains_key("retry-after"));
    cancel(&worker, &busy).await;
    for (method, path) in [(Method::GET, ""), (Method::GET, "/stream"), (Method::GET, "/result"), (Method::DELETE, "")] {
        let missing = send(&worker, method, &format!("/v1/jobs/job-none{path}"), &json!({})).await;
        assert_eq!(missing.status(), 404);
        assert_eq!(missing.json::<Value>().await.unwrap()["error"]["code"], "job_not_found");
    }
}

#[tokio::test]
async fn a_job_that_is_sent_again_is_the_same_job() {
    let worker = Worker::ready(&[]);
    let submit = async |job: &Value| {
        let request = Client::new().post(worker.url("/v1/jobs")).header("idempotency-key", "a").json(job);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let first = submit(&long_job()).await;
    assert_eq!((first.0, &submit(&long_job()).await), (200, &first));
    assert_eq!(submit(&short_job()).await.0, 422);
    let id = first.1["job_id"].as_str().unwrap();
    assert_eq!(send(&worker, Method::DELETE, &format!("/v1/jobs/{id}"), &Value::Null).await.status(), 200);
    let again = submit(&long_job()).await;
    assert!(again.0 == 200 && again.1["job_id"] != id, "what went wrong is done again: {again:?}");
}
