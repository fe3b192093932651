//! Streams: the order of events, previews, and an end in every case.

use serde_json::{Value, json};

use crate::support::{Worker, long, picture, small};

/// A stream as its client reads it: comments as they are, events by name and data.
pub(crate) async fn transcript(worker: &Worker, request: &Value) -> (Vec<String>, Vec<(String, Value)>) {
    let response = worker.post(request).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.text().await.unwrap();
    let (mut lines, mut events) = (Vec::new(), Vec::new());
    for block in text.split("\n\n").filter(|block| !block.is_empty()) {
        if let Some(comment) = block.strip_prefix(": ") {
            lines.push(format!("({})", comment.split(',').next().unwrap()));
            continue;
        }
        let (name, data) = block.split_once('\n').unwrap();
        let name = name.strip_prefix("event: ").unwrap().to_owned();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(data["type"], name.as_str());
        lines.push(name.clone());
        events.push((name, data));
    }
    (lines, events)
}

pub(crate) fn streamed(mut request: Value, fields: &Value) -> Value {
    request["stream"] = true.into();
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    request
}

#[tokio::test]
async fn a_stream_shows_progress_previews_and_the_picture() {
    let worker = Worker::ready(&[]);
    let request = streamed(json!({ "prompt": "a fox on a blue background", "seed": 1, "steps": 15 }), &json!({ "partial_images": 3 }));
    let (lines, events) = transcript(&worker, &request).await;
    insta::assert_snapshot!(lines.join("\n"));
    let mut single = request.clone();
    single["stream"] = false.into();
    let answer = worker.generate(&single).await;
    let (_, completed) = events.last().unwrap();
    assert_eq!(completed["b64_json"], answer["data"][0]["b64_json"], "the same picture as without a stream");
    let keys: Vec<&String> = completed.as_object().unwrap().keys().collect();
    insta::assert_json_snapshot!(keys);

    // The preview is made without the decoder, and resembles the picture.
    let whole = picture(completed).to_rgb8();
    let (_, last_preview) = &events[events.len() - 2];
    let preview = picture(last_preview).to_rgb8();
    assert_eq!(last_preview["size"], format!("{}x{}", preview.width(), preview.height()).as_str());
    assert_eq!(last_preview["partial_image_index"], 2);
    let small = image::imageops::resize(&whole, preview.width(), preview.height(), image::imageops::FilterType::Triangle);
    let likeness = correlation(&small, &preview);
    assert!(likeness > 0.85, "preview and picture correlate by {likeness} only");
}

/// Pearson's correlation over all values of all pixels.
fn correlation(a: &[u8], b: &[u8]) -> f64 {
    let mean = |values: &[u8]| values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let sum = |f: &dyn Fn(f64, f64) -> f64| a.iter().zip(b).map(|(a, b)| f(f64::from(*a) - mean_a, f64::from(*b) - mean_b)).sum::<f64>();
    sum(&|a, b| a * b) / (sum(&|a, _| a * a) * sum(&|_, b| b * b)).sqrt()
}

#[tokio::test]
async fn progress_comes_as_events_to_those_who_ask() {
    let worker = Worker::ready(&[]);
    let (lines, events) = transcript(&worker, &streamed(small("a fox"), &json!({ "progress": true }))).await;
    assert_eq!(lines, ["(accepted)", "image_generation.progress", "image_generation.progress", "image_generation.completed"]);
    let (_, first) = &events[0];
    assert_eq!((&first["step"], &first["total"]), (&1.into(), &2.into()));
    assert!(first["seconds_per_step"].as_f64().unwrap() > 0.0 && first["eta_ms"].is_u64());
}

