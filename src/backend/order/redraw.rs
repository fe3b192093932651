//! Pictures that are enlarged and drawn again: A1111's hires fix. After `sample_hr_pass` in its `modules/processing.py`.

use std::{fmt, sync::Arc};

use super::Order;
use crate::{
    backend::{ChosenUpscale, ChosenUpscaler, LatentFilter, ModelInfo},
    common::{ImageSize, InvalidValue, OutputConfig, RedrawSettings, SamplingConfig, SamplingOptions, Steps, Strength, UpscaleScale},
};

/// The scale of filters of latents where none is given.
const FILTER_SCALE: f64 = 2.0;

/// How a picture is enlarged and drawn again.
#[derive(Debug, Clone)]
pub struct Redraw {
    /// What enlarges it.
    pub enlarger: Enlarger,
    /// How much each side is, if the request does not ask for a size.
    pub scale: Option<UpscaleScale>,
    /// How much of the enlarged picture is changed.
    pub strength: Strength,
    /// The steps that it takes.
    pub steps: Steps,
    /// The picture at its new size. It begins with the enlarged one, and has the seed of the first.
    pub order: Order,
}

/// What enlarges a picture that is drawn again.
#[derive(Debug, Clone)]
pub enum Enlarger {
    /// An upscaler: the picture is decoded, enlarged, cut to the new size and encoded.
    Pixels(ChosenUpscale),
    /// A filter of its latents.
    Latents(LatentFilter),
}

impl Redraw {
    /// Checks how the picture of `first` is to be drawn again.
    ///
    /// # Errors
    /// Names the setting that the model or the upscaler cannot follow.
    pub(super) fn new(
        first: &Order,
        name: &str,
        scale: Option<UpscaleScale>,
        settings: &RedrawSettings,
        info: &ModelInfo,
    ) -> Result<Self, InvalidValue> {
        let (from, upscalers) = ((first.size().width(), first.size().height()), &info.upscalers);
        let upscaler = match LatentFilter::named(name) {
            None => Ok(upscalers.find_or("upscale", name, &LatentFilter::ALL.map(|filter| filter.name))?),
            Some(filter) => Err(filter),
        };
        let own_scale = || upscaler.as_ref().map_or(FILTER_SCALE, ChosenUpscaler::own_scale).try_into();
        let asked = scale.map_or_else(own_scale, Ok)?;
        let size = settings.size.map_or_else(|| scaled(from, asked, info.size_multiple), Ok)?;
        // That of the longer way: what the other side has too much is cut off.
        let [across, down] = [(size.width(), from.0), (size.height(), from.1)].map(|(to, from)| f64::from(to) / f64::from(from));
        let covering = across.max(down).try_into()?;
        let enlarger = match upscaler {
            Ok(upscaler) => Enlarger::Pixels(upscalers.choose("upscale", upscaler, Some(covering), from)?),
            Err(filter) => Enlarger::Latents(filter),
        };
        let scale = if settings.size.is_some() { None } else { Some(asked) };

        let own = first.config;
        let (sampler, schedule) = match (settings.sampler, settings.schedule) {
            (None, None) => (own.sampler, own.schedule),
            (sampler, schedule) => info.sampler(sampler.or(Some(own.sampler.into())), schedule)?,
        };
        let (strength, steps) = (settings.strength, settings.steps.unwrap_or(own.steps));
        let options = SamplingOptions { strength: Some(strength), ..own.options };
        let config =
            SamplingConfig { size, steps: strength.steps_to_take(steps, info.most_steps(sampler))?, sampler, schedule, options, ..own };
        let controls = info.choose_controls(first.controls.iter().map(|control| control.settings.clone()).collect(), size)?;
        let order = Order::of_parsed(first.prompt.clone(), first.negative_prompt.as_str(), config, controls, info)?;
        let order = Order {
            adapters: Arc::clone(&first.adapters),
            references: Arc::clone(&first.references),
            decoder: first.decoder,
            output: OutputConfig { enlarged_to: None, ..first.output },
            ..order
        };
        Ok(Self { enlarger, scale, strength, steps, order })
    }

    /// The same for the `index`th of its pictures, counted from 0.
    pub(super) fn picture(&self, index: u32) -> Self {
        Self { order: self.order.picture(index), ..self.clone() }
    }
}

impl Enlarger {
    /// The name of the upscaler or the filter.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Pixels(upscale) => upscale.upscaler.name(),
            Self::Latents(filter) => filter.name,
        }
    }
}

impl fmt::Display for Redraw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {}, drawn again in {} steps", self.order.config.size, self.enlarger.name(), self.steps)
    }
}

/// The sides of a picture, so many times larger, rounded down to what the model can do.
fn scaled((width, height): (u32, u32), scale: UpscaleScale, multiple: u32) -> Result<ImageSize, InvalidValue> {
    let side = |side: u32| (f64::from(side) * scale.get()) as u32 / multiple * multiple;
    ImageSize::new(side(width), side(height)).map_err(|_| {
        let allowed = format!("such that no side of the result has more than {} pixels", ImageSize::MAX_SIDE);
        InvalidValue::new("upscale", format_args!("{width}x{height} to {}x{}", side(width), side(height)), allowed)
    })
}
