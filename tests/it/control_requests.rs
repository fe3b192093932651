//! ControlNets and T2I-Adapters by request: what the server and the command line make of them.

use std::fs;

use base64::{Engine, prelude::BASE64_STANDARD};
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::{
    cli::{failure, run},
    made_up,
    support::{Worker, bytes, compare_batches},
};

/// A small model and networks for it, in a folder: `first`, `second`, `pooled` and `adapter`.
struct Files {
    model: tempfile::TempDir,
    networks: Vec<tempfile::TempDir>,
}

const NETWORKS: [(&str, &str); 4] =
    [("first", "controlnet-sd1"), ("second", "controlnet-sd1-b"), ("pooled", "controlnet-sd1-pooled"), ("adapter", "t2i-sd1")];

fn files() -> Files {
    Files { model: made_up::model("sd1"), networks: NETWORKS.map(|(_, network)| made_up::network(network)).into() }
}

impl Files {
    fn arguments(&self) -> Vec<String> {
        let mut all = vec!["--model".to_owned(), self.model.path().to_str().unwrap().to_owned()];
        for ((name, _), folder) in NETWORKS.iter().zip(&self.networks) {
            all.extend(["--controlnet".to_owned(), format!("{name}={}", folder.path().display())]);
        }
        all
    }

    fn worker(&self, more: &[&str]) -> Worker {
        let arguments = self.arguments();
        Worker::ready(&[&arguments.iter().map(String::as_str).collect::<Vec<_>>()[..], more].concat())
    }
}

/// A made-up picture of 72 x 64 as a PNG file.
fn png(name: &str) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    made_up::control_picture(name, 72, 64).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn control(name: &str, picture: &str, more: &Value) -> Value {
    let mut control = json!({ "name": name, "image": BASE64_STANDARD.encode(png(picture)) });
    control.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    control
}

fn request(control: &Value) -> Value {
    json!({ "prompt": "a fox", "seed": 3, "steps": 3, "size": "72x64", "guidance_scale": 4, "sampler": "euler", "control": control })
}

async fn drawn(worker: &Worker, control: &Value) -> Vec<u8> {
    bytes(&worker.generate(&request(control)).await["data"][0])
}

#[tokio::test]
async fn a_picture_is_guided_by_those_that_a_request_brings() {
    let files = files();
    let worker = files.worker(&[]);
    let plain = drawn(&worker, &Value::Null).await;
    let mut pictures = vec![plain.clone()];
    for controls in [
        json!([control("first", "a", &json!({}))]),
        json!([control("first", "b", &json!({}))]),
        json!([control("first", "a", &json!({ "scale": 0.3 }))]),
        json!([control("first", "a", &json!({ "guess_mode": true }))]),
        json!([control("first", "a", &json!({ "end": 0.5 }))]),
        json!([control("first", "a", &json!({ "preprocess": "canny" }))]),
        json!([control("first", "a", &json!({ "preprocess": "invert" }))]),
        json!([control("first", "a", &json!({ "preprocess": "tile" }))]),
        json!([control("second", "a", &json!({}))]),
        json!([control("pooled", "a", &json!({}))]),
        json!([control("adapter", "a", &json!({}))]),
        json!([control("first", "a", &json!({})), control("adapter", "b", &json!({ "scale": 0.5 }))]),
    ] {
        pictures.push(drawn(&worker, &controls).await);
    }
    for (i, picture) in pictures.iter().enumerate() {
        assert!(!pictures[..i].contains(picture), "picture {i} is one of those before it");
    }
    // A single entry, other spellings, and what has no effect.
    let spelled = json!({ "model": "first", "image": { "image_url": format!("data:image/png;base64,{}", BASE64_STANDARD.encode(png("a"))) }, "weight": 0.3 });
    assert!(drawn(&worker, &spelled).await == pictures[3]);
    for nothing in [
        json!([]),
        json!([control("first", "a", &json!({ "scale": 0 }))]),
        json!([control("adapter", "a", &json!({ "start": 0.5, "end": 0.6 }))]),
    ] {
        assert!(same_pixels(&drawn(&worker, &nothing).await, &plain), "{nothing}");
    }
}

/// PNG files also have the settings in them.
fn same_pixels(one: &[u8], other: &[u8]) -> bool {
    image::load_from_memory(one).unwrap() == image::load_from_memory(other).unwrap()
}

