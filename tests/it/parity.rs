//! The same numbers as diffusers: text embeddings, first noise, latents after every step, picture. `tests/parity/make_goldens.py` makes the
//! goldens.

use std::{collections::HashMap, fs, sync::Arc};

use candle_core::{Device, Tensor};
use sd_worker::{
    backend::{self, Generation, InferencePipeline, Interrupt, LoadOptions, ModelFiles, TextAdapters},
    common::{
        ClipSkip, Eta, GuidanceInterval, GuidanceRescale, GuidanceScale, ImageSize, NegativePrompt, Prompt, Sampler, SamplingConfig,
        SamplingOptions, Schedule, Seed, Steps, Strength,
    },
};
use serde::Deserialize;

use crate::asked::{Asked, positive};

/// The largest difference of a tensor, as a share of diffusers' largest value.
pub(crate) const LATENTS_LIMIT: f32 = 1e-3;
pub(crate) const NETWORK_LIMIT: f32 = 1e-4;
/// In steps of 1/255.
pub(crate) const PIXEL_LIMIT: i32 = 2;

#[derive(Deserialize)]
struct Case {
    name: String,
    model: String,
    sampler: Sampler,
    schedule: Schedule,
    #[serde(flatten)]
    request: Request,
}

impl Case {
    fn request(&self) -> Asked {
        self.request.with(self.sampler, self.schedule)
    }
}

/// The input of a golden.
#[derive(Deserialize)]
pub(crate) struct Request {
    prompt: Prompt,
    negative_prompt: NegativePrompt,
    guidance_scale: GuidanceScale,
    seed: Seed,
    width: u32,
    height: u32,
    pub(crate) steps: Steps,
    #[serde(default)]
    strength: Option<Strength>,
    #[serde(default)]
    eta: Option<Eta>,
    #[serde(default)]
    guidance_rescale: Option<GuidanceRescale>,
    #[serde(default)]
    guidance_interval: Option<GuidanceInterval>,
    /// As the command line has it.
    #[serde(default)]
    cache: Option<String>,
}

impl Request {
    pub(crate) fn with(&self, sampler: Sampler, schedule: Schedule) -> Asked {
        let config = SamplingConfig {
            size: ImageSize::new(self.width, self.height).unwrap(),
            steps: self.steps,
            guidance_scale: self.guidance_scale,
            seed: self.seed,
            sampler,
            schedule,
            options: SamplingOptions {
                eta: self.eta,
                guidance_rescale: self.guidance_rescale,
                guidance_interval: self.guidance_interval,
                strength: self.strength,
                cache: self.cache.as_ref().map(|cache| cache.parse().unwrap()),
                ..SamplingOptions::default()
            },
        };
        let (prompt, negative_prompt) = (self.prompt.as_str().to_owned(), self.negative_prompt.as_str().to_owned());
        Asked { prompt, negative_prompt, input: None, controls: Vec::new(), references: Vec::new(), config }
    }
}

/// The largest errors of one model.
#[derive(Debug, Default)]
struct Errors {
    text: f32,
    noise: f32,
    latents: f32,
    pixels: i32,
    /// The number of texts and pictures compared.
    whole: usize,
}

#[test]
fn every_stage_agrees_with_diffusers() {
    let goldens = candle_core::safetensors::load("tests/parity/goldens.safetensors", &Device::Cpu).unwrap();
    let cases: Vec<Case> = serde_json::from_slice(&fs::read("tests/parity/goldens.json").unwrap()).unwrap();
    let mut pipelines: HashMap<String, Arc<InferencePipeline>> = HashMap::new();
    let mut worst: HashMap<String, Errors> = HashMap::new();
    for case in &cases {
        let pipeline = pipelines.entry(case.model.clone()).or_insert_with(|| Arc::new(load(&case.model)));
        let errors = worst.entry(case.model.clone()).or_default();
        compare(pipeline, case, |part| goldens.get(&format!("{}.{part}", case.name)), errors);
    }
    assert_eq!((cases.len(), worst["builtin"].whole, worst["tests/parity/tiny"].whole), (56, 3, 3));
    println!("largest errors: {worst:?}");
}

#[derive(Deserialize)]
struct PromptCase {
    prompt: String,
    clip_skip: Option<ClipSkip>,
}

#[test]
fn prompts_become_the_chunks_that_their_syntax_asks_for() {
    let goldens = candle_core::safetensors::load("tests/parity/prompts.safetensors", &Device::Cpu).unwrap();
    let cases: Vec<PromptCase> = serde_json::from_slice(&fs::read("tests/parity/prompts.json").unwrap()).unwrap();
    let pipeline = load("builtin");
    for (i, case) in cases.iter().enumerate() {
        let encoded = pipeline
            .prompt_encoder()
            .encode(&[&positive(&case.prompt)], case.clip_skip, &TextAdapters::default(), Interrupt::NEVER)
            .unwrap();
        let error = relative_error(&encoded.embeddings, &goldens[&i.to_string()]);
        assert!(error < NETWORK_LIMIT, "{}: off by {error}", case.prompt);
        assert!(!encoded.warnings.iter().any(|warning| warning.contains("not read")), "{:?}", encoded.warnings);
    }
    assert_eq!(cases.len(), 14);

    let too_many = ClipSkip::try_from(4).unwrap();
    let error = pipeline
        .prompt_encoder()
        .encode(&[&positive("a")], Some(too_many), &TextAdapters::default(), Interrupt::NEVER)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "clip_skip must be a whole number from 1 to 3 for this model, not 4");
}

