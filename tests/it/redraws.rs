//! Pictures that are enlarged and drawn again: the same numbers as diffusers, and the same answers on every way in. The goldens are made by
//! `tests/parity/make_redraw_goldens.py`.

use std::{collections::HashMap, fs, io::Cursor};

use base64::{Engine, prelude::BASE64_STANDARD};
use candle_core::{Device, Tensor};
use image::{DynamicImage, ImageFormat};
use sd_worker::backend::LatentFilter;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    cli::{failure, path, run},
    parity::{LATENTS_LIMIT, PIXEL_LIMIT, largest_pixel_error, relative_error},
    sse::{streamed, transcript},
    support::{Worker, bytes, compare_batches, picture, small},
};

#[derive(Deserialize)]
struct Case {
    prompt: String,
    negative_prompt: String,
    guidance_scale: f64,
    sampler: String,
    width: u32,
    height: u32,
    first: usize,
    name: String,
    scale: f64,
    strength: f64,
    steps: usize,
    seed: u64,
}

fn goldens() -> HashMap<String, Tensor> {
    candle_core::safetensors::load("tests/parity/redraws.safetensors", &Device::Cpu).unwrap()
}

#[test]
fn latents_are_enlarged_as_in_torch() {
    let goldens = goldens();
    let small = &goldens["small"];
    for filter in LatentFilter::ALL {
        for (height, width) in [(10, 14), (8, 11), (5, 7), (3, 4)] {
            let error =
                relative_error(&filter.resize(small, (height, width)).unwrap(), &goldens[&format!("{}.{height}x{width}", filter.name)]);
            assert!(error < 1e-6, "{}: {height}x{width} is off by {error}", filter.name);
        }
        // Of other proportions, the middle.
        let whole = filter.resize(small, (10, 14)).unwrap();
        let wide = filter.resize(small, (4, 14)).unwrap();
        assert!(relative_error(&wide, &whole.narrow(2, 3, 4).unwrap()) < 1e-6, "{}", filter.name);
        let tall = filter.resize(small, (10, 6)).unwrap();
        assert!(relative_error(&tall, &whole.narrow(3, 4, 6).unwrap()) < 1e-6, "{}", filter.name);
    }
}

#[test]
fn second_drawings_lead_where_they_do_in_diffusers() {
    let goldens = goldens();
    let cases: Vec<Case> = serde_json::from_slice(&fs::read("tests/parity/redraws.json").unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for case in &cases {
        let (file, latents) = (path(&folder, "x.png"), path(&folder, "x.safetensors"));
        let Case { prompt, sampler, width, height, name, scale, strength, steps, .. } = case;
        let upscale = format!("{name},scale={scale},strength={strength},steps={steps}");
        let (size, first, seed) = (format!("{width}x{height}"), case.first.to_string(), case.seed.to_string());
        let guidance_scale = case.guidance_scale.to_string();
        let output = run(&[
            &["generate", prompt, "--model", "tests/parity/tiny", "--negative-prompt", &case.negative_prompt, "--sampler", sampler][..],
            &["--guidance-scale", &guidance_scale, "--size", &size, "--steps", &first, "--seed", &seed],
            &["--upscale", &upscale, "-o", &file, "--save-latents", &latents],
        ]
        .concat());
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && told.contains(&format!("by {name}, drawn again in {steps} steps")), "{told}");
        let latents = candle_core::safetensors::load(&latents, &Device::Cpu).unwrap();
        for step in 1..=case.first + steps {
            let error = relative_error(&latents[&format!("latents.{step}")], &goldens[&format!("{sampler}.{step}")]);
            assert!(error < LATENTS_LIMIT, "{sampler}: latents are off by {error} after step {step}");
        }
        let pixels = largest_pixel_error(&image::open(&file).unwrap().into_rgb8(), &goldens[&format!("{sampler}.image")]);
        assert!(pixels <= PIXEL_LIMIT, "{sampler}: a pixel is off by {pixels}");
    }
    assert_eq!(cases.len(), 3);
}

