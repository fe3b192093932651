//! `GET /` for browsers and for programs. `.ci/run page` uses the page in a real browser.

use base64::{Engine, prelude::BASE64_STANDARD};
use reqwest::{Client, Response};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::support::Worker;

/// What a browser sends.
const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8";

async fn ask(worker: &Worker, accept: Option<&str>) -> Response {
    let request = Client::new().get(worker.url("/"));
    accept.map_or(request.try_clone().unwrap(), |accept| request.header("accept", accept)).send().await.unwrap()
}

#[tokio::test]
async fn browsers_get_a_page_and_programs_get_json_without_a_key() {
    // Before the model is there, too.
    let worker = Worker::listening(&["--api-key", "k"]);
    for (accept, kind) in [
        (Some(BROWSER), "text/html; charset=utf-8"),
        (Some("text/html"), "text/html; charset=utf-8"),
        (Some("*/*"), "application/json"),
        (Some("application/json, text/html"), "application/json"),
        (None, "application/json"),
    ] {
        let answer = ask(&worker, accept).await;
        assert_eq!(answer.status(), 200, "{accept:?}");
        assert_eq!((&answer.headers()["content-type"], &answer.headers()["vary"]), (&kind.parse().unwrap(), &"accept".parse().unwrap()));
        let text = answer.text().await.unwrap();
        assert_eq!(text.starts_with("<!doctype html>"), kind.starts_with("text/html"), "{accept:?}: {text}");
        assert_eq!(serde_json::from_str::<Value>(&text).is_ok_and(|json| json["name"] == "sd-worker"), kind == "application/json");
    }
    assert_eq!(worker.get("/v1/capabilities").await.status(), 401);
}

/// What stands between two texts, which must be there once.
fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let parts: Vec<&str> = text.split(start).collect();
    assert_eq!(parts.len(), 2, "{start}");
    parts[1].split(end).next().unwrap()
}

#[tokio::test]
async fn a_browser_runs_what_the_page_brings_and_nothing_else() {
    let worker = Worker::listening(&[]);
    let answer = ask(&worker, Some(BROWSER)).await;
    let headers = answer.headers().clone();
    assert_eq!(headers.get("set-cookie"), None);
    let policy = headers["content-security-policy"].to_str().unwrap().to_owned();
    let page = answer.text().await.unwrap();
    let hash = |text: &str| format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(text)));
    let script = between(&page, "<script type=\"module\">", "</script>");
    let style = between(&page, "<style>", "</style>");
    for rule in [
        "default-src 'none'".to_owned(),
        format!("script-src {}", hash(script)),
        format!("style-src {}", hash(style)),
        "connect-src 'self'".to_owned(),
        "img-src blob: data:".to_owned(),
        "base-uri 'none'".to_owned(),
        "form-action 'none'".to_owned(),
        "frame-ancestors 'none'".to_owned(),
        "require-trusted-types-for 'script'".to_owned(),
    ] {
        assert!(policy.split("; ").any(|part| part == rule), "{rule}: {policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    assert!(script.len() > 10_000 && style.len() > 1_000, "the parts are joined");
}

#[tokio::test]
async fn the_page_names_nothing_elsewhere() {
    let worker = Worker::listening(&[]);
    let page = ask(&worker, Some(BROWSER)).await.text().await.unwrap();
    // The icon's namespace is a name, and nothing loads it.
    let page = page.replace("xmlns='http://www.w3.org/2000/svg'", "");
    for elsewhere in
        ["http:", "https:", "src=\"//", "href=\"//", "@import", " url(", ":url(", "src=", "<iframe", "<link rel=\"stylesheet", "import "]
    {
        // Text to copy imports Python's modules.
        let is_python = |line: &str| line.contains("\"from openai import OpenAI\"") || line.contains("`import base64");
        let found = page.lines().find(|line| line.contains(elsewhere) && !is_python(line));
        assert_eq!(found, None, "{elsewhere}");
    }
    for stored in ["document.cookie", "localStorage", "indexedDB", "innerHTML", "eval("] {
        assert!(!page.contains(stored), "{stored}");
    }
    let links: Vec<&str> = page.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    for link in links.iter().filter(|link| !link.starts_with("data:")) {
        // Relative, so that the page works behind a proxy that adds a path.
        assert!(!link.starts_with('/'), "{link}");
        assert_eq!(worker.get(&format!("/{link}")).await.status(), 200, "{link}");
    }
}
