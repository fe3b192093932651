//! What orchestrators observe: probes, models, metrics, and the end of the process.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{Worker, binary, long, small, steps};

#[tokio::test]
async fn a_ready_worker_says_so_everywhere() {
    let worker = Worker::ready(&[]);
    for path in ["/", "/livez", "/readyz", "/health", "/metrics", "/v1/models", "/v1/models/builtin"] {
        assert_eq!(worker.get(path).await.status(), 200, "{path}");
    }
    let root: Value = worker.get("/").await.json().await.unwrap();
    assert_eq!((&root["name"], &root["status"]), (&"sd-worker".into(), &"ready".into()));
    assert!(worker.metric("sdw_model_loaded").await > 0.0);
}

#[tokio::test]
async fn the_models_list_has_the_one_model_with_its_defaults() {
    let worker = Worker::ready(&["--model", "tests/parity/tiny", "--device", "cpu"]);
    let list: Value = worker.get("/v1/models").await.json().await.unwrap();
    insta::assert_json_snapshot!(list);
    let missing = worker.get("/v1/models/gpt-image-1").await;
    assert_eq!(missing.status(), 404);
    insta::assert_json_snapshot!(missing.json::<Value>().await.unwrap());
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let worker = Worker::ready(&[]);
    worker.generate(&small("a fox")).await;
    assert_eq!(worker.post(&json!({ "prompt": "a", "n": 0 })).await.status(), 400);
    for (metric, value) in [
        ("sdw_images_total", 1.0),
        ("sdw_requests_total{outcome=\"ok\"}", 1.0),
        ("sdw_rejected_total{reason=\"invalid_param\"}", 1.0),
        ("sdw_step_seconds_count", 2.0),
        ("sdw_batch_size_sum", 2.0),
        ("sdw_batch_size_bucket{le=\"1\"}", 2.0),
        ("sdw_phase_seconds_count{phase=\"decode\"}", 1.0),
        ("sdw_queue_seconds_count", 1.0),
        ("sdw_generation_seconds_count", 1.0),
        ("sdw_requests_waiting", 0.0),
        ("sdw_requests_running", 0.0),
        ("sdw_queue_capacity", 64.0),
    ] {
        assert_eq!(worker.metric(metric).await.to_bits(), f64::to_bits(value), "{metric}");
    }
}

/// A metric's label is kept for ever, so a client must not choose it.
#[tokio::test]
async fn clients_name_nothing_in_the_metrics() {
    let worker = Worker::ready(&[]);
    let edits = || reqwest::Client::new().post(worker.url("/v1/images/edits"));
    for i in 0..3 {
        let twice = reqwest::multipart::Form::new().text("prompt", "a").text(format!("junk{i}"), "1").text(format!("junk{i}"), "2");
        assert_eq!(edits().multipart(twice).send().await.unwrap().status(), 400);
        let interval: Vec<Value> = vec![0.into(); i].into_iter().chain(["junk".into()]).collect();
        assert_eq!(worker.post(&json!({ "prompt": "a", "guidance_interval": interval })).await.status(), 400);
    }
    assert_eq!(worker.metric("sdw_rejected_total{reason=\"invalid_param\"}").await.to_bits(), f64::to_bits(6.0));
    let metrics = worker.get("/metrics").await.text().await.unwrap();
    assert!(!metrics.contains("junk") && !metrics.contains("guidance_interval"), "{metrics}");
}

/// The series of the metrics: names with labels.
async fn series(worker: &Worker) -> std::collections::BTreeSet<String> {
    let text = worker.get("/metrics").await.text().await.unwrap();
    text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect()
}

