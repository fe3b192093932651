//! Who may ask.

use reqwest::{Client, Method};
use serde_json::Value;

use crate::support::{Worker, binary, small};

#[tokio::test]
async fn a_key_is_asked_of_everybody_but_probes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, "s3cret\n").unwrap();
    let mut by_environment = binary();
    by_environment.env("SD_WORKER_API_KEY", "s3cret");
    let workers = [
        Worker::listening_as(by_environment, &["--log-level", "debug"]),
        Worker::listening_as(binary(), &["--host", "0.0.0.0", "--log-level", "debug", "--api-key-file", file.to_str().unwrap()]),
    ];
    for mut worker in workers {
        assert_eq!(worker.event()["event"], "ready", "with a key others may reach it");
        for path in ["/", "/livez", "/readyz", "/health"] {
            assert_eq!(worker.get(path).await.status(), 200, "{path}");
        }
        let ask = |authorization: Option<&str>| {
            let request = Client::new().post(worker.url("/v1/images/generations")).json(&small("an owl"));
            authorization.map_or(request.try_clone().unwrap(), |value| request.header("authorization", value)).send()
        };
        for wrong in [None, Some("Bearer s3cre"), Some("Bearer s3cret2"), Some("Bearer"), Some("Basic s3cret"), Some("s3cret")] {
            let refused = ask(wrong).await.unwrap();
            assert_eq!(refused.status(), 401, "{wrong:?}");
            assert_eq!(refused.headers()["www-authenticate"], "Bearer");
            assert_eq!(refused.json::<Value>().await.unwrap()["error"]["code"], "invalid_api_key");
        }
        for path in ["/metrics", "/v1/models", "/v1/jobs/x", "/info", "/v2"] {
            assert_eq!(worker.get(path).await.status(), 401, "{path}");
        }
        for right in ["Bearer s3cret", "bearer s3cret"] {
            assert_eq!(ask(Some(right)).await.unwrap().status(), 200);
        }
        worker.signal("TERM");
        worker.wait();
        let log = worker.stderr();
        assert!(!log.contains("s3cre"), "keys are not logged: {log}");
        assert!(!log.contains("an owl"), "neither are prompts, at debug: {log}");
    }
}

#[tokio::test]
async fn a_key_need_not_be_ascii() {
    let worker = Worker::ready(&["--api-key", "schlüssel"]);
    for (key, status) in [("schlüssel", 200), ("schlussel", 401), ("schlüssen", 401)] {
        let request = Client::new().get(worker.url("/v1/models")).header("authorization", format!("Bearer {key}").as_bytes());
        assert_eq!(request.send().await.unwrap().status(), status, "{key}");
    }
}

#[tokio::test]
async fn help_does_not_show_the_key() {
    let output = binary().args(["serve", "--help"]).env("SD_WORKER_API_KEY", "s3cret").output().unwrap();
    assert!(output.status.success() && !String::from_utf8(output.stdout).unwrap().contains("s3cret"));
}

#[tokio::test]
async fn web_pages_may_ask_only_if_they_were_named() {
    let preflight = |worker: &Worker, origin: &'static str| {
        let request = Client::new().request(Method::OPTIONS, worker.url("/v1/images/generations")).header("origin", origin);
        let asked = "authorization,content-type,idempotency-key,x-stainless-lang";
        request.header("access-control-request-method", "POST").header("access-control-request-headers", asked).send()
    };
    let closed = Worker::ready(&[]);
    assert!(!preflight(&closed, "http://localhost:3000").await.unwrap().headers().contains_key("access-control-allow-origin"));

    let open = Worker::ready(&["--cors-origin", "http://localhost:3000,https://example.org", "--api-key", "k"]);
    for origin in ["http://localhost:3000", "https://example.org"] {
        let answer = preflight(&open, origin).await.unwrap();
        assert_eq!(answer.headers()["access-control-allow-origin"], origin);
        assert_eq!(answer.headers()["access-control-allow-methods"], "GET,POST,DELETE");
        assert_eq!(answer.headers()["access-control-allow-headers"], "authorization,content-type,idempotency-key,x-stainless-lang");
        let refused = Client::new().get(open.url("/v1/models")).header("origin", origin).send().await.unwrap();
        assert_eq!(refused.headers()["access-control-expose-headers"], "x-request-id,retry-after,x-should-retry");
    }
    assert!(!preflight(&open, "https://example.com").await.unwrap().headers().contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn secrets_are_not_logged_at_any_level() {
    let mut command = binary();
    command.env("SD_WORKER_API_KEY", "s3cret").env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer otl9");
    let report = "http://someone:pa55word@127.0.0.1:1/x?token=t0ken";
    let args = ["--log-level", "trace", "--callback-url", report, "--queen-url", report, "--otlp-endpoint", "http://127.0.0.1:1"];
    let mut worker = Worker::listening_as(command, &args);
    assert_eq!(worker.event()["event"], "ready");
    for key in ["s3cret", "s3cre"] {
        let request = Client::new().post(worker.url("/v1/images/generations?key=s3cret")).json(&small("an owl"));
        let status = request.header("authorization", format!("Bearer {key}")).send().await.unwrap().status();
        assert_eq!(status == 200, key == "s3cret");
    }
    worker.signal("TERM");
    worker.wait();
    let log = worker.stderr();
    assert!(log.contains("TRACE") && log.contains("nobody takes the heartbeat") && log.contains("127.0.0.1:1/x"), "{log}");
    for secret in ["s3cre", "pa55word", "t0ken", "otl9"] {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret} is logged");
    }
}

#[tokio::test]
async fn nothing_that_a_request_names_is_fetched() {
    let worker = Worker::ready(&[]);
    let elsewhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/picture.png", elsewhere.local_addr().unwrap());
    let named =
        |fields: &[&str]| fields.iter().map(|field| ((*field).to_owned(), Value::from(url.clone()))).collect::<serde_json::Map<_, _>>();
    let extra =
        named(&["model", "user", "image", "mask", "input_image", "init_image", "mask_image", "response_url", "callback_url", "webhook"]);
    for (path, mut body) in [
        ("/v1/images/generations", small("a fox")),
        ("/v1/images/edits", small("a fox")),
        ("/v1/jobs", serde_json::json!({ "operation": "image_generation", "prompt": "a fox", "steps": 1, "width": 64, "height": 64 })),
        ("/v1/jobs", serde_json::json!({ "operation": "image_transform", "prompt": "a fox", "steps": 1, "width": 64, "height": 64 })),
        ("/v1/jobs", serde_json::json!({ "operation": "image_inpaint", "prompt": "a fox", "steps": 1, "width": 64, "height": 64 })),
    ] {
        body.as_object_mut().unwrap().extend(extra.clone());
        let answer = Client::new().post(worker.url(path)).json(&body).send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        if let Some(events) = answer["sse_url"].as_str() {
            worker.get(events).await.text().await.unwrap();
        }
    }
    worker.wait_for_metric("sdw_images_total", |value| value >= 2.0).await;
    elsewhere.set_nonblocking(true).unwrap();
    assert_eq!(elsewhere.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "nobody came");
}
