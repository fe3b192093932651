//! Jobs as they travel, with the names that orchestrators use.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    backend::{Complete, ImageFile, InputFiles},
    common::{
        ClipSkip, Eta, GuidanceRescale, GuidanceScale, ImageFormat, ModelInfo, NegativePrompt, Prompt, Sampler, Schedule, Seed, Steps,
        Strength,
    },
    http::{
        ApiError,
        api_error::ErrorBody,
        run::{Entry, Run, Status},
        uploads,
        wire::{self, Bounded, ImagesRequest, Parameters, WireSeed, WireTimings},
    },
};

/// Steps where a job does not say.
const STEPS: i64 = 20;
/// Guidance where a job does not say.
const GUIDANCE_SCALE: f64 = 7.5;

/// The request.
#[derive(Debug, Deserialize)]
#[serde(expecting = "a JSON object")]
pub(in crate::http) struct JobRequest {
    operation: Operation,
    prompt: Option<Prompt>,
    negative_prompt: Option<NegativePrompt>,
    #[serde(alias = "num_inference_steps")]
    steps: Option<Steps>,
    #[serde(alias = "cfg_scale")]
    guidance_scale: Option<GuidanceScale>,
    seed: Option<WireSeed>,
    width: Option<u32>,
    height: Option<u32>,
    loras: Option<Vec<Value>>,
    model: Option<String>,

    strength: Option<Strength>,
    input_image: Option<Value>,
    init_image: Option<Value>,
    mask_image: Option<Value>,

    #[serde(alias = "sample_method", alias = "sampler_name")]
    sampler: Option<Sampler>,
    #[serde(alias = "scheduler")]
    schedule: Option<Schedule>,
    eta: Option<Eta>,
    guidance_rescale: Option<GuidanceRescale>,
    #[serde(alias = "rescale_betas_zero_snr")]
    zero_snr: Option<bool>,
    clip_skip: Option<ClipSkip>,
    output_format: Option<ImageFormat>,
    output_compression: Option<Bounded<0, 100>>,
    partial_images: Option<Bounded<0, 3>>,

    /// Everything else, and what speaks to the orchestrator: which hive and which worker.
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// What a job does.
#[derive(Debug, Clone, Copy, Deserialize)]
enum Operation {
    #[serde(rename = "image_generation")]
    Generation,
    #[serde(rename = "image_transform")]
    Transform,
    #[serde(rename = "image_inpaint")]
    Inpaint,
}

impl Operation {
    /// What the picture to begin with is called.
    fn image_name(self) -> &'static str {
        if matches!(self, Self::Inpaint) { "init_image" } else { "input_image" }
    }
}

impl JobRequest {
    /// The pictures that the operation begins with, if it does. Others are named as ignored.
    pub(super) fn take_files(&mut self) -> Result<Option<InputFiles>, ApiError> {
        let open = |name: &'static str, value: Value| Ok::<_, ApiError>(ImageFile::open(name, uploads::from_json(name, &value)?)?);
        let mut image = None;
        let mut mask = None;
        if !matches!(self.operation, Operation::Generation) {
            let named = self.input_image.take().map(|value| ("input_image", value));
            let (name, value) = named
                .or_else(|| self.init_image.take().map(|value| ("init_image", value)))
                .ok_or_else(|| ApiError::missing_param(self.operation.image_name()))?;
            image = Some(open(name, value)?);
        }
        if matches!(self.operation, Operation::Inpaint) {
            let value = self.mask_image.take().ok_or_else(|| ApiError::missing_param("mask_image"))?;
            mask = Some(open("mask_image", value)?);
        }
        let unused = [("input_image", &self.input_image), ("init_image", &self.init_image), ("mask_image", &self.mask_image)];
        let unused = unused.into_iter().filter(|(_, value)| value.is_some()).map(|(name, _)| (name.to_owned(), Value::Bool(true)));
        self.others.extend(unused);
        Ok(image.map(|image| InputFiles { image, mask }))
    }

