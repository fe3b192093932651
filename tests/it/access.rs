//! Access: the API key, allowed hosts, and the origins of web pages.

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
async fn a_key_that_no_client_can_send_is_refused_at_the_start() {
    for (key, reason) in
        [("a\nb", "has a line end inside"), ("a\u{7f}b", "has a line end inside"), ("\u{feff}abc", "has a byte order mark inside")]
    {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        std::fs::write(&file, key).unwrap();
        for output in [
            binary().args(["--api-key-file", file.to_str().unwrap()]).output().unwrap(),
            binary().env("SD_WORKER_API_KEY", key).output().unwrap(),
        ] {
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(78), "{key:?}: {stderr}");
            assert!(stderr.contains(&format!("error: the API key {reason}")), "{key:?}: {stderr}");
        }
    }
}

#[test]
fn origins_and_hosts_that_no_browser_sends_are_refused_at_the_start() {
    for (option, value) in [
        ("--cors-origin", "localhost"),
        ("--cors-origin", "https://example.org/app"),
        ("--cors-origin", "http://a,"),
        ("--cors-origin", "*"),
        ("--allowed-host", "http://a"),
        ("--allowed-host", "a/b"),
    ] {
        let output = binary().args([option, value]).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{option} {value}: {stderr}");
        let wrong = value.split(',').next_back().unwrap();
        assert!(stderr.contains(&format!("error: {option} must be ")) && stderr.contains(&format!(", not \"{wrong}\"")), "{stderr}");
    }
}

/// A web page can point a name of its own to this machine.
#[tokio::test]
async fn on_loopback_without_a_key_a_worker_goes_by_the_names_of_loopback() {
    // The request goes to the worker under the page's name, which HTTP/2 puts into `:authority`.
    let ask = async |worker: &Worker, is_http2: bool, host: &str| {
        let port = worker.address().1;
        let client = Client::builder().resolve(host, std::net::SocketAddr::from(([127, 0, 0, 1], port)));
        let client = if is_http2 { client.http2_prior_knowledge() } else { client }.build().unwrap();
        client.get(format!("http://{host}:{port}/v1/models")).send().await.unwrap()
    };
    let closed = Worker::ready(&[]);
    for is_http2 in [false, true] {
        for host in ["localhost", "LOCALHOST", "sd.localhost", "127.0.0.1"] {
            assert_eq!(ask(&closed, is_http2, host).await.status(), 200, "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example"] {
            let refused = ask(&closed, is_http2, host).await;
            assert_eq!(refused.status(), 403, "{host}");
            let error = refused.json::<Value>().await.unwrap()["error"].clone();
            assert_eq!(error["code"], "host_not_allowed");
            assert!(error["message"].as_str().unwrap().contains(&format!("--allowed-host {host}")), "{error}");
        }
    }
    let page = Client::new().post(closed.url("/v1/images/generations")).header("host", "evil.example").json(&small("a fox"));
    assert_eq!(page.send().await.unwrap().status(), 403);
    assert_eq!(closed.metric("sdw_rejected_total{reason=\"host_not_allowed\"}").await.to_bits(), f64::to_bits(7.0));
    // An HTTP/1.0 client names no host; a browser always does.
    assert!(http_1_0(&closed).starts_with("HTTP/1.0 200"));

    let named = Worker::ready(&["--allowed-host", "Worker.example:443,other.example"]);
    for (host, status) in [("worker.example", 200), ("other.example", 200), ("localhost", 200), ("evil.example", 403)] {
        assert_eq!(ask(&named, false, host).await.status(), status, "{host}");
    }
    let with_key = Worker::ready(&["--api-key", "k"]);
    assert_eq!(ask(&with_key, false, "worker.example").await.status(), 401, "where there is a key, it decides");
    let for_others = Worker::ready(&["--host", "0.0.0.0", "--insecure"]);
    assert_eq!(ask(&for_others, false, "worker.example").await.status(), 200);
}

fn http_1_0(worker: &Worker) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(worker.address()).unwrap();
    stream.write_all(b"GET /livez HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
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

    let open = Worker::ready(&["--cors-origin", "HTTP://localhost:3000/, https://Example.org:443", "--api-key", "k"]);
    for origin in ["http://localhost:3000", "https://example.org"] {
        let answer = preflight(&open, origin).await.unwrap();
        assert_eq!((answer.status().as_u16(), &answer.headers()["allow"]), (204, &"POST".parse().unwrap()));
        assert_eq!(answer.headers()["access-control-allow-origin"], origin);
        assert_eq!(answer.headers()["access-control-allow-methods"], "GET,POST,DELETE");
        assert_eq!(answer.headers()["access-control-allow-headers"], "authorization,content-type,idempotency-key,x-stainless-lang");
        let refused = Client::new().get(open.url("/v1/models")).header("origin", origin).send().await.unwrap();
        assert_eq!(refused.headers()["access-control-expose-headers"], "x-request-id,retry-after,x-should-retry");
    }
    // `OPTIONS` is how some programs look for a worker, and how browsers ask first; neither sends a key.
    for (worker, origins) in [(&closed, &[None][..]), (&open, &[None, Some("https://example.org"), Some("https://example.com")])] {
        for origin in origins {
            let asked = Client::new().request(Method::OPTIONS, worker.url("/v1/images/generations"));
            let asked = origin.map_or(asked.try_clone().unwrap(), |origin| asked.header("origin", origin));
            let answer = asked.send().await.unwrap();
            assert_eq!((answer.status().as_u16(), &answer.headers()["allow"]), (204, &"POST".parse().unwrap()), "{origin:?}");
            assert!(!answer.headers().contains_key("content-length"));
            let allowed = answer.headers().get("access-control-allow-origin");
            assert_eq!(allowed.is_some(), *origin == Some("https://example.org"), "{origin:?}");
        }
        let other = Client::new().request(Method::OPTIONS, worker.url("/v2")).send().await.unwrap();
        assert_eq!(other.status(), 404);
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
    assert!(log.contains("TRACE") && log.contains("the heartbeat cannot be delivered") && log.contains("127.0.0.1:1/x"), "{log}");
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
    let extra = named(&["model", "user", "image", "input_image", "init_image", "response_url", "callback_url", "webhook"]);
    let masks = named(&["mask", "mask_image"]);
    for (path, body) in [
        ("/v1/images/generations", small("a fox")),
        ("/v1/images/edits", small("a fox")),
        ("/v1/jobs", serde_json::json!({ "operation": "image_generation", "prompt": "a fox", "steps": 1, "width": 64, "height": 64 })),
        ("/v1/jobs", serde_json::json!({ "operation": "image_transform", "prompt": "a fox", "steps": 1, "width": 64, "height": 64 })),
        ("/v1/jobs", serde_json::json!({ "operation": "image_inpaint", "prompt": "a fox", "steps": 1, "width": 64, "height": 64 })),
    ] {
        for more in [&serde_json::Map::new(), &masks] {
            let mut body = body.clone();
            body.as_object_mut().unwrap().extend(extra.clone().into_iter().chain(more.clone()));
            let answer = Client::new().post(worker.url(path)).json(&body).send().await.unwrap();
            let answer: Value = answer.json().await.unwrap();
            if let Some(events) = answer["sse_url"].as_str() {
                worker.get(events).await.text().await.unwrap();
            }
        }
    }
    worker.wait_for_metric("sdw_images_total", |value| value >= 2.0).await;
    elsewhere.set_nonblocking(true).unwrap();
    assert_eq!(elsewhere.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "nobody came");
}
