//! The same numbers as diffusers for pictures that begin with a picture, with and without a mask, and for a UNet whose input includes the
//! mask: first latents, latents after every step, picture. `tests/parity/make_image_goldens.py` makes the goldens.

use std::{collections::HashMap, fs, sync::Arc};

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use sd_worker::{
    backend::{Generation, InferencePipeline, Interrupt},
    common::{
        GuidanceScale, ImageSize, InputImage, Mask, MaskMeaning, NegativePrompt, Prompt, Sampler, SamplingConfig, SamplingOptions,
        Schedule, Seed, Steps, Strength,
    },
};
use serde::Deserialize;

use crate::{
    asked::Asked,
    made_up,
    parity::{LATENTS_LIMIT, NETWORK_LIMIT, PIXEL_LIMIT, largest_pixel_error, load, relative_error},
};

#[derive(Deserialize)]
struct Case {
    name: String,
    model: String,
    sampler: Sampler,
    schedule: Schedule,
    mask: bool,
    strength: Strength,
    steps: Steps,
    prompt: Prompt,
    negative_prompt: NegativePrompt,
    guidance_scale: GuidanceScale,
    seed: Seed,
}

impl Case {
    fn request(&self) -> Asked {
        let image = picture();
        let mask = || image::open("tests/parity/mask.png").unwrap().into_luma8();
        let mask = self.mask.then(|| Mask::new(mask(), MaskMeaning::White));
        let config = SamplingConfig {
            size: ImageSize::new(image.width(), image.height()).unwrap(),
            steps: self.steps,
            guidance_scale: self.guidance_scale,
            seed: self.seed,
            sampler: self.sampler,
            schedule: self.schedule,
            options: SamplingOptions { strength: Some(self.strength), ..SamplingOptions::default() },
        };
        let (prompt, negative_prompt) = (self.prompt.as_str().to_owned(), self.negative_prompt.as_str().to_owned());
        Asked { prompt, negative_prompt, input: Some(InputImage { image, mask }), controls: Vec::new(), references: Vec::new(), config }
    }
}

fn open(model: &str) -> InferencePipeline {
    if ["sd1-inpainting", "sdxl"].contains(&model) { load(made_up::model(model).path().to_str().unwrap()) } else { load(model) }
}

fn picture() -> RgbImage {
    image::open("tests/parity/picture.png").unwrap().into_rgb8()
}

/// The largest errors of one model, with or without a mask.
#[derive(Debug, Default)]
struct Errors {
    first: f32,
    latents: f32,
    pixels: i32,
}

#[test]
fn pictures_and_masks_lead_where_they_do_in_diffusers() {
    let goldens = candle_core::safetensors::load("tests/parity/image_goldens.safetensors", &Device::Cpu).unwrap();
    let cases: Vec<Case> = serde_json::from_slice(&fs::read("tests/parity/image_goldens.json").unwrap()).unwrap();
    let mut pipelines: HashMap<String, Arc<InferencePipeline>> = HashMap::new();
    let mut worst: HashMap<(String, bool), Errors> = HashMap::new();
    for case in &cases {
        let pipeline = pipelines.entry(case.model.clone()).or_insert_with(|| Arc::new(open(&case.model)));
        let errors = worst.entry((case.model.clone(), case.mask)).or_default();
        compare(pipeline, case, |part| &goldens[&format!("{}.{part}", case.name)], errors);
    }
    assert_eq!((cases.len(), worst.len()), (78, 7));
    println!("largest errors: {worst:#?}");
}

fn compare<'a>(pipeline: &Arc<InferencePipeline>, case: &Case, golden: impl Fn(&str) -> &'a Tensor, worst: &mut Errors) {
    let what = format!("{} {} {} mask {} strength {}", case.model, case.sampler, case.schedule, case.mask, case.strength.get());
    let mut generation = case.request().begin(pipeline);
    let latents = golden("latents");
    assert_eq!(generation.total_steps() + 1, latents.dim(0).unwrap(), "{what}");
    for step in 0..=generation.total_steps() {
        if step > 0 {
            generation.step().unwrap();
        }
        let error = relative_error(generation.latents(), &latents.narrow(0, step, 1).unwrap());
        assert!(error < LATENTS_LIMIT, "{what}: latents are off by {error} after step {step}");
        let slot = if step == 0 { &mut worst.first } else { &mut worst.latents };
        *slot = slot.max(error);
    }
    let pixels = largest_pixel_error(&generation.finish(Interrupt::NEVER).unwrap(), golden("image"));
    assert!(pixels <= PIXEL_LIMIT, "{what}: a pixel is off by {pixels}");
    worst.pixels = worst.pixels.max(pixels);
}

#[test]
fn the_encoder_is_as_sure_of_a_picture_as_that_of_diffusers() {
    let goldens = candle_core::safetensors::load("tests/parity/image_goldens.safetensors", &Device::Cpu).unwrap();
    let (width, height) = picture().dimensions();
    let values: Vec<f32> = picture().into_raw().iter().map(|value| f32::from(*value) / 127.5 - 1.0).collect();
    let pixels = Tensor::from_vec(values, (1, height as usize, width as usize, 3), &Device::Cpu).unwrap();
    let pixels = pixels.permute((0, 3, 1, 2)).unwrap().contiguous().unwrap().to_dtype(DType::F32).unwrap();
    for model in ["builtin", "tests/parity/tiny"] {
        let latents = load(model).networks().vae.encode(&pixels, Interrupt::NEVER).unwrap();
        for (part, ours) in [("mean", &latents.mean), ("deviation", &latents.deviation)] {
            let error = relative_error(ours, &goldens[&format!("{model}.{part}")]);
            println!("{model}: the {part} is off by {error:.1e}");
            assert!(error < NETWORK_LIMIT, "{model}: the {part} is off by {error}");
        }
    }
}

/// As in A1111 for such a model: the mask covers everything.
#[test]
fn an_inpainting_model_makes_pictures_from_a_prompt_or_from_a_picture_too() {
    let pipeline = Arc::new(open("sd1-inpainting"));
    let cases: Vec<Case> = serde_json::from_slice(&fs::read("tests/parity/image_goldens.json").unwrap()).unwrap();
    let latents = |input: Option<InputImage>, strength: f64| {
        let mut request = Asked { input, ..cases[0].request() };
        request.config.options.strength = request.input.as_ref().map(|_| Strength::try_from(strength).unwrap());
        let mut generation = request.begin(&pipeline);
        for _ in 0..generation.total_steps() {
            generation.step().unwrap();
        }
        generation.latents().clone()
    };
    let (width, height) = picture().dimensions();
    let all = Mask::new(image::GrayImage::from_pixel(width, height, image::Luma([255])), MaskMeaning::White);
    let from_prompt = latents(None, 1.0);
    let under_a_full_mask = latents(Some(InputImage { image: picture(), mask: Some(all) }), 1.0);
    assert!(relative_error(&from_prompt, &under_a_full_mask) < 1e-6);
    assert!(relative_error(&latents(Some(InputImage { image: picture(), mask: None }), 0.5), &from_prompt) > 1e-2);
}
