//! Pictures as a prompt, through an IP-Adapter: what the server and the command line make of them.

use std::fs;

use base64::{Engine, prelude::BASE64_STANDARD};
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::{
    cli::{failure, run},
    made_up,
    support::{Worker, bytes, compare_batches},
};

/// A small model, and an IP-Adapter for it with its image encoder.
struct Files {
    model: tempfile::TempDir,
    adapter: tempfile::TempDir,
}

fn files(adapter: &str) -> Files {
    Files { model: made_up::model("sd1"), adapter: made_up::ip_adapter(adapter) }
}

impl Files {
    fn arguments(&self) -> [String; 4] {
        let adapter = self.adapter.path().join("ip-adapter.safetensors");
        ["--model", self.model.path().to_str().unwrap(), "--ip-adapter", adapter.to_str().unwrap()].map(str::to_owned)
    }

    fn worker(&self, more: &[&str]) -> Worker {
        let arguments = self.arguments();
        Worker::ready(&[&arguments.each_ref().map(String::as_str)[..], more].concat())
    }
}

/// A made-up picture as a PNG file, larger than the encoder's and not square.
fn png(name: &str) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    made_up::control_picture(name, 120, 80).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn reference(picture: &str, scale: f64) -> Value {
    json!({ "image": BASE64_STANDARD.encode(png(picture)), "scale": scale })
}

fn request(reference: &Value) -> Value {
    json!({ "prompt": "a fox", "seed": 3, "steps": 2, "size": "72x64", "guidance_scale": 4, "sampler": "euler", "reference": reference })
}

async fn drawn(worker: &Worker, reference: &Value) -> Vec<u8> {
    bytes(&worker.generate(&request(reference)).await["data"][0])
}

fn same_pixels(one: &[u8], other: &[u8]) -> bool {
    image::load_from_memory(one).unwrap() == image::load_from_memory(other).unwrap()
}

#[tokio::test]
async fn the_model_looks_at_the_pictures_that_a_request_brings() {
    for adapter in ["ip-adapter-sd1", "ip-adapter-plus-sd1"] {
        let files = files(adapter);
        let worker = files.worker(&[]);
        let mut pictures = vec![drawn(&worker, &Value::Null).await];
        for references in [
            json!([reference("a", 1.0)]),
            json!([reference("b", 1.0)]),
            json!([reference("a", 0.5)]),
            json!([reference("a", 1.0), reference("b", 0.5)]),
        ] {
            pictures.push(drawn(&worker, &references).await);
        }
        for (i, picture) in pictures.iter().enumerate() {
            assert!(!pictures[..i].contains(picture), "{adapter}: picture {i} is one of those before it");
        }
        assert!(drawn(&worker, &json!(BASE64_STANDARD.encode(png("a")))).await == pictures[1], "a single one, without a scale");
        assert!(drawn(&worker, &json!([])).await == pictures[0]);
        // Scales add up.
        let halves = drawn(&worker, &json!([reference("a", 0.5), reference("a", 0.5)])).await;
        let [halves, whole] = [&halves, &pictures[1]].map(|file| image::load_from_memory(file).unwrap().into_rgb8());
        assert!(halves.iter().zip(whole.iter()).all(|(one, other)| one.abs_diff(*other) <= 1));
        assert!(same_pixels(&drawn(&worker, &json!([reference("a", 0.0)])).await, &pictures[0]));
        let capabilities: Value = worker.get("/v1/capabilities").await.json().await.unwrap();
        assert_eq!(capabilities["references"], true);
    }
}

#[tokio::test]
async fn every_route_takes_them_and_says_what_it_used() {
    let files = files("ip-adapter-sd1");
    let worker = files.worker(&[]);
    let references = json!([reference("a", 0.5)]);
    let answer = worker.generate(&request(&references)).await;
    assert_eq!((&answer["parameters"]["reference"], &answer["ignored"]), (&json!([{ "scale": 0.5 }]), &json!([])));
    let file = bytes(&answer["data"][0]);
    assert!(String::from_utf8_lossy(&file).contains("IP-Adapter scale: 0.5"));

    let client = reqwest::Client::new();
    let mut job = request(&references);
    (job["operation"], job["width"], job["height"]) = ("image_generation".into(), 72.into(), 64.into());
    let job: Value = client.post(worker.url("/v1/jobs")).json(&job).send().await.unwrap().json().await.unwrap();
    let id = job["job_id"].as_str().unwrap_or_else(|| panic!("{job}"));
    client.get(worker.url(&format!("/v1/jobs/{id}/stream"))).send().await.unwrap().text().await.unwrap();
    let result: Value = worker.get(&format!("/v1/jobs/{id}/result")).await.json().await.unwrap();
    assert!(same_pixels(&bytes(&result["data"][0]), &file));

    // An edit in JSON and in a form.
    let mut edit = request(&references);
    edit["image"] = BASE64_STANDARD.encode(png("b")).into();
    let edits = worker.url("/v1/images/edits");
    let in_json: Value = client.post(&edits).json(&edit).send().await.unwrap().json().await.unwrap();
    let part = |bytes: Vec<u8>| Part::bytes(bytes).file_name("x.png");
    let mut form =
        Form::new().part("image", part(png("b"))).part("reference_image[]", part(png("a"))).text("reference", r#"[{"scale": 0.5}]"#);
    for (name, value) in
        [("prompt", "a fox"), ("seed", "3"), ("steps", "2"), ("size", "72x64"), ("guidance_scale", "4"), ("sampler", "euler")]
    {
        form = form.text(name, value);
    }
    let in_form: Value = client.post(&edits).multipart(form).send().await.unwrap().json().await.unwrap();
    assert!(in_form["data"].is_array(), "{in_form}");
    assert_eq!((&in_form["data"], &in_form["parameters"]), (&in_json["data"], &in_json["parameters"]));

    // The command line.
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("a, b.png"), folder.path().join("out.png"));
    fs::write(&input, png("a")).unwrap();
    let argument = format!("{},scale=0.5", input.display());
    let own = [
        "generate",
        "a fox",
        "--seed=3",
        "--steps=2",
        "--size=72x64",
        "--guidance-scale=4",
        "--sampler=euler",
        "--reference",
        &argument,
        "-o",
    ];
    let arguments = files.arguments();
    let all = [&own[..], &[output.to_str().unwrap()], &arguments.each_ref().map(String::as_str)].concat();
    assert!(run(&all).status.success());
    assert!(fs::read(&output).unwrap() == file);
}

