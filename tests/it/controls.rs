//! The same numbers as diffusers with ControlNets and T2I-Adapters: each network by itself, and whole pictures.
//! `tests/parity/make_control_goldens.py` makes the goldens.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    sync::Arc,
};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use sd_worker::{
    backend::{self, Generation, InferencePipeline, Interrupt, LoadOptions, ModelFiles, TextAdapters},
    common::{ControlKind, ControlScale, ControlSettings, ControlWindow, InputImage, Mask, MaskMeaning, NamedPath},
    models::{Conditions, ControlNetConfig, ControlNetModel, Hint, Residuals, T2IAdapter, T2IAdapterConfig},
    ops::{WeightType, Weights},
};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    asked::{Asked, positive},
    made_up,
    parity::{LATENTS_LIMIT, NETWORK_LIMIT, PIXEL_LIMIT, Request, largest_pixel_error, relative_error},
};

#[derive(Deserialize)]
pub(crate) struct Case {
    name: String,
    model: String,
    scheduler: Value,
    mask: bool,
    control: Vec<Control>,
    reference: Vec<Reference>,
    evaluations: usize,
    #[serde(flatten)]
    request: Request,
}

#[derive(Deserialize)]
struct Control {
    net: String,
    picture: String,
    scale: ControlScale,
    start: f64,
    end: f64,
    guess_mode: bool,
    /// The number of its kind, for networks that know several.
    mode: Option<usize>,
    /// At which evaluations diffusers uses it.
    on: Option<Vec<usize>>,
}

#[derive(Deserialize)]
struct Reference {
    adapter: String,
    picture: String,
    scale: ControlScale,
}

impl Case {
    /// With the picture and the mask of the other goldens to begin with, where the case has a strength.
    fn asked(&self, pipeline: &InferencePipeline) -> Asked {
        let asked = self.request.with(pipeline.info().defaults.sampler, pipeline.info().defaults.schedule);
        let picture = || image::open("tests/parity/picture.png").unwrap().into_rgb8();
        let mask = || Mask::new(image::open("tests/parity/mask.png").unwrap().into_luma8(), MaskMeaning::White);
        let begins = asked.config.options.strength.is_some() || self.mask;
        let input = begins.then(|| InputImage { image: picture(), mask: self.mask.then(mask) });
        let control = |control: &Control| {
            let settings = ControlSettings {
                scale: control.scale,
                window: ControlWindow::new(control.start, control.end).unwrap(),
                guess_mode: control.guess_mode,
                kind: control.mode.map(|mode| ControlKind::ALL[mode]),
                ..ControlSettings::new(&control.net)
            };
            (settings, made_up::control_picture(&control.picture, asked.config.size.width(), asked.config.size.height()))
        };
        let controls = self.control.iter().map(control).collect();
        // Squares of the encoder's size.
        let reference = |reference: &Reference| (reference.scale, made_up::control_picture(&reference.picture, 56, 56));
        Asked { input, controls, references: self.reference.iter().map(reference).collect(), ..asked }
    }
}

fn goldens() -> HashMap<String, Tensor> {
    candle_core::safetensors::load("tests/parity/controls.safetensors", &Device::Cpu).unwrap()
}

/// A model with some of the networks, in their folders.
fn load(model: &Path, networks: &BTreeMap<&str, TempDir>, ip_adapter: Option<&TempDir>) -> Arc<InferencePipeline> {
    let controls = networks.iter().map(|(name, folder)| NamedPath { name: (*name).to_owned(), path: folder.path().to_owned() });
    let ip_adapter = ip_adapter.map(|folder| folder.path().join("ip-adapter.safetensors"));
    let options = LoadOptions { controls: controls.collect(), ip_adapter, ..LoadOptions::default() };
    Arc::new(backend::load(&ModelFiles::open(model.to_str().unwrap()).unwrap(), &options).unwrap())
}

fn weights(name: &str) -> Weights {
    // Linear layers that are stored as 1 x 1 convolutions, which files are read with.
    let linear = |name: &str| name.ends_with("proj_in.weight") || name.ends_with("proj_out.weight");
    let flat = |(name, tensor): (String, Tensor)| if linear(&name) { (name, tensor.flatten_from(1).unwrap()) } else { (name, tensor) };
    let tensors = made_up::network_tensors(name).into_iter().map(flat).collect();
    Weights::new(VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu), WeightType::F32)
}

