//! `POST /v1/images/edits` and jobs that begin with a picture: their results, and what is refused before any work is done.

mod sending;

use std::{fs, io::Cursor, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use image::{DynamicImage, GrayImage, ImageFormat, Luma, Rgb, RgbImage, Rgba, RgbaImage};
use reqwest::{
    Client, Response,
    multipart::{Form, Part},
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Worker, binary, bytes, picture, small};

const SIDE: u32 = 64;
/// The part that the masks below mark: the left third.
const MARKED: u32 = 24;

fn png(picture: impl Into<DynamicImage>) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    picture.into().write_to(&mut file, ImageFormat::Png).unwrap();
    file.into_inner()
}

/// A disc on a gradient.
fn original() -> RgbImage {
    RgbImage::from_fn(SIDE, SIDE, |x, y| {
        let is_disc = x.abs_diff(40).pow(2) + y.abs_diff(30).pow(2) < 300;
        if is_disc { Rgb([230, 120, 30]) } else { Rgb([x as u8 * 3, y as u8 * 3, 160]) }
    })
}

fn white_mask() -> GrayImage {
    GrayImage::from_fn(SIDE, SIDE, |x, _| Luma([if x < MARKED { 255 } else { 0 }]))
}

fn clear_mask() -> RgbaImage {
    RgbaImage::from_fn(SIDE, SIDE, |x, _| Rgba([0, 0, 0, if x < MARKED { 0 } else { 255 }]))
}

/// The fields of a small edit.
const USUAL: [(&str, &str); 5] = [("prompt", "a fox"), ("steps", "4"), ("seed", "1"), ("guidance_scale", "4"), ("sampler", "ddim")];

/// The same fields as a form, as clients send it.
fn form(fields: &[(&str, &str)]) -> Form {
    let usual = USUAL.into_iter().filter(|(name, _)| fields.iter().all(|(other, _)| other != name));
    usual.chain(fields.iter().copied()).fold(Form::new(), |form, (name, value)| form.text(name.to_owned(), value.to_owned()))
}

fn file(bytes: Vec<u8>) -> Part {
    Part::bytes(bytes).file_name("x.png").mime_str("image/png").unwrap()
}

fn with_picture(fields: &[(&str, &str)]) -> Form {
    form(fields).part("image", file(png(original())))
}

async fn send(worker: &Worker, form: Form) -> Response {
    Client::new().post(worker.url("/v1/images/edits")).multipart(form).send().await.unwrap()
}

async fn edit(worker: &Worker, form: Form) -> Value {
    let response = send(worker, form).await;
    let (status, answer) = (response.status(), response.json::<Value>().await.unwrap());
    assert_eq!(status, 200, "{answer}");
    answer
}

/// The mean difference of two pictures, of 255.
fn distance(a: &RgbImage, b: &RgbImage) -> f64 {
    let sum: u64 = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    sum as f64 / a.as_raw().len() as f64
}

#[tokio::test]
async fn a_picture_is_changed_the_more_the_stronger() {
    let worker = Worker::ready(&[]);
    let mut distances = Vec::new();
    for strength in ["0.1", "0.4", "1"] {
        let answer = edit(&worker, with_picture(&[("strength", strength), ("steps", "20"), ("guidance_scale", "1")])).await;
        assert_eq!(answer["parameters"]["strength"], strength.parse::<f64>().unwrap());
        assert_eq!((&answer["size"], &answer["ignored"], &answer["parameters"]["mask"]), (&"64x64".into(), &json!([]), &Value::Null));
        distances.push(distance(&picture(&answer["data"][0]).to_rgb8(), &original()));
    }
    assert!(distances.is_sorted() && distances[0] < 30.0 && distances[2] > 60.0, "{distances:?}");
    let answer = edit(&worker, with_picture(&[])).await;
    assert_eq!(answer["parameters"]["strength"], 0.8);
    // Three of four steps are taken.
    assert_eq!(worker.metric("sdw_step_seconds_count").await.to_bits(), f64::to_bits(2.0 + 8.0 + 20.0 + 3.0));
    let file = bytes(&answer["data"][0]);
    assert!(String::from_utf8_lossy(&file).contains("Denoising strength: 0.8, Seed: 1"), "the file says so too");
}

