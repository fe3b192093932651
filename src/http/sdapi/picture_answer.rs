//! The answer to `txt2img` and `img2img`.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::{Value, value::RawValue};
use utoipa::ToSchema;

use crate::{
    backend::{Complete, ImageMetadata, Redraw},
    common::{GuidanceScale, Seed, Steps, Strength},
    http::{
        answer::Base64,
        api_error::ApiError,
        off_thread,
        run::{Run, Status},
    },
};

/// What an answer repeats of its request.
pub(super) struct Repeated {
    pub(super) parameters: BTreeMap<String, Box<RawValue>>,
    pub(super) batch_size: i64,
    /// Whether the answer has the pictures.
    pub(super) has_images: bool,
}

/// Pictures, and how they were made.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Pictures {
    /// The files. Those of an interrupted request are the pictures that were done, and the latest preview of the next.
    #[schema(value_type = Vec<String>)]
    images: Vec<Base64>,
    /// The request, without its pictures.
    #[schema(value_type = std::collections::HashMap<String, Value>)]
    parameters: BTreeMap<String, Box<RawValue>>,
    /// An object as JSON text: A1111's fields, and `ignored` and `warnings` as in `/v1/images/generations`.
    info: String,
}

/// How pictures were made, in A1111's words.
#[derive(Debug, Serialize)]
struct Info<'a> {
    prompt: &'a str,
    all_prompts: Vec<&'a str>,
    negative_prompt: &'a str,
    all_negative_prompts: Vec<&'a str>,
    seed: Seed,
    all_seeds: Vec<Seed>,
    subseed: Seed,
    all_subseeds: Vec<Seed>,
    subseed_strength: u8,
    width: u32,
    height: u32,
    sampler_name: &'static str,
    cfg_scale: GuidanceScale,
    steps: Steps,
    batch_size: i64,
    restore_faces: bool,
    face_restoration_model: Option<&'a str>,
    sd_model_name: &'a str,
    sd_model_hash: &'a str,
    sd_vae_name: Option<&'a str>,
    sd_vae_hash: Option<&'a str>,
    seed_resize_from_w: i8,
    seed_resize_from_h: i8,
    denoising_strength: Option<f64>,
    extra_generation_params: BTreeMap<&'static str, Value>,
    index_of_first_image: u8,
    /// The parameters of each picture, as its file has them.
    infotexts: Vec<String>,
    styles: [&'a str; 0],
    job_timestamp: String,
    clip_skip: usize,
    is_using_inpainting_conditioning: bool,
    version: &'a str,
    /// Whether the request was interrupted.
    interrupted: bool,
    ignored: &'a [String],
    warnings: Vec<&'a str>,
}

impl<'a> Info<'a> {
    fn new(run: &'a Run, pictures: &'a [Arc<Complete>], batch_size: i64) -> Self {
        let order = &run.order.picture;
        let (config, size, count) = (order.config, order.size(), run.order.count as usize);
        let of_each = || (0..run.order.count).map(|index| order.picture(index));
        let seeds: Vec<Seed> = of_each().map(|order| order.config.seed).collect();
        let redraw = order.redraw.as_deref();
        let mut warnings: Vec<&str> = pictures.iter().flat_map(|picture| &picture.warnings).map(String::as_str).collect();
        warnings.dedup();
        Self {
            prompt: order.prompt.as_str(),
            all_prompts: vec![order.prompt.as_str(); count],
            negative_prompt: order.negative_prompt.as_str(),
            all_negative_prompts: vec![order.negative_prompt.as_str(); count],
            seed: config.seed,
            subseed: config.seed,
            all_subseeds: seeds.clone(),
            all_seeds: seeds,
            subseed_strength: 0,
            width: size.width(),
            height: size.height(),
            sampler_name: config.sampler.a1111_name(),
            cfg_scale: config.guidance_scale,
            steps: config.steps,
            batch_size,
            restore_faces: false,
            face_restoration_model: None,
            sd_model_name: &run.model,
            sd_model_hash: "",
            sd_vae_name: None,
            sd_vae_hash: None,
            seed_resize_from_w: -1,
            seed_resize_from_h: -1,
            denoising_strength: config.options.strength.or(redraw.map(|redraw| redraw.strength)).map(Strength::get),
            extra_generation_params: redraw.map(hires_params).unwrap_or_default(),
            index_of_first_image: 0,
            infotexts: of_each().map(|order| ImageMetadata::new(&order, &run.model).to_a1111()).collect(),
            styles: [],
            job_timestamp: run.created.to_string(),
            clip_skip: config.options.clip_skip.map_or(1, |skip| skip.layers() + 1),
            is_using_inpainting_conditioning: false,
            version: concat!("sd-worker ", env!("CARGO_PKG_VERSION")),
            interrupted: matches!(run.status(), Status::Cancelled),
            ignored: &run.order.ignored,
            warnings,
        }
    }
}

/// A1111's words for a second drawing.
fn hires_params(Redraw { enlarger, scale, steps, order, .. }: &Redraw) -> BTreeMap<&'static str, Value> {
    let how_large = match scale {
        Some(scale) => ("Hires upscale", scale.get().into()),
        None => ("Hires resize", order.config.size.to_string().into()),
    };
    BTreeMap::from([how_large, ("Hires steps", steps.get().into()), ("Hires upscaler", enlarger.name().into())])
}

/// Answers with the pictures of a run that has ended.
///
/// # Errors
/// When the answer cannot be written.
pub(super) async fn respond(run: &Arc<Run>, pictures: Vec<Arc<Complete>>, repeated: Repeated) -> Result<Response, ApiError> {
    let (run, length) = (Arc::clone(run), pictures.iter().map(|picture| picture.image.bytes.len()).sum());
    let write = move || {
        let Repeated { parameters, batch_size, has_images } = repeated;
        let info = serde_json::to_string(&Info::new(&run, &pictures, batch_size))?;
        let unfinished = run.latest_preview().filter(|_| pictures.len() < run.order.count as usize).map(Base64::of);
        let images = pictures.into_iter().map(Base64::of).chain(unfinished).filter(|_| has_images).collect();
        serde_json::to_vec(&Pictures { images, parameters, info })
    };
    let answer = off_thread::offload(length, write).await.map_err(|error| ApiError::unwritable(&error))?;
    let answer = answer.map_err(|error| ApiError::unwritable(&error))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], answer).into_response())
}
