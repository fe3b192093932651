//! The bodies of `txt2img` and `img2img`. Fields that mean nothing here are named in the answer, unless their value asks for nothing.

use std::{collections::BTreeMap, str::FromStr};

use serde::{Deserialize, Deserializer, de::Error};
use serde_json::{Value, value::RawValue};
use utoipa::ToSchema;

use super::{control_units, overrides::Overrides};
use crate::{
    backend::{Fitting, ImageFile, InitFiles, InputFiles, MaskFill, MaskRules, ModelInfo, Resize},
    common::{ClipSkip, Eta, GuidanceScale, InvalidValue, NamedSampler, NamedSchedule, NegativePrompt, Prompt, Steps, Strength},
    http::{
        api_error::ApiError,
        extract::FromFields,
        fields::{self, Fields},
        images_body::ImagesBody,
        uploads::{self, TakenPicture},
        wire::{Bounded, ImagesRequest, MAX_N, MAX_SIDE, WireSeed},
        wire_controls::WireControls,
        wire_loras::WireLoras,
        wire_upscale::WireUpscale,
    },
};

mod hires;

/// Values that an answer repeats are no longer than this, in bytes.
const MAX_ECHO: usize = 64 << 10;
/// How far `img2img` changes a picture where the request does not say.
const STRENGTH: f64 = 0.75;
/// Sides are rounded down to a multiple of this.
const MULTIPLE: i64 = 8;
/// The standard deviation of a mask's blur where the request does not say, in pixels.
const BLUR: u8 = 4;

/// What A1111's clients ask for. A setting that is left out is the worker's own.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(expecting = "a JSON object")]
pub(in crate::http) struct PictureRequest {
    /// What the picture shows. LoRAs may be named in it: `<lora:name:weight>`.
    prompt: Option<String>,
    /// What the picture does not show.
    negative_prompt: Option<NegativePrompt>,
    /// In pixels. Rounded down to a multiple of 8.
    #[schema(value_type = Option<u32>, minimum = 64, maximum = 4096)]
    width: Option<Bounded<0, MAX_SIDE>>,
    /// In pixels. Rounded down to a multiple of 8.
    #[schema(value_type = Option<u32>, minimum = 64, maximum = 4096)]
    height: Option<Bounded<0, MAX_SIDE>>,
    /// Denoising steps.
    steps: Option<Steps>,
    /// How strongly the picture follows the prompt.
    cfg_scale: Option<GuidanceScale>,
    /// The same seed gives the same picture; -1 is any.
    #[schema(inline)]
    seed: Option<WireSeed>,
    /// How much of another seed's noise is mixed in. Not here: named in `info` unless it is 0.
    subseed_strength: Option<f64>,
    /// The solver, by its name in `samplers`.
    #[serde(default, deserialize_with = "unless_empty")]
    sampler_name: Option<NamedSampler>,
    /// The older name of `sampler_name`.
    #[serde(default, deserialize_with = "unless_empty")]
    sampler_index: Option<NamedSampler>,
    /// How noise levels are spaced, by its name or label in `schedulers`.
    #[serde(default, deserialize_with = "unless_empty")]
    scheduler: Option<NamedSchedule>,
    /// Pictures of a batch. With `n_iter`, at most 10 in all.
    #[schema(value_type = Option<i64>, minimum = 1, maximum = 10)]
    batch_size: Option<Bounded<1, MAX_N>>,
    /// Batches.
    #[schema(value_type = Option<i64>, minimum = 1, maximum = 10)]
    n_iter: Option<Bounded<1, MAX_N>>,
    /// How much fresh noise samplers with an `eta` add.
    #[schema(minimum = 0, maximum = 1)]
    eta: Option<f64>,
    /// Which of the text encoder's layers is the last one, counted from its end.
    clip_skip: Option<ClipSkip>,
    /// LoRAs beside those that the prompt names: a list of `path` and `multiplier`.
    #[schema(inline)]
    lora: Option<WireLoras>,
    /// `CLIP_stop_at_last_layers`, `samples_format` and `sd_model_checkpoint` are read.
    #[schema(value_type = Option<std::collections::HashMap<String, Value>>)]
    override_settings: Option<BTreeMap<String, Value>>,
    /// Whether the answer has pictures.
    send_images: Option<bool>,