#[tokio::test]
async fn json_says_the_same_as_a_form() {
    let worker = Worker::ready(&[]);
    let interval = [("guidance_interval", "[0, 0.5]"), ("cache", r#"{"kind": "deep", "interval": 2}"#)];
    let answer = edit(&worker, with_picture(&interval).part("mask", file(png(white_mask())))).await;
    let (image, mask) = (BASE64_STANDARD.encode(png(original())), BASE64_STANDARD.encode(png(white_mask())));
    let url = |data: &str| format!("data:image/png;base64,{data}");
    for (name, image, mask) in [
        ("image", json!(image), json!(mask)),
        ("image", json!([url(&image)]), json!(url(&mask))),
        ("images", json!([{ "image_url": url(&image) }]), json!({ "image_url": url(&mask) })),
        ("image[]", json!({ "b64_json": image }), json!({ "b64_json": mask })),
    ] {
        let mut body = json!({ "prompt": "a fox", "steps": 4, "seed": 1, "guidance_scale": 4, "sampler": "ddim", "mask": mask });
        body["guidance_interval"] = json!([0, 0.5]);
        body["cache"] = json!({ "kind": "deep", "interval": 2 });
        body[name] = image;
        let response = Client::new().post(worker.url("/v1/images/edits")).json(&body).send().await.unwrap();
        let same: Value = response.json().await.unwrap();
        assert_eq!((&same["data"], &same["parameters"], &same["ignored"]), (&answer["data"], &answer["parameters"], &json!([])), "{name}");
    }
}

#[tokio::test]
async fn forms_of_other_tools_say_the_same() {
    let worker = Worker::ready(&[]);
    let plain = edit(&worker, with_picture(&[])).await;
    // Python's requests sends text this way with `files=`, and so does curl with `-F prompt=@prompt.txt`.
    let files = USUAL.into_iter().fold(Form::new(), |form, (name, value)| form.part(name, Part::text(value).file_name(name)));
    let unnamed = Part::bytes(png(original())).mime_str("image/png").unwrap();
    // Browsers send an empty file input this way.
    let unchosen = Part::text("").file_name("").mime_str("application/octet-stream").unwrap();
    for (what, form) in [
        ("text in files", files.part("image", file(png(original())))),
        ("a file without a name", form(&[]).part("image", unnamed)),
        ("no mask", with_picture(&[]).part("mask", unchosen)),
        ("the first of a list", form(&[]).part("image[0]", file(png(original())))),
    ] {
        let same = edit(&worker, form).await;
        assert_eq!((&same["data"], &same["parameters"], &same["ignored"]), (&plain["data"], &plain["parameters"], &json!([])), "{what}");
    }
}

#[tokio::test]
async fn what_a_mask_does_not_mark_is_kept_to_the_pixel() {
    let worker = Worker::ready(&[]);
    let mut answers = Vec::new();
    let [white, clear] = [png(white_mask()), png(clear_mask())];
    for (name, mask, meaning) in
        [("mask", &white, "white"), ("mask", &clear, "transparent"), ("mask[]", &white, "white"), ("mask[0]", &white, "white")]
    {
        let answer = edit(&worker, with_picture(&[]).part(name, file(mask.clone()))).await;
        assert_eq!((&answer["parameters"]["mask"], &answer["parameters"]["strength"]), (&meaning.into(), &1.0.into()));
        let changed = picture(&answer["data"][0]).to_rgb8();
        for (x, y, pixel) in changed.enumerate_pixels().filter(|(x, _, _)| *x >= MARKED) {
            assert_eq!(pixel, original().get_pixel(x, y), "{x}, {y}");
        }
        let left = |picture: &RgbImage| image::imageops::crop_imm(picture, 0, 0, MARKED, SIDE).to_image();
        assert!(distance(&left(&changed), &left(&original())) > 20.0);
        answers.push(answer["data"].clone());
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]));
}

