//! `POST /v1/images/generations`: the refusals.

use reqwest::Client;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Worker, long, small};

#[tokio::test]
async fn bad_requests_are_refused_with_the_reason() {
    let worker = Worker::ready(&["--max-pixels", "65536"]);
    let mut refusals = Vec::new();
    let long_prompt = "x".repeat(33_000);
    for (name, value) in [
        ("prompt", json!("")),
        ("prompt", json!(long_prompt)),
        ("prompt", json!(7)),
        ("prompt", json!(["a"; 17].join(" AND "))),
        ("prompt", Value::Null),
        ("negative_prompt", json!(long_prompt)),
        ("n", json!(0)),
        ("n", json!(11)),
        ("n", json!(1.5)),
        ("size", json!("100x100")),
        ("size", json!("big")),
        ("size", json!("64x-64")),
        ("size", json!("0x0")),
        ("size", json!("512x512")),
        ("size", json!("99999999999x64")),
        ("steps", json!(0)),
        ("steps", json!(1001)),
        ("num_inference_steps", json!("many")),
        ("guidance_scale", json!(-1)),
        ("cfg_scale", json!(51)),
        ("guidance_interval", json!([0.5])),
        ("guidance_interval", json!([0.8, 0.2])),
        ("guidance_interval", json!("all")),
        ("cache", json!({ "kind": "ucache", "interval": 3 })),
        ("cache", json!({ "kind": "deep" })),
        ("seed", json!(-2)),
        ("seed", json!(0.5)),
        ("sampler", json!("plms2")),
        ("schedule", json!("karras")),
        ("response_format", json!("uri")),
        ("output_format", json!("gif")),
        ("output_compression", json!(101)),
        ("clip_skip", json!(4)),
        ("partial_images", json!(4)),
        ("stream", json!("yes")),
    ] {
        let mut request = small("a fox");
        request[name] = value.clone();
        let response = worker.post(&request).await;
        assert_eq!(response.status(), 400, "{name} = {value}");
        let error = response.json::<Value>().await.unwrap()["error"].clone();
        assert_eq!(error["param"], name, "{error}");
        let shown = if value.to_string().len() > 100 { "\"xxx…\"".to_owned() } else { value.to_string() };
        refusals.push(format!("{name} = {shown} -> {} [{}]", error["message"].as_str().unwrap(), error["code"].as_str().unwrap()));
    }
    insta::assert_snapshot!(refusals.join("\n"));
    // An error repeats only the beginning of a wrong value.
    for name in ["size", "steps", "guidance_scale", "seed", "sampler", "schedule", "response_format", "output_format", "stream", "prompt"] {
        let mut request = small("a fox");
        request[name] = if name == "prompt" { json!(vec!["ü"; 5_000]) } else { json!("ü".repeat(5_000)) };
        let response = worker.post(&request).await;
        assert_eq!(response.status(), 400, "{name}");
        let error = response.text().await.unwrap();
        assert!(error.len() < 1_500, "{name}: {error}");
    }
    assert_eq!(worker.metric("sdw_requests_waiting").await.to_bits(), 0, "nothing of this was queued");
    assert_eq!(worker.metric("sdw_queue_seconds_count").await.to_bits(), 0);
}

/// Also for a stream, whose status is sent before the engine begins.
#[tokio::test]
async fn what_a_sampler_cannot_do_is_refused_before_it_is_queued() {
    let worker = Worker::ready(&[]);
    let request = json!({ "prompt": "a fox", "sampler": "lcm", "steps": 60, "stream": true, "operation": "image_generation" });
    for path in ["/v1/images/generations", "/v1/jobs"] {
        let refused = Client::new().post(worker.url(path)).json(&request).send().await.unwrap();
        assert_eq!(refused.status(), 400, "{path}");
        assert_eq!(refused.json::<Value>().await.unwrap()["error"]["param"], "steps", "{path}");
    }
    assert_eq!(worker.metric("sdw_queue_seconds_count").await.to_bits(), 0);
}

#[tokio::test]
async fn what_is_no_request_is_refused_in_the_same_form() {
    let worker = Worker::ready(&[]);
    let url = worker.url("/v1/images/generations");
    let post = |body: &'static str| Client::new().post(&url).header("content-type", "application/json").body(body);
    let mut refusals = Vec::new();
    for (name, request) in [
        ("broken JSON", post("{\"prompt\": ")),
        ("a number out of range", post("{\"prompt\": \"a\", \"guidance_scale\": 1e999}")),
        ("NaN", post("{\"prompt\": \"a\", \"guidance_scale\": NaN}")),
        ("something after the JSON", post("{\"prompt\": \"a\"} {}")),
        ("a list", post("[]")),
        ("no prompt", post("{}")),
        ("steps twice", post("{\"prompt\": \"a\", \"steps\": 2, \"num_inference_steps\": 3}")),
        ("no content type", Client::new().post(&url).body("{}")),
        ("no UTF-8", Client::new().post(&url).header("content-type", "application/json").body(&b"{\"prompt\": \"\xff\"}"[..])),
        ("no such route", Client::new().get(worker.url("/v2"))),
        ("wrong method", Client::new().get(&url)),
        ("a path that is no text", Client::new().get(worker.url("/v1/models/%ff"))),
    ] {
        let response = request.send().await.unwrap();
        assert!(response.headers().contains_key("x-request-id"), "{name}");
        let status = response.status();
        let error = response.json::<Value>().await.unwrap()["error"].clone();
        assert_eq!(error.as_object().unwrap().keys().collect::<Vec<_>>(), ["code", "message", "param", "type"], "{name}");
        refusals.push(format!("{name} -> {status} {error}"));
    }
    insta::assert_snapshot!(refusals.join("\n"));
}