    /// The picture that `img2img` begins with, in a list: base64, or a `data:` URL.
    #[serde(rename = "init_images")]
    #[schema(value_type = Option<Vec<String>>)]
    _init_images: Option<TakenPicture>,
    /// What `img2img` paints anew: white.
    #[serde(rename = "mask")]
    #[schema(value_type = Option<String>)]
    _mask: Option<TakenPicture>,
    /// `ControlNet` is read; others are named in `info`.
    #[serde(rename = "alwayson_scripts")]
    #[schema(value_type = Option<std::collections::HashMap<String, Value>>)]
    _alwayson_scripts: Option<TakenPicture>,
    /// How much of the picture `img2img` changes, or the hires fix; 0.75 where it is left out.
    denoising_strength: Option<Strength>,
    /// Whether `txt2img` enlarges its pictures and draws them again: the hires fix.
    enable_hr: Option<Flag>,
    /// How much larger each side is; 2 where it is left out.
    #[schema(minimum = 1, maximum = 8)]
    hr_scale: Option<f64>,
    /// What enlarges: one of the names in `upscalers` or `latent-upscale-modes`; `Latent` where it is left out.
    hr_upscaler: Option<String>,
    /// The steps of the second drawing; those of the first where it is left out or 0.
    #[schema(value_type = Option<i64>, minimum = 0, maximum = 1000)]
    hr_second_pass_steps: Option<Bounded<0, { Steps::MAX }>>,
    /// The width in place of `hr_scale`, rounded down to a multiple of 8; 0 is none.
    #[schema(value_type = Option<u32>, minimum = 0, maximum = 4096)]
    hr_resize_x: Option<Bounded<0, MAX_SIDE>>,
    /// The height in place of `hr_scale`, rounded down to a multiple of 8; 0 is none.
    #[schema(value_type = Option<u32>, minimum = 0, maximum = 4096)]
    hr_resize_y: Option<Bounded<0, MAX_SIDE>>,
    /// The solver of the second drawing, if not that of the first.
    #[serde(default, deserialize_with = "unless_same")]
    hr_sampler_name: Option<NamedSampler>,
    /// How its noise levels are spaced, if not as in the first.
    #[serde(default, deserialize_with = "unless_same")]
    hr_scheduler: Option<NamedSchedule>,
    /// Has no effect: named in `info` unless it is empty or the prompt.
    hr_prompt: Option<String>,
    /// Has no effect: named in `info` unless it is empty or the negative prompt.
    hr_negative_prompt: Option<String>,
    /// What happens to a picture of other proportions: 0 stretches it, 1 cuts it, 2 fills what it leaves.
    #[schema(value_type = Option<i64>, minimum = 0, maximum = 2)]
    resize_mode: Option<Bounded<0, 2>>,
    /// The standard deviation of the mask's blur in pixels; 4 where it is left out.
    #[schema(value_type = Option<i64>, minimum = 0, maximum = 64)]
    mask_blur: Option<Bounded<0, 64>>,
    /// What is under the mask at the beginning: 0 the colours around it, 1 the picture, 2 noise, 3 nothing.
    #[schema(value_type = Option<i64>, minimum = 0, maximum = 3)]
    inpainting_fill: Option<Bounded<0, 3>>,
    /// Whether the part around the mask alone is drawn, at the size of the request, and laid into the picture; true where it is left out.
    inpaint_full_res: Option<Flag>,
    /// Pixels around the mask that are drawn too.
    #[schema(value_type = Option<i64>, minimum = 0, maximum = 4096)]
    inpaint_full_res_padding: Option<Bounded<0, MAX_SIDE>>,
    /// Whether black is painted anew.
    inpainting_mask_invert: Option<Flag>,
}

/// The same with a picture to begin with.
#[derive(ToSchema)]
#[allow(dead_code, reason = "a description")]
pub(super) struct PictureEditRequest {
    #[serde(flatten)]
    more: PictureRequest,
    /// The picture to begin with, in a list: base64, or a `data:` URL.
    init_images: Vec<String>,
}

/// A boolean that some clients write as a number.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(untagged, expecting = "must be true or false")]
enum Flag {
    Bool(bool),
    Number(f64),
}

impl Flag {
    fn get(self) -> bool {
        match self {
            Self::Bool(is_set) => is_set,
            Self::Number(number) => number != 0.0,
        }
    }
}

/// A name, or none where a client leaves it empty.
fn unless_empty<'de, D: Deserializer<'de>, T: FromStr<Err = InvalidValue>>(deserializer: D) -> Result<Option<T>, D::Error> {
    let text: Option<String> = Option::deserialize(deserializer)?;
    text.filter(|text| !text.is_empty()).map(|text| text.parse()).transpose().map_err(D::Error::custom)
}

/// The same, where A1111's own page writes "Use same sampler" and the like.
fn unless_same<'de, D: Deserializer<'de>, T: FromStr<Err = InvalidValue>>(deserializer: D) -> Result<Option<T>, D::Error> {
    let text: Option<String> = Option::deserialize(deserializer)?;
    let text = text.filter(|text| !text.is_empty() && !text.starts_with("Use same"));
    text.map(|text| text.parse()).transpose().map_err(D::Error::custom)
}