    /// The same in the words of `/v1/images/generations`.
    pub(super) fn into_images_request(mut self, info: &ModelInfo, files: Option<&InputFiles>) -> Result<ImagesRequest, ApiError> {
        if self.loras.is_some_and(|loras| !loras.is_empty()) {
            return Err(ApiError::invalid_param("loras", "must be empty: this worker applies no LoRAs"));
        }
        // They have had their effect: the job is here.
        for address in ["hive_id", "worker_id"] {
            self.others.remove(address);
        }
        let size = files.map_or(info.defaults.size, |files| info.size_for(files.image.size().0, files.image.size().1));
        Ok(ImagesRequest {
            prompt: self.prompt.ok_or_else(|| ApiError::missing_param("prompt"))?,
            model: self.model,
            n: None,
            size: Some(format!("{}x{}", self.width.unwrap_or(size.width()), self.height.unwrap_or(size.height()))),
            response_format: None,
            output_format: self.output_format,
            output_compression: self.output_compression,
            stream: Some(true),
            partial_images: self.partial_images,
            negative_prompt: self.negative_prompt,
            seed: self.seed,
            num_inference_steps: self.steps.or(Steps::try_from(STEPS).ok()),
            guidance_scale: self.guidance_scale.or(GuidanceScale::try_from(GUIDANCE_SCALE).ok()),
            sampler: self.sampler,
            schedule: self.schedule,
            eta: self.eta,
            guidance_rescale: self.guidance_rescale,
            zero_snr: self.zero_snr,
            clip_skip: self.clip_skip,
            strength: self.strength,
            progress: None,
            on_disconnect: None,
            others: self.others,
        })
    }
}

/// The answer to a request.
#[derive(Debug, Serialize)]
pub(in crate::http) struct Submitted {
    sse_url: String,
    job_id: String,
}

impl Submitted {
    pub(super) fn new(job_id: String) -> Self {
        Self { sse_url: format!("/v1/jobs/{job_id}/stream"), job_id }
    }
}

/// The answer to a `DELETE`.
#[derive(Debug, Serialize)]
pub(in crate::http) struct Cancelled {
    job_id: String,
    status: &'static str,
}

impl Cancelled {
    pub(super) fn new(job_id: String) -> Self {
        Self { job_id, status: Status::Cancelled.name() }
    }
}

/// How far a job is.
#[derive(Debug, Serialize)]
pub(in crate::http) struct JobState {
    status: &'static str,
    /// Seconds since 1970.
    created: u64,
    progress: Option<WireProgress>,
    /// Only of a job that failed or was cancelled.
    error: Option<ErrorBody>,
    sse_url: String,
    result_url: String,
    job_id: String,
}

/// How far the steps are.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct WireProgress {
    step: usize,
    total: usize,
    percent: f64,
}

impl From<crate::backend::Progress> for WireProgress {
    fn from(progress: crate::backend::Progress) -> Self {
        let (step, total) = (progress.step, progress.total);
        // One decimal says all there is to see.
        Self { step, total, percent: (1000.0 * step as f64 / total as f64).round() / 10.0 }
    }
}

impl JobState {
    pub(super) fn new(job_id: String, run: &Run) -> Self {
        let status = run.status();
        let error = match &status {
            Status::Failed(error) => Some(error.body().clone()),
            Status::Cancelled => Some(ApiError::cancelled().into_body()),
            Status::Queued | Status::Running | Status::Completed => None,
        };
        Self {
            status: status.name(),
            created: run.created,
            progress: run.progress().map(WireProgress::from),
            error,
            sse_url: format!("/v1/jobs/{job_id}/stream"),
            result_url: format!("/v1/jobs/{job_id}/result"),
            job_id,
        }
    }
}

/// The events of a job's stream.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum JobEvent {
    Progress(WireProgress),
    Preview { image: String, format: ImageFormat, step: usize },
    Complete(Box<Finished>),
    Error { message: String, code: String },
}

/// A picture with what is known of it.
#[derive(Debug, Serialize)]
pub(super) struct Finished {
    image: String,
    format: ImageFormat,
    seed: Seed,
    width: u32,
    height: u32,
    timings: WireTimings,
    parameters: Parameters,
    ignored: Vec<String>,
    warnings: Vec<String>,
}

impl JobEvent {
    pub(super) fn new(run: &Run, entry: Entry) -> Self {
        match entry {
            Entry::Progress(progress) => Self::Progress(progress.into()),
            Entry::Preview { step, image, .. } => Self::Preview { image: wire::base64(&image), format: image.format, step },
            Entry::Complete(complete) => Self::Complete(Box::new(Finished::new(run, &complete))),
            Entry::Failed(error) => {
                let ErrorBody { message, code, .. } = error.into_body();
                Self::Error { message, code: code.into_owned() }
            }
        }
    }

    /// The name before the data.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Progress(_) => "progress",
            Self::Preview { .. } => "preview",
            Self::Complete(_) => "complete",
            Self::Error { .. } => "error",
        }
    }
}

impl Finished {
    fn new(run: &Run, complete: &Complete) -> Self {
        Self {
            image: wire::base64(&complete.image),
            format: complete.image.format,
            seed: complete.config.seed,
            width: complete.image.width,
            height: complete.image.height,
            timings: WireTimings::of(&[complete.timings]),
            parameters: Parameters::new(run, complete.config),
            ignored: run.order.ignored.clone(),
            warnings: complete.warnings.clone(),
        }
    }
}