/// nginx buffers an answer unless the answer's headers say otherwise.
#[tokio::test]
async fn no_proxy_keeps_a_stream_back() {
    let worker = Worker::ready(&[]);
    let answer = worker.generate(&small("a fox")).await;
    let edit = streamed(small("an owl"), &json!({ "image": answer["data"][0]["b64_json"] }));
    let variation = streamed(json!({ "image": answer["data"][0]["b64_json"], "steps": 2 }), &json!({}));
    let job = json!({ "operation": "image_generation", "prompt": "a fox", "steps": 1, "width": 64, "height": 64 });
    let post = |path: &str, body: &Value| reqwest::Client::new().post(worker.url(path)).json(body).send();
    let job: Value = post("/v1/jobs", &job).await.unwrap().json().await.unwrap();
    let streams = [
        ("/v1/images/generations", post("/v1/images/generations", &streamed(small("a fox"), &json!({}))).await.unwrap()),
        ("/v1/images/edits", post("/v1/images/edits", &edit).await.unwrap()),
        ("/v1/images/variations", post("/v1/images/variations", &variation).await.unwrap()),
        ("/v1/jobs/{id}/stream", worker.get(job["sse_url"].as_str().unwrap()).await),
    ];
    for (path, stream) in &streams {
        assert_eq!(stream.status(), 200, "{path}");
        for (name, value) in
            [("content-type", "text/event-stream"), ("x-accel-buffering", "no"), ("cache-control", "no-cache, no-transform")]
        {
            let values: Vec<_> = stream.headers().get_all(name).iter().collect();
            assert_eq!(values, [value], "{path}");
        }
    }
    // There are no other events.
    let api: Value = worker.get("/openapi.json").await.json().await.unwrap();
    let paths = api["paths"].as_object().unwrap().iter();
    let has_stream = |item: &Value| item.to_string().contains("text/event-stream");
    let described: Vec<&String> = paths.filter(|(_, item)| has_stream(item)).map(|(path, _)| path).collect();
    assert_eq!(described.len(), streams.len());
    assert!(streams.iter().all(|(path, _)| described.iter().any(|described| described == path)), "{described:?}");
}

#[tokio::test]
async fn several_pictures_end_with_a_completed_each() {
    let worker = Worker::ready(&[]);
    let (lines, events) = transcript(&worker, &streamed(small("a fox"), &json!({ "n": 2 }))).await;
    assert_eq!(
        lines,
        ["(accepted)", "(step 1/2)", "(step 2/2)", "image_generation.completed", "(step 1/2)", "(step 2/2)", "image_generation.completed"]
    );
    assert_eq!((&events[0].1["seed"], &events[1].1["seed"]), (&1.into(), &2.into()));
}

#[tokio::test]
async fn a_stream_that_is_cancelled_ends_with_an_error_event() {
    let mut worker = Worker::ready(&["--drain-timeout", "0"]);
    let client = reqwest::Client::new();
    let mut response = client.post(worker.url("/v1/images/generations")).json(&streamed(long("a fox"), &json!({}))).send().await.unwrap();
    let mut text = String::from_utf8(response.chunk().await.unwrap().unwrap().to_vec()).unwrap();
    worker.signal("TERM");
    while let Some(chunk) = response.chunk().await.unwrap() {
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    assert_eq!(
        last,
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"message\":\"this worker is shutting down\",\"type\":\"server_error\",\"param\":null,\"code\":\"shutting_down\"}}"
    );
    assert_eq!(worker.wait().code(), Some(0));
}

#[tokio::test]
async fn a_bad_request_is_refused_before_there_is_a_stream() {
    let worker = Worker::ready(&[]);
    let response = worker.post(&streamed(small("a fox"), &json!({ "n": 0 }))).await;
    assert_eq!(response.status(), 400);
    assert_eq!(response.headers()["content-type"], "application/json");
}

#[tokio::test]
async fn a_client_that_leaves_its_stream_stops_the_work() {
    let worker = Worker::ready(&[]);
    let mut response = worker.post(&streamed(long("a fox"), &json!({}))).await;
    while !String::from_utf8_lossy(&response.chunk().await.unwrap().unwrap()).contains("step") {}
    drop(response);
    worker.wait_for_metric("sdw_cancelled_total{reason=\"disconnect\"}", |value| value > 0.0).await;
    worker.generate(&small("the next one")).await;
}