fn config(name: &str) -> Vec<u8> {
    fs::read(format!("tests/parity/controls/{name}/config.json")).unwrap()
}

/// Control picture "a" as networks take it.
fn pixels(width: u32, height: u32) -> Tensor {
    let picture = made_up::control_picture("a", width, height);
    let values: Vec<f32> = picture.into_raw().into_iter().map(|value| f32::from(value) / 255.0).collect();
    let pixels = Tensor::from_vec(values, (1, height as usize, width as usize, 3), &Device::Cpu).unwrap();
    pixels.permute((0, 3, 1, 2)).unwrap().contiguous().unwrap()
}

#[test]
fn networks_by_themselves_agree_with_diffusers() {
    let goldens = goldens();
    let mut worst = 0f32;
    let mut check = |what: String, ours: &Tensor| {
        let error = relative_error(ours, &goldens[&what]);
        assert!(error < NETWORK_LIMIT, "{what} is off by {error}");
        worst = worst.max(error);
    };
    for (net, model) in [
        ("controlnet-sd1", "sd1"),
        ("controlnet-sd2", "sd2"),
        ("controlnet-sdxl", "sdxl"),
        ("controlnet-sd1-pooled", "sd1"),
        ("controlnet-union", "sdxl"),
    ] {
        let pipeline = load(made_up::model(model).path(), &BTreeMap::new(), None);
        let prompts = [&backend::ParsedPrompt::negative("red, blurry"), &positive("An owl's PIZZA, ünder 3 🍓 skies!")];
        let encoded = pipeline.prompt_encoder().encode(&prompts, None, &TextAdapters::default(), Interrupt::NEVER).unwrap();
        let (text, pooled) = (&encoded.embeddings, encoded.pooled.as_ref());
        let conditions = Conditions { text, pooled, size: (64, 72), guidance_scale: 7.5, images: &[], adapters: None };
        let network = ControlNetModel::new(ControlNetConfig::from_json(&config(net)).unwrap(), &weights(net)).unwrap();
        let context = network.context(&conditions).unwrap();
        let latents = (made_up::made_up("latents", &[1, 4, 8, 9]) * 2.0).unwrap();
        let embedding = &network.embed(&pixels(72, 64), Interrupt::NEVER).unwrap();
        let hint = Hint { embedding, kind: 2, scale: 1.0 };
        let residuals = network.forward(&latents, 801.0, &[hint], &context, Interrupt::NEVER).unwrap();
        let (after, _) = residuals.tensors();
        let (middle, down) = after.split_last().unwrap();
        for (i, ours) in down.iter().chain([middle]).enumerate() {
            let what = if i < down.len() { format!("{net}.down.{i}") } else { format!("{net}.mid") };
            let theirs = &goldens[&what];
            // The first ones are the same for both sides of guidance, and diffusers keeps the mean of a pooled one alone.
            let ours = sd_worker::ops::for_batch(ours, 2).unwrap();
            let ours = if theirs.dims()[2..] == [1, 1] { ours.narrow(2, 0, 1).unwrap().narrow(3, 0, 1).unwrap() } else { ours };
            check(what, &ours);
        }
        assert!(!goldens.contains_key(&format!("{net}.down.{}", down.len())));
    }
    for (net, width) in [("t2i-sd1", 72), ("t2i-light-sd1", 72), ("t2i-sdxl", 96)] {
        let adapter = T2IAdapter::new(T2IAdapterConfig::from_json(&config(net)).unwrap(), &weights(net)).unwrap();
        let features: Residuals = adapter.forward(&pixels(width, 64), Interrupt::NEVER).unwrap();
        let (_, within) = features.tensors();
        for (i, ours) in within.iter().enumerate() {
            check(format!("{net}.{i}"), ours);
        }
        assert!(!goldens.contains_key(&format!("{net}.{}", within.len())));
    }
    println!("largest error: {worst:.1e}");
}

#[test]
fn pictures_are_guided_as_in_diffusers() {
    let cases: Vec<Case> = serde_json::from_slice(&fs::read("tests/parity/controls.json").unwrap()).unwrap();
    assert_eq!(cases.len(), 26);
    compare_all(&cases, &goldens());
}

