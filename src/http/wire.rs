//! `POST /v1/images/generations` as it travels: `OpenAI`'s fields, ours, and the names that other servers' users send.

use std::{sync::Arc, time::Duration};

use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type},
};

use super::{
    ApiError, Demand, body_bytes,
    extract::{self, FromFields},
    fields::Fields,
    run::Run,
};
use crate::{
    backend::{Complete, EncodedImage, InputFiles, ModelInfo, PromptText, Timings},
    common::{
        ClipSkip, Eta, GuidanceInterval, GuidanceRescale, GuidanceScale, ImageFormat, ImageSize, InputImage, InvalidValue, MaskMeaning,
        NamedSampler, NamedSchedule, NegativePrompt, OutputConfig, Prompt, Sampler, SamplingConfig, SamplingOptions, Schedule, Seed, Steps,
        Strength, WholeNumber,
    },
};

/// The most pictures of one request.
pub(super) const MAX_N: i64 = 10;

/// What a side may be is said of both of them together.
pub(super) const MAX_SIDE: i64 = ImageSize::MAX_SIDE as i64;

/// What an answer has beside its pictures, in bytes, as a rule.
const SMALL_ANSWER: usize = 4096;

/// The one `response_format`, and why.
const ONLY_FILES_IN_ANSWERS: &str = "b64_json (this worker keeps no files to link to)";

/// The request. A field that has no effect here, such as `quality`, `style`, `moderation` or `user`, is named in the answer's `ignored`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(expecting = "a JSON object")]
pub(super) struct ImagesRequest {
    /// What the picture shows.
    pub(super) prompt: Prompt,
    /// A worker has one model; another name is named in `ignored`.
    pub(super) model: Option<String>,
    /// How many pictures.
    #[schema(value_type = Option<i64>, minimum = 1, maximum = 10)]
    pub(super) n: Option<Bounded<1, MAX_N>>,
    /// `WIDTHxHEIGHT` in pixels, each a multiple of 8 (of some models, of more) from 64 to 4096, or `auto` for the model's own.
    #[schema(pattern = "^(auto|[0-9]+[xX][0-9]+)$", examples("auto", "512x512"))]
    pub(super) size: Option<String>,
    /// Width in pixels, whatever `size` says.
    #[schema(value_type = Option<u32>, minimum = 64, maximum = 4096, multiple_of = 8)]
    pub(super) width: Option<Bounded<0, MAX_SIDE>>,
    /// Height in pixels, whatever `size` says.
    #[schema(value_type = Option<u32>, minimum = 64, maximum = 4096, multiple_of = 8)]
    pub(super) height: Option<Bounded<0, MAX_SIDE>>,
    /// `b64_json`: this worker keeps no files to link to.
    #[schema(pattern = "^b64_json$")]
    pub(super) response_format: Option<String>,
    /// `png` where it is left out.
    pub(super) output_format: Option<ImageFormat>,
    /// Quality of a JPEG; 90 where it is left out.
    #[schema(value_type = Option<i64>, minimum = 0, maximum = 100)]
    pub(super) output_compression: Option<Bounded<0, 100>>,
    /// Whether to answer with server-sent events.
    pub(super) stream: Option<bool>,
    /// How many previews a stream has.
    #[schema(value_type = Option<i64>, minimum = 0, maximum = 3)]
    pub(super) partial_images: Option<Bounded<0, 3>>,