/// A request with what belongs to it.
pub(super) struct PictureBody {
    request: PictureRequest,
    init: Option<(ImageFile, Option<ImageFile>)>,
    controls: control_units::Units,
    /// What the answer repeats.
    pub(super) echo: BTreeMap<String, Box<RawValue>>,
    /// Names of fields that have no effect.
    others: Vec<String>,
}

impl FromFields for PictureBody {
    fn from_fields(mut fields: Fields) -> Result<Self, ApiError> {
        let (init_images, mask) = (fields.take_one(|name| name == "init_images")?, fields.take_one(|name| name == "mask")?);
        let scripts = fields.take_one(|name| name == "alwayson_scripts")?;
        let mut echo: BTreeMap<String, Box<RawValue>> =
            fields.short(MAX_ECHO).map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let asking = super::asking(&fields);
        let (request, mut others): (PictureRequest, _) = fields.read()?;
        others.retain(|name| asking.contains(name));
        // What is unknown may be a secret that a client passes around.
        echo.retain(|name, _| !others.contains(name));

        let images = init_images.map(fields::entries).transpose()?.unwrap_or_default();
        let bytes = match &*images {
            [] => None,
            [one] => Some(uploads::from_json("init_images", one)?),
            several => {
                let reason = format!("must be a list of one picture, not of {}: a request begins with a single one", several.len());
                return Err(ApiError::invalid_param("init_images", &reason));
            }
        };
        let (controls, of_scripts) = control_units::read(scripts, bytes.as_deref())?;
        others.extend(of_scripts);
        let mask = mask.map(|mask| uploads::from_json("mask", mask)).transpose()?;
        let mask = mask.map(|bytes| ImageFile::open("mask", bytes)).transpose()?;
        let init = match (bytes, mask) {
            (Some(bytes), mask) => Some((ImageFile::open("init_images", bytes)?, mask)),
            (None, Some(_)) => return Err(ApiError::invalid_param("mask", "needs a picture in init_images that it is a part of")),
            (None, None) => None,
        };
        Ok(Self { request, init, controls, echo, others })
    }
}

/// Checks a picture that waits with its request, to have its part laid into it.
fn check_canvas(image: &ImageFile) -> Result<(), ApiError> {
    let (width, height) = image.size();
    if i64::from(width.max(height)) <= MAX_SIDE {
        return Ok(());
    }
    let reason = format!("must be at most {MAX_SIDE} pixels wide and high, not {width}x{height}, unless inpaint_full_res is false");
    Err(ApiError::invalid_param("init_images", &reason))
}

impl PictureBody {
    /// The same request in the words of `/v1/images/generations`. `begins_with_picture` tells `img2img` from `txt2img`.
    pub(super) fn into_images_body(self, begins_with_picture: bool, info: &ModelInfo) -> Result<ImagesBody, ApiError> {
        let Self { mut request, init, controls: control_units::Units { settings, pictures }, mut others, .. } = self;
        let init = match (begins_with_picture, init) {
            (true, None) => return Err(ApiError::missing_param("init_images")),
            (true, Some((image, mask))) => {
                let fitting = request.fitting();
                if mask.is_some() && fitting.mask.margin.is_some() {
                    check_canvas(&image)?;
                }
                Some(InitFiles { image, mask, fitting })
            }
            (false, init) => {
                others.extend(request.of_edits_alone(init.as_ref().map(|(_, mask)| mask.is_some())));
                None
            }
        };
        let upscale = if begins_with_picture { None } else { request.hires_fix(info)? };
        others.extend(request.hires_without_effect(begins_with_picture));
        let sampler = request.sampler_name.or(request.sampler_index);
        let overrides = Overrides::read(&request.override_settings.take().unwrap_or_default(), info, &mut others)?;
        let text = request.prompt.take().filter(|text| !text.trim().is_empty());
        let side = |side: Bounded<0, MAX_SIDE>| side.rounded_down(MULTIPLE);
        others.extend(request.without_effect(sampler));
        let images_request = ImagesRequest {
            n: Some(request.count()?),
            width: request.width.map(side),
            height: request.height.map(side),
            output_format: overrides.format,
            negative_prompt: request.negative_prompt.take(),
            loras: request.lora.take(),
            control: Some(WireControls(settings)),
            seed: request.seed,
            num_inference_steps: request.steps,
            guidance_scale: request.cfg_scale,
            sampler,
            schedule: request.schedule(sampler),
            eta: request.used_eta(sampler)?,
            clip_skip: overrides.clip_skip.or(request.clip_skip),
            upscale: upscale.map(|upscale| WireUpscale(Some(upscale))),
            strength: init.as_ref().map(|_| request.denoising_strength.map_or_else(|| STRENGTH.try_into(), Ok)).transpose()?,
            others,
            ..ImagesRequest::new(text.map_or_else(|| Ok(Prompt::none()), Prompt::try_from)?)
        };
        Ok(ImagesBody { request: images_request, files: InputFiles { init, controls: pictures, references: Vec::new() } })
    }