/// A series that appears with the value 1 is no increase to Prometheus.
#[tokio::test]
async fn every_series_is_there_from_the_first_scrape() {
    let worker = Worker::ready(&[]);
    let first = series(&worker).await;
    for name in ["sdw_requests_total{outcome=\"error\"}", "sdw_phase_seconds_count{phase=\"decode\"}", "sdw_images_total"] {
        assert!(first.contains(name), "{name}: {first:?}");
    }
    worker.generate(&small("a fox")).await;
    worker.start(&long("a fox")).await.abort();
    worker.wait_for_metric("sdw_cancelled_total{reason=\"disconnect\"}", |value| value > 0.0).await;
    let client = reqwest::Client::new();
    let post = |body: &'static str| client.post(worker.url("/v1/images/generations")).header("content-type", "application/json").body(body);
    for (request, status) in [
        (post("{}"), 400),
        (post("{"), 400),
        (post(r#"{"prompt": "a", "n": 0}"#), 400),
        (post("{}").header("content-encoding", "br"), 415),
        (post("{}").header("host", "evil.example"), 403),
        (client.post(worker.url("/v1/images/edits")), 415),
        (post(r#"{"prompt": "a", "steps": 1000}"#).header("x-request-timeout-ms", "0"), 429),
    ] {
        assert_eq!(request.send().await.unwrap().status(), status);
    }
    assert_eq!(series(&worker).await, first);
}

#[tokio::test]
async fn every_metric_is_there_with_its_kind_and_what_it_means() {
    let worker = Worker::ready(&[]);
    worker.generate(&small("a fox")).await;
    worker.start(&long("a fox")).await.abort();
    worker.wait_for_metric("sdw_cancelled_total{reason=\"disconnect\"}", |value| value > 0.0).await;
    assert_eq!(worker.post(&json!({})).await.status(), 400);
    let answer = worker.get("/metrics").await;
    assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    let text = answer.text().await.unwrap();
    for (kind, names) in [
        ("gauge", &["requests_waiting", "requests_running", "queue_capacity", "model_loaded"][..]),
        ("histogram", &["queue_seconds", "phase_seconds", "step_seconds", "batch_size", "generation_seconds"]),
        ("counter", &["requests_total", "rejected_total", "cancelled_total", "images_total", "prompt_cache_total"]),
    ] {
        for name in names {
            assert!(text.contains(&format!("# TYPE sdw_{name} {kind}\n")), "{name} is no {kind}: {text}");
            assert!(text.contains(&format!("# HELP sdw_{name} ")), "{name} is not explained");
        }
    }
    for series in ["requests_total{outcome=\"cancelled\"} 1", "rejected_total{reason=\"missing_required_parameter\"} 1", "model_loaded 1"] {
        assert!(text.contains(&format!("sdw_{series}\n")), "{series}: {text}");
    }
    for phase in ["text", "denoise", "decode", "encode"] {
        assert!(text.contains(&format!("sdw_phase_seconds_count{{phase=\"{phase}\"}} 1\n")), "{phase}");
    }
}

#[tokio::test]
async fn an_idle_worker_ends_cleanly_on_both_signals() {
    for signal in ["TERM", "INT"] {
        let mut worker = Worker::ready(&[]);
        worker.signal(signal);
        assert_eq!(worker.wait().code(), Some(0), "SIG{signal}");
    }
}

#[tokio::test]
async fn a_stopping_worker_finishes_what_runs_and_refuses_what_comes() {
    let mut worker = Worker::ready(&["--drain-timeout", "600"]);
    let running = worker.start(&steps("a fox", 300)).await;
    worker.signal("TERM");
    // Once the worker is not ready, it has handled the signal.
    let refused = loop {
        let response = worker.get("/readyz").await;
        if response.status() != 200 {
            break response;
        }
    };
    assert_eq!(refused.status(), 503);
    // Behind a load balancer, the client's next try reaches another worker.
    for name in ["x-should-retry", "connection"] {
        assert_eq!(refused.headers()[name], if name == "connection" { "close" } else { "true" });
    }
    let refused = worker.post(&small("too late")).await;
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.json::<Value>().await.unwrap()["error"]["code"], "shutting_down");
    assert_eq!(worker.get("/livez").await.status(), 200);

    assert_eq!(running.await.unwrap().status(), 200, "what runs may finish");
    assert_eq!(worker.wait().code(), Some(0));
}

#[tokio::test]
async fn a_stopping_worker_cancels_what_does_not_finish_in_time() {
    let mut worker = Worker::ready(&["--drain-timeout", "0"]);
    let running = worker.start(&long("a fox")).await;
    worker.signal("TERM");
    let answer = running.await.unwrap();
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.json::<Value>().await.unwrap()["error"]["code"], "shutting_down");
    assert_eq!(worker.wait().code(), Some(0));
}

#[tokio::test]
async fn probes_answer_before_the_model_is_loaded() {
    // A model that never finishes loading: its hub never answers.
    let folder = tempfile::tempdir().unwrap();
    let hub = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = binary();
    command.env("HF_ENDPOINT", format!("http://{}", hub.local_addr().unwrap())).env("HF_HOME", folder.path());
    let mut worker = Worker::listening_as(command, &["--model", "nobody/nothing"]);
    assert_eq!(worker.get("/livez").await.status(), 200);
    assert_eq!(worker.get("/").await.json::<Value>().await.unwrap()["status"], "loading");
    for response in [worker.get("/readyz").await, worker.post(&small("a fox")).await] {
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(response.json::<Value>().await.unwrap()["error"]["code"], "model_loading");
    }
    worker.signal("TERM");
    assert_eq!(worker.wait().code(), Some(0), "a worker that loads can be stopped");
}

#[tokio::test]
async fn streams_end_with_an_error_even_if_a_step_does_not() {
    // A step of a large picture takes longer than the drain; the request behind it never has its turn.
    let mut worker = Worker::unlimited(&["--drain-timeout", "0"]);
    let mut slow = long("slow");
    slow["size"] = "1024x1024".into();
    slow["stream"] = true.into();
    let client = reqwest::Client::new();
    let send = |request: &Value| client.post(worker.url("/v1/images/generations")).json(request).send();
    let (running, waiting) = (send(&slow).await.unwrap(), send(&slow).await.unwrap());
    worker.wait_for_metric("sdw_requests_running", |value| value > 0.0).await;
    worker.signal("TERM");
    for stream in [running, waiting] {
        let text = stream.text().await.unwrap();
        assert!(text.contains("event: error") && text.contains("shutting_down"), "{text}");
    }
    assert_eq!(worker.wait().code(), Some(0));
}

#[tokio::test]
async fn a_worker_whose_stderr_is_closed_works_on() {
    let mut worker = Worker::ready(&["--log-level", "debug"]);
    worker.close_stderr();
    for seed in 0..3 {
        let mut request = small("a fox");
        request["seed"] = seed.into();
        worker.generate(&request).await;
    }
    worker.signal("TERM");
    assert_eq!(worker.wait().code(), Some(0));
}

#[tokio::test]
async fn a_worker_whose_stderr_nobody_reads_works_on() {
    // The test holds the pipe and does not read it; it holds 64 KiB.
    let mut worker = Worker::ready(&["--log-level", "trace"]);
    for seed in 0..3 {
        let mut request = small(&"a fox and an owl ".repeat(20));
        request["seed"] = seed.into();
        worker.generate(&request).await;
    }
    worker.signal("TERM");
    assert_eq!(worker.wait().code(), Some(0));
}

/// The worker's stdout is full before it can say where it listens; its callback tells the address.
#[tokio::test]
async fn a_worker_whose_stdout_nobody_reads_works_on() {
    let told = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let stdout = writer.try_clone().unwrap();
    // Fills the pipe, and blocks.
    std::thread::spawn(move || while writer.write_all(&[b'x'; 4096]).is_ok() {});
    let mut command = binary();
    command.args(["serve", "--port", "0", "--callback-url", &format!("http://{}/", told.local_addr().unwrap())]);
    let mut child = command.stdout(stdout).stderr(Stdio::null()).spawn().unwrap();
    let (mut socket, _) = told.accept().await.unwrap();
    let mut report = String::new();
    while !report.contains('}') {
        let mut piece = [0; 1024];
        let length = socket.read(&mut piece).await.unwrap();
        assert!(length > 0, "{report}");
        report.push_str(std::str::from_utf8(&piece[..length]).unwrap());
    }
    let report: Value = serde_json::from_str(&report[report.find('{').unwrap()..]).unwrap();
    let url = format!("{}/v1/images/generations", report["url"].as_str().unwrap());
    let answer = reqwest::Client::new().post(url).json(&small("a fox")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    drop(reader);
}

/// A stopping worker does not wait for an upload beyond the drain timeout; a client that completes it is told.
#[tokio::test]
async fn a_stopping_worker_does_not_wait_for_an_upload() {
    let picture = BASE64_STANDARD.encode(fs::read("tests/parity/picture.png").unwrap());
    let body = json!({ "prompt": "a fox", "image": picture }).to_string();
    let head = "POST /v1/images/edits HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    let (first, second) = body.split_at(body.len() / 2);
    for finishes in [true, false] {
        let mut worker = Worker::ready(&["--client-timeout", "600", "--drain-timeout", if finishes { "600" } else { "0" }]);
        let mut socket = TcpStream::connect(worker.address()).await.unwrap();
        socket.write_all(format!("{head}content-length: {}\r\n\r\n{first}", body.len()).as_bytes()).await.unwrap();
        let busy = worker.start(&long("a fox")).await;
        worker.signal("TERM");
        if finishes {
            while worker.get("/readyz").await.status() == 200 {}
            socket.write_all(second.as_bytes()).await.unwrap();
            let mut answer = [0; 12];
            socket.read_exact(&mut answer).await.unwrap();
            assert_eq!(std::str::from_utf8(&answer).unwrap(), "HTTP/1.1 503");
            drop(socket);
            worker.signal("TERM");
            assert_eq!(worker.wait().code(), Some(0));
        } else {
            // The socket stays open: the client sends nothing more, and does not close it.
            let (signalled, mut is_over) = (Instant::now(), false);
            while !is_over {
                assert!(signalled.elapsed() < Duration::from_mins(1), "it waits for the upload");
                is_over = worker.is_over();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(worker.wait().code(), Some(0));
            drop(socket);
        }
        assert_eq!(busy.await.unwrap().status(), 503);
    }
}

#[tokio::test]
async fn a_second_signal_does_not_wait() {
    let mut worker = Worker::ready(&["--drain-timeout", "600"]);
    let running = worker.start(&long("a fox")).await;
    worker.signal("TERM");
    // Two signals at once would count as one.
    while worker.get("/readyz").await.status() == 200 {}
    worker.signal("TERM");
    assert_eq!(running.await.unwrap().status(), 503);
    assert_eq!(worker.wait().code(), Some(0));
}
