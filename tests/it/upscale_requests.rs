//! Requests for enlarged pictures: of what was drawn, and of the client's own.

use std::{fs, io::Cursor};

use base64::{Engine, prelude::BASE64_STANDARD};
use image::RgbImage;
use reqwest::multipart::{Form, Part};
use sd_worker::{
    backend::{Interrupt, UpscalerLibrary},
    common::NamedPath,
};
use serde_json::{Value, json};

use crate::{
    cli::{failure, path, run},
    made_up,
    sse::{streamed, transcript},
    support::{Worker, bytes, compare_batches, long, picture, small},
    upscalers::file,
};

/// A worker with two networks, and the folder of their files.
fn worker(more: &[&str]) -> (Worker, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let [real, compact] = ["real-esrgan-x4", "compact-x2"].map(|name| file(folder.path(), name));
    let upscalers = format!("real={},compact={}", real.display(), compact.display());
    (Worker::ready(&[&["--upscaler", &upscalers], more].concat()), folder)
}

fn png(picture: &RgbImage) -> Vec<u8> {
    let mut png = Cursor::new(Vec::new());
    picture.write_to(&mut png, image::ImageFormat::Png).unwrap();
    png.into_inner()
}

/// What the network of a file makes of a picture, without a server.
fn enlarged(folder: &tempfile::TempDir, name: &str, scale: Option<f64>, picture: &RgbImage) -> RgbImage {
    let named = NamedPath { name: "x".to_owned(), path: folder.path().join(name).with_extension("safetensors") };
    let library = UpscalerLibrary::open(&[named], &candle_core::Device::Cpu, 1 << 20).unwrap();
    let scale = scale.map(|scale| scale.try_into().unwrap());
    let chosen = library.choose("scale", library.find("upscaler", Some("x")).unwrap(), scale, picture.dimensions()).unwrap();
    chosen.enlarge(picture, Interrupt::NEVER).unwrap()
}

