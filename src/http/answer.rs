//! What the answers of every API have in common: pictures as base64, the settings used, the times taken.

use std::{fmt, sync::Arc, time::Duration};

use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use base64::{display::Base64Display, prelude::BASE64_STANDARD};
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::{api_error::ApiError, off_thread, run::Run};
use crate::{
    backend::{ChosenAdapter, ChosenControl, ChosenUpscale, Complete, Redraw, Timings},
    common::{
        ClipSkip, ControlKind, Decoder, Eta, FeatureCache, GuidanceInterval, GuidanceRescale, GuidanceScale, MaskMeaning, Refresh, Sampler,
        SamplingConfig, SamplingOptions, Schedule, Seed, Steps, Strength, UpscaleScale,
    },
};

/// A file as base64 text. It is encoded while it is written, so that the text is never in memory beside the file.
pub(super) struct Base64(Arc<dyn AsRef<[u8]> + Send + Sync>);

impl Base64 {
    /// Of a finished picture or a preview.
    pub(super) fn of(file: Arc<impl AsRef<[u8]> + Send + Sync + 'static>) -> Self {
        Self(file)
    }
}

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new((*self.0).as_ref(), &BASE64_STANDARD))
    }
}

impl fmt::Debug for Base64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", (*self.0).as_ref().len())
    }
}

/// The usual size of an answer without its pictures, in bytes.
const SMALL_ANSWER: usize = 4096;

/// Answers with finished pictures: with what `make` makes of them.
///
/// # Errors
/// When there is no memory for the answer.
pub(super) async fn respond<T: Serialize + 'static>(
    run: &Arc<Run>,
    pictures: Vec<Arc<Complete>>,
    make: fn(&Run, &[Arc<Complete>]) -> T,
) -> Result<Response, ApiError> {
    let (run, length) = (Arc::clone(run), pictures.iter().map(|picture| picture.image.bytes.len()).sum());
    let write = move || {
        let mut answer = Vec::new();
        answer.try_reserve_exact(length / 3 * 4 + SMALL_ANSWER * (1 + pictures.len())).map_err(|_| ApiError::no_memory_for_answer())?;
        serde_json::to_writer(&mut answer, &make(&run, &pictures)).map_err(|error| ApiError::unwritable(&error))?;
        Ok(answer)
    };
    let answer = off_thread::offload(length, write).await.unwrap_or_else(|error| Err(ApiError::unwritable(&error)))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], answer).into_response())
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
    /// How much fresh noise samplers with an `eta` add.
    #[serde(skip_serializing_if = "Option::is_none")]
    eta: Option<Eta>,
    /// How far guidance is kept from changing the contrast.
    #[serde(skip_serializing_if = "Option::is_none")]
    guidance_rescale: Option<GuidanceRescale>,
    /// In which steps there is guidance, if not in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    guidance_interval: Option<GuidanceInterval>,
    /// Whether the last timestep is nothing but noise, whatever the checkpoint's `rescale_betas_zero_snr` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    zero_snr: Option<bool>,
    /// Which of the text encoder's layers is the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    clip_skip: Option<ClipSkip>,
    /// What turned latents into pixels, if not the model's VAE.
    #[serde(skip_serializing_if = "Option::is_none")]
    decoder: Option<Decoder>,
    /// How far the picture to begin with is changed. Only where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    strength: Option<Strength>,
    /// Which steps reused features of an earlier one. Only where the request asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<UsedCache>,
    /// How the mask marked the part to be repainted, if there was a mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    mask: Option<MaskMeaning>,
    /// The size at which the picture was drawn, if it was enlarged after that.
    #[serde(skip_serializing_if = "Option::is_none")]
    drawn_size: Option<String>,
    /// What enlarged it.
    #[serde(skip_serializing_if = "Option::is_none")]
    upscaler: Option<&'static str>,
    /// How the picture was enlarged. Only where the request asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    upscale: Option<UsedUpscale>,
    /// The LoRAs that the request lists or its prompt names. Only where there are any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    loras: Vec<UsedLora>,
    /// The control networks, without their pictures. Only where there are any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    control: Vec<UsedControl>,
    /// The pictures that the model looked at beside the prompt, without themselves. Only where there are any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reference: Vec<UsedReference>,
}

/// What enlarged the picture.
#[derive(Debug, Clone, Serialize, ToSchema)]
struct UsedUpscale {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    scale: Option<f64>,
    /// How much of the enlarged picture was changed. Only where it was drawn again, as the rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    strength: Option<Strength>,
    /// The steps that were taken for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<Steps>,
}

impl From<&ChosenUpscale> for UsedUpscale {
    fn from(upscale: &ChosenUpscale) -> Self {
        Self { name: upscale.upscaler.name().to_owned(), scale: Some(upscale.scale.get()), strength: None, steps: None }
    }
}

impl From<&Redraw> for UsedUpscale {
    fn from(Redraw { enlarger, scale, strength, steps, .. }: &Redraw) -> Self {
        let scale = scale.map(UpscaleScale::get);
        Self { name: enlarger.name().to_owned(), scale, strength: Some(*strength), steps: Some(*steps) }
    }
}

/// The cache of features, as a request has it.
#[derive(Debug, Clone, Serialize, ToSchema)]
struct UsedCache {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    interval: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    threshold: Option<f64>,
    start: f64,
    end: f64,
}

impl From<FeatureCache> for UsedCache {
    fn from(cache: FeatureCache) -> Self {
        let (interval, threshold) = match cache.refresh() {
            Refresh::Interval(steps) => (Some(steps), None),
            Refresh::Threshold(share) => (None, Some(share)),
        };
        Self { kind: cache.kind().name(), interval, threshold, start: cache.window().start(), end: cache.window().end() }
    }
}