    /// What the picture does not show.
    pub(super) negative_prompt: Option<NegativePrompt>,
    /// The same seed gives the same picture; -1 is any. Of several pictures, the others have the seeds that follow.
    #[schema(inline)]
    pub(super) seed: Option<WireSeed>,
    /// Denoising steps. Also `steps` or `step`.
    #[serde(alias = "steps", alias = "step")]
    pub(super) num_inference_steps: Option<Steps>,
    /// How strongly the picture follows the prompt. Also `cfg_scale`.
    #[serde(alias = "cfg_scale")]
    pub(super) guidance_scale: Option<GuidanceScale>,
    /// The solver. Also `sample_method` or `sampler_name`.
    #[serde(alias = "sample_method", alias = "sampler_name")]
    pub(super) sampler: Option<NamedSampler>,
    /// How noise levels are spaced. Also `scheduler`.
    #[serde(alias = "scheduler")]
    pub(super) schedule: Option<NamedSchedule>,
    /// How much fresh noise samplers with an `eta` add.
    pub(super) eta: Option<Eta>,
    /// How far guidance is kept from changing the contrast.
    pub(super) guidance_rescale: Option<GuidanceRescale>,
    /// The shares of the steps after which guidance begins and ends, such as `[0.2, 0.8]`.
    #[schema(inline)]
    pub(super) guidance_interval: Option<GuidanceInterval>,
    /// Whether the last timestep is nothing but noise. Also `rescale_betas_zero_snr`.
    #[serde(alias = "rescale_betas_zero_snr")]
    pub(super) zero_snr: Option<bool>,
    /// Which of the text encoder's layers is the last one, counted from its end.
    pub(super) clip_skip: Option<ClipSkip>,
    /// How much of the picture to begin with is changed, where there is one; 0.8 where it is left out, with a mask 1.
    pub(super) strength: Option<Strength>,
    /// Whether a stream has progress as events, and not only as comments.
    pub(super) progress: Option<bool>,
    /// What becomes of the work when the client goes away.
    pub(super) on_disconnect: Option<OnDisconnect>,

    /// The names of all other fields with a value. Some mean something to `OpenAI` and nothing here; the rest mean nothing to anybody.
    #[serde(skip)]
    pub(super) others: Vec<String>,
}

impl FromFields for ImagesRequest {
    fn from_fields(fields: Fields) -> Result<Self, ApiError> {
        let (request, others) = fields.read()?;
        Ok(Self { others, ..request })
    }
}

/// What becomes of a request whose client goes away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnDisconnect {
    /// The work stops.
    #[default]
    Cancel,
    /// The work goes on.
    Finish,
}

/// A whole number from `MIN` to `MAX`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "WholeNumber")]
pub(super) struct Bounded<const MIN: i64, const MAX: i64>(i64);

impl<const MIN: i64, const MAX: i64> TryFrom<WholeNumber> for Bounded<MIN, MAX> {
    type Error = InvalidValue;

    fn try_from(value: WholeNumber) -> Result<Self, InvalidValue> {
        let value = i64::from(value);
        let valid = (MIN..=MAX).contains(&value);
        valid.then_some(Self(value)).ok_or_else(|| InvalidValue::new("value", value, format!("a whole number from {MIN} to {MAX}")))
    }
}

/// A seed, or -1 for any, as A1111's users write it.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "WholeNumber")]
pub(super) struct WireSeed(Option<Seed>);

impl TryFrom<WholeNumber> for WireSeed {
    type Error = InvalidValue;

    fn try_from(number: WholeNumber) -> Result<Self, InvalidValue> {
        let number = i128::from(number);
        match u64::try_from(number) {
            Ok(seed) => Ok(Self(Some(seed.into()))),
            Err(_) if number == -1 => Ok(Self(None)),
            Err(_) => Err(InvalidValue::new("seed", number, format!("a whole number from 0 to {}, or -1 for any", u64::MAX))),
        }
    }
}

impl PartialSchema for WireSeed {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(-1)).maximum(Some(u64::MAX)).into()
    }
}

impl ToSchema for WireSeed {}

