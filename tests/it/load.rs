//! Many clients at once, of every kind. The test prints its figures: `cargo test --release --test it load -- --nocapture`.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use reqwest::{Client, Response};
use serde_json::{Value, json};

use crate::support::{Worker, long, small};

const REQUESTS: usize = 2000;
const CLIENTS: usize = 64;
/// The steps of a request that is stopped while it runs: enough that it does not finish first.
const MANY_STEPS: usize = 50;

/// The outcome of a request, in words.
async fn outcome(client: &Client, worker: &str, i: usize) -> &'static str {
    let post = |path: &str, body: Value| client.post(format!("{worker}{path}")).json(&body).send();
    let kind = i % 8;
    let leaves_running = kind == 6 && i / 8 % 2 == 1;
    let steps = if kind == 5 || leaves_running { MANY_STEPS } else { 1 };
    let picture = json!({ "prompt": "a fox", "steps": steps, "size": "64x64", "guidance_scale": 1, "seed": i, "stream": kind > 3 });
    let job = json!({ "operation": "image_generation", "prompt": "a fox", "steps": steps, "width": 64, "height": 64, "guidance_scale": 1 });
    let response = match kind {
        2 | 3 | 5 => post("/v1/jobs", job).await.unwrap(),
        7 => post("/v1/images/generations", json!({ "prompt": i })).await.unwrap(),
        _ => post("/v1/images/generations", picture).await.unwrap(),
    };
    match (kind, response.status().as_u16()) {
        (7, 400) => "bad body refused",
        (_, 429) => "no room",
        (0 | 1, 200) => {
            assert_eq!(response.json::<Value>().await.unwrap()["parameters"]["seed"], i, "the answer is to this request");
            "answer"
        }
        (2, 200) => {
            let text = follow(client, worker, &response.json().await.unwrap()).await.text().await.unwrap();
            assert!(text.trim_end().ends_with("data: [DONE]") && text.matches("event: complete").count() == 1, "{text}");
            "job done"
        }
        (3, 200) => cancel(client, worker, &response.json().await.unwrap()).await,
        (4, 200) => {
            let text = response.text().await.unwrap();
            assert!(text.matches("image_generation.completed\n").count() == 1 && !text.contains("event: error"), "{text}");
            assert!(text.contains(&format!("\"seed\":{i},")), "the answer is to this request");
            "stream"
        }
        (5, 200) => {
            let job = response.json().await.unwrap();
            read_until(&mut follow(client, worker, &job).await, "event: progress").await;
            cancel(client, worker, &job).await
        }
        (6, 200) => {
            let mut response = response;
            read_until(&mut response, if leaves_running { ": step " } else { ": accepted" }).await;
            if leaves_running { "left while it ran" } else { "left while it waited" }
        }
        (kind, status) => panic!("{kind}: {status}"),
    }
}

async fn follow(client: &Client, worker: &str, job: &Value) -> Response {
    client.get(format!("{worker}{}", job["sse_url"].as_str().unwrap())).send().await.unwrap()
}

async fn read_until(response: &mut Response, wanted: &str) {
    let mut text = String::new();
    while !text.contains(wanted) {
        text.push_str(&String::from_utf8_lossy(&response.chunk().await.unwrap().expect("an end before it")));
    }
}

/// Whether the job had begun shows in its progress.
async fn cancel(client: &Client, worker: &str, job: &Value) -> &'static str {
    let url = format!("{worker}/v1/jobs/{}", job["job_id"].as_str().unwrap());
    match client.delete(&url).send().await.unwrap().status().as_u16() {
        404 => return "job done before it was cancelled",
        status => assert_eq!(status, 200),
    }
    let state: Value = client.get(&url).send().await.unwrap().json().await.unwrap();
    assert_eq!(state["status"], "cancelled");
    if state["progress"].is_null() { "job cancelled while it waited" } else { "job cancelled while it ran" }
}

/// `CLIENTS` clients with one request each at a time, and the outcomes of the requests `first..first + count`.
async fn run_clients(client: &Client, url: &str, first: usize, count: usize) -> Vec<&'static str> {
    let tasks: Vec<_> = (0..CLIENTS)
        .map(|task| {
            let (client, url) = (client.clone(), url.to_owned());
            tokio::spawn(async move {
                let mut seen = Vec::new();
                for i in (task..count).step_by(CLIENTS) {
                    seen.push(outcome(&client, &url, first + i).await);
                }
                seen
            })
        })
        .collect();
    let mut seen = Vec::new();
    for task in tasks {
        seen.extend(task.await.unwrap());
    }
    seen
}