/// As programs on Windows and compressing clients send it.
#[tokio::test]
async fn a_body_with_a_mark_is_read_and_one_that_is_encoded_is_told_so() {
    let worker = Worker::ready(&[]);
    let send = |path: &str, encoding: &str, body: Vec<u8>| {
        let request = Client::new().post(worker.url(path)).header("content-type", "application/json").body(body);
        if encoding.is_empty() { request.send() } else { request.header("content-encoding", encoding).send() }
    };
    let text = small("a fox").to_string();
    let marked = [b"\xef\xbb\xbf", text.as_bytes()].concat();
    assert_eq!(send("/v1/images/generations", "", marked.clone()).await.unwrap().status(), 200);
    assert_eq!(send("/v1/images/generations", "Identity", marked).await.unwrap().status(), 200);
    let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let refused = send("/v1/images/generations", "", [&b"\xff\xfe"[..], &utf16].concat()).await.unwrap();
    assert_eq!(refused.status(), 400);
    let message = refused.json::<Value>().await.unwrap()["error"]["message"].clone();
    assert_eq!(message, "the body is not valid JSON: it is in UTF-16, and must be in UTF-8");

    for path in ["/v1/images/generations", "/v1/images/edits", "/v1/jobs"] {
        let refused = send(path, "gzip", text.clone().into_bytes()).await.unwrap();
        assert_eq!(refused.status(), 415, "{path}");
        let error = refused.json::<Value>().await.unwrap()["error"].clone();
        assert_eq!(error["code"], "unsupported_content_encoding", "{path}");
        assert!(error["message"].as_str().unwrap().contains("not in the encoding \"gzip\""), "{error}");
    }
    let form = reqwest::multipart::Form::new().text("prompt", "a fox");
    let form = Client::new().post(worker.url("/v1/images/edits")).header("content-encoding", "br").multipart(form).send().await.unwrap();
    assert_eq!(form.status(), 415);
}

#[tokio::test]
async fn a_body_of_60_mb_is_refused_before_it_is_sent() {
    let worker = Worker::ready(&[]);
    let head = "POST /v1/images/generations HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: 60000000\r\n\r\n";
    let mut socket = tokio::net::TcpStream::connect(worker.address()).await.unwrap();
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.ends_with("{\"error\":{\"message\":\"the body must be at most 52428800 bytes\",\"type\":\"invalid_request_error\",\"param\":null,\"code\":\"body_too_large\"}}"), "{answer}");
}

#[tokio::test]
async fn more_pictures_than_the_queue_takes_are_refused_for_good() {
    let worker = Worker::ready(&["--queue-capacity", "3"]);
    let mut request = small("a fox");
    request["n"] = 4.into();
    let response = worker.post(&request).await;
    assert_eq!(response.status(), 400);
    assert_eq!(response.json::<Value>().await.unwrap()["error"]["message"], "n must be at most 3 on this worker");
}

#[tokio::test]
async fn requests_that_nobody_waits_for_still_count_until_the_engine_drops_them() {
    let worker = Worker::unlimited(&["--queue-capacity", "3"]);
    let mut slow = long("slow");
    slow["size"] = "1024x1024".into();
    let running = worker.start(&slow).await;
    for queue in [1.0, 2.0] {
        let queued = tokio::spawn(Client::new().post(worker.url("/v1/images/generations")).json(&small("gone")).send());
        worker.wait_for_metric("sdw_requests_waiting", |value| value >= queue).await;
        queued.abort();
    }
    assert_eq!(worker.post(&small("no room")).await.status(), 429);
    assert_eq!(worker.metric("sdw_requests_waiting").await.to_bits(), f64::to_bits(2.0));
    running.abort();
}

#[tokio::test]
async fn a_full_queue_refuses_and_a_client_that_goes_makes_room() {
    let worker = Worker::ready(&["--queue-capacity", "1"]);
    let running = worker.start(&long("a fox")).await;
    let refused = worker.post(&small("no room")).await;
    assert_eq!(refused.status(), 429);
    let wait: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=120).contains(&wait), "{wait}");
    let error = refused.json::<Value>().await.unwrap()["error"].clone();
    assert_eq!((&error["code"], &error["type"]), (&"queue_full".into(), &"rate_limit_error".into()));

    running.abort();
    worker.wait_for_metric("sdw_cancelled_total{reason=\"disconnect\"}", |value| value > 0.0).await;
    // The place is free once the engine has dropped the request, which is after it has counted it.
    while worker.post(&small("room again")).await.status() == 429 {}
    assert!(worker.metric("sdw_step_seconds_count").await < 1000.0, "the request that nobody waits for was not finished");
}
