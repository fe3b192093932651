//! Bodies that come slowly, that are large, or that are made to cost more than their size.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use reqwest::{Client, Response};
use serde_json::{Value, json};

use crate::support::{Worker, small};

const HEAD: &str = "POST /v1/images/edits HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n";

/// A connection that has sent the beginning of a large body.
fn begun(worker: &Worker, bytes: usize) -> TcpStream {
    let mut socket = TcpStream::connect(worker.address()).unwrap();
    socket.write_all(format!("{HEAD}content-length: {}\r\n\r\n", 50 << 20).as_bytes()).unwrap();
    let mebibyte = vec![b' '; 1 << 20];
    for start in (0..bytes).step_by(1 << 20) {
        socket.write_all(&mebibyte[..(bytes - start).min(1 << 20)]).unwrap();
    }
    socket
}

async fn post(worker: &Worker, path: &str, body: impl Into<reqwest::Body>) -> Response {
    Client::new().post(worker.url(path)).header("content-type", "application/json").body(body).send().await.unwrap()
}

/// Sends an edit with a truncated picture: it is read as a whole, and then refused.
async fn refusal(worker: &Worker) -> (u16, Value) {
    let picture = format!("{{\"prompt\": \"a\", \"image\": \"{}\"}}", "A".repeat(1 << 20));
    let response = post(worker, "/v1/images/edits", picture).await;
    (response.status().as_u16(), response.json::<Value>().await.unwrap()["error"]["code"].clone())
}

/// Silence is not the measure, since each of these clients keeps sending single bytes; nor does a fast start pay for it.
#[tokio::test]
async fn slow_bodies_keep_nobody_out_and_come_to_an_end() {
    let worker = Worker::ready(&["--client-timeout", "3"]);
    let mut sockets: Vec<(TcpStream, Vec<u8>)> = [0, 0, 0, 0, 0, 0, 0, 40 << 20].map(|bytes| (begun(&worker, bytes), Vec::new())).into();
    for (socket, _) in &sockets {
        socket.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    }
    let is_told = |answer: &[u8]| String::from_utf8_lossy(answer).contains("body_timed_out");
    let dripping = std::thread::spawn(move || {
        let started = Instant::now();
        // Until the worker has given up on each, and has said so.
        while !sockets.iter().all(|(_, answer)| is_told(answer)) {
            assert!(started.elapsed() < Duration::from_mins(3), "they may go on for ever");
            for (socket, answer) in sockets.iter_mut().filter(|(_, answer)| !is_told(answer)) {
                let _ = socket.write_all(b" ");
                let mut piece = [0; 1024];
                if let Ok(length) = socket.read(&mut piece) {
                    assert!(length > 0, "closed without a word");
                    answer.extend_from_slice(&piece[..length]);
                }
            }
        }
        sockets.into_iter().map(|(_, answer)| String::from_utf8_lossy(&answer).into_owned()).collect::<Vec<_>>()
    });
    assert_eq!(refusal(&worker).await, (400, "invalid_image".into()), "it is read, and refused for what it is");
    let job = json!({ "operation": "image_generation", "prompt": "a fox", "steps": 1, "width": 64, "height": 64 });
    assert_eq!(post(&worker, "/v1/jobs", job.to_string()).await.status(), 200);
    let answers = dripping.join().unwrap();
    assert!(answers.iter().all(|answer| answer.starts_with("HTTP/1.1 408 ")), "{answers:?}");
}

/// The head of a form's field is buffered as a whole, and so is what precedes the first field.
#[tokio::test]
async fn the_head_of_a_part_has_its_end_soon() {
    let worker = Worker::ready(&[]);
    let long = "x".repeat(4 << 20);
    for body in [long.clone(), format!("--b\r\nContent-Disposition: form-data; name=\"{long}\"\r\n\r\nx\r\n--b--\r\n")] {
        let request = Client::new().post(worker.url("/v1/images/edits")).header("content-type", "multipart/form-data; boundary=b");
        let response = request.body(body).send().await.unwrap();
        assert_eq!(response.status(), 400);
        let error = response.json::<Value>().await.unwrap()["error"].clone();
        assert!(error["message"].as_str().unwrap().contains("a head that does not end"), "{error}");
    }
}