    /// Whether the answer has pictures.
    pub(super) fn sends_images(&self) -> bool {
        self.request.send_images.unwrap_or(true)
    }

    /// Pictures of a batch.
    pub(super) fn batch_size(&self) -> i64 {
        self.request.batch_size.map_or(1, Bounded::get)
    }
}

impl PictureRequest {
    /// Pictures in all.
    fn count(&self) -> Result<Bounded<1, MAX_N>, InvalidValue> {
        let [size, batches] = [self.batch_size, self.n_iter].map(|count| count.map_or(1, Bounded::get));
        let wrong = |_| InvalidValue::new("batch_size", format_args!("{size} with n_iter {batches}"), format!("at most {MAX_N} in all"));
        Bounded::try_from(size * batches).map_err(wrong)
    }

    /// The schedule. A1111's samplers that have one of their own leave the request's aside.
    fn schedule(&self, sampler: Option<NamedSampler>) -> Option<NamedSchedule> {
        let Some(NamedSampler { sampler, schedule: None }) = sampler else { return self.scheduler };
        let schedule = self.scheduler.unwrap_or(NamedSchedule::Automatic);
        sampler.schedules().contains(&schedule.of(sampler)).then_some(schedule)
    }

    /// `eta`, where the sampler has one, or is the worker's own. A1111's clients send it with every sampler.
    fn used_eta(&self, sampler: Option<NamedSampler>) -> Result<Option<Eta>, InvalidValue> {
        let has_eta = sampler.is_none_or(|named| named.sampler.has_eta());
        self.eta.filter(|_| has_eta).map(Eta::try_from).transpose()
    }

    /// Names of settings that were given and are not used.
    fn without_effect(&self, sampler: Option<NamedSampler>) -> impl Iterator<Item = String> + use<> {
        let named = |seen: bool, name: &'static str| seen.then_some(name);
        let has_eta = sampler.is_none_or(|named| named.sampler.has_eta());
        [
            named(self.subseed_strength.is_some_and(|strength| strength != 0.0), "subseed_strength"),
            named(self.scheduler.is_some() && self.schedule(sampler).is_none(), "scheduler"),
            // 0 is none, and 1 is what ancestral samplers do.
            named(self.eta.is_some_and(|eta| ![0.0, 1.0].contains(&eta)) && !has_eta, "eta"),
        ]
        .into_iter()
        .flatten()
        .map(str::to_owned)
    }

    /// Names of what was given, and has no effect without a picture to begin with. `init` says whether there is one all the same, and whether
    /// it has a mask.
    fn of_edits_alone(&self, init: Option<bool>) -> impl Iterator<Item = String> + use<> {
        // A1111's clients send it with every request.
        let usual = Strength::try_from(0.7).ok();
        let is_usual = self.denoising_strength == usual || self.has_hires_fix();
        [
            ("init_images", init.is_some()),
            ("mask", init == Some(true)),
            ("denoising_strength", self.denoising_strength.is_some() && !is_usual),
            ("resize_mode", self.resize_mode.is_some()),
            ("mask_blur", self.mask_blur.is_some()),
            ("inpainting_fill", self.inpainting_fill.is_some()),
            ("inpaint_full_res", self.inpaint_full_res.is_some()),
            ("inpaint_full_res_padding", self.inpaint_full_res_padding.is_some()),
            ("inpainting_mask_invert", self.inpainting_mask_invert.is_some()),
        ]
        .into_iter()
        .filter(|(_, is_given)| *is_given)
        .map(|(name, _)| name.to_owned())
    }

    /// How the picture to begin with is used.
    fn fitting(&self) -> Fitting {
        let resize = match self.resize_mode.map_or(0, Bounded::get) {
            0 => Resize::Stretch,
            1 => Resize::Crop,
            _ => Resize::Fill,
        };
        let fill = match self.inpainting_fill.map_or(0, Bounded::get) {
            0 => MaskFill::Surroundings,
            1 => MaskFill::Original,
            2 => MaskFill::Noise,
            _ => MaskFill::Nothing,
        };
        let margin = self.inpaint_full_res_padding.map_or(0, Bounded::get) as u32;
        let mask = MaskRules {
            opaque_is_new: true,
            is_inverted: self.inpainting_mask_invert.is_some_and(Flag::get),
            blur: self.mask_blur.map_or(BLUR, |blur| blur.get() as u8),
            fill,
            margin: self.inpaint_full_res.is_none_or(Flag::get).then_some(margin),
        };
        Fitting { resize, mask }
    }
}
