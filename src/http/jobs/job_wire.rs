//! Wire types of jobs, with the names that orchestrators use.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    backend::{Complete, ImageFile, InitFiles, InputFiles},
    common::{
        ClipSkip, Decoder, Eta, GuidanceInterval, GuidanceRescale, GuidanceScale, ImageFormat, NamedSampler, NamedSchedule, NegativePrompt,
        Prompt, Seed, Steps, Strength,
    },
    http::{
        answer::{Base64, Parameters, WireTimings},
        api_error::{ApiError, ErrorBody},
        extract::FromFields,
        fields::Fields,
        run::{Entry, Run, Status},
        uploads::{self, TakenPicture},
        wire::{Bounded, ImagesRequest, MAX_SIDE, WireSeed},
        wire_cache::WireCache,
        wire_controls::{self, WireControls, is_control},
        wire_loras::WireLoras,
        wire_references::{self, WireReferences, is_reference},
        wire_upscale::WireUpscale,
    },
};

/// The steps of a job that names none.
const STEPS: i64 = 20;
/// The guidance scale of a job that names none.
const GUIDANCE_SCALE: f64 = 7.5;

/// A job: an operation, with settings of `/v1/images/generations`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(expecting = "a JSON object")]
pub(in crate::http) struct JobRequest {
    operation: Operation,
    /// What the picture shows.
    #[schema(value_type = Prompt)]
    prompt: Option<Prompt>,
    /// What the picture does not show.
    negative_prompt: Option<NegativePrompt>,
    /// Denoising steps; 20 where they are left out. Also `num_inference_steps`.
    #[serde(alias = "num_inference_steps")]
    steps: Option<Steps>,
    /// How strongly the picture follows the prompt; 7.5 where it is left out. Also `cfg_scale`.
    #[serde(alias = "cfg_scale")]
    guidance_scale: Option<GuidanceScale>,
    /// The same seed gives the same picture; -1 is any.
    #[schema(inline)]
    seed: Option<WireSeed>,
    /// In pixels; the model's own where it is left out.
    #[schema(value_type = Option<u32>, minimum = 64, maximum = 4096, multiple_of = 8)]
    width: Option<Bounded<0, MAX_SIDE>>,
    /// In pixels; the model's own where it is left out.
    #[schema(value_type = Option<u32>, minimum = 64, maximum = 4096, multiple_of = 8)]
    height: Option<Bounded<0, MAX_SIDE>>,
    /// LoRAs of the folder of `--loras`, by their names. Also `lora`.
    #[serde(alias = "lora")]
    #[schema(inline)]
    loras: Option<WireLoras>,
    /// ControlNets and T2I-Adapters of `--controlnet`, by their names, each with the picture that it looks at.
    #[schema(inline)]
    control: Option<WireControls>,
    /// Pictures that the model looks at beside the prompt, through `--ip-adapter`.
    #[schema(inline)]
    reference: Option<WireReferences>,
    /// A worker has one model; another name is named in `ignored`.
    model: Option<String>,

    /// How much of the picture to begin with is changed, where there is one; 0.8 where it is left out, with a mask 1.
    strength: Option<Strength>,
    /// The picture that `image_transform` begins with, in base64 or a `data:` URL. Also `init_image`.
    #[serde(rename = "input_image")]
    #[schema(inline)]
    _input_image: Option<TakenPicture>,
    /// The picture that `image_inpaint` begins with. Also `input_image`.
    #[serde(rename = "init_image")]
    #[schema(inline)]
    _init_image: Option<TakenPicture>,
    /// What `image_inpaint` paints anew: where it is transparent, or, if it is opaque everywhere, white.
    #[serde(rename = "mask_image")]
    #[schema(inline)]
    _mask_image: Option<TakenPicture>,