/// Unfinished bodies that share the whole budget do not wait for each other, and a small body waits for none.
#[tokio::test]
async fn bodies_that_share_the_room_all_come_to_their_end() {
    let worker = Worker::ready(&[]);
    let length = 50 << 20;
    let clients: Vec<_> = (0..12)
        .map(|_| {
            let mut socket = begun(&worker, length / 2);
            std::thread::spawn(move || {
                let mebibyte = vec![b' '; 1 << 20];
                (0..length / 2).step_by(1 << 20).for_each(|_| socket.write_all(&mebibyte).unwrap());
                let mut answer = [0; 12];
                socket.read_exact(&mut answer).unwrap();
                String::from_utf8_lossy(&answer).into_owned()
            })
        })
        .collect();
    assert_eq!(worker.post(&small("a fox")).await.status(), 200);
    let answers: Vec<String> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    assert!(answers.iter().all(|answer| answer == "HTTP/1.1 400"), "nothing but spaces: {answers:?}");
}

/// The peak memory of a worker, in MiB.
#[cfg(target_os = "linux")]
fn peak(worker: &Worker) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_body_costs_little_more_than_it_weighs() {
    let worker = Worker::ready(&[]);
    worker.generate(&small("what a worker takes when it works")).await;
    let before = peak(&worker);
    let long = |text: &str| text.repeat((49 << 20) / text.len());
    for (path, body, code) in [
        ("/v1/images/edits", format!("{{\"prompt\": \"a\", \"numbers\": [{}0]}}", long("1,")), "invalid_numbers"),
        ("/v1/images/edits", format!("{{\"prompt\": \"a\", \"image\": [{}0]}}", long("1,")), "invalid_body"),
        ("/v1/images/edits", format!("{{{}\"prompt\": \"a\"}}", long("\"a\":1,")), "invalid_body"),
        ("/v1/images/edits", long("["), "invalid_json"),
        ("/v1/images/edits", format!("{{\"{}\": 1}}", long(r"\n")), "invalid_json"),
        ("/v1/jobs", format!("{{\"operation\": \"image_generation\", \"loras\": [{}0]}}", long("1,")), "invalid_loras"),
        ("/v1/jobs", format!("{{\"operation\": \"image_generation\", \"prompt\": \"{}\"}}", long(r"\n")), "invalid_prompt"),
    ] {
        let response = post(&worker, path, body).await;
        assert_eq!(response.status(), 400);
        assert_eq!(response.json::<Value>().await.unwrap()["error"]["code"], code);
    }
    let more = peak(&worker) - before;
    assert!(more < 250, "{more} MiB for bodies of 49");
}

/// Names of fields are repeated in answers and warnings; only their beginnings are.
#[tokio::test]
async fn what_is_repeated_of_a_request_is_cut() {
    let worker = Worker::ready(&[]);
    let mut body = small("a fox");
    for i in 0..100 {
        body[format!("{i}{}", "x".repeat(900))] = 1.into();
    }
    let ignored = worker.generate(&body).await["ignored"].clone();
    let ignored = ignored.as_array().unwrap();
    assert_eq!(ignored.len(), 100);
    assert!(ignored.iter().all(|name| name.as_str().unwrap().len() <= 64));
    let mut body = small(&"a ".repeat(15_999));
    body["negative_prompt"] = "b ".repeat(15_999).into();
    let warnings = worker.generate(&body).await["warnings"].clone();
    assert!(!warnings.as_array().unwrap().is_empty());
    assert!(warnings.as_array().unwrap().iter().all(|warning| warning.as_str().unwrap().len() <= 1003), "{warnings}");
}