/// Requests with and without pictures take their steps together, and those of one request are encoded once.
#[tokio::test(flavor = "multi_thread")]
async fn a_picture_does_not_depend_on_its_batch() {
    let files = files("ip-adapter-sd1");
    let requests: Vec<Value> = [json!([]), json!([reference("a", 0.6)]), json!([reference("b", 1.0), reference("a", 0.3)])]
        .iter()
        .cycle()
        .take(9)
        .enumerate()
        .map(|(i, references)| {
            let mut request = request(references);
            (request["seed"], request["steps"], request["n"]) = (i.into(), 20.into(), (1 + i % 2).into());
            request
        })
        .collect();
    let (passes, pictures) = compare_batches(&files.worker(&[]), files.worker(&["--max-batch", "4"]), &requests).await;
    assert!(pictures > 1.5 * passes, "{pictures} pictures' steps in {passes} passes");
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_with_the_reason() {
    let files = files("ip-adapter-sd1");
    let worker = files.worker(&[]);
    let many: Vec<Value> = (0..9).map(|_| reference("a", 1.0)).collect();
    for (references, reason) in [
        (json!([{ "image": "R0lGODlh" }]), "must be a PNG, JPEG or WebP file"),
        (json!([{ "scale": 1 }]), "entry 1: it has no image"),
        (json!([reference("a", 10.5)]), "a number from 0 to 10, not 10.5"),
        (json!(many), "must have at most 8 entries"),
    ] {
        let response = worker.post(&request(&references)).await;
        let (status, answer) = (response.status(), response.json::<Value>().await.unwrap());
        assert_eq!((status.as_u16(), &answer["error"]["param"]), (400, &json!("reference")), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(reason), "{answer}");
    }
    let plain = Worker::ready(&[]);
    let answer: Value = plain.post(&request(&json!([reference("a", 1.0)]))).await.json().await.unwrap();
    assert!(answer["error"]["message"].as_str().unwrap().contains("without --ip-adapter FILE, not 1 of them"), "{answer}");
}

#[test]
fn what_does_not_go_together_ends_the_start() {
    let (files, xl) = (files("ip-adapter-sd1"), made_up::ip_adapter("ip-adapter-sdxl"));
    let model = files.model.path().to_str().unwrap();
    let start = |arguments: &[&str]| failure(&[&["generate", "a fox", "--model", model], arguments].concat()).1;
    let adapter = files.adapter.path().join("ip-adapter.safetensors");
    let adapter = adapter.to_str().unwrap();
    let of_xl = xl.path().join("ip-adapter.safetensors");
    let lonely = tempfile::tempdir().unwrap();
    let alone = lonely.path().join("x.safetensors");
    fs::copy(adapter, &alone).unwrap();
    let alone = alone.to_str().unwrap();
    for (arguments, reason) in [
        (vec!["--ip-adapter", of_xl.to_str().unwrap()], "use an IP-Adapter for this family of models"),
        (vec!["--ip-adapter", alone], "give the folder of its image encoder with --image-encoder"),
        (vec!["--ip-adapter", alone, "--image-encoder", "/none"], "/none/config.json is missing"),
        (vec!["--image-encoder", "/none"], "--ip-adapter"),
    ] {
        let stderr = start(&arguments);
        assert!(stderr.contains(reason), "{arguments:?}: {stderr}");
    }
    let encoder = files.adapter.path().join("image_encoder");
    fs::remove_file(encoder.join("model.safetensors")).unwrap();
    assert!(start(&["--ip-adapter", adapter]).contains("is missing"));
}