    /// The solver. Also `sample_method` or `sampler_name`.
    #[serde(alias = "sample_method", alias = "sampler_name")]
    sampler: Option<NamedSampler>,
    /// How noise levels are spaced. Also `scheduler`.
    #[serde(alias = "scheduler")]
    schedule: Option<NamedSchedule>,
    /// How much fresh noise samplers with an `eta` add.
    eta: Option<Eta>,
    /// How far guidance is kept from changing the contrast.
    guidance_rescale: Option<GuidanceRescale>,
    /// The shares of the steps after which guidance begins and ends, such as `[0.2, 0.8]`.
    #[schema(inline)]
    guidance_interval: Option<GuidanceInterval>,
    /// Whether the last timestep is nothing but noise. Also `rescale_betas_zero_snr`.
    #[serde(alias = "rescale_betas_zero_snr")]
    zero_snr: Option<bool>,
    /// Which of the text encoder's layers is the last one, counted from its end.
    clip_skip: Option<ClipSkip>,
    /// What turns latents into pixels: `full`, the model's VAE, or `tiny`, that of `--tiny-vae`.
    decoder: Option<Decoder>,
    /// What enlarges the finished picture, by its name, and how much.
    #[schema(inline)]
    upscale: Option<WireUpscale>,
    /// Features that are reused between steps: faster, and another picture.
    #[schema(inline)]
    cache: Option<WireCache>,
    /// `png` where it is left out.
    output_format: Option<ImageFormat>,
    /// Quality of a JPEG or a WebP; 90 where it is left out.
    #[schema(value_type = Option<i64>, minimum = 0, maximum = 100)]
    output_compression: Option<Bounded<0, 100>>,
    /// How many previews the stream has.
    #[schema(value_type = Option<i64>, minimum = 0, maximum = 3)]
    partial_images: Option<Bounded<0, 3>>,

    /// The names of all other fields with a value.
    #[serde(skip)]
    others: Vec<String>,
}

/// A job, and files whose headers have been checked.
pub(in crate::http) struct JobBody {
    pub(super) request: JobRequest,
    pub(super) files: InputFiles,
}

/// What a job does.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
enum Operation {
    #[serde(rename = "image_generation")]
    Generation,
    #[serde(rename = "image_transform")]
    Transform,
    #[serde(rename = "image_inpaint")]
    Inpaint,
}

impl Operation {
    /// The field of the picture to begin with.
    fn image_name(self) -> &'static str {
        if matches!(self, Self::Inpaint) { "init_image" } else { "input_image" }
    }
}

impl FromFields for JobBody {
    /// Reads the pictures of the operation. A picture that the operation does not use is ignored; a mask that it does not use is an error,
    /// since ignoring it would change the result.
    fn from_fields(mut fields: Fields) -> Result<Self, ApiError> {
        let mut take = |name: &'static str| fields.take(|other| other == name).pop().map(|(_, value)| (name, value));
        let (input, init, mask) = (take("input_image"), take("init_image"), take("mask_image"));
        let (controls, references) = (fields.take_one(is_control)?, fields.take_one(is_reference)?);
        let (mut request, others): (JobRequest, _) = fields.read()?;
        request.others = others;
        // Both fields have served to route the job here.
        request.others.retain(|name| !["hive_id", "worker_id"].contains(&name.as_str()));

        let open = |(name, value)| Ok::<_, ApiError>(ImageFile::open(name, uploads::from_json(name, value)?)?);
        let operation = request.operation;
        let (image, unused) =
            if matches!(operation, Operation::Generation) { (None, [input, init]) } else { (input.or(init), [input.and(init), None]) };
        request.others.extend(unused.into_iter().flatten().map(|(name, _)| name.to_owned()));
        let init = match (operation, image, mask) {
            (Operation::Generation | Operation::Transform, _, Some(_)) => {
                return Err(ApiError::invalid_param("mask_image", "has no effect in this operation; image_inpaint has one"));
            }
            (Operation::Generation, ..) => None,
            (_, None, _) => return Err(ApiError::missing_param(operation.image_name())),
            (Operation::Transform, Some(image), None) => Some(InitFiles::new(open(image)?, None)),
            (Operation::Inpaint, _, None) => return Err(ApiError::missing_param("mask_image")),
            (Operation::Inpaint, Some(image), Some(mask)) => Some(InitFiles::new(open(image)?, Some(open(mask)?))),
        };
        let (settings, controls) = wire_controls::read(controls, Vec::new())?;
        let (scales, references) = wire_references::read(references, Vec::new())?;
        (request.control, request.reference) = (Some(WireControls(settings)), Some(WireReferences(scales)));
        Ok(Self { request, files: InputFiles { init, controls, references } })
    }
}

