//! Spans for a collector of OpenTelemetry. Only in a build with the feature `otlp`.

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use reqwest::Client;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};

use crate::support::{Worker, binary, small};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

type Batches = UnboundedReceiver<(HeaderMap, Bytes)>;

/// A collector that passes on what it receives.
async fn collector() -> (String, Batches) {
    async fn take(State(batches): State<UnboundedSender<(HeaderMap, Bytes)>>, headers: HeaderMap, body: Bytes) -> StatusCode {
        let _ = batches.send((headers, body));
        StatusCode::OK
    }
    let (sender, batches) = unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(axum::serve(listener, Router::new().route("/v1/traces", post(take)).with_state(sender)).into_future());
    (url, batches)
}

fn worker(protocol: &str, endpoint: &str) -> Worker {
    let mut command = binary();
    command.env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol).env("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=me");
    let mut worker = Worker::listening_as(command, &["--otlp-endpoint", endpoint]);
    assert_eq!(worker.event()["event"], "ready");
    worker
}

async fn generate(worker: &Worker, prompt: &str, traceparent: Option<String>) {
    let request = Client::new().post(worker.url("/v1/images/generations")).header("x-request-id", "req-7").json(&small(prompt));
    let request = traceparent.into_iter().fold(request, |request, header| request.header("traceparent", header));
    assert_eq!(request.send().await.unwrap().status(), 200);
}

/// Ends the worker, which sends the remaining spans, and reads everything received: resources, and all spans.
fn spans(mut worker: Worker, batches: &mut Batches) -> (Value, Vec<Value>) {
    worker.signal("TERM");
    assert_eq!(worker.wait().code(), Some(0));
    let (mut resource, mut spans) = (Value::Null, Vec::new());
    while let Ok((headers, body)) = batches.try_recv() {
        assert_eq!((&headers["content-type"], &headers["x-tenant"]), (&"application/json".parse().unwrap(), &"me".parse().unwrap()));
        let batch: Value = serde_json::from_slice(&body).unwrap();
        for part in batch["resourceSpans"].as_array().unwrap() {
            resource = part["resource"].clone();
            spans.extend(part["scopeSpans"].as_array().unwrap().iter().flat_map(|scope| scope["spans"].as_array().unwrap().clone()));
        }
    }
    (resource, spans)
}

fn attribute<'a>(item: &'a Value, key: &str) -> &'a Value {
    let found = item["attributes"].as_array().unwrap().iter().find(|attribute| attribute["key"] == key);
    found.map_or(&Value::Null, |attribute| attribute["value"].as_object().unwrap().values().next().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_a_part_of_its_callers_trace() {
    let (url, mut batches) = collector().await;
    let worker = worker("http/json", &url);
    generate(&worker, "a secret fox", Some(format!("00-{TRACE}-{CALLER}-01"))).await;
    let (resource, spans) = spans(worker, &mut batches);
    assert_eq!(attribute(&resource, "service.name"), "sd-worker");
    assert_eq!(attribute(&resource, "service.version"), env!("CARGO_PKG_VERSION"));

    let of_the_trace: Vec<&Value> = spans.iter().filter(|span| span["traceId"] == TRACE).collect();
    let named = |name: &str| of_the_trace.iter().copied().filter(|span| span["name"] == name).collect::<Vec<_>>();
    let [request] = named("request")[..] else { panic!("{spans:#?}") };
    let [generate] = named("generate")[..] else { panic!("{spans:#?}") };
    assert_eq!((&request["parentSpanId"], &generate["parentSpanId"]), (&CALLER.into(), &request["spanId"]));
    assert_eq!((attribute(request, "request_id"), attribute(request, "path")), (&"req-7".into(), &"/v1/images/generations".into()));
    for time in ["queue_ms", "text_ms", "denoise_ms", "decode_ms", "encode_ms"] {
        assert!(!attribute(generate, time).is_null(), "{time}: {generate}");
    }
    for (name, count) in [("text_encode", 1), ("denoise_step", 2), ("vae_decode", 1)] {
        let parts = named(name);
        assert_eq!(parts.len(), count, "{name}");
        assert!(parts.iter().all(|part| part["parentSpanId"] == generate["spanId"]), "{name}");
    }
    assert!(!json!(spans).to_string().contains("secret"), "prompts are not sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_that_its_caller_does_not_record_is_not_recorded_here() {
    let (url, mut batches) = collector().await;
    let worker = worker("http/json", &url);
    generate(&worker, "a fox", Some(format!("00-{TRACE}-{CALLER}-00"))).await;
    generate(&worker, "a fox", None).await;
    let (_, spans) = spans(worker, &mut batches);
    assert!(spans.iter().all(|span| span["traceId"] != TRACE));
    let roots: Vec<&Value> = spans.iter().filter(|span| span["name"] == "request" && attribute(span, "method") == "POST").collect();
    assert_eq!(roots.len(), 1, "{spans:#?}");
    assert!(roots[0]["parentSpanId"].as_str().unwrap_or_default().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_usual_form_is_protobuf() {
    let (url, mut batches) = collector().await;
    let mut worker = worker("http/protobuf", &url);
    generate(&worker, "a fox", None).await;
    worker.signal("TERM");
    assert_eq!(worker.wait().code(), Some(0));
    let (headers, body) = batches.try_recv().unwrap();
    assert_eq!(headers["content-type"], "application/x-protobuf");
    assert!(String::from_utf8_lossy(&body).contains("service.name"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_not_there_stops_nothing() {
    let mut worker = worker("http/json", "http://127.0.0.1:1");
    generate(&worker, "a fox", None).await;
    worker.signal("TERM");
    assert_eq!(worker.wait().code(), Some(0));
    assert_eq!(worker.stderr().matches("the spans cannot be delivered").count(), 1, "said once");
}