/// What a valid request asks for.
#[derive(Debug)]
pub(super) struct ImagesOrder {
    pub(super) prompt: Prompt,
    pub(super) negative_prompt: NegativePrompt,
    /// What the pictures begin with, if not with noise alone. It goes with the requests to the engine.
    pub(super) input: Option<Arc<InputImage>>,
    /// Whether there is such a picture,
    pub(super) is_edit: bool,
    /// and what of its mask was taken for the part to be painted anew, if there is one.
    pub(super) mask: Option<MaskMeaning>,
    /// Of the first picture; the others have the seeds that follow.
    pub(super) config: SamplingConfig,
    /// How often the network is evaluated for a picture.
    pub(super) evaluations: usize,
    /// For how many samples each time: the parts of the prompt, and with guidance one more.
    pub(super) samples: usize,
    pub(super) output: OutputConfig,
    pub(super) count: u32,
    pub(super) stream: bool,
    /// Whether progress is sent as events, not only as comments.
    pub(super) progress: bool,
    pub(super) on_disconnect: OnDisconnect,
    /// Fields that were given and have no effect.
    pub(super) ignored: Vec<String>,
}

impl ImagesRequest {
    /// Checks the request against the model and fills in what it leaves out. Of the files that it begins with only the headers are
    /// looked at: decoding them is left to the caller, once all else is right.
    pub(super) fn into_order(self, info: &ModelInfo, files: Option<&InputFiles>) -> Result<ImagesOrder, ApiError> {
        if let Some(format) = self.response_format.as_deref().filter(|format| *format != "b64_json") {
            return Err(InvalidValue::new("response_format", format_args!("\"{format}\""), ONLY_FILES_IN_ANSWERS).into());
        }
        let asked = self.image_size(info, files)?;
        info.check_size(asked)?;
        let config = self.sampling_config(info, info.drawing_size(asked, files.is_some()), files)?;
        let evaluations = info.plan(&config)?.stages.len();
        let prompt = PromptText::Positive(self.prompt.as_str());
        prompt.check()?;
        let is_guided = info.is_guided(config.guidance_scale) || prompt.parts() > 1;
        let samples = prompt.parts() + usize::from(is_guided);

        let stream = self.stream.unwrap_or(false);
        let format = self.output_format.unwrap_or_default();
        let mut ignored: Vec<String> = self.others.iter().map(|name| extract::clip(name).to_owned()).collect();
        let mut ignore_if = |given: bool, name: &str| {
            if given {
                ignored.push(name.to_owned());
            }
        };
        ignore_if(self.model.is_some_and(|model| model != info.id), "model");
        ignore_if(self.size.is_some_and(|size| size != "auto" && size.parse() != Ok(asked)), "size");
        ignore_if(self.output_compression.is_some() && format != ImageFormat::Jpeg, "output_compression");
        ignore_if(self.partial_images.is_some_and(|n| n.0 > 0) && !stream, "partial_images");
        ignore_if(self.strength.is_some() && files.is_none(), "strength");
        ignore_if(self.progress == Some(true) && !stream, "progress");
        ignore_if(self.clip_skip.is_some() && !info.has_clip_skip(), "clip_skip");
        let negative_prompt = self.negative_prompt.unwrap_or_default();
        ignore_if(!is_guided && !negative_prompt.as_str().is_empty(), "negative_prompt");
        ignored.extend(config.options_without_effect(is_guided).map(str::to_owned));
        ignored.sort();

        let default_output = OutputConfig::default();
        Ok(ImagesOrder {
            prompt: self.prompt,
            negative_prompt,
            input: None,
            is_edit: false,
            mask: None,
            config,
            evaluations,
            samples,
            output: OutputConfig {
                format,
                quality: self.output_compression.map_or(default_output.quality, |quality| quality.0 as u8),
                previews: self.partial_images.filter(|_| stream).map_or(0, |n| n.0 as u8),
                enlarged_to: Some(asked).filter(|asked| *asked != config.size),
            },
            count: self.n.map_or(1, |n| n.0 as u32),
            stream,
            progress: self.progress.unwrap_or(false),
            on_disconnect: self.on_disconnect.unwrap_or_default(),
            ignored,
        })
    }