/// Ignoring the mask would repaint the whole picture.
#[tokio::test]
async fn a_mask_that_nobody_looks_for_is_an_error() {
    let worker = Worker::ready(&[]);
    let (image, mask) = (BASE64_STANDARD.encode(png(original())), BASE64_STANDARD.encode(png(white_mask())));
    for name in ["maskImage", "MASK", "masks", "inpaint_mask", "mask[a]"] {
        let response = send(&worker, with_picture(&[]).part(name, file(png(white_mask())))).await;
        assert_eq!(response.status(), 400, "{name}");
        let error = response.json::<Value>().await.unwrap()["error"].clone();
        assert_eq!(error["param"], name);
        assert!(error["message"].as_str().unwrap().contains("is not where a mask is looked for"), "{error}");
        for (path, body) in [
            ("/v1/images/edits", json!({ "prompt": "a", "image": image, name: mask })),
            ("/v1/images/generations", json!({ "prompt": "a", name: mask })),
            ("/v1/jobs", json!({ "operation": "image_inpaint", "prompt": "a", "init_image": image, name: mask })),
        ] {
            let response = Client::new().post(worker.url(path)).json(&body).send().await.unwrap();
            assert_eq!(response.status(), 400, "{path} {name}");
            assert_eq!(response.json::<Value>().await.unwrap()["error"]["param"], name);
        }
    }
    let job = json!({ "operation": "image_transform", "prompt": "a", "input_image": image, "mask_image": mask });
    let refused: Value = Client::new().post(worker.url("/v1/jobs")).json(&job).send().await.unwrap().json().await.unwrap();
    assert_eq!(refused["error"]["code"], "invalid_mask_image", "this operation has no mask");
    let answer = edit(&worker, with_picture(&[("mask_blur", "4"), ("mask_mode", "soft")])).await;
    assert_eq!(answer["ignored"], json!(["mask_blur", "mask_mode"]), "a number is no mask, and a word is none");
}

#[tokio::test]
async fn several_edits_have_the_seeds_that_follow() {
    let worker = Worker::ready(&[]);
    let masked = |fields: &[(&str, &str)]| with_picture(fields).part("mask", file(png(white_mask())));
    for sampler in ["ddim", "euler_a"] {
        let answer = edit(&worker, masked(&[("n", "3"), ("strength", "0.7"), ("sampler", sampler)])).await;
        for (i, data) in answer["data"].as_array().unwrap().iter().enumerate() {
            let seed = (1 + i).to_string();
            let single = edit(&worker, masked(&[("seed", &seed), ("strength", "0.7"), ("sampler", sampler)])).await;
            assert_eq!(&single["data"][0], data, "{sampler}, picture {i}");
        }
    }
}

#[tokio::test]
async fn a_stream_of_an_edit_has_the_names_of_openai() {
    let worker = Worker::ready(&[]);
    let text =
        send(&worker, with_picture(&[("stream", "true"), ("partial_images", "1"), ("progress", "true")])).await.text().await.unwrap();
    let events: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    let progress = "image_edit.progress";
    assert_eq!(events, [progress, progress, "image_edit.partial_image", progress, "image_edit.completed"]);
    let data: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect();
    assert!(data.iter().zip(&events).all(|(data, event)| data["type"] == *event));
    let completed = data.last().unwrap();
    assert_eq!(completed["b64_json"], edit(&worker, with_picture(&[])).await["data"][0]["b64_json"]);
    assert_eq!(completed["parameters"]["strength"], 0.8);
}

#[tokio::test]
async fn a_picture_keeps_its_proportions_and_is_made_no_larger_than_the_model_s_own() {
    let worker = Worker::ready(&[]);
    let plain =
        |width, height| file(png(RgbImage::from_fn(width, height, |x, y| Rgb([(x * 255 / width) as u8, (y * 255 / height) as u8, 90]))));
    // The built-in model's own size is 128 x 128.
    for (width, height, asked, made) in [
        (100, 70, "auto", "96x64"),
        (128, 128, "auto", "128x128"),
        (1000, 500, "auto", "176x88"),
        (500, 1000, "auto", "88x176"),
        (3000, 20, "auto", "256x64"),
        (9, 9, "auto", "64x64"),
        (1000, 500, "64x72", "64x72"),
        (1000, 500, "512x512", "512x512"),
    ] {
        let answer = edit(&worker, form(&[("size", asked), ("steps", "2"), ("strength", "0.5")]).part("image", plain(width, height))).await;
        assert_eq!(answer["size"], made, "{width}x{height}");
        let picture = picture(&answer["data"][0]);
        assert_eq!(format!("{}x{}", picture.width(), picture.height()), made);
    }
}