fn request(upscale: &Value) -> Value {
    let mut body = small("a fox on a blue background");
    (body["seed"], body["upscale"], body["sampler"]) = (7.into(), upscale.clone(), "euler_a".into());
    body
}

/// The same with settings that both drawings share.
fn request_with_lora(upscale: &Value) -> Value {
    let mut body = request(upscale);
    (body["loras"], body["guidance_interval"]) = (json!([{ "name": "ink", "scale": 0.7 }]), json!([0, 0.7]));
    body
}

fn png(picture: &DynamicImage) -> String {
    let mut file = Cursor::new(Vec::new());
    picture.write_to(&mut file, ImageFormat::Png).unwrap();
    BASE64_STANDARD.encode(file.into_inner())
}

/// A second drawing is an edit of the enlarged picture, with the steps that the strength leaves.
#[tokio::test]
async fn a_second_drawing_is_an_edit_of_the_first() {
    let worker = Worker::unlimited(&["--loras", "src/builtin_model/model/loras"]);
    let plain = worker.generate(&request_with_lora(&json!({ "name": "Nearest", "scale": 2 }))).await;
    let mut edit = request_with_lora(&Value::Null);
    (edit["image"], edit["size"], edit["strength"], edit["steps"]) =
        (png(&picture(&plain["data"][0])).into(), "128x128".into(), 0.6.into(), 5.into());
    let client = reqwest::Client::new();
    let edited: Value = client.post(worker.url("/v1/images/edits")).json(&edit).send().await.unwrap().json().await.unwrap();

    let again = json!({ "name": "Nearest", "scale": 2, "strength": 0.6, "steps": 3 });
    let answer = worker.generate(&request_with_lora(&again)).await;
    assert!(picture(&answer["data"][0]) == picture(&edited["data"][0]), "{} {}", answer["parameters"], edited["parameters"]);
    assert_eq!((&answer["size"], &answer["parameters"]["width"]), (&json!("128x128"), &json!(64)), "the first drawing's");
    assert_eq!(answer["parameters"]["upscale"], json!({ "name": "Nearest", "scale": 2.0, "strength": 0.6, "steps": 3 }));
    assert_eq!((&answer["ignored"], &answer["warnings"]), (&json!([]), &plain["warnings"]));
    let text = String::from_utf8_lossy(&bytes(&answer["data"][0])).into_owned();
    for value in ["Denoising strength: 0.6, ", "Size: 64x64, Hires upscale: 2, Hires steps: 3, Hires upscaler: Nearest, Model: "] {
        assert!(text.contains(value), "{value}");
    }

    // Its pictures have the seeds that follow, and a stream counts the steps of both.
    let mut second = request_with_lora(&again);
    second["seed"] = 8.into();
    let second = worker.generate(&second).await;
    let mut both = request_with_lora(&again);
    both["n"] = 2.into();
    let both = worker.generate(&both).await;
    assert_eq!(
        [&both["data"][0], &both["data"][1]].map(|data| &data["b64_json"]),
        [&answer, &second].map(|one| &one["data"][0]["b64_json"])
    );
    let (_, events) = transcript(&worker, &streamed(request_with_lora(&again), &json!({ "partial_images": 3, "progress": true }))).await;
    let steps: Vec<&Value> = events.iter().filter(|(name, _)| name.ends_with("progress")).map(|(_, event)| event).collect();
    let first = plain["parameters"]["steps"].as_u64().unwrap();
    assert_eq!(steps.iter().map(|event| event["step"].as_u64().unwrap()).collect::<Vec<_>>(), (1..=first + 3).collect::<Vec<_>>());
    assert!(steps.iter().all(|event| event["total"] == first + 3), "{steps:?}");
    assert_eq!(events.last().unwrap().1["b64_json"], answer["data"][0]["b64_json"]);

    // The model in the binary is for one size.
    let own = Worker::ready(&[]);
    let answer = own.generate(&request(&json!("Lanczos,scale=4,strength=0.5"))).await;
    let mut larger = request(&json!("Latent,scale=1.5,strength=0.5"));
    larger["size"] = "256x256".into();
    let text = String::from_utf8_lossy(&bytes(&own.generate(&larger).await["data"][0])).into_owned();
    assert!(text.contains("Size: 128x128, Hires resize: 384x384, Hires steps: "), "it was drawn at another size than asked for");
    assert!(answer["warnings"].to_string().contains("draws well at 128x128 alone: drawn again at 256x256"), "{}", answer["warnings"]);

    // What the request leaves out is that of the first drawing.
    let answer = worker.generate(&request(&json!("Latent,strength=0.5"))).await;
    assert_eq!(answer["parameters"]["upscale"], json!({ "name": "Latent", "scale": 2.0, "strength": 0.5, "steps": first }));
    let capabilities: Value = worker.get("/v1/capabilities").await.json().await.unwrap();
    assert_eq!(capabilities["latent_upscalers"].as_array().unwrap().len(), 6);
}

