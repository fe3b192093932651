//! The body of `POST /v1/images/generations`: `OpenAI`'s fields, this worker's own, and aliases that clients of other servers use.

use serde::Deserialize;
use tokio::{sync::Semaphore, task::JoinError};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type},
};

use super::{
    api_error::{self, ApiError},
    extract::FromFields,
    fields::Fields,
    off_thread,
    order::{AnswerForm, ImagesOrder, OnDisconnect},
    wire_cache::WireCache,
    wire_controls::WireControls,
    wire_loras::WireLoras,
    wire_references::WireReferences,
    wire_upscale::WireUpscale,
};
use crate::{
    backend::{GenerationError, InputFiles, InputKind, ModelInfo, Order, OrderAdapters, ParsedPrompt, Settings},
    common::{
        ClipSkip, Decoder, Eta, GuidanceInterval, GuidanceRescale, GuidanceScale, ImageFormat, ImageSize, InvalidValue, NamedLora,
        NamedSampler, NamedSchedule, NegativePrompt, OutputConfig, Prompt, SamplingOptions, Seed, Steps, Strength, WholeNumber,
    },
};

/// The most pictures of one request.
pub(super) const MAX_N: i64 = 10;

/// The largest side that a field may have. The rest of a size's rules concern both sides together.
pub(super) const MAX_SIDE: i64 = ImageSize::MAX_SIDE as i64;

/// The request. A field that has no effect here, such as `quality`, `style`, `moderation` or `user`, is named in the answer's `ignored`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(expecting = "a JSON object")]
pub(super) struct ImagesRequest {
    /// What the picture shows.
    #[schema(value_type = Prompt)]
    pub(super) prompt: Option<Prompt>,
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
    /// Whether the answer has the files, or links to them that work without a key, as long as `--keep-results` and its like say. Streams
    /// always have the files.
    pub(super) response_format: Option<ResponseFormat>,
    /// `png` where it is left out.
    pub(super) output_format: Option<ImageFormat>,
    /// Quality of a JPEG or a WebP; 90 where it is left out.
    #[schema(value_type = Option<i64>, minimum = 0, maximum = 100)]
    pub(super) output_compression: Option<Bounded<0, 100>>,
    /// Whether to answer with server-sent events.
    pub(super) stream: Option<bool>,
    /// How many previews a stream has.
    #[schema(value_type = Option<i64>, minimum = 0, maximum = 3)]
    pub(super) partial_images: Option<Bounded<0, 3>>,

    /// What the picture does not show.
    pub(super) negative_prompt: Option<NegativePrompt>,
    /// LoRAs of the folder of `--loras`, by their names. Also `lora`: one or several, with `path` and `multiplier`.
    #[serde(alias = "lora")]
    #[schema(inline)]
    pub(super) loras: Option<WireLoras>,
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
    /// What turns latents into pixels: `full`, the model's VAE, or `tiny`, that of `--tiny-vae`.
    pub(super) decoder: Option<Decoder>,
    /// What enlarges the pictures, by its name, and how much. With a strength, they are drawn again after that.
    #[schema(inline)]
    pub(super) upscale: Option<WireUpscale>,
    /// How much of the picture to begin with is changed, where there is one; 0.8 where it is left out, with a mask 1.
    pub(super) strength: Option<Strength>,
    /// Features that are reused between steps: faster, and another picture.
    #[schema(inline)]
    pub(super) cache: Option<WireCache>,
    /// Whether a stream has progress as events, and not only as comments.
    pub(super) progress: Option<bool>,
    /// What becomes of the work when the client goes away.
    pub(super) on_disconnect: Option<OnDisconnect>,
    /// ControlNets and T2I-Adapters of `--controlnet`, by their names, each with the picture that it looks at. With `preprocess`, the picture is
    /// turned into what the network looks at.
    #[schema(inline)]
    pub(super) control: Option<WireControls>,
    /// Pictures that the model looks at beside the prompt, through `--ip-adapter`.
    #[schema(inline)]
    pub(super) reference: Option<WireReferences>,

