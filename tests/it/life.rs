//! The process: how it starts, what it reports, and what ends it.

use std::{
    os::unix::net::UnixDatagram,
    process::{Command, Stdio},
};

use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use reqwest::Client;
use serde_json::{Value, json};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};
use tokio_util::sync::CancellationToken;

use crate::support::{Worker, binary, long, small, steps};

/// The time as in RFC 3339, to the second: a later time is a greater string.
fn now_in_utc() -> String {
    String::from_utf8(Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%S"]).output().unwrap().stdout).unwrap().trim().to_owned()
}

#[test]
fn the_build_is_told_in_one_word() {
    for args in [&["--build-info"][..], &["serve", "--build-info"], &["--worker-id", "worker-1", "--model", "generate", "--build-info"]] {
        let output = binary().args(args).output().unwrap();
        assert!(output.status.success());
        assert_eq!(String::from_utf8(output.stdout).unwrap(), if cfg!(debug_assertions) { "debug\n" } else { "release\n" });
    }
}

#[tokio::test]
async fn a_worker_says_what_it_can_do() {
    let worker = Worker::ready(&["--queue-capacity", "7"]);
    let info: Value = worker.get("/info").await.json().await.unwrap();
    assert_eq!((&info["name"], &info["model"], &info["device"]), (&"sd-worker".into(), &"builtin".into(), &"cpu".into()));
    let capabilities: Value = worker.get("/v1/capabilities").await.json().await.unwrap();
    insta::assert_json_snapshot!(capabilities);
}

#[tokio::test]
async fn a_request_ends_the_worker_as_a_signal_does() {
    let mut worker = Worker::ready(&["--drain-timeout", "600"]);
    let shutdown = || Client::new().post(worker.url("/v1/shutdown"));
    let from_a_page = shutdown().header("origin", "http://localhost").send().await.unwrap();
    assert_eq!(from_a_page.status(), 403);
    let running = worker.start(&steps("a fox", 300)).await;
    let answer = shutdown().send().await.unwrap();
    assert_eq!(answer.json::<Value>().await.unwrap(), json!({ "status": "draining" }));
    while worker.get("/readyz").await.status() == 200 {}
    assert_eq!(worker.post(&small("too late")).await.status(), 503);
    assert_eq!(running.await.unwrap().status(), 200, "what runs may finish");
    assert_eq!(worker.wait().code(), Some(0));
}

#[tokio::test]
async fn a_worker_does_not_outlive_its_parent() {
    for (args, outlives) in [(&["--exit-on-stdin-eof", "--drain-timeout", "0"][..], false), (&["--drain-timeout", "0"], true)] {
        let mut command = binary();
        command.stdin(Stdio::piped());
        let mut worker = Worker::listening_as(command, args);
        assert_eq!(worker.event()["event"], "ready");
        let running = worker.start(&long("a fox")).await;
        worker.close_stdin();
        if outlives {
            worker.signal("TERM");
        }
        assert_eq!(running.await.unwrap().status(), 503);
        assert_eq!(worker.wait().code(), Some(0));
    }
}

/// An orchestrator that records reports. It accepts a callback only the second time, and the report of a stopping worker only when it is
/// told to.
async fn orchestrator() -> (String, UnboundedReceiver<(String, Value)>, CancellationToken) {
    type Reports = State<(UnboundedSender<(String, Value)>, CancellationToken)>;
    async fn heartbeat(State((reports, take_stopping)): Reports, Json(body): Json<Value>) {
        let stopping = body["worker"]["status"] == "stopping";
        let _ = reports.send(("heartbeat".to_owned(), body));
        if stopping {
            take_stopping.cancelled().await;
        }
    }
    async fn callback(State((reports, _)): Reports, Json(body): Json<Value>) -> StatusCode {
        let _ = reports.send(("callback".to_owned(), body));
        StatusCode::NOT_FOUND
    }
    let (sender, reports) = unbounded_channel();
    let take_stopping = CancellationToken::new();
    let router = Router::new()
        .route("/v1/worker-heartbeat", post(heartbeat))
        .route("/ready", post(callback))
        .with_state((sender, take_stopping.clone()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(axum::serve(listener, router).into_future());
    (url, reports, take_stopping)
}

#[tokio::test]
async fn an_orchestrator_is_told_the_truth() {
    let (url, mut reports, take_stopping) = orchestrator().await;
    let callback = format!("{url}/ready");
    let rbee = [
        ["--worker-id", "worker-cpu-1"],
        ["--model", "some-model-ref"],
        ["--model-path", "tests/parity/tiny"],
        ["--device", "0"],
        ["--hive-url", &url],
        ["--callback-url", &callback],
        ["--heartbeat-interval", "1"],
        ["--drain-timeout", "600"],
    ];
    // A parent may close the streams; this test reads only stdout.
    let mut command = Command::new("sh");
    let program = format!("exec {} \"$@\" 2>&- <&-", env!("CARGO_BIN_EXE_sd-worker"));
    command.args(["-c", &program, "sh"]);
    let began = now_in_utc();
    let mut worker = Worker::listening_as(command, rbee.as_flattened());
    let event = worker.event();
    assert_eq!((&event["event"], &event["model"]), (&"ready".into(), &"some-model-ref".into()));
    let worker_address = worker.url("");
    let mut next = async |kind: &str, status: &str| loop {
        let (found, report) = reports.recv().await.unwrap();
        if found == kind && (kind == "callback" || report["worker"]["status"] == status) {
            break report;
        }
    };
    let expected =
        json!({ "worker_id": "worker-cpu-1", "url": worker_address, "model_ref": "some-model-ref", "backend": "cpu", "device": "cpu" });
    assert_eq!(next("callback", "").await, expected);
    assert_eq!(next("callback", "").await, expected, "said again, since it was not taken");

    let ready = next("heartbeat", "ready").await;
    let sent = ready["timestamp"].as_str().unwrap();
    assert!((began.as_str()..=now_in_utc().as_str()).contains(&&sent[..19]) && sent.len() == 24 && sent.ends_with('Z'), "{sent}");
    let port: u64 = worker_address.rsplit(':').next().unwrap().parse().unwrap();
    let expected = json!({
        "id": "worker-cpu-1", "model_id": "some-model-ref", "device": "cpu", "port": port, "status": "ready",
        "implementation": "sd-worker", "version": env!("CARGO_PKG_VERSION")
    });
    assert_eq!(ready["worker"], expected);
    let running = worker.start(&json!({ "prompt": "a fox", "steps": 1000, "size": "1024x1024" })).await;
    next("heartbeat", "busy").await;
    let mut open = TcpStream::connect(worker_address.trim_start_matches("http://")).await.unwrap();
    worker.signal("TERM");
    next("heartbeat", "stopping").await;
    running.abort();
    // The last heartbeat arrives although the one before it is on its way until the worker has closed its connections.
    assert_eq!(open.read(&mut [0]).await.unwrap_or_default(), 0);
    take_stopping.cancel();
    next("heartbeat", "stopped").await;
    assert_eq!(worker.wait().code(), Some(0));
}

#[tokio::test]
async fn a_worker_that_listens_everywhere_says_where_it_is_reached() {
    let (url, mut reports, _) = orchestrator().await;
    let callback = format!("{url}/ready");
    let worker = Worker::ready(&["--host", "0.0.0.0", "--insecure", "--callback-url", &callback]);
    assert_eq!(reports.recv().await.unwrap().1["url"], worker.url(""));
}

#[tokio::test]
async fn an_orchestrator_that_is_not_there_stops_nothing() {
    // One receiver does not exist; the other does not know the route.
    let (url, mut reports, _) = orchestrator().await;
    let callback = format!("{url}/ready");
    let mut worker = Worker::ready(&["--queen-url", "http://127.0.0.1:1", "--callback-url", &callback, "--heartbeat-interval", "1"]);
    worker.generate(&small("a fox")).await;
    for _ in 0..3 {
        assert_eq!(reports.recv().await.unwrap().0, "callback");
    }
    worker.signal("TERM");
    assert_eq!(worker.wait().code(), Some(0));
    let log = worker.stderr();
    for message in ["the heartbeat cannot be delivered", "the callback cannot be delivered"] {
        assert_eq!(log.matches(message).count(), 1, "{message}: said once: {log}");
    }
}

/// As rbee's hive starts a worker: no command, closed streams, and polling without a path.
#[tokio::test]
async fn a_hive_may_close_all_streams() {
    let (url, mut reports, _) = orchestrator().await;
    let callback = format!("{url}/ready");
    let args = ["--worker-id", "worker-cpu-8080", "--model", "builtin", "--device", "0", "--port", "0", "--queen-url", &url];
    let program = format!("exec {} \"$@\" <&- >&- 2>&-", env!("CARGO_BIN_EXE_sd-worker"));
    let mut worker = Command::new("sh").args(["-c", &program, "sh"]).args(args).args(["--callback-url", &callback]).spawn().unwrap();
    let ready = loop {
        let (kind, report) = reports.recv().await.unwrap();
        if kind == "callback" {
            break report;
        }
    };
    let address = ready["url"].as_str().unwrap();
    assert!(reqwest::get(address).await.unwrap().status().is_success());
    let answer = Client::new().post(format!("{address}/v1/images/generations")).json(&small("a fox")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    Command::new("kill").arg(worker.id().to_string()).status().unwrap();
    assert_eq!(worker.wait().unwrap().code(), Some(0));
}

#[tokio::test]
async fn logs_tell_a_request_from_its_trace_to_its_times() {
    let mut worker = Worker::ready(&["--log-format", "json"]);
    let traced = Client::new().post(worker.url("/v1/images/generations")).json(&small("a fox")).header("x-request-id", "req-7");
    let traced = traced.header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    assert_eq!(traced.send().await.unwrap().status(), 200);
    worker.signal("TERM");
    worker.wait();
    let log: Vec<Value> = worker.stderr().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let line = |message: &str| log.iter().find(|line| line["fields"]["message"] == message).unwrap();
    let finished = line("picture finished");
    let (request, generate) = (&finished["spans"][0], &finished["spans"][1]);
    assert_eq!((&request["name"], &request["request_id"]), (&"request".into(), &"req-7".into()));
    assert_eq!((&request["trace_id"], &request["parent_id"]), (&"4bf92f3577b34da6a3ce929d0e0e4736".into(), &"00f067aa0ba902b7".into()));
    assert_eq!((&generate["name"], &generate["steps"]), (&"generate".into(), &"2".into()));
    for time in ["queue_ms", "text_ms", "denoise_ms", "decode_ms", "encode_ms"] {
        assert!(generate[time].is_u64(), "{time}: {finished}");
    }
    assert_eq!(line("answered")["fields"]["status"], 200);
}

#[tokio::test]
async fn systemd_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let mut command = binary();
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    let mut worker = Worker::listening_as(command, &[]);
    let hear = |wanted: &str| {
        let mut buffer = [0; 256];
        loop {
            let count = socket.recv(&mut buffer).unwrap();
            if String::from_utf8_lossy(&buffer[..count]).lines().any(|line| line == wanted) {
                break;
            }
        }
    };
    hear("READY=1");
    assert_eq!(worker.event()["event"], "ready");
    hear("WATCHDOG=1");
    worker.signal("TERM");
    hear("STOPPING=1");
    assert_eq!(worker.wait().code(), Some(0));
}
