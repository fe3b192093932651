//! Pictures by the decoder of a tiny autoencoder: what the server and the command line make of them.

use std::fs;

use base64::{Engine, prelude::BASE64_STANDARD};
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::{
    cli::{failure, path, run},
    made_up,
    parity::largest_pixel_error,
    single_file::{Tensors, warnings, write},
    sse::{streamed, transcript},
    support::{Worker, bytes, compare_batches, picture, small},
    tiny_vae::{goldens, model, published},
};

/// A small model, and a tiny autoencoder for it.
struct Files {
    model: tempfile::TempDir,
    network: tempfile::TempDir,
}

fn files(net: &str) -> Files {
    Files { model: model(), network: made_up::network(net) }
}

impl Files {
    fn worker(&self, more: &[&str]) -> Worker {
        Worker::ready(&[&self.arguments(), more].concat())
    }

    fn arguments(&self) -> [&str; 4] {
        ["--model", self.model.path().to_str().unwrap(), "--tiny-vae", self.network.path().to_str().unwrap()]
    }

    fn without(&self) -> Worker {
        Worker::ready(&self.arguments()[..2])
    }
}

fn request(decoder: Option<&str>) -> Value {
    json!({
        "prompt": "a fox on a blue background", "seed": 7, "steps": 4, "size": "72x64", "guidance_scale": 5, "sampler": "euler",
        "decoder": decoder
    })
}

fn same_pixels(one: &[u8], other: &[u8]) -> bool {
    image::load_from_memory(one).unwrap() == image::load_from_memory(other).unwrap()
}

#[tokio::test]
async fn a_picture_is_the_one_of_diffusers() {
    let goldens = goldens();
    for net in ["tiny-vae", "tiny-vae-scaled"] {
        let files = files(net);
        let (worker, without) = (files.worker(&[]), files.without());
        let answer = worker.generate(&request(Some("tiny"))).await;
        let error = largest_pixel_error(&picture(&answer["data"][0]).to_rgb8(), &goldens[&format!("{net}.image")]);
        assert!(error <= 2, "{net}: a pixel is off by {error}");
        // The model's own decoder draws what it does without another beside it.
        let full = without.generate(&request(None)).await;
        assert!(full["parameters"].get("decoder").is_none() && full["data"] != answer["data"]);
        for decoder in [None, Some("full")] {
            let same = worker.generate(&request(decoder)).await;
            assert_eq!((&same["data"], &same["parameters"]), (&full["data"], &full["parameters"]));
        }
        let decoders =
            |worker: Worker| async move { worker.get("/v1/capabilities").await.json::<Value>().await.unwrap()["decoders"].clone() };
        assert_eq!((decoders(worker).await, decoders(without).await), (json!(["full", "tiny"]), json!(["full"])));
    }
}