impl JobRequest {
    /// The same request as a body of `/v1/images/generations`.
    pub(super) fn into_images_request(self) -> Result<ImagesRequest, ApiError> {
        let prompt = self.prompt.ok_or_else(|| ApiError::missing_param("prompt"))?;
        Ok(ImagesRequest {
            model: self.model,
            width: self.width,
            height: self.height,
            output_format: self.output_format,
            output_compression: self.output_compression,
            // The stream of a job always has its events.
            stream: Some(true),
            partial_images: self.partial_images,
            negative_prompt: self.negative_prompt,
            loras: self.loras,
            control: self.control,
            reference: self.reference,
            seed: self.seed,
            num_inference_steps: self.steps,
            default_steps: Steps::try_from(STEPS).ok(),
            guidance_scale: self.guidance_scale,
            default_guidance_scale: GuidanceScale::try_from(GUIDANCE_SCALE).ok(),
            sampler: self.sampler,
            schedule: self.schedule,
            eta: self.eta,
            guidance_rescale: self.guidance_rescale,
            guidance_interval: self.guidance_interval,
            zero_snr: self.zero_snr,
            clip_skip: self.clip_skip,
            decoder: self.decoder,
            upscale: self.upscale,
            strength: self.strength,
            cache: self.cache,
            others: self.others,
            ..ImagesRequest::new(prompt)
        })
    }
}

/// The answer to a request.
#[derive(Debug, Serialize, ToSchema)]
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
#[derive(Debug, Serialize, ToSchema)]
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
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct JobState {
    /// `queued`, `running`, `completed`, `failed` or `cancelled`.
    status: &'static str,
    /// Seconds since 1970.
    created: u64,
    #[schema(required)]
    progress: Option<WireProgress>,
    /// Only of a job that failed or was cancelled.
    #[schema(required)]
    error: Option<ErrorBody>,
    sse_url: String,
    result_url: String,
    job_id: String,
}

/// How far the steps are.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(in crate::http) struct WireProgress {
    step: usize,
    total: usize,
    percent: f64,
}

impl From<crate::backend::Progress> for WireProgress {
    fn from(progress: crate::backend::Progress) -> Self {
        let (step, total) = (progress.step, progress.total);
        // A percentage with one decimal.
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
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(in crate::http) enum JobEvent {
    Progress(WireProgress),
    Preview {
        #[schema(value_type = String, content_encoding = "base64")]
        image: Base64,
        format: ImageFormat,
        step: usize,
    },
    Complete(Box<Finished>),
    Error {
        message: String,
        code: String,
    },
}

/// A picture with what is known of it.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Finished {
    /// The file.
    #[schema(value_type = String, content_encoding = "base64")]
    image: Base64,
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
            Entry::Preview { step, image, .. } => Self::Preview { format: image.format, image: Base64::of(image), step },
            Entry::Complete(complete) => Self::Complete(Box::new(Finished::new(run, &complete))),
            Entry::Failed(error) => {
                let ErrorBody { message, code, .. } = error.into_body();
                Self::Error { message, code: code.into_owned() }
            }
        }
    }

    /// The event's name.
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
    fn new(run: &Run, complete: &Arc<Complete>) -> Self {
        Self {
            image: Base64::of(Arc::clone(complete)),
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

/// One event of a job's stream.
#[derive(ToSchema)]
#[allow(dead_code, reason = "a description")]
pub(in crate::http) struct JobItem {
    /// Its number, for `Last-Event-ID`; the last line has none.
    id: Option<String>,
    /// What `type` in the data says; the last line has none.
    event: Option<String>,
    /// A `JobEvent` as JSON, or the marker at the end.
    data: String,
}