    /// What the request says, or the size of the picture that it begins with, or the model's own.
    fn image_size(&self, info: &ModelInfo, files: Option<&InputFiles>) -> Result<ImageSize, ApiError> {
        let size = match (self.size.as_deref(), files.map(|files| files.image.size())) {
            (None | Some("auto"), None) => info.defaults.size,
            (None | Some("auto"), Some((width, height))) => info.size_for(width, height),
            (Some(text), _) => text.parse()?,
        };
        let side = |given: Option<Bounded<0, MAX_SIDE>>, otherwise| given.map_or(otherwise, |side| side.0 as u32);
        Ok(ImageSize::new(side(self.width, size.width()), side(self.height, size.height()))?)
    }

    /// How the pictures are sampled, at this size.
    fn sampling_config(&self, info: &ModelInfo, size: ImageSize, files: Option<&InputFiles>) -> Result<SamplingConfig, ApiError> {
        let defaults = info.defaults;
        let (sampler, schedule) = info.sampler(self.sampler, self.schedule)?;
        let has_mask = files.map(|files| files.mask.is_some());
        let (steps, strength) = info.steps(sampler, self.num_inference_steps, has_mask.map(|has_mask| (self.strength, has_mask)));
        Ok(SamplingConfig {
            size,
            steps,
            guidance_scale: self.guidance_scale.unwrap_or(defaults.guidance_scale),
            seed: self.seed.and_then(|seed| seed.0).unwrap_or_else(Seed::random),
            sampler,
            schedule,
            options: SamplingOptions {
                eta: self.eta,
                guidance_rescale: self.guidance_rescale,
                guidance_interval: self.guidance_interval,
                zero_snr: self.zero_snr,
                clip_skip: self.clip_skip.filter(|_| info.has_clip_skip()),
                strength,
            },
        })
    }
}

impl ImagesOrder {
    /// The size of the pictures.
    pub(super) fn size(&self) -> ImageSize {
        self.output.size(self.config.size)
    }

    /// The same order for pictures that begin with a picture.
    pub(super) fn beginning_with(self, input: Arc<InputImage>) -> Self {
        let mask = input.mask.as_ref().map(|mask| mask.meaning);
        Self { input: Some(input), is_edit: true, mask, ..self }
    }

    /// What it costs. `deadline` is how long the client waits, if it says so.
    pub(super) fn demand(&self, deadline: Option<Duration>) -> Demand {
        let pixels = self.config.size.pixels() * self.samples as u64;
        Demand { pictures: self.count, steps: self.evaluations, pixels, deadline }
    }
}

/// The pictures, and how they were made.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ImagesResponse {
    /// Seconds since 1970.
    created: u64,
    data: Vec<ImageData>,
    background: &'static str,
    output_format: ImageFormat,
    size: String,
    quality: &'static str,
    usage: Usage,
    parameters: Parameters,
    timings: WireTimings,
    /// Fields that were given and have no effect.
    ignored: Vec<String>,
    /// What else there is to know, such as that the end of a prompt was cut.
    warnings: Vec<String>,
}

/// A picture.
#[derive(Debug, Serialize, ToSchema)]
struct ImageData {
    /// The file.
    #[schema(content_encoding = "base64")]
    b64_json: String,
    seed: Seed,
}

/// Tokens are what `OpenAI` bills; here there are none.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Usage {
    total_tokens: u32,
    input_tokens: u32,
    output_tokens: u32,
    input_tokens_details: InputTokensDetails,
}

#[derive(Debug, Default, Serialize, ToSchema)]
struct InputTokensDetails {
    text_tokens: u32,
    image_tokens: u32,
}

/// The settings that the pictures were made with.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct Parameters {
    model: String,
    seed: Seed,
    steps: Steps,
    guidance_scale: GuidanceScale,
    sampler: Sampler,
    schedule: Schedule,
    width: u32,
    height: u32,
    #[serde(flatten)]
    options: SamplingOptions,
    /// What of the mask was taken for the part to be painted anew, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    mask: Option<MaskMeaning>,
    /// The size at which the picture was drawn before it was enlarged, if it was,
    #[serde(skip_serializing_if = "Option::is_none")]
    drawn_size: Option<String>,
    /// and by what.
    #[serde(skip_serializing_if = "Option::is_none")]
    upscaler: Option<&'static str>,
}