/// Two parts of half the weight lead where the whole prompt does.
#[test]
fn parts_of_a_prompt_guide_side_by_side() {
    let pipeline = Arc::new(load("tests/parity/tiny"));
    let cases: Vec<Case> = serde_json::from_slice(&fs::read("tests/parity/goldens.json").unwrap()).unwrap();
    let latents = |prompt: &str| {
        let mut generation = Asked { prompt: prompt.to_owned(), ..cases[19].request() }.begin(&pipeline);
        for _ in 0..generation.total_steps() {
            generation.step().unwrap();
        }
        generation.latents().clone()
    };
    let whole = latents("a fox");
    assert!(relative_error(&latents("a fox :0.5 AND a fox :0.5"), &whole) < 1e-5);
    assert!(relative_error(&latents("a fox :1 AND a pizza :0"), &whole) < 1e-5);
    assert!(relative_error(&latents("a fox AND a pizza"), &whole) > 1e-2);
}

/// Unguided steps equal those without guidance bit for bit, and guided ones those with it.
#[test]
fn steps_outside_of_the_interval_have_no_guidance() {
    let pipeline = Arc::new(load("tests/parity/tiny"));
    let cases: Vec<Case> = serde_json::from_slice(&fs::read("tests/parity/goldens.json").unwrap()).unwrap();
    let latents = |prompt: &str, guidance_scale: &str, interval: Option<&str>| {
        let mut request = cases[19].request();
        prompt.clone_into(&mut request.prompt);
        request.config.guidance_scale = guidance_scale.parse().unwrap();
        request.config.options.guidance_interval = interval.map(|text| text.parse().unwrap());
        let mut generation = request.begin(&pipeline);
        for _ in 0..generation.total_steps() {
            generation.step().unwrap();
        }
        generation.latents().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert_eq!(latents("a fox", "4", Some("0,1")), latents("a fox", "4", None));
    assert_eq!(latents("a fox", "4", Some("0.5,0.5")), latents("a fox", "1", None));
    assert_ne!(latents("a fox", "4", Some("0,0.5")), latents("a fox", "4", None));
    // Only the ratio of the weights of parts matters.
    assert_eq!(latents("a fox AND a pizza", "4", Some("0,0")), latents("a fox AND a pizza", "1", None));
}

pub(crate) fn load(model: &str) -> InferencePipeline {
    backend::load(&ModelFiles::open(model).unwrap(), &LoadOptions::default()).unwrap()
}

fn compare<'a>(pipeline: &Arc<InferencePipeline>, case: &Case, golden: impl Fn(&str) -> Option<&'a Tensor>, worst: &mut Errors) {
    let what = format!("{} {} {} {}", case.model, case.sampler, case.schedule, case.request.prompt.as_str());
    let mut generation = case.request().begin(pipeline);
    let latents = golden("latents").unwrap();
    assert_eq!(generation.total_steps() + 1, latents.dim(0).unwrap(), "{what}");
    for step in 0..=generation.total_steps() {
        if step > 0 {
            generation.step().unwrap();
        }
        let error = relative_error(generation.latents(), &latents.narrow(0, step, 1).unwrap());
        assert!(error < LATENTS_LIMIT, "{what}: latents are off by {error} after step {step}");
        let slot = if step == 0 { &mut worst.noise } else { &mut worst.latents };
        *slot = slot.max(error);
    }

    // One sampler is enough: what precedes and follows the latents is the same for all.
    let Some((text, image)) = golden("text_embeddings").zip(golden("image")) else { return };
    let text = relative_error(generation.text_embeddings(), text);
    assert!(text < NETWORK_LIMIT, "{what}: text embeddings are off by {text}");
    worst.text = worst.text.max(text);
    worst.whole += 1;
    let pixels = largest_pixel_error(&generation.finish(Interrupt::NEVER).unwrap(), image);
    assert!(pixels <= PIXEL_LIMIT, "{what}: a pixel is off by {pixels}");
    worst.pixels = worst.pixels.max(pixels);
}

/// In steps of 1/255.
pub(crate) fn largest_pixel_error(ours: &image::RgbImage, theirs: &Tensor) -> i32 {
    let theirs: Vec<u8> = theirs.flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(ours.as_raw().len(), theirs.len());
    ours.as_raw().iter().zip(&theirs).map(|(a, b)| (i32::from(*a) - i32::from(*b)).abs()).max().unwrap()
}

pub(crate) fn relative_error(ours: &Tensor, theirs: &Tensor) -> f32 {
    assert_eq!(ours.dims(), theirs.dims());
    let largest = |tensor: Tensor| tensor.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    let error = largest((ours - theirs).unwrap()) / largest(theirs.clone());
    assert!(error.is_finite());
    error
}
