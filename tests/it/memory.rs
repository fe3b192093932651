//! The same pictures in less memory.

use std::{fs, sync::Arc};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::{
    made_up,
    support::{Worker, bytes, picture, steps},
};

async fn edit(worker: &Worker, body: &Value) -> reqwest::Response {
    let mut body = body.clone();
    body["image"] = BASE64_STANDARD.encode(fs::read("tests/parity/picture.png").unwrap()).into();
    reqwest::Client::new().post(worker.url("/v1/images/edits")).json(&body).send().await.unwrap()
}

async fn file(response: reqwest::Response) -> Vec<u8> {
    let (status, answer) = (response.status(), response.json::<Value>().await.unwrap());
    assert_eq!(status, 200, "{answer}");
    bytes(&answer["data"][0])
}

/// Once the worker is ready, only layers that are read again depend on their files.
#[tokio::test]
async fn with_low_memory_what_does_not_work_is_not_in_memory() {
    let model = made_up::model("sdxl");
    let path = model.path().to_str().unwrap();
    let (plain, low) = (Worker::ready(&["--model", path]), Worker::ready(&["--model", path, "--low-memory"]));
    let (first, second) = (steps("a fox", 2), steps("an owl", 2));
    let right = file(plain.post(&first).await).await;
    assert!(file(low.post(&first).await).await == right);
    assert!(file(edit(&low, &first).await).await == file(edit(&plain, &first).await).await);

    for text_encoder in ["text_encoder", "text_encoder_2"] {
        let weights = model.path().join(text_encoder).join("model.safetensors");
        let whole = fs::read(&weights).unwrap();
        fs::write(&weights, "").unwrap();
        let other = steps(&format!("a pizza, {text_encoder}"), 2);
        let expected = file(plain.post(&other).await).await;
        assert_eq!(low.post(&other).await.status(), 500);
        assert!(file(low.post(&first).await).await == right, "its prompt is kept");
        fs::write(&weights, whole).unwrap();
        assert!(file(low.post(&other).await).await == expected);
    }

    fs::write(model.path().join("vae/diffusion_pytorch_model.safetensors"), "").unwrap();
    assert!(file(low.post(&second).await).await == file(plain.post(&second).await).await);
    assert_eq!(edit(&plain, &first).await.status(), 200);
    assert_eq!(edit(&low, &first).await.status(), 500);
}

/// Layers that are read again for each prompt serve every picture of a batch.
#[tokio::test(flavor = "multi_thread")]
async fn with_low_memory_pictures_of_a_batch_are_the_same() {
    let model = made_up::model("sd1");
    let path = model.path().to_str().unwrap();
    let (plain, low) = (Worker::ready(&["--model", path]), Worker::ready(&["--model", path, "--low-memory", "--max-batch", "4"]));
    let request = |i: usize| {
        let mut request = steps(["a fox", "an owl", "a pizza AND a cat", "a dog"][i % 4], 10);
        (request["seed"], request["n"]) = (i.into(), 2.into());
        request
    };
    let low = Arc::new(low);
    let clients = (0..8).map(|i| {
        let low = Arc::clone(&low);
        tokio::spawn(async move { low.generate(&request(i)).await["data"].clone() })
    });
    for (i, client) in clients.collect::<Vec<_>>().into_iter().enumerate() {
        assert!(client.await.unwrap() == plain.generate(&request(i)).await["data"], "request {i}");
    }
    assert!(low.metric("sdw_batch_size_count").await < low.metric("sdw_batch_size_sum").await, "some took their steps together");
}

#[tokio::test]
async fn pictures_in_strips_are_the_same() {
    let (whole, strips) = (Worker::unlimited(&["--vae-tiling", "off"]), Worker::unlimited(&["--vae-tiling", "on"]));
    let mut body = steps("a fox on a blue background", 4);
    for size in ["128x128", "192x136"] {
        body["size"] = json!(size);
        for is_edit in [false, true] {
            let made = async |worker: &Worker| {
                let response = if is_edit { edit(worker, &body).await } else { worker.post(&body).await };
                picture(&response.json::<Value>().await.unwrap()["data"][0]).into_rgb8().into_raw()
            };
            let (whole, strips) = (made(&whole).await, made(&strips).await);
            assert_eq!(whole.len(), strips.len());
            let off = whole.iter().zip(&strips).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(off <= Some(1), "{size}, edit: {is_edit}: off by {off:?}");
        }
    }
}
