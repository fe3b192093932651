//! The loaded model's name, limits and defaults.

use std::sync::Arc;

use super::{
    AdapterLibrary, ChosenControl, ControlLibrary, IpAdapter, RequestDefaults, UpscalerLibrary, families, ip_adapter::MAX_REFERENCES,
};
use crate::{
    common::{
        ControlScale, ControlSettings, Decoder, GuidanceScale, ImageSize, InvalidValue, ModelFamily, ModelVariant, NamedSampler,
        NamedSchedule, Sampler, SamplingConfig, Schedule, Steps, Strength,
    },
    schedulers::{SamplingPlan, SchedulerConfig},
};

/// The loaded model, as requests are checked against it.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// Name in `/v1/models` and in answers.
    pub id: String,
    /// The family of its architecture.
    pub family: ModelFamily,
    /// What it was trained further for.
    pub variant: ModelVariant,
    /// Whether the network looks at the guidance scale, as distilled ones do. The negative prompt then has no effect.
    pub embeds_guidance: bool,
    /// The device that it runs on, such as `cpu` or `cuda:0`.
    pub device: String,
    /// Number format of the weights, such as `f32`.
    pub dtype: &'static str,
    /// The type in which a CPU multiplies the denoiser's matrices; none on another device.
    pub compute: Option<&'static str>,
    /// The largest number of pixels that a request may ask for.
    pub max_pixels: u64,
    /// Sides of pictures are multiples of this.
    pub size_multiple: u32,
    /// The most steps: the number of timesteps in training.
    pub max_steps: usize,
    /// Learned words beyond the model's vocabulary.
    pub embeddings: Vec<String>,
    /// The largest `clip_skip`: as many as the text encoder has layers, or 1 in families in which it has no effect.
    pub max_clip_skip: usize,
    /// The model's own settings.
    pub defaults: ModelDefaults,
    /// Settings of a request that leaves them out, where they are not the model's own.
    pub requests: RequestDefaults,
    /// Its noise levels in training.
    pub scheduler: SchedulerConfig,
    /// The adapters that requests may ask for, if the worker has any.
    pub adapters: Option<Arc<AdapterLibrary>>,
    /// The control networks that requests may ask for, if the worker has any.
    pub controls: Option<Arc<ControlLibrary>>,
    /// What looks at pictures that requests bring as a prompt, if the worker has it.
    pub ip_adapter: Option<Arc<IpAdapter>>,
    /// What enlarges finished pictures.
    pub upscalers: Arc<UpscalerLibrary>,
    /// Whether the worker has the decoder of a tiny autoencoder.
    pub has_tiny_decoder: bool,
}

impl ModelInfo {
    /// The size of a request that names none: that of its input picture, whose sides these are, the owner's, or the model's own.
    #[must_use]
    pub fn default_size(&self, input: Option<(u32, u32)>) -> ImageSize {
        let without = || self.requests.size.unwrap_or(self.defaults.size);
        input.map_or_else(without, |(width, height)| self.size_for(width, height))
    }

    /// The size for an input picture of `width` x `height` pixels: its own, rounded down to what the model can do. A picture of more pixels
    /// than the model's own size is scaled down to that many.
    #[must_use]
    pub fn size_for(&self, width: u32, height: u32) -> ImageSize {
        let own = self.defaults.size;
        size_for(own.pixels().min(self.max_pixels), self.size_multiple, width, height).unwrap_or(own)
    }

    /// The size at which a picture of this size is drawn: the same, unless the model draws well at its own size alone and `size` is larger.
    /// With an input picture, its proportions are kept.
    #[must_use]
    pub fn drawing_size(&self, size: ImageSize, begins_with_picture: bool) -> ImageSize {
        let own = self.defaults.size;
        let is_larger =
            if begins_with_picture { size.pixels() > own.pixels() } else { size.width() > own.width() || size.height() > own.height() };
        match is_larger && self.defaults.own_size_only {
            true if begins_with_picture => self.size_for(size.width(), size.height()),
            true => own,
            false => size,
        }
    }

    /// A warning about a picture that is enlarged, or drawn at a size far from the model's own.
    #[must_use]
    pub fn size_warning(&self, drawn: ImageSize, enlarged_to: Option<ImageSize>) -> Option<String> {
        let own = self.defaults.size;
        if let Some(size) = enlarged_to {
            return Some(format!(
                "this model draws well at {own} alone: the picture was drawn at {drawn} and enlarged to {size} (Lanczos)"
            ));
        }
        let share = drawn.pixels() as f64 / own.pixels() as f64;
        let side = |ours: u32, own: u32| f64::from(ours) / f64::from(own);
        let [across, down] = [side(drawn.width(), own.width()), side(drawn.height(), own.height())];
        let (shortest, longest) = (across.min(down), across.max(down));
        let what = match share {
            // Objects are repeated beside and above each other.
            _ if share > FAR || longest > FAR => "things may appear several times",
            _ if share <= 1.0 / FAR.powi(2) || self.defaults.own_size_only && shortest < NEAR => "it may be blurred or cut off",
            _ => return None,
        };
        Some(format!("this model was made for pictures of {own}; at {drawn}, {what}"))
    }

