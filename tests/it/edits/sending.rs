//! How an edit may be sent, from where, and how often.

use super::*;

#[tokio::test]
async fn a_link_is_not_followed() {
    let worker = Worker::ready(&[]);
    let bait = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let link = format!("http://{}/x.png", bait.local_addr().unwrap());
    assert_eq!(send(&worker, form(&[("image", &link)])).await.status(), 400);
    for body in [json!({ "prompt": "a", "image": link }), json!({ "operation": "image_transform", "prompt": "a", "input_image": link })] {
        let path = if body["operation"].is_null() { "/v1/images/edits" } else { "/v1/jobs" };
        assert_eq!(Client::new().post(worker.url(path)).json(&body).send().await.unwrap().status(), 400);
    }
    assert!(tokio::time::timeout(Duration::ZERO, bait.accept()).await.is_err(), "somebody came for the bait");
}

#[tokio::test]
async fn a_body_of_60_mb_is_refused_before_it_is_sent() {
    let worker = Worker::ready(&[]);
    for (path, kind) in [
        ("/v1/images/edits", "multipart/form-data; boundary=x"),
        ("/v1/images/edits", "application/json"),
        ("/v1/images/generations", "application/json"),
        ("/v1/jobs", "application/json"),
    ] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\nconnection: close\r\ncontent-length: 60000000\r\n\r\n"
        );
        let mut socket = tokio::net::TcpStream::connect(worker.address()).await.unwrap();
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("the body must be at most 52428800 bytes"), "{answer}");
    }
    // A body without a length is read up to the limit.
    let chunks = (0..60).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1 << 20]));
    let endless = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks));
    let request = Client::new().post(worker.url("/v1/images/edits")).header("content-type", "application/json").body(endless);
    assert_eq!(request.send().await.unwrap().status(), 413);
    // What is no picture has a smaller limit.
    let long = "x".repeat(2 << 20);
    let refused = worker.post(&json!({ "prompt": long })).await;
    assert_eq!(refused.status(), 400);
    assert_eq!(refused.json::<Value>().await.unwrap()["error"]["message"], "prompt must be at most 1048576 bytes");
}

#[tokio::test]
async fn a_web_page_s_form_is_taken_only_from_pages_that_may_ask() {
    let worker = Worker::ready(&["--cors-origin", "http://localhost:3000"]);
    let own = worker.url("");
    let from = |origin: &str| {
        let request = Client::new().post(worker.url("/v1/images/edits")).header("origin", origin);
        request.multipart(with_picture(&[])).send()
    };
    for (origin, status) in [("http://localhost:3000", 200), (own.as_str(), 200), ("https://example.com", 403), ("null", 403)] {
        assert_eq!(from(origin).await.unwrap().status(), status, "{origin}");
    }
}

#[tokio::test]
async fn a_form_sent_again_is_the_same_request() {
    let worker = Worker::ready(&[]);
    let keyed = |form: Form| Client::new().post(worker.url("/v1/images/edits")).header("idempotency-key", "a").multipart(form).send();
    let first: Value = keyed(with_picture(&[])).await.unwrap().json().await.unwrap();
    let steps = worker.metric("sdw_step_seconds_count").await;
    let again: Value = keyed(with_picture(&[])).await.unwrap().json().await.unwrap();
    assert_eq!((first["created"].clone(), worker.metric("sdw_step_seconds_count").await), (again["created"].clone(), steps));
    let other = form(&[]).part("image", file(png(RgbImage::from_fn(64, 64, |x, _| Rgb([x as u8, 0, 9])))));
    assert_eq!(keyed(other).await.unwrap().status(), 422);
}

#[tokio::test]
async fn a_key_is_not_taken_for_that_of_another_route() {
    let worker = Worker::ready(&[]);
    let mut body = small("a fox");
    body["image"] = BASE64_STANDARD.encode(png(original())).into();
    let keyed = |path: &str| Client::new().post(worker.url(path)).header("idempotency-key", "a").json(&body).send();
    assert_eq!(keyed("/v1/images/generations").await.unwrap().status(), 200);
    assert_eq!(keyed("/v1/images/edits").await.unwrap().status(), 422);
}
