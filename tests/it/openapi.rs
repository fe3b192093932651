//! The worker's description of its API. `.ci/run openapi` tests that the worker follows it.

use std::collections::BTreeSet;

use reqwest::{Client, Method};
use serde_json::Value;

use crate::support::Worker;

const ROUTES: [&str; 41] = [
    "GET /",
    "GET /livez",
    "GET /readyz",
    "GET /health",
    "GET /metrics",
    "GET /info",
    "GET /v1/loras",
    "GET /docs",
    "GET /openapi.json",
    "GET /v1/capabilities",
    "GET /v1/models",
    "GET /v1/models/{id}",
    "POST /v1/shutdown",
    "POST /v1/images/generations",
    "POST /v1/images/edits",
    "POST /v1/images/upscale",
    "POST /v1/jobs",
    "GET /v1/jobs/{id}",
    "GET /v1/jobs/{id}/stream",
    "GET /v1/jobs/{id}/result",
    "POST /v1/images/variations",
    "GET /v1/images/{id}/content",
    "POST /sdapi/v1/txt2img",
    "POST /sdapi/v1/img2img",
    "POST /sdapi/v1/png-info",
    "POST /sdapi/v1/extra-single-image",
    "GET /sdapi/v1/progress",
    "POST /sdapi/v1/interrupt",
    "POST /sdapi/v1/skip",
    "GET /sdapi/v1/options",
    "POST /sdapi/v1/options",
    "GET /sdapi/v1/sd-models",
    "GET /sdapi/v1/samplers",
    "GET /sdapi/v1/schedulers",
    "GET /sdapi/v1/upscalers",
    "GET /sdapi/v1/latent-upscale-modes",
    "GET /sdapi/v1/loras",
    "GET /sdapi/v1/embeddings",
    "GET /controlnet/model_list",
    "GET /controlnet/module_list",
    "GET /controlnet/version",
];

async fn description(worker: &Worker) -> Value {
    let answer = worker.get("/openapi.json").await;
    assert_eq!((answer.status().as_u16(), &answer.headers()["content-type"]), (200, &"application/json".parse().unwrap()));
    answer.json().await.unwrap()
}

/// Every `METHOD /path` of a description.
fn operations(api: &Value) -> BTreeSet<String> {
    let paths = api["paths"].as_object().unwrap().iter();
    paths.flat_map(|(path, item)| item.as_object().unwrap().keys().map(move |method| format!("{} {path}", method.to_uppercase()))).collect()
}

#[tokio::test]
async fn every_route_is_described_and_every_described_route_is_there() {
    let worker = Worker::ready(&[]);
    let api = description(&worker).await;
    assert_eq!(api["openapi"], "3.2.0");
    let mut expected: BTreeSet<String> = ROUTES.iter().map(ToString::to_string).collect();
    expected.insert("DELETE /v1/jobs/{id}".to_owned());
    assert_eq!(operations(&api), expected);
    for operation in expected.iter().filter(|operation| *operation != "POST /v1/shutdown") {
        let (method, path) = operation.split_once(' ').unwrap();
        let path = path.replace("{id}", "none");
        let method: Method = method.parse().unwrap();
        let answer = Client::new().request(method, worker.url(&path)).send().await.unwrap();
        let (status, body) = (answer.status().as_u16(), answer.text().await.unwrap());
        assert!(status != 405 && !body.contains("there is nothing at"), "{operation}: {status} {body}");
    }
}

/// Everything that `$ref` names, anywhere in a value.
fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if let (true, Some(target)) = (name == "$ref", value.as_str()) {
                    found.insert(target.to_owned());
                }
                references(value, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[tokio::test]
async fn a_description_is_whole_and_open_to_all() {
    let worker = Worker::ready(&["--api-key", "k"]);
    let api = description(&worker).await;
    let mut targets = BTreeSet::new();
    references(&api, &mut targets);
    assert!(targets.len() > 20);
    for target in targets {
        assert!(api.pointer(target.trim_start_matches('#')).is_some(), "{target} is named and not there");
    }
    let root = api["paths"]["/"]["get"]["responses"]["200"]["content"].as_object().unwrap();
    assert_eq!(root.keys().collect::<Vec<_>>(), ["application/json", "text/html"]);
    let request = &api["components"]["schemas"]["ImagesRequest"];
    assert_eq!(request["required"], serde_json::json!(["prompt"]));
    for (name, field) in request["properties"].as_object().unwrap() {
        assert!(field["description"].is_string() || field["oneOf"][0]["description"].is_string(), "{name} is not explained");
    }
    for (path, item) in api["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            assert!(operation["summary"].is_string(), "{method} {path} is not explained");
        }
    }
}

#[tokio::test]
async fn the_page_shows_every_variant_and_examples_that_work() {
    let worker = Worker::ready(&[]);
    let (api, page) = (description(&worker).await, worker.get("/docs").await.text().await.unwrap());
    let types = page.split("<h2>Types</h2>").nth(1).unwrap();
    for (name, fields) in [("ImageEvent", "Completed"), ("JobEvent", "Finished")] {
        let section = types.split(&format!("<h3 id=\"{name}\">")).nth(1).unwrap().split("<h3").next().unwrap();
        for variant in api["components"]["schemas"][name]["oneOf"].as_array().unwrap() {
            let mut parts = variant["allOf"].as_array().into_iter().flatten().chain([variant]);
            let tag = parts.find_map(|part| part["properties"]["type"]["enum"][0].as_str()).unwrap();
            assert!(section.contains(&format!("<strong><code>{tag}</code></strong>")), "{name} has no {tag}: {section}");
        }
        assert!(section.contains(&format!("The fields of <a href=\"#{fields}\">")), "{section}");
    }
    let place = |text: &str| page.find(text).unwrap_or_else(|| panic!("{text} is not there"));
    assert!(place("<code>/v1/images/generations</code></h3>") < place("<code>/v1/images/edits</code></h3>"));
    for (path, item) in api["paths"].as_object().unwrap() {
        let body = &item["post"]["requestBody"];
        if body.is_null() {
            continue;
        }
        let example = &body["content"]["application/json"]["example"];
        let answer = Client::new().post(worker.url(path)).json(example).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}: {example}");
        for name in example.as_object().unwrap().keys() {
            assert!(page.contains(&format!("\"{name}\": ")), "{path}: {name}");
        }
    }
}

#[tokio::test]
async fn the_page_needs_nothing_from_elsewhere() {
    let worker = Worker::ready(&["--api-key", "k"]);
    let answer = worker.get("/docs").await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "text/html; charset=utf-8");
    assert!(answer.headers()["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
    let page = answer.text().await.unwrap();
    for loads in ["<script", "<link", "<img", "<iframe", "src=", "@import", "url("] {
        assert!(!page.contains(loads), "{loads}");
    }
    let api = description(&worker).await;
    for operation in operations(&api) {
        let (method, path) = operation.split_once(' ').unwrap();
        assert!(page.contains(&format!("<h3>{method} <code>{path}</code></h3>")), "{operation}");
    }
    for name in api["components"]["schemas"].as_object().unwrap().keys() {
        assert!(page.contains(&format!("<h3 id=\"{name}\">{name}</h3>")), "{name}");
    }
    let inside = page.split("href=\"#").skip(1).map(|rest| rest.split('"').next().unwrap());
    for target in inside {
        assert!(page.contains(&format!("id=\"{target}\"")), "#{target} leads nowhere");
    }
    assert!(page.contains("integer, 1 to 10") && page.contains("<code>\"euler\"</code>"));
}