/// The memory of a process, in bytes.
fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_has_one_outcome_and_nothing_is_left_behind() {
    let worker = Worker::ready(&["--max-results", "20", "--queue-capacity", "80"]);
    let (client, url) = (Client::new(), worker.url(""));
    let mut outcomes = BTreeMap::<&str, usize>::new();
    let mut memories = Vec::new();
    let started = Instant::now();
    for quarter in 0..4 {
        for outcome in run_clients(&client, &url, quarter * REQUESTS / 4, REQUESTS / 4).await {
            *outcomes.entry(outcome).or_default() += 1;
        }
        memories.push(memory(worker.pid()) >> 20);
    }
    let time = started.elapsed();
    worker.wait_for_metric("sdw_requests_waiting", |value| value < 1.0).await;
    worker.wait_for_metric("sdw_requests_running", |value| value < 1.0).await;
    println!("{REQUESTS} requests from {CLIENTS} clients in {time:.1?}: {outcomes:#?}\nMiB after each quarter: {memories:?}");

    let count = |name: &str| outcomes.get(name).copied().unwrap_or(0);
    assert_eq!(outcomes.values().sum::<usize>(), REQUESTS);
    assert_eq!(count("bad body refused"), REQUESTS / 8);
    let refused = count("bad body refused") + count("no room");
    let ended =
        worker.metric("sdw_requests_total{outcome=\"ok\"}").await + worker.metric("sdw_requests_total{outcome=\"cancelled\"}").await;
    assert_eq!(ended as usize, REQUESTS - refused, "the engine ended each that was let in once");
    assert_eq!(worker.metric("sdw_requests_total{outcome=\"error\"}").await as usize, 0);
    let known = count("answer") + count("stream") + count("job done") + count("job done before it was cancelled");
    assert!(worker.metric("sdw_images_total").await as usize >= known);

    // Every place is free again: as many pictures as there are places are accepted.
    let rejected = worker.metric("sdw_rejected_total{reason=\"queue_full\"}").await;
    let full = json!({ "prompt": "a fox", "steps": 1, "size": "64x64", "n": 10 });
    let all = (0..8).map(|_| client.post(worker.url("/v1/images/generations")).json(&full).send());
    for answer in futures_util::future::join_all(all).await {
        assert_eq!(answer.unwrap().status(), 200);
    }
    assert_eq!(worker.metric("sdw_rejected_total{reason=\"queue_full\"}").await.to_bits(), rejected.to_bits());
}

#[tokio::test]
async fn bad_company_does_not_stall_others() {
    // A slow client is not a silent one, and neither is a client that gets no time on this machine.
    let worker = Worker::ready(&["--client-timeout", "3600"]);
    let connect = || TcpStream::connect(worker.address()).unwrap();
    let mut sockets: Vec<TcpStream> = (0..50).map(|_| connect()).collect();
    for half_open in &mut sockets[..25] {
        half_open.write_all(b"POST /v1/images/generations HTTP/1.1\r\nhost: localhost\r\ncontent-le").unwrap();
    }
    // These clients request more than a socket's buffers hold, and read nothing.
    let body = json!({ "prompt": "a fox", "steps": 2, "size": "256x256", "n": 2, "stream": true, "partial_images": 1 }).to_string();
    let head = "POST /v1/images/generations HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    for slow in &mut sockets[25..30] {
        write!(slow, "{head}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
    }
    worker.wait_for_metric("sdw_images_total", |value| value >= 10.0).await;
    worker.generate(&small("served all the same")).await;
    let mut late = String::new();
    sockets[29].set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    while late.matches("image_generation.completed\n").count() < 2 {
        let mut buffer = [0; 4096];
        let count = sockets[29].read(&mut buffer).unwrap();
        assert!(count > 0, "the stream ended early");
        late.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }

    let mut curl = Command::new("curl");
    curl.args(["-sN", &worker.url("/v1/images/generations"), "-H", "content-type: application/json", "-d", &long("a fox").to_string()]);
    let mut client = curl.stdout(Stdio::null()).spawn().unwrap();
    worker.wait_for_metric("sdw_requests_running", |value| value > 0.0).await;
    client.kill().unwrap();
    client.wait().unwrap();
    worker.wait_for_metric("sdw_cancelled_total{reason=\"disconnect\"}", |value| value > 0.0).await;
}