    /// Steps where the request leaves them out, if not the model's own.
    #[serde(skip)]
    pub(super) default_steps: Option<Steps>,
    /// The guidance scale where the request leaves it out, if not the model's own.
    #[serde(skip)]
    pub(super) default_guidance_scale: Option<GuidanceScale>,
    /// Whether there need not be a prompt.
    #[serde(skip)]
    pub(super) may_lack_prompt: bool,
    /// The names of all other fields with a value. `OpenAI` knows some of them; this worker knows none.
    #[serde(skip)]
    pub(super) others: Vec<String>,
}

/// How an answer has its pictures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ResponseFormat {
    /// In base64.
    #[default]
    B64Json,
    /// As links.
    Url,
}

impl FromFields for ImagesRequest {
    fn from_fields(fields: Fields) -> Result<Self, ApiError> {
        let (request, others) = fields.read()?;
        Ok(Self { others, ..request })
    }
}

/// A whole number from `MIN` to `MAX`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "WholeNumber")]
pub(super) struct Bounded<const MIN: i64, const MAX: i64>(i64);

impl<const MIN: i64, const MAX: i64> TryFrom<WholeNumber> for Bounded<MIN, MAX> {
    type Error = InvalidValue;

    fn try_from(value: WholeNumber) -> Result<Self, InvalidValue> {
        i64::from(value).try_into()
    }
}

impl<const MIN: i64, const MAX: i64> Bounded<MIN, MAX> {
    /// The number.
    pub(super) fn get(self) -> i64 {
        self.0
    }

    /// The next multiple of a number below it.
    pub(super) fn rounded_down(self, multiple: i64) -> Self {
        Self((self.0 / multiple * multiple).max(MIN))
    }
}

impl<const MIN: i64, const MAX: i64> TryFrom<i64> for Bounded<MIN, MAX> {
    type Error = InvalidValue;

    fn try_from(value: i64) -> Result<Self, InvalidValue> {
        let valid = (MIN..=MAX).contains(&value);
        valid.then_some(Self(value)).ok_or_else(|| InvalidValue::new("value", value, format!("a whole number from {MIN} to {MAX}")))
    }
}

/// A seed, or -1 for a random one, as in A1111.
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

impl ImagesRequest {
    /// A request that leaves out everything else.
    pub(super) fn new(prompt: Prompt) -> Self {
        Self {
            prompt: Some(prompt),
            model: None,
            n: None,
            size: None,
            width: None,
            height: None,
            response_format: None,
            output_format: None,
            output_compression: None,
            stream: None,
            partial_images: None,
            negative_prompt: None,
            loras: None,
            seed: None,
            num_inference_steps: None,
            guidance_scale: None,
            sampler: None,
            schedule: None,
            eta: None,
            guidance_rescale: None,
            guidance_interval: None,
            zero_snr: None,
            clip_skip: None,
            decoder: None,
            upscale: None,
            strength: None,
            cache: None,
            progress: None,
            on_disconnect: None,
            control: None,
            reference: None,
            default_steps: None,
            default_guidance_scale: None,
            may_lack_prompt: false,
            others: Vec::new(),
        }
    }

    /// Validates the request against the model and fills in the defaults. Only the headers of the input files are read: the caller decodes
    /// them once everything else is valid.
    pub(super) async fn into_order(self, info: &ModelInfo, files: &InputFiles) -> Result<ImagesOrder, ApiError> {
        let prompt = self.needed_prompt()?;
        let size = self.image_size(info, files)?;
        let (answer, has_links) = self.answer_form();
        let stream = answer == AnswerForm::Stream;
        let format = self.output_format.unwrap_or_default();
        let output = self.output(format, stream);
        let without_effect = [
            ("model", self.model.is_some_and(|model| model != info.id)),
            ("size", self.size.is_some_and(|text| text != "auto" && text.parse() != Ok(size))),
            ("output_compression", self.output_compression.is_some() && format == ImageFormat::Png),
            ("response_format", has_links && stream),
            ("partial_images", self.partial_images.is_some_and(|n| n.0 > 0) && !stream),
            ("progress", self.progress == Some(true) && !stream),
        ];
        let settings = Settings {
            prompt,
            negative_prompt: self.negative_prompt,
            size,
            steps: self.num_inference_steps,
            default_steps: self.default_steps,
            guidance_scale: self.guidance_scale,
            default_guidance_scale: self.default_guidance_scale,
            seed: self.seed.and_then(|seed| seed.0),
            sampler: self.sampler,
            schedule: self.schedule,
            options: SamplingOptions {
                eta: self.eta,
                guidance_rescale: self.guidance_rescale,
                guidance_interval: self.guidance_interval,
                zero_snr: self.zero_snr,
                clip_skip: self.clip_skip,
                strength: self.strength,
                cache: self.cache.and_then(|cache| cache.0),
            },
            input: files.init.as_ref().map(|files| InputKind { has_mask: files.mask.is_some() }),
            controls: self.control.unwrap_or_default().0,
            references: self.reference.unwrap_or_default().0,
            decoder: self.decoder.unwrap_or_default(),
            upscale: self.upscale.and_then(|upscale| upscale.0),
            output,
        };
        let adapters = adapters(&settings, self.loras.unwrap_or_default().0, info).await?;
        let (picture, settings_without_effect) = Order::new(settings, adapters, info)?;

        let without_effect = without_effect.into_iter().filter(|(_, is_without)| *is_without).map(|(name, _)| name);
        let others = self.others.iter().map(|name| api_error::clip(name));
        let mut ignored: Vec<String> = others.chain(without_effect).chain(settings_without_effect).map(str::to_owned).collect();
        ignored.sort();
        Ok(ImagesOrder {
            picture,
            is_edit: false,
            mask: None,
            count: self.n.map_or(1, |n| n.0 as u32),
            answer,
            progress: self.progress.unwrap_or(false),
            on_disconnect: self.on_disconnect.unwrap_or_default(),
            ignored,
        })
    }