#[tokio::test]
async fn what_cannot_be_drawn_again_is_refused() {
    let worker = Worker::unlimited(&["--max-pixels", "65536", "--max-work", "1"]);
    for (upscale, reason) in [
        (json!("Latent"), "must be with a strength, such as 0.7"),
        (json!({ "name": "Latent", "steps": 3 }), "beside a strength"),
        (json!({ "name": "huge", "strength": 0.5 }), "\"Nearest\", \"Latent\", \"Latent (antialiased)\""),
        (json!({ "name": "Latent", "strength": 2 }), "a number from 0 to 1"),
        (json!({ "name": "Latent", "strength": 0.001, "steps": 20 }), "must be at least 0.02 where 20 steps are taken, not 0.001"),
        (json!({ "name": "Latent", "strength": 0 }), "must be at least 0.002 where 2 steps are taken, not 0"),
        (json!({ "name": "Nearest", "strength": 0.5, "scale": 8 }), "must be at most 65536 pixels on this worker"),
        (json!({ "name": "Latent", "strength": 0.5, "scale": 4, "steps": 100 }), "megapixels"),
    ] {
        let response = worker.post(&request(&upscale)).await;
        let (status, answer) = (response.status().as_u16(), response.json::<Value>().await.unwrap());
        assert!(status == 400 && answer["error"]["message"].as_str().unwrap().contains(reason), "{upscale}: {answer}");
    }
    let mut edit = request(&json!("Latent,strength=0.5"));
    let black = png(&DynamicImage::new_rgb8(64, 64));
    (edit["image"], edit["mask"]) = (black.clone().into(), black.into());
    let response = reqwest::Client::new().post(worker.url("/v1/images/edits")).json(&edit).send().await.unwrap();
    let (status, answer) = (response.status().as_u16(), response.json::<Value>().await.unwrap());
    assert!(status == 400 && answer["error"]["message"].as_str().unwrap().contains("what a mask keeps"), "{answer}");
    let (code, line) = failure(&["generate", "a fox", "--upscale", "Latent,steps=3"]);
    assert!(code != 0 && line.contains("beside a strength"), "{code}: {line}");
}

/// Both drawings share steps with others, and pictures are what they are alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_picture_does_not_depend_on_its_batch() {
    let requests: Vec<Value> = (0..8)
        .map(|i| {
            let ways = [
                Value::Null,
                json!("Latent,strength=0.6,steps=7"),
                json!("Nearest,scale=1,strength=0.5"),
                json!("Lanczos,strength=0.4,steps=5"),
            ];
            let mut request = request(&ways[i % 4]);
            (request["seed"], request["steps"], request["n"]) = (i.into(), 12.into(), (1 + i % 3).into());
            request
        })
        .collect();
    let single = Worker::ready(&[]);
    let several = Worker::ready(&["--max-batch", "4"]);
    let (passes, pictures) = compare_batches(&single, several, &requests).await;
    assert!(pictures > 1.2 * passes, "{pictures} pictures' steps in {passes} passes");
}
