//! The upscaler in the binary.

use std::path::Path;

use candle_core::Device;
use image::{RgbImage, imageops};
use sd_worker::models::StripBytes;
use serde_json::{Value, json};

use crate::{
    cli::{failure, path, run},
    made_up,
    parity::relative_error,
    support::{Worker, picture},
    upscalers::{file, floats, open},
};

const FILE: &str = "src/builtin_model/model/upscalers/crisp.safetensors";

/// The mean of the steepest hundredth of steps from one pixel to the next.
fn steepest(picture: &RgbImage) -> f64 {
    let step = |(one, next): (&image::Rgb<u8>, &image::Rgb<u8>)| one.0.iter().zip(next.0).map(|(a, b)| a.abs_diff(b)).max().unwrap();
    let mut steps: Vec<u8> = picture.rows().flat_map(|row| row.clone().zip(row.skip(1)).map(step)).collect();
    steps.sort_unstable();
    let most = &steps[steps.len() - steps.len() / 100..];
    most.iter().map(|step| f64::from(*step)).sum::<f64>() / most.len() as f64
}

fn difference(one: &RgbImage, other: &RgbImage) -> f64 {
    one.iter().zip(other.iter()).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / one.len() as f64
}

#[tokio::test]
async fn the_upscaler_in_the_binary_makes_edges_steep() {
    let worker = Worker::ready(&[]);
    let capabilities: Value = worker.get("/v1/capabilities").await.json().await.unwrap();
    assert_eq!(capabilities["upscalers"], json!([{ "name": "crisp", "scale": 4 }, { "name": "Lanczos" }, { "name": "Nearest" }]));

    let mut request = json!({ "prompt": "a fox on a blue background", "seed": 1 });
    let drawn = picture(&worker.generate(&request).await["data"][0]).to_rgb8();
    request["upscale"] = json!({ "name": "crisp" });
    let answer = worker.generate(&request).await;
    let crisp = picture(&answer["data"][0]).to_rgb8();
    assert_eq!((&answer["size"], drawn.dimensions(), crisp.dimensions()), (&json!("512x512"), (128, 128), (512, 512)));
    assert_eq!(answer["parameters"]["upscale"], json!({ "name": "crisp", "scale": 4.0 }));
    request["upscale"] = json!({ "name": "Lanczos", "scale": 4 });
    let lanczos = picture(&worker.generate(&request).await["data"][0]).to_rgb8();
    let (ours, filter) = (steepest(&crisp), steepest(&lanczos));
    assert!(ours > 1.5 * filter, "{ours} {filter}");
    let small = imageops::resize(&crisp, 128, 128, imageops::FilterType::Triangle);
    assert!(difference(&small, &drawn) < 3.0, "{}", difference(&small, &drawn));
}

#[test]
fn the_upscaler_in_the_binary_makes_the_numbers_of_spandrel() {
    let goldens = candle_core::safetensors::load("tests/parity/upscalers.safetensors", &Device::Cpu).unwrap();
    let library = open(Path::new(FILE)).unwrap();
    let (ours, _) = floats(&library, &made_up::control_picture("upscaler", 9, 7), StripBytes::default());
    let error = relative_error(&ours, &goldens["crisp"]);
    assert!(error < 1e-4, "off by {error}");
}

/// It is for the built-in model, and is exported with it.
#[test]
fn the_upscaler_in_the_binary_is_a_file_like_any_other() {
    let out = tempfile::tempdir().unwrap();
    let (model, exported, embedded) = (path(&out, "model"), path(&out, "a.png"), path(&out, "b.png"));
    assert!(run(&["models", "export", "builtin", &model]).status.success());
    let common = ["generate", "a fox", "--seed", "1", "--steps", "2"];
    for (upscale, file) in [("x", &exported), ("crisp", &embedded)] {
        let upscaler = format!("x={model}/upscalers/crisp.safetensors");
        let output = run(&[&common[..], &["--upscaler", &upscaler, "--upscale", upscale, "-o", file]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let pixels = |file: &str| image::open(file).unwrap().to_rgb8();
    assert!(pixels(&exported).dimensions() == (512, 512) && pixels(&exported) == pixels(&embedded));

    let (code, message) = failure(&["generate", "a fox", "--model", "tests/parity/tiny", "--upscale", "crisp"]);
    assert!(code == 64 && message.contains("must be one of \"Lanczos\", \"Nearest\", not \"crisp\""), "{code} {message}");
}

/// A network of the user's under its name takes its place.
#[tokio::test]
async fn another_network_may_have_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = file(folder.path(), "compact-x2");
    let mut worker = Worker::ready(&["--upscaler", &format!("crisp={}", file.display())]);
    let capabilities: Value = worker.get("/v1/capabilities").await.json().await.unwrap();
    assert_eq!(capabilities["upscalers"], json!([{ "name": "crisp", "scale": 2 }, { "name": "Lanczos" }, { "name": "Nearest" }]));
    let log = worker.stderr();
    assert!(log.contains("builtin/upscalers/crisp.safetensors: left out, since") && log.contains("compact-x2.safetensors"), "{log}");
}