async fn upscale(worker: &Worker, body: &Value) -> (u16, Value) {
    let response = reqwest::Client::new().post(worker.url("/v1/images/upscale")).json(body).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

#[tokio::test]
async fn a_picture_of_the_client_s_is_enlarged() {
    let (worker, folder) = worker(&[]);
    let own = made_up::control_picture("upscaler", 30, 21);
    let image = BASE64_STANDARD.encode(png(&own));

    // The first network, at its own scale.
    let (status, answer) = upscale(&worker, &json!({ "image": image })).await;
    assert_eq!((status, &answer["size"], &answer["output_format"]), (200, &json!("120x84"), &json!("png")), "{answer}");
    assert_eq!(answer["parameters"], json!({ "upscaler": "real", "scale": 4.0 }));
    assert!(picture(&answer["data"][0]).to_rgb8() == enlarged(&folder, "real-esrgan-x4", None, &own));
    assert!(
        String::from_utf8_lossy(&bytes(&answer["data"][0]))
            .contains("Postprocess upscale by: 4, Postprocess upscaler: real, Version: sd-worker")
    );
    assert!(answer["created"].as_u64().unwrap() > 0 && answer["timings"]["decode_ms"].is_u64());

    // Others, at other scales, from a form as well.
    let (_, answer) =
        upscale(&worker, &json!({ "image": format!("data:image/png;base64,{image}"), "upscaler": "compact", "scale": 1.5, "user": "me" }))
            .await;
    assert_eq!((&answer["size"], &answer["ignored"]), (&json!("45x32"), &json!(["user"])), "{answer}");
    assert!(picture(&answer["data"][0]).to_rgb8() == enlarged(&folder, "compact-x2", Some(1.5), &own));
    let form = Form::new().part("image", Part::bytes(png(&own)).file_name("x.png")).text("upscaler", "compact").text("scale", "1.5");
    let in_form = reqwest::Client::new().post(worker.url("/v1/images/upscale")).multipart(form).send().await.unwrap();
    assert_eq!(in_form.json::<Value>().await.unwrap()["data"], answer["data"]);

    // Filters, and other files.
    let (_, answer) = upscale(&worker, &json!({ "image": image, "upscaler": "nearest", "scale": 3 })).await;
    assert!(picture(&answer["data"][0]).to_rgb8().enumerate_pixels().all(|(x, y, pixel)| pixel == own.get_pixel(x / 3, y / 3)));
    let body = json!({ "image": image, "upscaler": "Lanczos", "output_format": "jpeg", "output_compression": 50 });
    let (_, answer) = upscale(&worker, &body).await;
    assert_eq!((&answer["size"], &bytes(&answer["data"][0])[..2]), (&json!("60x42"), &b"\xff\xd8"[..]));
    let (_, answer) = upscale(&worker, &json!({ "image": image, "output_compression": 50 })).await;
    assert_eq!(answer["ignored"], json!(["output_compression"]));

    // Without a network, Lanczos.
    let plain = Worker::ready(&[]);
    let (_, answer) = upscale(&plain, &json!({ "image": image })).await;
    assert_eq!(answer["parameters"], json!({ "upscaler": "Lanczos", "scale": 2.0 }));
    let capabilities: Value = worker.get("/v1/capabilities").await.json().await.unwrap();
    assert_eq!(
        capabilities["upscalers"],
        json!([
            { "name": "real", "scale": 4 }, { "name": "compact", "scale": 2 }, { "name": "crisp", "scale": 4 },
            { "name": "Lanczos" }, { "name": "Nearest" }
        ])
    );
}

#[tokio::test]
async fn what_cannot_be_enlarged_is_refused() {
    let (worker, _folder) = worker(&["--max-pixels", "65536"]);
    let picture = |width, height| BASE64_STANDARD.encode(png(&RgbImage::new(width, height)));
    let image = picture(16, 16);
    for (body, param, reason) in [
        (json!({}), "image", "image is missing"),
        (json!({ "image": [image, image] }), "image", "must be one picture, not 2"),
        (json!({ "image": "AAAA" }), "image", "must be a PNG, JPEG or WebP file"),
        (json!({ "image": "https://example.com/x.png" }), "image", "opens no links"),
        (
            json!({ "image": image, "upscaler": "huge" }),
            "upscaler",
            "must be one of \"real\", \"compact\", \"crisp\", \"Lanczos\", \"Nearest\", not \"huge\"",
        ),
        (json!({ "image": image, "upscaler": 7 }), "upscaler", "string"),
        (json!({ "image": image, "scale": 9 }), "scale", "must be a number from 1 to 8, not 9"),
        (json!({ "image": image, "scale": "x" }), "scale", "number"),
        (
            json!({ "image": picture(600, 8), "upscaler": "nearest", "scale": 8 }),
            "scale",
            "no side of the result has more than 4096 pixels, not 600x8 to 4800x64",
        ),
        (json!({ "image": picture(300, 300), "scale": 1 }), "scale", "for a picture of at most 65536 pixels with \"real\""),
        (json!({ "image": image, "response_format": "uri" }), "response_format", "b64_json"),
        (json!({ "image": image, "output_format": "gif" }), "output_format", "gif"),
    ] {
        let (status, answer) = upscale(&worker, &body).await;
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(param)), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(reason), "{answer}");
    }
    // A picture that ends early is found when it is decoded.
    let whole = png(&made_up::control_picture("upscaler", 16, 16));
    let (status, answer) = upscale(&worker, &json!({ "image": BASE64_STANDARD.encode(&whole[..whole.len() - 30]) })).await;
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("image")), "{answer}");

    for (value, reason) in [
        (json!({ "name": "huge" }), "one of \"real\""),
        (json!({ "name": "real", "factor": 2 }), "unknown field"),
        (json!({ "scale": 2 }), "name"),
        (json!({ "name": "nearest", "scale": 0.5 }), "from 1 to 8"),
        (json!(["real"]), "an object such as"),
    ] {
        let mut body = small("a fox");
        body["upscale"] = value;
        let response = worker.post(&body).await;
        let (status, answer) = (response.status().as_u16(), response.json::<Value>().await.unwrap());
        assert_eq!(status, 400, "{answer}");
        assert!(
            answer["error"]["param"].as_str().unwrap().starts_with("upscale")
                && answer["error"]["message"].as_str().unwrap().contains(reason),
            "{answer}"
        );
    }
}