#[tokio::test]
async fn every_route_takes_them_and_says_what_it_used() {
    let files = files();
    let worker = files.worker(&[]);
    let controls = json!([control("first", "a", &json!({ "scale": 0.5, "start": 0.25, "preprocess": "canny" }))]);
    let used = json!([{ "name": "first", "scale": 0.5, "start": 0.25, "end": 1.0, "guess_mode": false, "preprocess": "canny" }]);
    let answer = worker.generate(&request(&controls)).await;
    assert_eq!((&answer["parameters"]["control"], &answer["ignored"]), (&used, &json!([])));
    let file = bytes(&answer["data"][0]);
    let text = String::from_utf8_lossy(&file).into_owned();
    assert!(text.contains(r#"ControlNet 0: "Module\u003a canny\u002c Model\u003a first\u002c Weight\u003a 0.5"#), "{text}");

    // A job makes the same picture.
    let client = reqwest::Client::new();
    let mut job = request(&controls);
    (job["operation"], job["width"], job["height"]) = ("image_generation".into(), 72.into(), 64.into());
    let job: Value = client.post(worker.url("/v1/jobs")).json(&job).send().await.unwrap().json().await.unwrap();
    let id = job["job_id"].as_str().unwrap_or_else(|| panic!("{job}"));
    let stream = client.get(worker.url(&format!("/v1/jobs/{id}/stream"))).send().await.unwrap().text().await.unwrap();
    assert!(stream.ends_with("data: [DONE]\n\n"), "{stream}");
    let result: Value = worker.get(&format!("/v1/jobs/{id}/result")).await.json().await.unwrap();
    assert!(same_pixels(&bytes(&result["data"][0]), &file));

    // An edit in JSON, and in a form, with the picture in the text or as a file.
    let mut edit = request(&controls);
    edit["image"] = BASE64_STANDARD.encode(png("b")).into();
    let edits = worker.url("/v1/images/edits");
    let in_json: Value = client.post(&edits).json(&edit).send().await.unwrap().json().await.unwrap();
    assert_eq!(in_json["parameters"]["control"], used, "{in_json}");
    let file = |bytes: Vec<u8>| Part::bytes(bytes).file_name("x.png");
    let without = json!([{ "name": "first", "scale": 0.5, "start": 0.25, "preprocess": "canny" }]).to_string();
    for (text, control_image) in [(controls.to_string(), None), (without, Some(png("a")))] {
        let mut form = Form::new().part("image", file(png("b"))).text("control", text);
        for (name, value) in
            [("prompt", "a fox"), ("seed", "3"), ("steps", "3"), ("size", "72x64"), ("guidance_scale", "4"), ("sampler", "euler")]
        {
            form = form.text(name, value);
        }
        if let Some(bytes) = control_image {
            form = form.part("control_image[]", file(bytes));
        }
        let in_form: Value = client.post(&edits).multipart(form).send().await.unwrap().json().await.unwrap();
        assert!(in_form["data"].is_array(), "{in_form}");
        assert_eq!((&in_form["data"], &in_form["parameters"]), (&in_json["data"], &in_json["parameters"]));
    }
    assert!(!same_pixels(&bytes(&in_json["data"][0]), &bytes(&answer["data"][0])));

    let capabilities: Value = worker.get("/v1/capabilities").await.json().await.unwrap();
    let kinds = NETWORKS.map(|(name, _)| json!({ "name": name, "kind": if name == "adapter" { "t2i_adapter" } else { "controlnet" } }));
    assert_eq!(capabilities["controls"], json!(kinds));
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_with_the_reason() {
    let files = files();
    let worker = files.worker(&[]);
    let many: Vec<Value> = (0..9).map(|_| control("first", "a", &json!({}))).collect();
    for (controls, reason) in [
        (json!([control("third", "a", &json!({}))]), "must be one of \"first\", \"second\", \"pooled\", \"adapter\", not \"third\""),
        (json!([{ "name": "first" }]), "entry 1: \"first\" has no image"),
        (json!([{ "name": "first", "image": "R0lGODlh" }]), "must be a PNG, JPEG or WebP file"),
        (json!([control("first", "a", &json!({ "scale": -1 }))]), "a number from 0 to 10, not -1"),
        (json!([control("first", "a", &json!({ "strength": 1 }))]), "unknown field `strength`"),
        (json!(many), "must have at most 8 entries"),
        (json!("first"), "must be a list such as"),
    ] {
        let response = worker.post(&request(&controls)).await;
        let (status, answer) = (response.status(), response.json::<Value>().await.unwrap());
        assert_eq!((status.as_u16(), &answer["error"]["param"]), (400, &json!("control")), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(reason), "{answer}");
    }
    // A file that ends early is found when it is decoded.
    let broken = json!([{ "name": "first", "image": BASE64_STANDARD.encode(&png("a")[..2000]) }]);
    let answer: Value = worker.post(&request(&broken)).await.json().await.unwrap();
    assert!(answer["error"]["message"].as_str().unwrap().contains("one that is broken"), "{answer}");

    let plain = Worker::ready(&[]);
    let answer: Value = plain.post(&request(&json!([control("first", "a", &json!({}))]))).await.json().await.unwrap();
    assert!(answer["error"]["message"].as_str().unwrap().contains("without --controlnet NAME=PATH, not \"first\""), "{answer}");
}

/// Requests with and without control networks take their steps together.
#[tokio::test(flavor = "multi_thread")]
async fn a_guided_picture_does_not_depend_on_its_batch() {
    let (passes, pictures) = compare_with(&[Value::Null]).await;
    assert!(pictures > 1.5 * passes, "{pictures} pictures' steps in {passes} passes");
}

/// What a network adds to shallow steps is kept with the features.
#[tokio::test(flavor = "multi_thread")]
async fn a_guided_picture_that_reuses_features_does_not_depend_on_its_batch() {
    let caches = [json!({ "kind": "deep", "interval": 3 }), json!({ "kind": "deep", "threshold": 0.1 }), Value::Null];
    let (passes, pictures) = compare_with(&caches).await;
    assert!(pictures > passes, "{pictures} pictures' steps in {passes} passes");
}

#[tokio::test]
async fn a_network_that_begins_between_full_steps_counts() {
    let files = files();
    let worker = files.worker(&[]);
    let drawn = async |controls: Value| {
        let mut request = request(&controls);
        (request["steps"], request["cache"]) = (10.into(), json!({ "kind": "deep", "interval": 20 }));
        worker.generate(&request).await["data"][0]["b64_json"].clone()
    };
    let plain = drawn(json!([])).await;
    for name in ["first", "adapter"] {
        assert!(drawn(json!([control(name, "a", &json!({ "start": 0.3, "end": 0.6 }))])).await != plain, "{name}");
    }
}

/// Draws pictures with these caches in turn, alone and side by side. Returns how many passes those side by side took, and of how many steps.
async fn compare_with(caches: &[Value]) -> (f64, f64) {
    let files = files();
    let requests: Vec<Value> = [
        json!([]),
        json!([control("first", "a", &json!({}))]),
        json!([control("first", "b", &json!({ "guess_mode": true })), control("second", "a", &json!({ "start": 0.3 }))]),
        json!([control("adapter", "a", &json!({}))]),
        json!([control("pooled", "b", &json!({ "end": 0.7 })), control("adapter", "b", &json!({ "scale": 0.4 }))]),
    ]
    .iter()
    .cycle()
    .take(10)
    .enumerate()
    .map(|(i, controls)| {
        let mut request = request(controls);
        (request["seed"], request["steps"], request["cache"]) = (i.into(), 20.into(), caches[i % caches.len()].clone());
        request
    })
    .collect();
    compare_batches(&files.worker(&[]), files.worker(&["--max-batch", "4"]), &requests).await
}

#[tokio::test]
async fn networks_are_read_when_they_are_asked_for_and_stay_as_long_as_there_is_room() {
    let files = files();
    let turns = ["first", "second", "first", "second"];
    let mut pictures = Vec::new();
    for (limit, reads) in [("100000000", 2), ("1", 4)] {
        let mut worker = files.worker(&["--max-controlnet-bytes", limit]);
        for name in turns {
            pictures.push(drawn(&worker, &json!([control(name, "a", &json!({}))])).await);
        }
        let log = worker.stderr();
        assert_eq!(log.matches("control network loaded").count(), reads, "{log}");
    }
    assert!(pictures[..4] == pictures[4..] && pictures[0] == pictures[2] && pictures[0] != pictures[1]);
}

#[tokio::test]
async fn a_network_that_cannot_be_read_any_more_fails_its_own_requests_alone() {
    let files = files();
    let worker = files.worker(&[]);
    let weights = files.networks[0].path().join("diffusion_pytorch_model.safetensors");
    let length = fs::metadata(&weights).unwrap().len();
    fs::OpenOptions::new().write(true).open(&weights).unwrap().set_len(length / 2).unwrap();
    let response = worker.post(&request(&json!([control("first", "a", &json!({}))]))).await;
    let (status, answer) = (response.status(), response.json::<Value>().await.unwrap());
    assert_eq!((status.as_u16(), &answer["error"]["code"]), (500, &json!("control_failed")), "{answer}");
    drawn(&worker, &json!([control("second", "a", &json!({}))])).await;
}

#[tokio::test]
async fn the_command_line_makes_the_same_picture() {
    let files = files();
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("lines, all.png"), folder.path().join("out.png"));
    fs::write(&input, png("a")).unwrap();
    let control_argument = format!("first={},scale=0.5,end=0.7,preprocess=invert", input.display());
    let mut arguments: Vec<String> = [
        "generate",
        "a fox",
        "--seed=3",
        "--steps=3",
        "--size=72x64",
        "--guidance-scale=4",
        "--sampler=euler",
        "-o",
        output.to_str().unwrap(),
    ]
    .map(str::to_owned)
    .into();
    arguments.extend(["--control".to_owned(), control_argument]);
    arguments.extend(files.arguments());
    assert!(run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).status.success());
    let worker = files.worker(&[]);
    let by_server = drawn(&worker, &json!([control("first", "a", &json!({ "scale": 0.5, "end": 0.7, "preprocess": "invert" }))])).await;
    assert!(fs::read(&output).unwrap() == by_server);

    // Of two, the one that is broken is named.
    let cut = folder.path().join("cut.png");
    fs::write(&cut, &png("a")[..2000]).unwrap();
    let second = format!("second={}", cut.display());
    let both: Vec<&str> = arguments.iter().map(String::as_str).chain(["--control", &second]).collect();
    let (_, stderr) = failure(&both);
    assert!(stderr.contains("cut.png") && stderr.contains("one that is broken"), "{stderr}");

    fs::write(&input, b"no picture").unwrap();
    let (_, stderr) = failure(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(stderr.contains("lines, all.png") && stderr.contains("must be a PNG, JPEG or WebP file"), "{stderr}");
}

#[tokio::test]
async fn what_would_be_lost_is_said() {
    let files = files();
    let worker = files.worker(&[]);
    // A window without a step.
    let answer = worker.generate(&request(&json!([control("first", "a", &json!({ "end": 0.2 }))]))).await;
    assert!(
        answer["warnings"].to_string().contains("control \\\"first\\\" has no effect: none of 3 steps is between start 0 and end 0.2"),
        "{answer}"
    );
    // Fields that are not read, and fields that are there twice.
    let own = control("first", "a", &json!({}));
    for (name, value, reason) in [
        ("controls", json!([own]), "must be given once"),
        ("controlnet", json!([own]), "is not where pictures that guide are looked for"),
        ("control_image", json!("x"), "is not where pictures that guide are looked for"),
        ("reference_image", json!("x"), "is not where pictures that guide are looked for"),
    ] {
        let mut asked = request(&json!([own]));
        asked[name] = value;
        let response = worker.post(&asked).await;
        assert_eq!(response.status(), 400, "{name}");
        let answer: Value = response.json().await.unwrap();
        assert!(answer["error"]["message"].as_str().unwrap().contains(reason), "{answer}");
    }
    // As OpenAI's Python client sends a list of objects in a form.
    let form = Form::new().part("image", Part::bytes(png("b")).file_name("x.png")).text("prompt", "a fox");
    let form = form.text("control[][name]", "first").text("control[][image]", BASE64_STANDARD.encode(png("a")));
    let response = reqwest::Client::new().post(worker.url("/v1/images/edits")).multipart(form).send().await.unwrap();
    let answer: Value = response.json().await.unwrap();
    assert!(answer["error"]["message"].as_str().unwrap().contains("in a form, the list as text in one field"), "{answer}");
}

/// Of one request, networks stay even where there is no room.
#[tokio::test]
async fn networks_of_one_request_are_read_once() {
    let files = files();
    let mut worker = files.worker(&["--max-controlnet-bytes", "1"]);
    let mut asked = request(&json!([control("first", "a", &json!({})), control("second", "a", &json!({}))]));
    asked["n"] = 3.into();
    worker.generate(&asked).await;
    let log = worker.stderr();
    assert_eq!(log.matches("control network loaded").count(), 2, "{log}");
}

/// As in A1111, a file for shuffled pictures is known by its name.
#[tokio::test]
async fn a_file_for_shuffled_pictures_is_used_as_its_directory_is() {
    let (files, folder) = (files(), tempfile::tempdir().unwrap());
    let file = folder.path().join("control_v11e_sd15_shuffle.safetensors");
    fs::copy(files.networks[2].path().join("diffusion_pytorch_model.safetensors"), &file).unwrap();
    let worker = files.worker(&["--controlnet", &format!("shuffle={}", file.display())]);
    let of_directory = drawn(&worker, &json!([control("pooled", "a", &json!({}))])).await;
    assert!(same_pixels(&drawn(&worker, &json!([control("shuffle", "a", &json!({}))])).await, &of_directory));
}

/// The `ControlNet` of the built-in model: a pizza in the shape of a heart, which is a slice without it.
#[tokio::test]
async fn the_built_in_model_draws_along_lines() {
    let worker = Worker::ready(&["--controlnet", "lines=src/builtin_model/model/controlnets/lines"]);
    let heart = fs::read(".github/heart.png").unwrap();
    let lines = image::load_from_memory(&heart).unwrap().into_luma8();
    // A row of the drawing is inside between its outermost lines.
    let inside = |x: u32, y: u32| {
        let on: Vec<u32> = (0..128).filter(|x| lines.get_pixel(*x, y).0[0] > 127).collect();
        on.first().is_some_and(|first| *first <= x) && on.last().is_some_and(|last| x <= *last)
    };
    let agreement = |picture: &image::RgbImage| {
        let background = picture.get_pixel(2, 2).0;
        let is_thing =
            |pixel: &image::Rgb<u8>| pixel.0.iter().zip(background).map(|(a, b)| i32::from(*a).abs_diff(b.into())).sum::<u32>() > 90;
        picture.enumerate_pixels().filter(|(x, y, pixel)| is_thing(pixel) == inside(*x, *y)).count() as f64 / 128.0 / 128.0
    };
    let mut asked = json!({ "prompt": "a pizza on a purple background", "seed": 1 });
    let plain = image::load_from_memory(&bytes(&worker.generate(&asked).await["data"][0])).unwrap().into_rgb8();
    asked["control"] = json!([{ "name": "lines", "image": BASE64_STANDARD.encode(&heart), "scale": 1.25 }]);
    let guided = image::load_from_memory(&bytes(&worker.generate(&asked).await["data"][0])).unwrap().into_rgb8();
    let (plain, guided) = (agreement(&plain), agreement(&guided));
    // A picture that is enlarged keeps the proportions of what it follows.
    asked["size"] = "256x128".into();
    let wide = worker.generate(&asked).await;
    assert_eq!((&wide["size"], &wide["parameters"]["drawn_size"]), (&json!("256x128"), &json!("176x88")), "{}", wide["parameters"]);
    assert!(guided > 0.95 && guided > plain + 0.05, "{guided} of the picture agree with the drawing, and {plain} without it");
}

#[tokio::test]
async fn a_union_asks_for_the_kind_of_a_picture() {
    let (model, network) = (made_up::model("sdxl"), made_up::network("controlnet-union"));
    let argument = format!("union={}", network.path().display());
    let worker = Worker::ready(&["--model", model.path().to_str().unwrap(), "--controlnet", &argument]);
    let capabilities: Value = worker.get("/v1/capabilities").await.json().await.unwrap();
    assert_eq!(capabilities["controls"][0]["types"], json!(["openpose", "depth", "scribble", "canny", "normal", "segment"]));
    let depth = drawn(&worker, &json!([control("union", "a", &json!({ "type": "Depth" }))])).await;
    let lines = drawn(&worker, &json!([control("union", "a", &json!({ "type": "lineart" }))])).await;
    assert!(depth != lines);
    let answer = worker.generate(&request(&json!([control("union", "a", &json!({ "preprocess": "canny" }))]))).await;
    assert_eq!(answer["parameters"]["control"][0]["type"], "canny", "{answer}");
    for (more, reason) in [
        (json!({}), "given with a type for \"union\": one of openpose, depth, scribble, canny, normal, segment, not left out"),
        (json!({ "type": "tile" }), "one of openpose, depth, scribble, canny, normal, segment, not tile"),
        (json!({ "type": "cubism" }), "entry 1: type must be one of openpose"),
    ] {
        let response = worker.post(&request(&json!([control("union", "a", &more)]))).await;
        assert_eq!(response.status(), 400);
        let answer: Value = response.json().await.unwrap();
        assert!(answer["error"]["message"].as_str().unwrap().contains(reason), "{answer}");
    }
}
