//! Every sampler, chosen as a request chooses it, ends where diffusers does on a model of every family.
//! `tests/parity/make_family_sampler_goldens.py` makes the goldens.

use std::{collections::BTreeMap, fs, sync::Arc};

use candle_core::{Device, Tensor};
use sd_worker::{
    backend::{Generation, InferencePipeline},
    common::{Sampler, Schedule, Steps},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    made_up,
    parity::{self, LATENTS_LIMIT, Request, relative_error},
    support::edit,
};

#[derive(Deserialize)]
struct Goldens {
    /// The settings of every run, except for `steps`.
    request: Value,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    model: String,
    prediction_type: String,
    sampler: Sampler,
    schedule: Schedule,
    steps: Steps,
}

#[test]
fn every_sampler_ends_where_diffusers_does_in_every_family() {
    let goldens: Goldens = serde_json::from_slice(&fs::read("tests/parity/family_samplers.json").unwrap()).unwrap();
    let ends = candle_core::safetensors::load("tests/parity/family_samplers.safetensors", &Device::Cpu).unwrap()["latents"].clone();
    let mut pipelines: BTreeMap<(&str, &str), Arc<InferencePipeline>> = BTreeMap::new();
    let mut table: BTreeMap<String, BTreeMap<String, f32>> = BTreeMap::new();
    let mut off = Vec::new();
    for (i, case) in goldens.cases.iter().enumerate() {
        let Case { model, prediction_type, sampler, schedule, steps } = case;
        let pipeline = pipelines.entry((model, prediction_type)).or_insert_with(|| load(model, prediction_type));
        let mut request = goldens.request.clone();
        request["steps"] = json!(steps);
        let request: Request = serde_json::from_value(request).unwrap();
        let error = relative_error(&last_latents(pipeline, &request, *sampler, *schedule), &ends.narrow(0, i, 1).unwrap());
        if error >= LATENTS_LIMIT {
            off.push(format!("{model} {prediction_type} {sampler} {schedule} {steps}: {error:e}"));
        }
        let row = if *schedule == Schedule::Default { sampler.to_string() } else { format!("{sampler} {schedule}") };
        let worst = table.entry(row).or_default().entry(format!("{model} {prediction_type}")).or_default();
        *worst = worst.max(error);
    }
    for (sampler, errors) in &table {
        let errors: Vec<String> = errors.iter().map(|(model, error)| format!("{model} {error:.0e}")).collect();
        println!("{sampler}: {}", errors.join(", "));
    }
    assert!(off.is_empty(), "{} of {} are off:\n{}", off.len(), goldens.cases.len(), off.join("\n"));
    assert_eq!(goldens.cases.len(), 342);
}

fn load(model: &str, prediction_type: &str) -> Arc<InferencePipeline> {
    let folder = made_up::model(model);
    edit(&folder.path().join("scheduler/scheduler_config.json"), |config| {
        config["prediction_type"] = prediction_type.into();
        config["clip_sample"] = false.into();
    });
    Arc::new(parity::load(folder.path().to_str().unwrap()))
}

fn last_latents(pipeline: &Arc<InferencePipeline>, request: &Request, sampler: Sampler, schedule: Schedule) -> Tensor {
    let mut generation = request.with(sampler, schedule).begin(pipeline);
    for _ in 0..generation.total_steps() {
        generation.step().unwrap();
    }
    generation.latents().clone()
}