    /// How the pictures reach the client, and whether it asks for links.
    fn answer_form(&self) -> (AnswerForm, bool) {
        let has_links = self.response_format.unwrap_or_default() == ResponseFormat::Url;
        let form = match (self.stream.unwrap_or(false), has_links) {
            (true, _) => AnswerForm::Stream,
            (false, true) => AnswerForm::Links,
            (false, false) => AnswerForm::Files,
        };
        (form, has_links)
    }

    fn needed_prompt(&self) -> Result<ParsedPrompt, ApiError> {
        let nothing = || self.may_lack_prompt.then(Prompt::none).ok_or_else(|| ApiError::missing_param("prompt"));
        Ok(ParsedPrompt::positive(self.prompt.clone().map_or_else(nothing, Ok)?.as_str())?)
    }

    /// How the pictures are written.
    fn output(&self, format: ImageFormat, stream: bool) -> OutputConfig {
        let default = OutputConfig::default();
        let quality = self.output_compression.as_ref().map_or(default.quality, |quality| quality.0 as u8);
        let previews = self.partial_images.as_ref().filter(|_| stream).map_or(0, |n| n.0 as u8);
        OutputConfig { format, quality, previews, ..default }
    }

    /// The size that the request names, that of its input picture, or the model's own.
    fn image_size(&self, info: &ModelInfo, files: &InputFiles) -> Result<ImageSize, ApiError> {
        let size = match self.size.as_deref() {
            None | Some("auto") => info.default_size(files.leading_size()),
            Some(text) => text.parse()?,
        };
        let side = |given: Option<Bounded<0, MAX_SIDE>>, otherwise| given.map_or(otherwise, |side| side.0 as u32);
        Ok(ImageSize::new(side(self.width, size.width()), side(self.height, size.height()))?)
    }
}

/// The adapters of a request. Files are read on another thread, once everything else is known to be valid.
async fn adapters(settings: &Settings, listed: Vec<NamedLora>, info: &ModelInfo) -> Result<OrderAdapters, ApiError> {
    /// Two threads that read leave the others to pictures.
    static READERS: Semaphore = Semaphore::const_new(2);
    let (library, prompt) = (info.adapters.clone(), settings.prompt.clone());
    if library.is_none() || listed.is_empty() && prompt.loras().is_empty() {
        return Ok(OrderAdapters::choose(None, &prompt, listed)?);
    }
    // A LoRA may bring the sampler, on which depends whether a schedule goes with it.
    let schedule = settings.schedule.filter(|_| settings.sampler.is_some());
    Order::new(Settings { schedule, ..settings.clone() }, OrderAdapters::default(), info)?;
    let choose = move || OrderAdapters::choose(library.as_deref(), &prompt, listed);
    let panicked = |error: JoinError| GenerationError::Panicked(error.to_string());
    Ok(off_thread::in_turn(&READERS, choose).await.map_err(panicked)??)
}
