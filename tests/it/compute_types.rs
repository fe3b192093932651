//! Matrices multiplied in bf16 and in whole numbers: how far pictures are from those in f32. `tests/parity/make_bf16_goldens.py` makes the
//! distances of diffusers in bf16. Where the processor has no units for a type, this is the refusal alone; the kernels' tests emulate them.

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
    support::{Worker, compare_batches, picture, steps},
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

/// A type, how many times as far from f32 as diffusers in bf16 it may be, and the least PSNR of pictures in decibels.
const TYPES: [(ComputeType, f32, f64); 2] = [(ComputeType::Bf16, 1.0, 50.0), (ComputeType::Int8, 4.0, 40.0)];

fn has_units(compute: ComputeType) -> bool {
    let has_units = computes_in(compute);
    if !has_units {
        println!("this processor has no units for {compute}: not tested here");
    }
    has_units
}

#[test]
fn every_family_stays_near_to_f32() {
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
    for (compute, most, _) in TYPES.into_iter().filter(|(compute, ..)| has_units(*compute)) {
        let mut largest: f32 = 0.0;
        let mut check = |name: &str, ours: f32, theirs: f32| {
            println!("{compute}, {name}: {ours:.5}, diffusers in bf16 {theirs:.5}");
            assert!(ours > 1e-5, "{name}: this is not {compute}");
            assert!(ours < most * theirs, "{compute}, {name}: {ours}, and diffusers in bf16 is off by {theirs}");
            largest = largest.max(ours / theirs);
        };
        for case in &cases {
            let folder = made_up::model(&case.model);
            fs::write(folder.path().join("scheduler/scheduler_config.json"), case.scheduler.to_string()).unwrap();
            let all = &right[&format!("{}.latents", case.name)];
            let last: Tensor = all.narrow(0, all.dim(0).unwrap() - 1, 1).unwrap();
            check(&case.name, relative_error(&latents(case, folder.path(), compute), &last), theirs.latents[&case.name]);
        }
        for (model, theirs) in &theirs.unet {
            let (_, output) = denoised(&load(made_up::model(model).path(), compute));
            check(model, relative_error(&output, &right[&format!("{model}.unet")]), *theirs);
        }
        println!("{compute}: at most {largest:.3} of diffusers' distance in bf16");
    }
}

/// How alike two pictures are: the peak signal-to-noise ratio in decibels.
fn psnr(ours: &image::DynamicImage, theirs: &image::DynamicImage) -> f64 {
    let (ours, theirs) = (ours.to_rgb8(), theirs.to_rgb8());
    let squares: f64 = ours.iter().zip(theirs.iter()).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum();
    10.0 * (255.0 * 255.0 * ours.len() as f64 / squares).log10()
}

#[tokio::test]
async fn pictures_are_nearly_those_of_f32() {
    let exact = Worker::ready(&[]);
    for (compute, _, least) in TYPES {
        if !has_units(compute) {
            let (code, message) = failure(&["serve", "--port", "0", "--compute", compute.name()]);
            let refusal = format!("this processor multiplies no {compute} faster than other types");
            assert!(code != 0 && message.contains(&refusal), "{code} {message}");
            continue;
        }
        let fast = Worker::ready(&["--compute", compute.name(), "--loras", "builtin"]);
        let info: Value = fast.get("/info").await.json().await.unwrap();
        assert_eq!((&info["compute"], &info["dtype"]), (&json!(compute.name()), &json!("f32")), "{info}");
        for prompt in ["a red fox on a blue background", "a pizza and a rocket", "a guitar", "a big owl on a teal background"] {
            let mut request = steps(prompt, 12);
            // At the size that the model was trained at.
            request["size"] = json!("128x128");
            let (ours, right) = (fast.generate(&request).await, exact.generate(&request).await);
            let (ours, right) = (picture(&ours["data"][0]), picture(&right["data"][0]));
            assert!(ours != right && psnr(&ours, &right) > least, "{compute}, {prompt}: {}", psnr(&ours, &right));
        }
        let mut with_lora = steps("a fox", 8);
        with_lora["loras"] = json!(["ink"]);
        let requests = [steps("a cat", 8), with_lora.clone(), steps("a fox", 8), with_lora];
        let batches = Worker::ready(&["--compute", compute.name(), "--loras", "builtin", "--max-batch", "4"]);
        let (passes, pictures) = compare_batches(&fast, batches, &requests).await;
        assert!(pictures > 1.5 * passes, "{compute}: {pictures} pictures' steps in {passes} passes");
    }
}

#[tokio::test]
async fn auto_is_the_fastest_type() {
    let worker = Worker::ready(&["--compute", "auto"]);
    let info: Value = worker.get("/info").await.json().await.unwrap();
    let fastest = [ComputeType::Int8, ComputeType::Bf16].into_iter().find(|compute| computes_in(*compute)).unwrap_or_default();
    assert_eq!(info["compute"], json!(fastest.name()));
}

#[test]
fn what_is_no_type_is_refused() {
    let (code, message) = failure(&["generate", "a fox", "--compute", "int4"]);
    assert!(code == 64 && message.contains("\"int4\" is none of f32, bf16, int8, nor auto"), "{code} {message}");
}