/// Compares every step of these pictures.
pub(crate) fn compare_all(cases: &[Case], goldens: &HashMap<String, Tensor>) {
    let mut models = BTreeMap::new();
    for case in cases {
        let folder = models.entry(&case.model).or_insert_with(|| made_up::model(&case.model));
        fs::write(folder.path().join("scheduler/scheduler_config.json"), case.scheduler.to_string()).unwrap();
        let networks = case.control.iter().map(|control| (control.net.as_str(), made_up::network(&control.net))).collect();
        let ip_adapter = case.reference.first().map(|reference| made_up::ip_adapter(&reference.adapter));
        compare(case, &load(folder.path(), &networks, ip_adapter.as_ref()), goldens);
    }
}

fn compare(case: &Case, pipeline: &Arc<InferencePipeline>, goldens: &HashMap<String, Tensor>) {
    let asked = case.asked(pipeline);
    let nets: Vec<&str> = case.control.iter().map(|control| control.net.as_str()).collect();
    let what = format!("{}: {} with {nets:?}", case.name, case.model);
    for ((settings, _), control) in asked.controls.iter().zip(&case.control) {
        let on: Vec<usize> = (0..case.evaluations).filter(|step| settings.window.contains(*step, case.evaluations)).collect();
        // diffusers runs a T2I-Adapter once, before the steps.
        assert!(control.on.as_ref().is_none_or(|theirs| *theirs == on), "{what}: {on:?}");
    }
    let mut generation = asked.begin(pipeline);
    let latents = &goldens[&format!("{}.latents", case.name)];
    assert_eq!((generation.total_steps(), generation.total_steps() + 1), (case.evaluations, latents.dim(0).unwrap()), "{what}");
    let mut worst = 0f32;
    for step in 0..=generation.total_steps() {
        if step > 0 {
            generation.step().unwrap();
        }
        let error = relative_error(generation.latents(), &latents.narrow(0, step, 1).unwrap());
        assert!(error < LATENTS_LIMIT, "{what}: latents are off by {error} after step {step}");
        worst = worst.max(error);
    }
    let pixels = largest_pixel_error(&generation.finish(Interrupt::NEVER).unwrap(), &goldens[&format!("{}.image", case.name)]);
    assert!(pixels <= PIXEL_LIMIT, "{what}: a pixel is off by {pixels}");
    let references = case.reference.len();
    println!("{what}, {references} references: latents {worst:.1e}, pixels {pixels}");
}

/// Parts of a prompt that say the same lead where the whole does, also where a network sees the prompt's side alone.
#[test]
fn parts_of_a_prompt_are_guided_as_the_whole_is() {
    let model = made_up::model("sd1");
    let networks = ["controlnet-sd1", "controlnet-sd1-pooled"].into_iter().map(|net| (net, made_up::network(net))).collect();
    let pipeline = load(model.path(), &networks, None);
    let cases: Vec<Case> = serde_json::from_slice(&fs::read("tests/parity/controls.json").unwrap()).unwrap();
    let asked = cases.iter().find(|case| case.control.iter().any(|control| control.guess_mode)).unwrap().asked(&pipeline);
    for (net, guess_mode) in [("controlnet-sd1", true), ("controlnet-sd1", false), ("controlnet-sd1-pooled", false)] {
        let latents = |prompt: &str| {
            let settings = ControlSettings { guess_mode, ..ControlSettings::new(net) };
            let controls = vec![(settings, made_up::control_picture("a", 72, 64))];
            let mut generation = Asked { prompt: prompt.to_owned(), controls, ..asked.clone() }.begin(&pipeline);
            generation.step().unwrap();
            generation.step().unwrap();
            generation.latents().clone()
        };
        let whole = latents("a fox");
        for parts in ["a fox :0.5 AND a fox :0.5", "a fox :0.5 AND a fox :0.25 AND a fox :0.25"] {
            let error = relative_error(&latents(parts), &whole);
            assert!(error < 1e-5, "{net}, guess mode {guess_mode}: {parts} is off by {error}");
        }
        assert!(relative_error(&latents("a fox AND an owl"), &whole) > 1e-3);
    }
}