/// A picture that the model looked at.
#[derive(Debug, Clone, Serialize, ToSchema)]
struct UsedReference {
    scale: f64,
}

/// A control network that guided the picture.
#[derive(Debug, Clone, Serialize, ToSchema)]
struct UsedControl {
    name: String,
    scale: f64,
    start: f64,
    end: f64,
    guess_mode: bool,
    preprocess: &'static str,
    /// The kind of its picture. Only of networks that know several.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
}

impl From<&ChosenControl> for UsedControl {
    fn from(ChosenControl { settings, .. }: &ChosenControl) -> Self {
        Self {
            name: settings.name.clone(),
            scale: settings.scale.get(),
            start: settings.window.start(),
            end: settings.window.end(),
            guess_mode: settings.guess_mode,
            preprocess: settings.preprocess.name(),
            kind: settings.kind.map(ControlKind::name),
        }
    }
}

/// A LoRA that changed the model.
#[derive(Debug, Clone, Serialize, ToSchema)]
struct UsedLora {
    name: String,
    /// A1111's short hash of its file.
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<String>,
    scale: f64,
    /// Of the text encoders, where it is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    text_scale: Option<f64>,
}

impl From<&ChosenAdapter> for UsedLora {
    fn from(adapter: &ChosenAdapter) -> Self {
        let (scale, text_scale) = (adapter.denoiser_scale(), adapter.text_scale());
        Self {
            name: adapter.name().to_owned(),
            hash: adapter.hash().map(str::to_owned),
            scale: scale.get(),
            text_scale: (text_scale != scale).then_some(text_scale.get()),
        }
    }
}

impl Parameters {
    /// The settings of one of a run's pictures.
    pub(super) fn new(run: &Run, config: SamplingConfig) -> Self {
        let SamplingConfig { size: drawn, steps, guidance_scale, seed, sampler, schedule, options } = config;
        let SamplingOptions { eta, guidance_rescale, guidance_interval, zero_snr, clip_skip, strength, cache } = options;
        let (size, enlarged_to) = (run.order.picture.size(), run.order.picture.output.enlarged_to);
        Self {
            model: run.model.clone(),
            seed,
            steps,
            guidance_scale,
            sampler,
            schedule,
            width: size.width(),
            height: size.height(),
            eta,
            guidance_rescale,
            guidance_interval,
            zero_snr,
            clip_skip,
            decoder: Some(run.order.picture.decoder).filter(|decoder| *decoder != Decoder::default()),
            strength,
            cache: cache.map(UsedCache::from),
            mask: run.order.mask,
            drawn_size: enlarged_to.map(|_| drawn.to_string()),
            upscaler: enlarged_to.map(|_| "lanczos"),
            upscale: run.order.picture.upscale.as_ref().map(UsedUpscale::from).or(run
                .order
                .picture
                .redraw
                .as_deref()
                .map(UsedUpscale::from)),
            loras: run.order.picture.adapters.chosen.iter().map(UsedLora::from).collect(),
            control: run.order.picture.controls.iter().map(UsedControl::from).collect(),
            reference: run.order.picture.references.iter().map(|scale| UsedReference { scale: scale.get() }).collect(),
        }
    }
}

/// Times in milliseconds.
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
    /// The times of pictures that were accepted together, whether they were made one after the other, in one batch, or in turns with those of
    /// other requests. Waiting is all the time in which none of them was made, the total is the longest, and denoising is what is left.
    pub(super) fn of(all: &[Timings]) -> Self {
        let sum = |time: fn(&Timings) -> Duration| all.iter().map(time).sum::<Duration>();
        let mut made: Vec<(Duration, Duration)> = all.iter().map(|picture| (picture.queue, picture.total())).collect();
        made.sort();
        let (queue, total) = made
            .into_iter()
            .fold((Duration::ZERO, Duration::ZERO), |(idle, end), (from, to)| (idle + from.saturating_sub(end), end.max(to)));
        let [queue_ms, text_ms, decode_ms, encode_ms, total_ms] =
            [queue, sum(|t| t.text), sum(|t| t.decode), sum(|t| t.encode), total].map(|time| time.as_millis() as u64);
        let denoise_ms = total_ms.saturating_sub(queue_ms + text_ms + decode_ms + encode_ms);
        Self { queue_ms, text_ms, denoise_ms, decode_ms, encode_ms, total_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_pictures_made_side_by_side_add_up() {
        let ms = Duration::from_millis;
        let timings = |queue, denoise| Timings { queue: ms(queue), text: ms(10), denoise: ms(denoise), decode: ms(20), encode: ms(5) };
        let serialized = |all: &[Timings]| serde_json::to_value(WireTimings::of(all)).unwrap();
        let expected = |queue_ms: u64, text_ms: u64, denoise_ms: u64, decode_ms: u64, encode_ms: u64, total_ms: u64| {
            serde_json::json!({
                "queue_ms": queue_ms, "text_ms": text_ms, "denoise_ms": denoise_ms, "decode_ms": decode_ms, "encode_ms": encode_ms,
                "total_ms": total_ms
            })
        };
        assert_eq!(serialized(&[timings(3, 100)]), expected(3, 10, 100, 20, 5, 138));
        // The second was accepted with the first, and had waited for it in part.
        assert_eq!(serialized(&[timings(3, 100), timings(60, 100)]), expected(3, 20, 122, 40, 10, 195));
        // Between the first and the second, the worker made somebody else's.
        assert_eq!(serialized(&[timings(3, 100), timings(538, 100)]), expected(403, 20, 200, 40, 10, 673));
        assert_eq!(serialized(&[]), expected(0, 0, 0, 0, 0, 0));
    }
}