/// An upscale is a picture like any other: it takes a place, and ends when its client leaves.
#[tokio::test(flavor = "multi_thread")]
async fn it_waits_in_the_queue() {
    let (worker, _folder) = worker(&["--queue-capacity", "1"]);
    let own = png(&made_up::control_picture("upscaler", 16, 16));
    let body = json!({ "image": BASE64_STANDARD.encode(&own), "upscaler": "nearest" });
    let drawing = worker.start(&long("a fox")).await;
    let (status, answer) = upscale(&worker, &body).await;
    assert_eq!((status, &answer["error"]["code"]), (429, &json!("queue_full")), "{answer}");
    drawing.abort();
    worker.wait_for_metric("sdw_requests_running", |running| running == 0.0).await;
    // The place is returned a moment later.
    let (status, answer) = loop {
        let (status, answer) = upscale(&worker, &body).await;
        if status != 429 {
            break (status, answer);
        }
    };
    assert_eq!(status, 200, "{answer}");
}

fn request(upscale: &Value) -> Value {
    let mut body = small("a fox on a blue background");
    (body["seed"], body["upscale"]) = (7.into(), upscale.clone());
    body
}

#[tokio::test]
async fn what_is_drawn_is_enlarged_on_every_route() {
    let (worker, folder) = worker(&[]);
    let plain = worker.generate(&request(&Value::Null)).await;
    assert!(plain["parameters"].get("upscale").is_none());
    let drawn = picture(&plain["data"][0]).to_rgb8();
    let (width, height) = drawn.dimensions();
    let right = enlarged(&folder, "compact-x2", None, &drawn);

    let answer = worker.generate(&request(&json!({ "name": "compact" }))).await;
    let file = bytes(&answer["data"][0]);
    assert!(picture(&answer["data"][0]).to_rgb8() == right);
    assert_eq!(answer["size"], format!("{}x{}", 2 * width, 2 * height));
    assert_eq!(answer["parameters"]["upscale"], json!({ "name": "compact", "scale": 2.0 }));
    assert_eq!((&answer["parameters"]["width"], &answer["ignored"]), (&json!(width), &json!([])));
    assert!(String::from_utf8_lossy(&file).contains("Postprocess upscale by: 2, Postprocess upscaler: compact, "));

    // In a stream, whose previews have the size of what is drawn.
    let (_, events) = transcript(&worker, &streamed(request(&json!("compact")), &json!({ "partial_images": 1 }))).await;
    let (_, completed) = events.last().unwrap();
    assert_eq!((&completed["b64_json"], &completed["size"]), (&answer["data"][0]["b64_json"], &answer["size"]));

    // A job.
    let client = reqwest::Client::new();
    let mut job = request(&json!({ "name": "compact", "scale": 2 }));
    (job["operation"], job["width"], job["height"]) = ("image_generation".into(), width.into(), height.into());
    job["guidance_scale"] = plain["parameters"]["guidance_scale"].clone();
    let job: Value = client.post(worker.url("/v1/jobs")).json(&job).send().await.unwrap().json().await.unwrap();
    let id = job["job_id"].as_str().unwrap_or_else(|| panic!("{job}"));
    client.get(worker.url(&format!("/v1/jobs/{id}/stream"))).send().await.unwrap().text().await.unwrap();
    let result: Value = worker.get(&format!("/v1/jobs/{id}/result")).await.json().await.unwrap();
    assert!(picture(&result["data"][0]).to_rgb8() == right);

    // An edit, in JSON and in a form.
    let mut edit = request(&json!({ "name": "nearest", "scale": 1.5 }));
    edit["image"] = BASE64_STANDARD.encode(png(&drawn)).into();
    let edits = worker.url("/v1/images/edits");
    let in_json: Value = client.post(&edits).json(&edit).send().await.unwrap().json().await.unwrap();
    assert_eq!(in_json["size"], format!("{}x{}", width * 3 / 2, height * 3 / 2), "{in_json}");
    let mut form = Form::new().part("image", Part::bytes(png(&drawn)).file_name("x.png")).text("upscale", "nearest,scale=1.5");
    for (name, value) in request(&Value::Null).as_object().unwrap().iter().filter(|(_, value)| !value.is_null()) {
        form = form.text(name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    }
    let in_form: Value = client.post(&edits).multipart(form).send().await.unwrap().json().await.unwrap();
    assert_eq!(in_form["data"], in_json["data"], "{in_form}");
}

#[test]
fn the_command_line_enlarges_what_it_draws() {
    let folder = tempfile::tempdir().unwrap();
    let upscaler = format!("x={}", file(folder.path(), "compact-x4").display());
    let (plain, large) = (path(&folder, "plain.png"), path(&folder, "large.png"));
    let own = ["generate", "a fox", "--seed=7", "--steps=1", "--size=64x64"];
    assert!(run(&[&own[..], &["-o", &plain]].concat()).status.success());
    let output = run(&[&own[..], &["-o", &large, "--upscaler", &upscaler, "--upscale", "x,scale=3"]].concat());
    assert!(output.status.success() && String::from_utf8_lossy(&output.stderr).contains("upscaled to 192x192 by x"), "{output:?}");
    let read = |path: &str| image::load_from_memory(&fs::read(path).unwrap()).unwrap().to_rgb8();
    assert!(read(&large) == enlarged(&folder, "compact-x4", Some(3.0), &read(&plain)));

    let (code, line) = failure(&["generate", "a fox", "--upscale", "x"]);
    assert!(code == 64 && line.contains("must be one of \"crisp\", \"Lanczos\", \"Nearest\", not \"x\""), "{code}: {line}");
    let (code, line) = failure(&["generate", "a fox", "--upscale", "nearest,scale=9"]);
    assert!(code != 0 && line.contains("a number from 1 to 8"), "{code}: {line}");
    for (option, reason) in [("x=/none", "there is no upscaler /none"), ("x", "NAME=PATH"), ("nearest=/none", "is always there")] {
        let (code, line) = failure(&["generate", "a fox", "--upscaler", option]);
        assert!(code != 0 && line.contains(reason), "{code}: {line}");
    }
    fs::write(folder.path().join("x.safetensors"), b"no tensors").unwrap();
    let (code, line) = failure(&["serve", "--port", "0", "--upscaler", &format!("x={}", folder.path().join("x.safetensors").display())]);
    assert!(code != 0 && line.contains("is no whole safetensors file"), "{code}: {line}");
}

/// Pictures that are enlarged share steps with others, and orders to enlarge a picture wait between them.
#[tokio::test(flavor = "multi_thread")]
async fn a_picture_does_not_depend_on_its_batch() {
    let requests: Vec<Value> = (0..8)
        .map(|i| {
            let mut request = request(&[Value::Null, json!({ "name": "compact" })][i % 2]);
            (request["seed"], request["steps"], request["n"]) = (i.into(), 20.into(), (1 + i % 3).into());
            request
        })
        .collect();
    let (single, _folder) = worker(&[]);
    let (several, _others) = worker(&["--max-batch", "4"]);
    let (passes, pictures) = compare_batches(&single, several, &requests).await;
    assert!(pictures > 1.5 * passes, "{pictures} pictures' steps in {passes} passes");
}

/// While others are drawn together, upscales come and go.
#[tokio::test(flavor = "multi_thread")]
async fn pictures_are_enlarged_beside_those_that_are_drawn() {
    let (worker, folder) = worker(&["--max-batch", "4"]);
    let own = made_up::control_picture("upscaler", 16, 16);
    let body = json!({ "image": BASE64_STANDARD.encode(png(&own)), "upscaler": "compact" });
    let right = enlarged(&folder, "compact-x2", None, &own);
    let mut one = small("a fox");
    (one["seed"], one["guidance_scale"], one["steps"]) = (1.into(), 1.into(), 8.into());
    let alone = worker.generate(&one).await;
    let (drawn, upscaled) =
        tokio::join!(async { tokio::join!(worker.generate(&one), worker.generate(&one), worker.generate(&one)) }, async {
            tokio::join!(upscale(&worker, &body), upscale(&worker, &body), upscale(&worker, &body))
        },);
    for drawn in [drawn.0, drawn.1, drawn.2] {
        assert_eq!(drawn["data"], alone["data"]);
    }
    for (status, answer) in [upscaled.0, upscaled.1, upscaled.2] {
        assert_eq!(status, 200, "{answer}");
        assert!(picture(&answer["data"][0]).to_rgb8() == right);
    }
}