#[tokio::test]
async fn every_route_takes_it_and_says_what_it_used() {
    let files = files("tiny-vae");
    let worker = files.worker(&[]);
    let answer = worker.generate(&request(Some("tiny"))).await;
    assert_eq!((&answer["parameters"]["decoder"], &answer["ignored"]), (&json!("tiny"), &json!([])));
    let file = bytes(&answer["data"][0]);
    assert!(String::from_utf8_lossy(&file).contains(", VAE Decoder: TAESD, "));

    let client = reqwest::Client::new();
    let mut job = request(Some("tiny"));
    (job["operation"], job["width"], job["height"]) = ("image_generation".into(), 72.into(), 64.into());
    let job: Value = client.post(worker.url("/v1/jobs")).json(&job).send().await.unwrap().json().await.unwrap();
    let id = job["job_id"].as_str().unwrap_or_else(|| panic!("{job}"));
    client.get(worker.url(&format!("/v1/jobs/{id}/stream"))).send().await.unwrap().text().await.unwrap();
    let result: Value = worker.get(&format!("/v1/jobs/{id}/result")).await.json().await.unwrap();
    assert!(same_pixels(&bytes(&result["data"][0]), &file));

    // An edit in JSON and in a form. With a mask, what is kept is kept to the pixel.
    let mut png = std::io::Cursor::new(Vec::new());
    made_up::control_picture("b", 72, 64).write_to(&mut png, image::ImageFormat::Png).unwrap();
    let png = png.into_inner();
    let mut edit = request(Some("tiny"));
    edit["image"] = BASE64_STANDARD.encode(&png).into();
    let edits = worker.url("/v1/images/edits");
    let in_json: Value = client.post(&edits).json(&edit).send().await.unwrap().json().await.unwrap();
    assert_eq!(in_json["parameters"]["decoder"], "tiny", "{in_json}");
    let mut form = Form::new().part("image", Part::bytes(png).file_name("x.png")).text("decoder", "tiny");
    for (name, value) in request(None).as_object().unwrap().iter().filter(|(_, value)| !value.is_null()) {
        form = form.text(name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    }
    let in_form: Value = client.post(&edits).multipart(form).send().await.unwrap().json().await.unwrap();
    assert!(in_form["data"].is_array(), "{in_form}");
    assert_eq!((&in_form["data"], &in_form["parameters"]), (&in_json["data"], &in_json["parameters"]));
    edit["decoder"] = Value::Null;
    let full: Value = client.post(&edits).json(&edit).send().await.unwrap().json().await.unwrap();
    assert!(full["data"].is_array() && full["data"] != in_json["data"]);

    // The command line.
    let folder = tempfile::tempdir().unwrap();
    let output = path(&folder, "out.png");
    let own = ["generate", "a fox on a blue background", "--seed=7", "--steps=4", "--size=72x64", "--guidance-scale=5", "--sampler=euler"];
    let all = [&own[..], &["--decoder=tiny", "-o", &output], &files.arguments()].concat();
    assert!(run(&all).status.success());
    assert!(fs::read(&output).unwrap() == file);
    // In strips, the picture is the same but for rounding.
    assert!(run(&[&all[..], &["--vae-tiling=on"]].concat()).status.success());
    let [one, other] = [fs::read(&output).unwrap(), file].map(|file| image::load_from_memory(&file).unwrap().into_rgb8());
    assert!(one.iter().zip(other.iter()).all(|(one, other)| one.abs_diff(*other) <= 1));
}

#[tokio::test]
async fn what_the_worker_does_not_have_is_refused() {
    let worker = Worker::ready(&[]);
    for (decoder, reason) in [
        ("tiny", "full or left out: this worker was started without --tiny-vae PATH, not tiny"),
        ("huge", "one of full, tiny, not \"huge\""),
    ] {
        let mut body = small("a fox");
        body["decoder"] = decoder.into();
        let response = worker.post(&body).await;
        let (status, answer) = (response.status(), response.json::<Value>().await.unwrap());
        assert_eq!((status.as_u16(), &answer["error"]["param"]), (400, &json!("decoder")), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(reason), "{answer}");
    }
    let (code, line) = failure(&["generate", "a fox", "--decoder", "tiny"]);
    assert!(code == 64 && line.contains("--tiny-vae PATH"), "{code}: {line}");
    let (code, line) = failure(&["generate", "a fox", "--tiny-vae", "/none", "--decoder", "tiny"]);
    assert!(code != 0 && line.contains("there is no tiny VAE /none"), "{code}: {line}");
}

/// Requests with either decoder take their steps together.
#[tokio::test(flavor = "multi_thread")]
async fn a_picture_does_not_depend_on_its_batch() {
    let files = files("tiny-vae");
    let requests: Vec<Value> = (0..8)
        .map(|i| {
            let mut request = request([None, Some("tiny")][i % 2]);
            (request["seed"], request["steps"], request["n"]) = (i.into(), 20.into(), (1 + i % 3).into());
            request
        })
        .collect();
    let (passes, pictures) = compare_batches(&files.worker(&[]), files.worker(&["--max-batch", "4"]), &requests).await;
    assert!(pictures > 1.5 * passes, "{pictures} pictures' steps in {passes} passes");
}

/// They are drawn by the tiny decoder whatever the picture is drawn by, and change nothing of it.
#[tokio::test]
async fn previews_are_decoded() {
    let files = files("tiny-vae");
    let (worker, without) = (files.worker(&[]), files.without());
    let mut previews = Vec::new();
    for (worker, decoder) in [(&worker, None), (&worker, Some("tiny")), (&without, None)] {
        let (lines, events) = transcript(worker, &streamed(request(decoder), &json!({ "partial_images": 3 }))).await;
        assert_eq!(lines.iter().filter(|line| line.ends_with("partial_image")).count(), 3, "{lines:?}");
        let (_, completed) = events.last().unwrap();
        assert_eq!(completed["b64_json"], worker.generate(&request(decoder)).await["data"][0]["b64_json"]);
        let of: Vec<Vec<u8>> = events[..3].iter().map(|(_, event)| picture(event).to_rgb8().into_raw()).collect();
        assert!(of.iter().all(|preview| preview.len() == 3 * 72 * 64));
        previews.push(of);
    }
    assert!(previews[0] == previews[1] && previews[0].iter().zip(&previews[2]).all(|(one, other)| one != other));
}

/// Numbers that overflow in the denoiser, and in the decoder.
#[test]
fn what_is_no_number_is_no_picture() {
    let folder = tempfile::tempdir().unwrap();
    let output = path(&folder, "x.png");
    for is_in_denoiser in [true, false] {
        let files = files("tiny-vae");
        let place = if is_in_denoiser { files.model.path().join("unet") } else { files.network.path().to_owned() };
        let file = place.join("diffusion_pytorch_model.safetensors");
        let mut tensors: Tensors = candle_core::safetensors::load(&file, &candle_core::Device::Cpu).unwrap();
        for (_, tensor) in tensors.iter_mut().filter(|(name, _)| !is_in_denoiser || name.starts_with("conv_out.")) {
            *tensor = tensor.affine(if is_in_denoiser { 1e38 } else { 1e20 }, 0.0).unwrap();
        }
        write(&file, &tensors, &[]);
        let own = ["generate", "a fox", "--steps=1", "--size=64x64", "--decoder=tiny", "-o", &output];
        let (code, line) = failure(&[&own[..], &files.arguments()].concat());
        assert!(code != 0 && line.contains("values that are not numbers (NaN)"), "{line}");
        // A server does not begin to take requests.
        let output = run(&[&["serve", "--port", "0"], &files.arguments()[..]].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains("the model loads, but does not work"), "{stderr}");
    }
}

/// The encoder is known and not needed; what nobody knows is named.
#[test]
fn tensors_that_are_not_read_are_named() {
    let files = files("tiny-vae");
    let file = files.network.path().join("x.safetensors");
    let log = |tensors: &Tensors| {
        write(&file, tensors, &[]);
        warnings(files.model.path(), &["--tiny-vae", file.to_str().unwrap()])
    };
    let mut whole = made_up::network_tensors("tiny-vae");
    assert!(whole.keys().any(|name| name.starts_with("encoder.")));
    assert!(!log(&whole).contains("were not read"));
    assert!(!log(&published("tiny-vae")).contains("were not read"));
    whole.insert("decoder.layers.2.pool.0.weight".to_owned(), made_up::made_up("", &[16, 16, 1, 1]));
    let log = log(&whole);
    assert!(log.contains("1 of its tensors belong to no part of the model and were not read: decoder.layers.2.pool.0.weight"), "{log}");
}
