//! A fault in one request costs only that request, and has an error of its own.

#[cfg(target_os = "linux")]
use reqwest::{
    Client, Response,
    multipart::{Form, Part},
};
use serde_json::{Value, json};

use crate::fake::FakeWorker;
#[cfg(target_os = "linux")]
use crate::support::{Worker, binary, long, small, unlimited_model};

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
    let held = worker.hold();
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
    drop(held);
    assert_eq!(hanging.await.unwrap().unwrap().status(), 200);
    while alive().await.status() != 200 {}
}

/// The system really refuses the memory that a large picture needs.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn memory_that_is_not_there_costs_the_request_that_needs_it() {
    let worker = Worker::unlimited(&[]);
    worker.generate(&small("what a worker takes when it works")).await;
    limit_room(&worker, 200);

    let mut large = long("more than there is");
    (large["steps"], large["size"]) = (1.into(), "1024x1024".into());
    for _ in 0..2 {
        let failed = worker.post(&large).await;
        assert_eq!(failed.status(), 500);
        assert_eq!(failed.headers()["x-should-retry"], "false", "the same again would end the same");
        let error = failed.json::<Value>().await.unwrap()["error"].clone();
        assert_eq!((&error["code"], &error["type"]), (&"out_of_memory".into(), &"server_error".into()), "{error}");
        worker.generate(&small("the next one")).await;
    }
    large["stream"] = true.into();
    let text = worker.post(&large).await.text().await.unwrap();
    assert!(text.trim_end().rsplit("\n\n").next().unwrap().starts_with("event: error\n") && text.contains("out_of_memory"), "{text}");
    assert_eq!(worker.metric("sdw_requests_total{outcome=\"error\"}").await as u32, 3);
}

/// The system refuses the memory for a body, however it comes, and the worker goes on.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn memory_that_is_not_there_costs_the_upload_that_needs_it() {
    let mut flat = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_pixel(3000, 2500, image::Rgb([9, 9, 9])).write_to(&mut flat, image::ImageFormat::Png).unwrap();
    let (flat, large) = (flat.into_inner(), vec![b'A'; 40 << 20]);
    for room in [64, 160] {
        let worker = Worker::ready(&[]);
        worker.generate(&small("what a worker takes when it works")).await;
        limit_room(&worker, room);
        for round in 0..3 {
            let text = String::from_utf8(large.clone()).unwrap();
            let edit = json!({ "prompt": "a", "image": text });
            let job = json!({ "operation": "image_transform", "prompt": "a", "input_image": text });
            let file = |bytes: &[u8]| Part::bytes(bytes.to_vec()).file_name("x.png").mime_str("image/png").unwrap();
            let form = |bytes: &[u8]| Form::new().text("prompt", "a").text("strength", "0.5").part("image", file(bytes));
            let request = |path: &str| Client::new().post(worker.url(path));
            let pictures = (0..6).map(|_| request("/v1/images/edits").multipart(form(&flat)).send());
            let (a, b, c, pictures) = tokio::join!(
                request("/v1/images/edits").json(&edit).send(),
                request("/v1/jobs").json(&job).send(),
                request("/v1/images/edits").multipart(form(&large)).send(),
                futures_util::future::join_all(pictures)
            );
            for answer in [a, b, c].into_iter().chain(pictures) {
                let (status, body) = read(answer.unwrap()).await;
                let code = body["error"]["code"].as_str().unwrap_or_default();
                let is_told =
                    (status, code) == (500, "out_of_memory") || (status, code.starts_with("invalid_")) == (400, true) || status == 200;
                assert!(is_told, "{room} MiB, round {round}: {status} {body}");
            }
            worker.generate(&small("the next one")).await;
        }
    }
}

#[cfg(target_os = "linux")]
async fn read(answer: Response) -> (u16, Value) {
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// Limits a worker to so many MiB beyond its present memory.
#[cfg(target_os = "linux")]
fn limit_room(worker: &Worker, room: u64) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap();
    let limit = format!("--as={}", (size + (room << 10)) << 10);
    assert!(std::process::Command::new("prlimit").args(["--pid", &worker.pid().to_string(), &limit]).status().unwrap().success());
}

#[cfg(target_os = "linux")]
#[test]
fn any_refused_memory_ends_with_code_75() {
    let folder = tempfile::tempdir().unwrap();
    let mut codes = std::collections::BTreeSet::new();
    // With less than the binary itself, the kernel ends the process before it begins.
    let of_binary = std::fs::metadata(binary().get_program()).unwrap().len() / 1_000_000 + 1;
    for megabytes in (of_binary..400).step_by(12) {
        let mut limited = std::process::Command::new("prlimit");
        // Where memory ends in the middle of a backtrace, the standard library waits for itself.
        limited.env_remove("RUST_BACKTRACE");
        limited.arg(format!("--as={megabytes}000000")).arg(binary().get_program()).args(["generate", "a", "--steps", "1", "-o"]);
        let output = limited.arg(folder.path().join("x.png")).output().unwrap();
        let (code, stderr) = (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned());
        // With less memory, the system's loader cannot start the binary.
        if codes.is_empty() && (code == Some(127) || stderr.contains("error while loading")) {
            continue;
        }
        assert!(matches!(code, Some(0 | 75)), "{megabytes} MB: {:?} {stderr}", output.status);
        codes.insert(code);
    }
    assert_eq!(codes.len(), 2, "some are too little, some are enough");
}

#[cfg(target_os = "linux")]
#[test]
fn memory_that_is_not_there_is_code_75() {
    let (folder, binary, model) = (tempfile::tempdir().unwrap(), binary(), unlimited_model());
    let mut limited = std::process::Command::new("prlimit");
    limited
        .arg("--as=520000000")
        .arg(binary.get_program())
        .args(["generate", "a", "--steps", "1", "--width", "1024", "--height", "1024", "--model"]);
    let output = limited.arg(model.path()).arg("-o").arg(folder.path().join("x.png")).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(75), "{stderr}");
    assert!(
        stderr.trim_end().lines().last().unwrap().starts_with("error: the device ran out of memory; ask for a smaller picture"),
        "{stderr}"
    );
}