impl Parameters {
    /// Of one of a run's pictures.
    pub(super) fn new(run: &Run, config: SamplingConfig) -> Self {
        let SamplingConfig { size: drawn, steps, guidance_scale, seed, sampler, schedule, options } = config;
        let (size, enlarged_to) = (run.order.size(), run.order.output.enlarged_to);
        Self {
            model: run.model.clone(),
            seed,
            steps,
            guidance_scale,
            sampler,
            schedule,
            width: size.width(),
            height: size.height(),
            options,
            mask: run.order.mask,
            drawn_size: enlarged_to.map(|_| drawn.to_string()),
            upscaler: enlarged_to.map(|_| "lanczos"),
        }
    }
}

/// Milliseconds.
#[allow(clippy::struct_field_names, reason = "the names are the contract's")]
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub(super) struct WireTimings {
    queue_ms: u64,
    text_ms: u64,
    denoise_ms: u64,
    decode_ms: u64,
    encode_ms: u64,
    total_ms: u64,
}

impl WireTimings {
    /// Of pictures that were accepted together, and made one after the other or with their steps side by side.
    pub(super) fn of(all: &[Timings]) -> Self {
        let sum = |time: fn(&Timings) -> Duration| all.iter().map(time).sum::<Duration>();
        let (queue, total) = (all.first().map(|first| first.queue), all.iter().map(Timings::total).max());
        let [queue, text, decode, encode, total] =
            [queue.unwrap_or_default(), sum(|t| t.text), sum(|t| t.decode), sum(|t| t.encode), total.unwrap_or_default()]
                .map(|time| time.as_millis() as u64);
        let denoise_ms = total.saturating_sub(queue + text + decode + encode);
        Self { queue_ms: queue, text_ms: text, denoise_ms, decode_ms: decode, encode_ms: encode, total_ms: total }
    }
}

impl ImagesResponse {
    /// The answer with finished pictures.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(super) async fn respond(run: &Arc<Run>, pictures: Vec<Arc<Complete>>) -> Result<Response, ApiError> {
        let (run, length) = (Arc::clone(run), pictures.iter().map(|picture| picture.image.bytes.len()).sum());
        let write = move || {
            // As base64, and that once more as a part of the answer.
            let mut answer = Vec::new();
            answer.try_reserve_exact(length * 3 + SMALL_ANSWER).map_err(|_| ApiError::no_memory_for_answer())?;
            serde_json::to_writer(&mut answer, &Self::new(&run, &pictures)).map_err(|error| ApiError::unwritable(&error))?;
            Ok(answer)
        };
        let answer = body_bytes::offload(length, write).await.unwrap_or_else(|error| Err(ApiError::unwritable(&error)))?;
        Ok(([(header::CONTENT_TYPE, "application/json")], answer).into_response())
    }

    /// Puts finished pictures together.
    fn new(run: &Run, pictures: &[Arc<Complete>]) -> Self {
        let timings: Vec<Timings> = pictures.iter().map(|picture| picture.timings).collect();
        let mut warnings: Vec<String> = pictures.iter().flat_map(|picture| picture.warnings.clone()).collect();
        warnings.dedup();
        let parameters = Parameters::new(run, run.order.config);
        Self {
            created: run.created,
            data: pictures.iter().map(|picture| ImageData { b64_json: base64(&picture.image), seed: picture.config.seed }).collect(),
            background: "opaque",
            output_format: run.order.output.format,
            size: run.order.size().to_string(),
            quality: "auto",
            usage: Usage::default(),
            parameters,
            timings: WireTimings::of(&timings),
            ignored: run.order.ignored.clone(),
            warnings,
        }
    }
}

/// A file as text.
pub(super) fn base64(image: &EncodedImage) -> String {
    BASE64_STANDARD.encode(&image.bytes)
}