#[tokio::test]
async fn a_field_without_effect_is_named() {
    let worker = Worker::ready(&[]);
    let form = with_picture(&[("input_fidelity", "high"), ("svg[model]", "x"), ("quality", "auto"), ("model", "7"), ("user", "1")]);
    let answer = edit(&worker, form.part("markup", file(png(original())))).await;
    assert_eq!(answer["ignored"], json!(["input_fidelity", "markup", "model", "svg[model]", "user"]));
    let mut request = small("a fox");
    request["strength"] = 0.5.into();
    assert_eq!(worker.generate(&request).await["ignored"], json!(["strength"]), "there is no picture to change");
}

/// A file of a hundred bytes whose header claims 400 million pixels.
fn bomb() -> Vec<u8> {
    let mut file = png(RgbImage::new(1, 1));
    for side in [16..20, 20..24] {
        file[side].copy_from_slice(&20_000_u32.to_be_bytes());
    }
    let crc = file[12..29].iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 })
    });
    file[29..33].copy_from_slice(&(!crc).to_be_bytes());
    file
}

#[tokio::test]
async fn bad_edits_are_refused_with_the_reason() {
    let worker = Worker::ready(&[]);
    let image = || file(png(original()));
    let masked = |mask: Vec<u8>| with_picture(&[]).part("mask", file(mask));
    let mut refusals = Vec::new();
    for (what, form) in [
        ("no picture", form(&[])),
        ("two pictures", with_picture(&[]).part("image[]", image())),
        ("two masks", masked(png(white_mask())).part("mask", image())),
        ("an empty file", form(&[]).part("image", file(vec![]))),
        ("a file that was not chosen", form(&[]).part("image", Part::text("").file_name(""))),
        ("a GIF", form(&[]).part("image", file(b"GIF89a\x01\0\x01\0\0\0\0".to_vec()))),
        ("an SVG", form(&[]).part("image", file(b"<svg/>".to_vec()))),
        ("half a picture", form(&[]).part("image", file(png(original())[..300].to_vec()))),
        ("a bomb", form(&[]).part("image", file(bomb()))),
        ("a bomb as a mask", masked(bomb())),
        ("a mask without white", masked(png(GrayImage::new(SIDE, SIDE)))),
        ("a mask without a hole", masked(png(RgbaImage::from_pixel(SIDE, SIDE, Rgba([255, 255, 255, 254]))))),
        ("a link", with_picture(&[("image", "https://example.com/x.png")])),
        ("a file's name", form(&[("image", "file:///etc/hostname")])),
        ("a link as a mask", with_picture(&[("mask", "http://localhost/x.png")])),
        ("text that is no base64", form(&[("image", "/etc/hostname!")])),
        ("no prompt", with_picture(&[("prompt", "")])),
        ("a picture as a prompt", Form::new().part("prompt", image()).part("image", image())),
        ("a strength of 2", with_picture(&[("strength", "2")])),
        ("a strength in words", with_picture(&[("strength", "much")])),
        ("a strength that takes no step", with_picture(&[("strength", "0.1")])),
        ("a size", with_picture(&[("size", "100x100")])),
        ("n in words", with_picture(&[("n", "two")])),
        ("a field twice", with_picture(&[]).text("seed", "2")),
        ("many fields", (0..70).fold(with_picture(&[]), |form, i| form.text(format!("field-{i}"), "x"))),
    ] {
        let response = send(&worker, form).await;
        let status = response.status().as_u16();
        let error = response.json::<Value>().await.unwrap()["error"].clone();
        refusals.push(format!("{what} -> {status} {error}"));
    }
    for (what, body) in [
        ("no picture", json!({ "prompt": "a" })),
        ("a link", json!({ "prompt": "a", "image": "http://localhost/x.png" })),
        ("a link in an object", json!({ "prompt": "a", "images": [{ "image_url": "https://example.com/x.png" }] })),
        ("a file of OpenAI's", json!({ "prompt": "a", "images": [{ "file_id": "file-1" }] })),
        ("two pictures", json!({ "prompt": "a", "image": ["AAAA", "AAAA"] })),
        ("a list", json!([])),
    ] {
        let response = Client::new().post(worker.url("/v1/images/edits")).json(&body).send().await.unwrap();
        let status = response.status().as_u16();
        refusals.push(format!("{what} in JSON -> {status} {}", response.json::<Value>().await.unwrap()["error"]));
    }
    let response = Client::new().post(worker.url("/v1/images/edits")).body("x").send().await.unwrap();
    let status = response.status().as_u16();
    refusals.push(format!("neither -> {status} {}", response.json::<Value>().await.unwrap()["error"]));
    insta::assert_snapshot!(refusals.join("\n"));
    assert_eq!(worker.metric("sdw_queue_seconds_count").await.to_bits(), 0, "nothing of this was queued");
}

