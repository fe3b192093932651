//! Matrices multiplied in bf16: how far pictures are from those in f32. `tests/parity/make_bf16_goldens.py` makes the distances of diffusers.
//! Where the processor has no units for bf16, this is the refusal alone; the kernels' tests emulate them.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use candle_core::{Device, Tensor};
use sd_worker::{
    backend::{Generation, InferencePipeline, LoadOptions},
    ops::{ComputeType, computes_in},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    cli::failure,
    families::{Case, denoised, load_with},
    made_up,
    parity::relative_error,
    support::{Worker, picture, steps},
};

/// Errors relative to the largest number.
#[derive(Deserialize)]
struct Distances {
    /// Of the denoiser's output in each family.
    unet: BTreeMap<String, f32>,
    /// Of the latents of each case.
    latents: BTreeMap<String, f32>,
}

fn load(model: &Path, compute: ComputeType) -> Arc<InferencePipeline> {
    load_with(model, &LoadOptions { compute, ..LoadOptions::default() })
}

fn has_units() -> bool {
    let has_units = computes_in(ComputeType::Bf16);
    if !has_units {
        println!("this processor has no units for bf16: not tested here");
    }
    has_units
}

#[test]
fn every_family_is_no_further_from_f32_than_diffusers_is() {
    if !has_units() {
        return;
    }
    let right = candle_core::safetensors::load("tests/parity/families.safetensors", &Device::Cpu).unwrap();
    let cases: Vec<Case> = serde_json::from_slice(&fs::read("tests/parity/families.json").unwrap()).unwrap();
    let theirs: Distances = serde_json::from_slice(&fs::read("tests/parity/bf16.json").unwrap()).unwrap();
    assert_eq!(theirs.latents.len(), cases.len());
    let latents = |case: &Case, folder: &Path, compute| {
        let pipeline = load(folder, compute);
        let mut generation = case.request.with(pipeline.info().defaults.sampler, pipeline.info().defaults.schedule).begin(&pipeline);
        for _ in 0..generation.total_steps() {
            generation.step().unwrap();
        }
        generation.latents().clone()
    };
    let mut largest: f32 = 0.0;
    for case in &cases {
        let folder = made_up::model(&case.model);
        fs::write(folder.path().join("scheduler/scheduler_config.json"), case.scheduler.to_string()).unwrap();
        let all = &right[&format!("{}.latents", case.name)];
        let last: Tensor = all.narrow(0, all.dim(0).unwrap() - 1, 1).unwrap();
        let ours = relative_error(&latents(case, folder.path(), ComputeType::Bf16), &last);
        let theirs = theirs.latents[&case.name];
        println!("{} {}, {} steps: {ours:.5}, diffusers {theirs:.5}", case.model, case.scheduler["prediction_type"], case.request.steps);
        assert!(ours > 1e-5, "{}: this is not bf16", case.name);
        assert!(ours < theirs, "{}: {ours}, and diffusers is off by {theirs}", case.name);
        largest = largest.max(ours / theirs);
    }
    for (model, theirs) in &theirs.unet {
        let (_, output) = denoised(&load(made_up::model(model).path(), ComputeType::Bf16));
        let ours = relative_error(&output, &right[&format!("{model}.unet")]);
        assert!(ours > 1e-5 && ours < *theirs, "{model}: {ours}, and diffusers is off by {theirs}");
        largest = largest.max(ours / theirs);
    }
    println!("at most {largest:.3} of diffusers' distance");
}

/// How alike two pictures are: the peak signal-to-noise ratio in decibels.
fn psnr(ours: &image::DynamicImage, theirs: &image::DynamicImage) -> f64 {
    let (ours, theirs) = (ours.to_rgb8(), theirs.to_rgb8());
    let squares: f64 = ours.iter().zip(theirs.iter()).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum();
    10.0 * (255.0 * 255.0 * ours.len() as f64 / squares).log10()
}

#[tokio::test]
async fn pictures_are_nearly_those_of_f32() {
    if !has_units() {
        let (code, message) = failure(&["serve", "--port", "0", "--compute", "bf16"]);
        assert!(code != 0 && message.contains("this processor multiplies no bf16 faster than f32"), "{code} {message}");
        return;
    }
    let exact = Worker::ready(&[]);
    let fast = Worker::ready(&["--compute", "auto", "--loras", "builtin", "--max-batch", "2"]);
    let info: Value = fast.get("/info").await.json().await.unwrap();
    assert_eq!((&info["compute"], &info["dtype"]), (&json!("bf16"), &json!("f32")), "{info}");
    for prompt in ["a red fox on a blue background", "a pizza and a rocket", "a guitar", "a big owl on a teal background"] {
        let request = steps(prompt, 12);
        let (ours, right) = (fast.generate(&request).await, exact.generate(&request).await);
        let (ours, right) = (picture(&ours["data"][0]), picture(&right["data"][0]));
        assert!(ours != right && psnr(&ours, &right) > 50.0, "{prompt}: {}", psnr(&ours, &right));
    }
    // In a batch, with a LoRA beside: the same bytes as alone.
    let mut with_lora = steps("a fox", 8);
    with_lora["loras"] = json!(["ink"]);
    let plain = steps("a cat", 8);
    let alone = (fast.generate(&plain).await["data"].clone(), fast.generate(&with_lora).await["data"].clone());
    let (first, second) = tokio::join!(fast.generate(&plain), fast.generate(&with_lora));
    assert!((first["data"].clone(), second["data"].clone()) == alone);
}

#[test]
fn what_is_no_type_is_refused() {
    let (code, message) = failure(&["generate", "a fox", "--compute", "int4"]);
    assert!(code == 64 && message.contains("\"int4\" is none of f32, bf16, nor auto"), "{code} {message}");
}