    /// A warning about a picture that is drawn again at a size at which the model does not draw well.
    #[must_use]
    pub fn redraw_warning(&self, size: ImageSize) -> Option<String> {
        let own = self.defaults.size;
        let is_far = self.defaults.own_size_only && self.drawing_size(size, false) != size;
        is_far.then(|| format!("this model draws well at {own} alone: drawn again at {size}, things may appear several times"))
    }

    /// # Errors
    /// When pictures of this size are too large for this worker, or impossible for the model.
    pub fn check_size(&self, size: ImageSize) -> Result<(), InvalidValue> {
        if size.pixels() > self.max_pixels {
            let allowed = format!("at most {} pixels on this worker (its --max-pixels)", self.max_pixels);
            return Err(InvalidValue::new("size", size, allowed));
        }
        if !size.width().is_multiple_of(self.size_multiple) || !size.height().is_multiple_of(self.size_multiple) {
            return Err(InvalidValue::new("size", size, format!("multiples of {} for this model", self.size_multiple)));
        }
        Ok(())
    }

    /// Whether a guidance scale takes a second evaluation of the network, for the negative prompt.
    #[must_use]
    pub fn is_guided(&self, scale: GuidanceScale, sampler: Sampler) -> bool {
        (scale.is_guided() || sampler.is_always_guided()) && !self.embeds_guidance
    }

    /// Whether `clip_skip` has an effect.
    #[must_use]
    pub fn has_clip_skip(&self) -> bool {
        families::of(self.family).has_clip_skip
    }

    /// The control networks of a request, for a picture that is drawn at this size.
    ///
    /// # Errors
    /// When the worker has none of a name, or the size does not fit it.
    pub fn choose_controls(&self, asked: Vec<ControlSettings>, size: ImageSize) -> Result<Vec<ChosenControl>, InvalidValue> {
        match (&self.controls, asked.first()) {
            (Some(library), _) => library.choose(asked, (size.width(), size.height())),
            (None, None) => Ok(Vec::new()),
            (None, Some(first)) => {
                let allowed = "left out: this worker was started without --controlnet NAME=PATH";
                Err(InvalidValue::new("control", format_args!("\"{}\"", first.name), allowed))
            }
        }
    }

    /// The pictures of a request that the denoiser looks at, by their scales.
    ///
    /// # Errors
    /// When the worker has no IP-Adapter, or there are too many.
    pub fn check_references(&self, scales: &[ControlScale]) -> Result<(), InvalidValue> {
        let there = |allowed: String| Err(InvalidValue::new("reference", format_args!("{} of them", scales.len()), allowed));
        match &self.ip_adapter {
            _ if scales.is_empty() => Ok(()),
            None => there("left out: this worker was started without --ip-adapter FILE".to_owned()),
            Some(_) if scales.len() > MAX_REFERENCES => there(format!("at most {MAX_REFERENCES} pictures")),
            Some(_) => Ok(()),
        }
    }

