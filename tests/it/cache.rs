//! Features that are reused between steps: the numbers of `DeepCache`'s own package, and what requests may say of it.
//! `tests/parity/make_cache_goldens.py` makes the goldens.

use std::fs;

use candle_core::Device;
use serde_json::{Value, json};

use crate::{
    cli::{path, run},
    controls,
    support::{Worker, bytes, small},
};

#[test]
fn shallow_steps_are_those_of_deep_cache() {
    let goldens = candle_core::safetensors::load("tests/parity/cache.safetensors", &Device::Cpu).unwrap();
    let cases: Vec<controls::Case> = serde_json::from_slice(&fs::read("tests/parity/cache.json").unwrap()).unwrap();
    assert_eq!(cases.len(), 21);
    controls::compare_all(&cases, &goldens);
}

fn request(cache: Option<Value>) -> Value {
    let mut request = small("a fox");
    (request["steps"], request["cache"]) = (6.into(), cache.unwrap_or_default());
    request
}

#[tokio::test]
async fn a_cache_that_skips_nothing_changes_nothing() {
    let worker = Worker::ready(&[]);
    let plain = worker.generate(&request(None)).await;
    for (cache, ignored) in [
        (json!({ "kind": "deep", "threshold": 0 }), json!([])),
        (json!({ "kind": "deep", "interval": 2, "start": 0.5, "end": 0.5 }), json!(["cache"])),
        (json!({ "kind": "deep", "interval": 2, "end": 0.1 }), json!(["cache"])),
    ] {
        let answer = worker.generate(&request(Some(cache.clone()))).await;
        let pixels = |answer: &Value| image::load_from_memory(&bytes(&answer["data"][0])).unwrap().into_rgb8();
        assert!(pixels(&answer) == pixels(&plain), "{cache}");
        assert_eq!(answer["ignored"], ignored, "{cache}");
    }
    let mut single = request(Some(json!({ "kind": "deep", "interval": 2 })));
    single["steps"] = 1.into();
    assert_eq!(worker.generate(&single).await["ignored"], json!(["cache"]), "a single step is full");
}

#[tokio::test]
async fn answers_and_files_say_how_features_were_reused() {
    let worker = Worker::ready(&[]);
    for (cache, used, said) in [
        (
            json!({ "kind": "deep", "interval": 3.0 }),
            json!({ "kind": "deep", "interval": 3, "start": 0.0, "end": 1.0 }),
            "Feature cache: deep interval=3,",
        ),
        (
            json!({ "kind": "deep", "threshold": 0.25, "end": 0.75 }),
            json!({ "kind": "deep", "threshold": 0.25, "start": 0.0, "end": 0.75 }),
            "Feature cache: deep threshold=0.25 start=0 end=0.75,",
        ),
    ] {
        let answer = worker.generate(&request(Some(cache.clone()))).await;
        assert_eq!((&answer["parameters"]["cache"], &answer["ignored"]), (&used, &json!([])), "{cache}");
        assert!(String::from_utf8_lossy(&bytes(&answer["data"][0])).contains(said), "{cache}");
        let again = worker.generate(&request(Some(used))).await;
        assert_eq!(again["data"], answer["data"], "{cache}");
    }
    assert_eq!(worker.generate(&request(None)).await["parameters"]["cache"], Value::Null);
}

#[tokio::test]
async fn jobs_and_the_command_line_reuse_features_as_well() {
    let worker = Worker::ready(&[]);
    let cache = json!({ "kind": "deep", "interval": 3, "end": 0.9 });
    let mut request = request(Some(cache));
    let file = bytes(&worker.generate(&request).await["data"][0]);

    request["operation"] = "image_generation".into();
    request.as_object_mut().unwrap().remove("size");
    (request["width"], request["height"]) = (64.into(), 64.into());
    let post = reqwest::Client::new().post(worker.url("/v1/jobs")).json(&request);
    let job: Value = post.send().await.unwrap().json().await.unwrap();
    worker.get(job["sse_url"].as_str().unwrap()).await.bytes().await.unwrap();
    let result: Value = worker.get(&format!("/v1/jobs/{}/result", job["job_id"].as_str().unwrap())).await.json().await.unwrap();
    assert!(bytes(&result["data"][0]) == file);

    let folder = tempfile::tempdir().unwrap();
    let path = path(&folder, "fox.png");
    let settings =
        ["--seed", "1", "--steps", "6", "--size", "64x64", "--guidance-scale", "4", "--sampler", "ddim", "--schedule", "default"];
    let args = [&["generate", "a fox", "-o", &path, "--cache", "deep,interval=3,end=0.9"][..], &settings].concat();
    let output = run(&args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(fs::read(path).unwrap() == file);
    let refused = run(&["generate", "a fox", "--cache", "deep,interval=1"]);
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(64) && stderr.contains("must be a whole number from 2 to 20, not 1"), "{stderr}");
}

/// LoRAs, guidance intervals and parts of prompts.
#[tokio::test(flavor = "multi_thread")]
async fn clients_with_and_without_a_cache_get_the_pictures_of_those_that_come_alone() {
    let request = |i: usize| {
        let caches = [json!({ "kind": "deep", "interval": 2 }), Value::Null, json!({ "kind": "deep", "threshold": 0.2 })];
        let mut request = request(Some(caches[i % 3].clone()));
        (request["seed"], request["steps"]) = (i.into(), (8 + i).into());
        request["sampler"] = ["ddim", "euler_a", "heun", "dpmpp_2m"][i % 4].into();
        request["prompt"] = ["a fox", "a pizza", "an owl", "a fox AND a pizza :0.5"][i % 4].into();
        request["loras"] = if i.is_multiple_of(2) { json!(["ink"]) } else { json!([]) };
        if i.is_multiple_of(4) {
            request["guidance_interval"] = json!([0.2, 0.7]);
        }
        request
    };
    let single = Worker::ready(&["--loras", "builtin"]);
    let worker = std::sync::Arc::new(Worker::ready(&["--loras", "builtin", "--max-batch", "4"]));
    let clients = (0..12).map(|i| {
        let (worker, request) = (std::sync::Arc::clone(&worker), request(i));
        tokio::spawn(async move { bytes(&worker.generate(&request).await["data"][0]) })
    });
    for (i, client) in clients.collect::<Vec<_>>().into_iter().enumerate() {
        assert!(client.await.unwrap() == bytes(&single.generate(&request(i)).await["data"][0]), "picture {i}");
    }
    let (passes, pictures) = (worker.metric("sdw_batch_size_count").await, worker.metric("sdw_batch_size_sum").await);
    assert!(passes < pictures, "some pictures, at least, take steps together");
}