#[tokio::test]
async fn errors_name_the_field_and_give_the_whole_reason() {
    let worker = Worker::ready(&[]);
    for (fields, param, message) in [
        (r#""stream": "one at line two""#, "stream", r#"stream: invalid type: string "one at line two", expected a boolean"#),
        (r#""prompt": "b""#, "prompt", "prompt must be given once"),
        (r#""steps": 2, "num_inference_steps": 3"#, "num_inference_steps", "num_inference_steps must be given once"),
        (r#""guidance_scale": 1e999"#, "guidance_scale", "guidance_scale: number out of range"),
        (r#""guidance_interval": [0, true]"#, "guidance_interval", "guidance_interval: invalid type: boolean `true`, expected a number"),
    ] {
        let request = Client::new().post(worker.url("/v1/images/generations")).header("content-type", "application/json");
        let response = request.body(format!(r#"{{"prompt": "a", {fields}}}"#)).send().await.unwrap();
        let error = response.json::<Value>().await.unwrap()["error"].clone();
        assert_eq!((&error["param"], &error["message"]), (&param.into(), &message.into()));
    }
    let long = "x".repeat(1000);
    let twice = send(&worker, with_picture(&[(&long, "1"), (&long, "2")])).await;
    let error = twice.json::<Value>().await.unwrap()["error"].clone();
    let clipped = &long[..64];
    assert_eq!((&error["param"], &error["message"]), (&clipped.into(), &format!("{clipped} must be given once").into()));
}

#[tokio::test]
async fn jobs_change_pictures_and_parts_of_them() {
    let worker = Worker::ready(&[]);
    let (image, mask) = (BASE64_STANDARD.encode(png(original())), BASE64_STANDARD.encode(png(white_mask())));
    let job = |more: Value| {
        let mut job = json!({ "prompt": "a fox", "steps": 4, "seed": 1, "guidance_scale": 4, "sampler": "ddim" });
        job.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        job
    };
    let result = async |job: Value| -> Value {
        let submitted: Value = Client::new().post(worker.url("/v1/jobs")).json(&job).send().await.unwrap().json().await.unwrap();
        let id = submitted["job_id"].as_str().unwrap_or_else(|| panic!("{submitted}")).to_owned();
        let stream = worker.get(&format!("/v1/jobs/{id}/stream")).await.text().await.unwrap();
        assert!(stream.trim_end().ends_with("data: [DONE]"), "{stream}");
        worker.get(&format!("/v1/jobs/{id}/result")).await.json().await.unwrap()
    };
    let transformed = edit(&worker, with_picture(&[])).await;
    for name in ["input_image", "init_image"] {
        let same = result(job(json!({ "operation": "image_transform", name: image }))).await;
        assert_eq!((&same["data"], &same["parameters"]), (&transformed["data"], &transformed["parameters"]), "{name}");
    }
    let inpainted = edit(&worker, with_picture(&[]).part("mask", file(png(white_mask())))).await;
    let same = result(job(json!({ "operation": "image_inpaint", "init_image": image, "mask_image": mask }))).await;
    assert_eq!((&same["data"], &same["parameters"]["mask"]), (&inpainted["data"], &"white".into()));

    let ignored =
        result(job(json!({ "operation": "image_generation", "width": 64, "height": 64, "init_image": image, "strength": 0.5 }))).await;
    assert_eq!(ignored["ignored"], json!(["init_image", "strength"]));
}

#[tokio::test]
async fn the_command_line_makes_the_same_of_a_picture() {
    let worker = Worker::ready(&[]);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("original.png"), png(original())).unwrap();
    fs::write(path("mask.png"), png(clear_mask())).unwrap();
    let run = |more: &[&str]| {
        let usual = ["generate", "a fox", "--steps", "4", "--seed", "1", "--guidance-scale", "4", "--sampler", "ddim", "-o"];
        let output = binary().args(usual).arg(path("out.png")).args(more).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), stderr.trim_end().lines().last().unwrap().to_owned())
    };
    let (image, mask) = (path("original.png"), path("mask.png"));
    assert_eq!(run(&["--init-image", &image, "--mask", &mask, "--strength", "0.6"]).0, 0);
    let same = edit(&worker, with_picture(&[("strength", "0.6")]).part("mask", file(png(clear_mask())))).await;
    assert_eq!(image::open(path("out.png")).unwrap().to_rgb8(), picture(&same["data"][0]).to_rgb8());

    for (args, code, message) in [
        (&["--init-image", "no/such.png"][..], 66, "error: cannot read no/such.png: No such file or directory (os error 2)"),
        (&["--mask", &mask], 64, "the following required arguments were not provided: --init-image"),
        (&["--init-image", &image, "--strength", "1.5"], 64, "must be a number from 0 to 1, not 1.5"),
        (&["--init-image", &image, "--strength", "0.1"], 64, "error: strength must be at least 0.25 with 4 steps"),
        (&["--init-image", &image, "--mask", &image], 0, ""),
    ] {
        let (exit, last) = run(args);
        assert!(exit == code && last.contains(message), "{args:?}: {exit}: {last}");
    }
}

/// `OpenAI`'s clients send several pictures, and ask for variations without a word.
#[tokio::test]
async fn the_first_of_several_pictures_and_a_picture_alone_are_enough() {
    let worker = Worker::ready(&[]);
    let (image, other) = (BASE64_STANDARD.encode(png(original())), BASE64_STANDARD.encode(png(white_mask())));
    let body = |more: Value| {
        let mut body = json!({ "steps": 4, "seed": 1, "guidance_scale": 4, "sampler": "ddim" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let send = |route: &'static str, body: Value| {
        let request = Client::new().post(worker.url(&format!("/v1/images/{route}"))).json(&body);
        async { request.send().await.unwrap().json::<Value>().await.unwrap() }
    };
    let right = send("edits", body(json!({ "prompt": "a fox", "image": image }))).await;
    let both = json!({ "prompt": "a fox", "image": [image, other], "several_images": "first" });
    let first = send("edits", body(both.clone())).await;
    assert_eq!((&first["data"], &first["ignored"]), (&right["data"], &json!(["image[1]"])));
    let part = |bytes: Vec<u8>| Part::bytes(bytes).file_name("a.png");
    let form = form(&[("several_images", "first")]).part("image[]", part(png(original()))).part("image[]", part(png(white_mask())));
    let in_form: Value = Client::new().post(worker.url("/v1/images/edits")).multipart(form).send().await.unwrap().json().await.unwrap();
    assert_eq!((&in_form["data"], &in_form["ignored"]), (&right["data"], &json!(["image[1]"])));
    let mut wrong = both;
    wrong["several_images"] = "all".into();
    assert_eq!(send("edits", body(wrong)).await["error"]["param"], "several_images");

    let variation = send("variations", body(json!({ "image": image, "n": 2, "size": "64x64", "model": "dall-e-2" }))).await;
    assert_eq!((variation["data"].as_array().unwrap().len(), &variation["ignored"]), (2, &json!(["model"])), "{variation}");
    assert_ne!(variation["data"][0], right["data"][0]);
    let with_words = send("variations", body(json!({ "image": image, "prompt": "a fox" }))).await;
    assert_eq!(with_words["data"], right["data"]);
    assert_eq!(send("edits", body(json!({ "image": image }))).await["error"]["code"], "missing_required_parameter");
    let linked = send("variations", body(json!({ "image": image, "response_format": "url" }))).await;
    let file = reqwest::get(linked["data"][0]["url"].as_str().unwrap()).await.unwrap().bytes().await.unwrap();
    assert_eq!(file, bytes(&variation["data"][0]));
}