    /// The decoders that requests may ask for.
    #[must_use]
    pub fn decoders(&self) -> &'static [Decoder] {
        if self.has_tiny_decoder { &Decoder::ALL } else { &[Decoder::Full] }
    }

    /// # Errors
    /// When the worker has no such decoder.
    pub fn check_decoder(&self, decoder: Decoder) -> Result<(), InvalidValue> {
        if self.decoders().contains(&decoder) {
            return Ok(());
        }
        let allowed = "full or left out: this worker was started without --tiny-vae PATH";
        Err(InvalidValue::new("decoder", decoder, allowed))
    }

    /// The side of the squares that [`InputImages::references`](crate::common::InputImages::references) are.
    #[must_use]
    pub fn reference_side(&self) -> u32 {
        self.ip_adapter.as_ref().map_or(0, |adapter| adapter.side())
    }

    /// The sampler and the schedule of a request. The owner's, if the sampler can have the schedule, and then the checkpoint's own take the
    /// place of those that are left out.
    ///
    /// # Errors
    /// When the name of the sampler and the schedule beside it do not agree.
    pub fn sampler(&self, sampler: Option<NamedSampler>, schedule: Option<NamedSchedule>) -> Result<(Sampler, Schedule), InvalidValue> {
        let named = sampler.or(self.requests.sampler).unwrap_or_else(|| self.defaults.sampler.into());
        let of_owner = || self.requests.schedule.map(|schedule| schedule.of(named.sampler));
        let of_owner = || of_owner().filter(|schedule| named.sampler.schedules().contains(schedule));
        let schedule = named.schedule(schedule)?.or_else(of_owner).unwrap_or_else(|| self.own_schedule(named.sampler));
        Ok((named.sampler, schedule))
    }

    fn own_schedule(&self, sampler: Sampler) -> Schedule {
        if sampler == self.defaults.sampler { self.defaults.schedule } else { self.scheduler.own_schedule(sampler) }
    }

    /// The most steps that a sampler can take.
    #[must_use]
    pub fn most_steps(&self, sampler: Sampler) -> usize {
        self.scheduler.most_steps(sampler)
    }

    /// The steps of a request, `own` if `given` leaves them out, and its strength if it has an input picture: `edit` is the strength that it
    /// asks for, and whether there is a mask. Defaults never exclude a value that is given.
    #[must_use]
    pub fn steps(
        &self,
        sampler: Sampler,
        given: Option<Steps>,
        own: Steps,
        edit: Option<(Option<Strength>, bool)>,
    ) -> (Steps, Option<Strength>) {
        let most = i64::try_from(self.most_steps(sampler)).ok().and_then(|most| most.try_into().ok());
        let own = most.filter(|most: &Steps| most.get() < own.get()).unwrap_or(own);
        match edit {
            Some((strength, has_mask)) => {
                let (steps, strength) = Strength::with_steps((given, strength), own, most, has_mask);
                (steps, Some(strength))
            }
            None => (given.unwrap_or(own), None),
        }
    }

    /// The plan of a picture. What the model cannot do is an error here, before anything is spent.
    ///
    /// # Errors
    /// Names the setting that it cannot follow.
    pub fn plan(&self, config: &SamplingConfig) -> Result<SamplingPlan, InvalidValue> {
        let options = config.options;
        self.check_size(config.size)?;
        if let Some(skip) = options.clip_skip.filter(|skip| self.has_clip_skip() && skip.layers() >= self.max_clip_skip) {
            return Err(InvalidValue::new("clip_skip", skip, format!("a whole number from 1 to {} for this model", self.max_clip_skip)));
        }
        config.check_strength()?;
        let rescale_betas_zero_snr = options.zero_snr.unwrap_or(self.scheduler.rescale_betas_zero_snr);
        let scheduler = SchedulerConfig { rescale_betas_zero_snr, ..self.scheduler.clone() };
        let start = config.steps.get() - config.steps_taken();
        SamplingPlan::new(&scheduler, config.sampler, config.schedule, config.steps, start, options.eta)
    }
}

/// A size with this many times the model's own pixels, or its own side, is far from it.
const FAR: f64 = 2.0;
/// The least share of its own side for a model that draws well at its own size alone.
const NEAR: f64 = 0.85;

/// A size of at most `most` pixels in the proportions of `width` x `height`.
fn size_for(most: u64, size_multiple: u32, width: u32, height: u32) -> Option<ImageSize> {
    let most = most as f64;
    let scale = (most / (f64::from(width) * f64::from(height))).sqrt().min(1.0);
    let least = ImageSize::MIN_SIDE.next_multiple_of(size_multiple);
    let side = |length: f64| ((length as u32).min(ImageSize::MAX_SIDE) / size_multiple * size_multiple).max(least);
    let short = side(f64::from(width.min(height)) * scale);
    // The shorter side has a minimum: the longer one makes up for it.
    let long = side((f64::from(width.max(height)) * scale).min(most / f64::from(short)));
    let (width, height) = if width < height { (short, long) } else { (long, short) };
    ImageSize::new(width, height).ok()
}

/// The settings that a model was made for.
#[derive(Debug, Clone, Copy)]
pub struct ModelDefaults {
    /// The size that the model was trained for.
    pub size: ImageSize,
    /// Whether the model draws well at this size alone. Larger pictures are drawn at it and enlarged.
    pub own_size_only: bool,
    /// Denoising steps.
    pub steps: Steps,
    /// Guidance scale.
    pub guidance_scale: GuidanceScale,
    /// The checkpoint's own sampler.
    pub sampler: Sampler,
    /// The checkpoint's own schedule.
    pub schedule: Schedule,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_picture_of_any_size_is_changed_at_one_that_the_model_can_do(
            width in 1u32..70_000,
            height in 1u32..70_000,
            multiple in prop::sample::select(&[8u32, 16, 64][..]),
            own in 1u32..20,
        ) {
            let size = ImageSize::new(own * 64, own * 64).unwrap();
            let made = size_for(size.pixels().min(1 << 20), multiple, width, height).unwrap();
            prop_assert!(made.width().is_multiple_of(multiple) && made.height().is_multiple_of(multiple));
            prop_assert!(made.pixels() <= size.pixels().min(1 << 20), "{made} of {width}x{height}");
            // Whatever is wider stays so.
            prop_assert!(width.cmp(&height) as i8 * (made.width().cmp(&made.height()) as i8) >= 0);
            if width.is_multiple_of(multiple) && height.is_multiple_of(multiple) && width.min(height) >= 64
                && u64::from(width) * u64::from(height) <= size.pixels().min(1 << 20) && width.max(height) <= 4096 {
                prop_assert_eq!((made.width(), made.height()), (width, height));
            }
        }
    }
}
