//! The settings of a generation. Each is a type without invalid values.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{FeatureCache, GuidanceInterval, InvalidValue, Sampler, Schedule, WholeNumber};

/// Everything that determines how a picture is sampled, apart from the prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingConfig {
    /// Size of the picture.
    pub size: ImageSize,
    /// Number of denoising steps.
    pub steps: Steps,
    /// How strongly the picture follows the prompt.
    pub guidance_scale: GuidanceScale,
    /// Seed of the initial noise, and of the noise that stochastic samplers add.
    pub seed: Seed,
    /// The solver.
    pub sampler: Sampler,
    /// How the noise levels are spaced.
    pub schedule: Schedule,
    /// Settings that few requests have.
    pub options: SamplingOptions,
}

impl SamplingConfig {
    /// The number of steps taken: all, or a share of them if the picture begins with a picture. Rounded down, as in diffusers.
    #[must_use]
    pub fn steps_taken(&self) -> usize {
        self.options.strength.map_or(self.steps.get(), |strength| strength.of_steps(self.steps))
    }

    /// The API names of options that have no effect, because the sampler lacks them or there is no guidance.
    pub fn options_without_effect(&self, is_guided: bool) -> impl Iterator<Item = &'static str> + use<> {
        let SamplingOptions { eta, guidance_rescale, guidance_interval, zero_snr, .. } = self.options;
        let without_effect = [
            ("guidance_rescale", guidance_rescale.is_some_and(|share| share.get() > 0.0) && !is_guided),
            ("guidance_interval", guidance_interval.is_some_and(|interval| !interval.is_all()) && !is_guided),
            ("eta", eta.is_some_and(|eta| eta.get() > 0.0) && !self.sampler.has_eta()),
            ("zero_snr", zero_snr == Some(true) && !self.sampler.knows_zero_snr()),
        ];
        without_effect.into_iter().filter(|(_, is_without)| *is_without).map(|(name, _)| name)
    }

    /// A warning about a guidance scale far above those of the sampler.
    #[must_use]
    pub fn guidance_warning(&self) -> Option<String> {
        const FAR: f64 = 2.0;
        let factor = self.sampler.guidance_factor();
        let is_far = self.sampler.is_always_guided() && self.guidance_scale.get() * factor > FAR;
        let warning = || format!("{} is made for guidance scales up to {}, not {}", self.sampler, 1.0 / factor, self.guidance_scale);
        is_far.then(warning)
    }

    /// Checks that at least one step is taken.
    ///
    /// # Errors
    /// When the strength is too small for that.
    pub fn check_strength(&self) -> Result<(), InvalidValue> {
        match self.options.strength {
            Some(strength) if self.steps_taken() == 0 => {
                // Rounded up to three decimals, so that the share is enough.
                let least = (1000.0 / self.steps.get() as f64).ceil() / 1000.0;
                let allowed = format!("at least {least} with {} steps, so that one of them is taken", self.steps);
                Err(InvalidValue::new("strength", strength.get(), allowed))
            }
            _ => Ok(()),
        }
    }
}

/// Settings that few requests have. By default, the checkpoint decides.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SamplingOptions {
    /// How much fresh noise samplers with an `eta` add.
    pub eta: Option<Eta>,
    /// How strongly guidance is kept from changing the contrast.
    pub guidance_rescale: Option<GuidanceRescale>,
    /// The steps that are guided, if not all.
    pub guidance_interval: Option<GuidanceInterval>,
    /// Whether the last timestep is pure noise, whatever the checkpoint's `rescale_betas_zero_snr` says.
    pub zero_snr: Option<bool>,
    /// The text encoder's last layer.
    pub clip_skip: Option<ClipSkip>,
    /// How much the picture to begin with is changed, if there is one.
    pub strength: Option<Strength>,
    /// Which steps reuse features of an earlier one, if any.
    pub cache: Option<FeatureCache>,
}

/// The text encoder's last layer, counted from its end as in A1111, 1 to 12: 1 is the final layer, 2 the one before it (diffusers' 1). It
/// has no effect in Stable Diffusion 2 and XL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "WholeNumber")]
pub struct ClipSkip(u8);

impl ClipSkip {
    /// The number of layers of Stable Diffusion 1's text encoder.
    pub const MAX: i64 = 12;

    /// The number of layers that are skipped.
    #[must_use]
    pub fn layers(self) -> usize {
        usize::from(self.0) - 1
    }
}

impl TryFrom<WholeNumber> for ClipSkip {
    type Error = InvalidValue;

    fn try_from(number: WholeNumber) -> Result<Self, InvalidValue> {
        i64::from(number).try_into()
    }
}

impl TryFrom<i64> for ClipSkip {
    type Error = InvalidValue;

    fn try_from(skip: i64) -> Result<Self, InvalidValue> {
        match u8::try_from(skip) {
            Ok(n) if (1..=Self::MAX).contains(&skip) => Ok(Self(n)),
            _ => Err(InvalidValue::new("clip_skip", skip, format!("a whole number from 1 to {}", Self::MAX))),
        }
    }
}

impl FromStr for ClipSkip {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let skip: i64 =
            text.parse().map_err(|_| InvalidValue::new("clip_skip", text, format!("a whole number from 1 to {}", Self::MAX)))?;
        skip.try_into()
    }
}

impl fmt::Display for ClipSkip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Defines a type for numbers from 0 to 1.
macro_rules! share {
    ($(#[$doc:meta])* $type:ident, $name:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
        #[serde(try_from = "f64")]
        pub struct $type(f64);

        impl $type {
            /// A number that is known to be in the range.
            #[allow(dead_code, reason = "not every one has a default")]
            pub(super) const fn of(share: f64) -> Self {
                Self(share)
            }

            /// The number.
            #[must_use]
            pub fn get(self) -> f64 {
                self.0
            }
        }

        impl TryFrom<f64> for $type {
            type Error = InvalidValue;

            fn try_from(share: f64) -> Result<Self, InvalidValue> {
                if (0.0..=1.0).contains(&share) { Ok(Self(share)) } else { Err(InvalidValue::new($name, share, "a number from 0 to 1")) }
            }
        }

        impl FromStr for $type {
            type Err = InvalidValue;

            fn from_str(text: &str) -> Result<Self, InvalidValue> {
                text.parse::<f64>().map_err(|_| InvalidValue::new($name, text, "a number from 0 to 1"))?.try_into()
            }
        }
    };
}

share! {
    /// How much fresh noise is added in each step, 0 to 1: none, or as much as [DDPM](https://arxiv.org/abs/2006.11239) adds.
    Eta, "eta"
}

share! {
    /// How far the guided output is rescaled to the standard deviation of the unguided one, 0 to 1 ([Lin et
    /// al.](https://arxiv.org/abs/2305.08891), section 3.4).
    GuidanceRescale, "guidance_rescale"
}

share! {
    /// How much a picture to begin with is changed, 0 to 1: the share of the steps that are taken, beginning at the matching noise level
    /// ([Meng et al.](https://arxiv.org/abs/2108.01073)).
    Strength, "strength"
}

/// Width and height in pixels: multiples of 8 from 64 to 4096.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageSize {
    width: u32,
    height: u32,
}

impl ImageSize {
    /// The smallest side.
    pub const MIN_SIDE: u32 = 64;
    /// The largest side. A worker usually accepts less.
    pub const MAX_SIDE: u32 = 4096;

    /// A size of `width` x `height` pixels.
    ///
    /// # Errors
    /// When a side is not a multiple of 8, or out of range.
    pub fn new(width: u32, height: u32) -> Result<Self, InvalidValue> {
        let valid = |side: u32| side.is_multiple_of(8) && (Self::MIN_SIDE..=Self::MAX_SIDE).contains(&side);
        if valid(width) && valid(height) { Ok(Self { width, height }) } else { Err(Self::invalid(format_args!("{width}x{height}"))) }
    }

    /// Width in pixels.
    #[must_use]
    pub fn width(self) -> u32 {
        self.width
    }

    /// Height in pixels.
    #[must_use]
    pub fn height(self) -> u32 {
        self.height
    }

    /// Width times height.
    #[must_use]
    pub fn pixels(self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }

    fn invalid(value: impl fmt::Display) -> InvalidValue {
        let (min, max) = (Self::MIN_SIDE, Self::MAX_SIDE);
        InvalidValue::new("size", value, format!("WIDTHxHEIGHT with both multiples of 8 from {min} to {max}"))
    }
}

impl fmt::Display for ImageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

impl FromStr for ImageSize {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        // Only digits: Rust's numbers may have a sign.
        let side = |text: &str| text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
        let sides = text.split_once(['x', 'X']).and_then(|(w, h)| Some((side(w)?, side(h)?)));
        let (width, height) = sides.ok_or_else(|| Self::invalid(format_args!("\"{text}\"")))?;
        Self::new(width, height)
    }
}

/// Number of denoising steps, 1 to 1000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WholeNumber")]
pub struct Steps(u16);

impl Steps {
    /// The most timesteps that a model was trained with.
    pub const MAX: i64 = 1000;

    /// The number.
    #[must_use]
    pub fn get(self) -> usize {
        self.0.into()
    }
}

impl TryFrom<WholeNumber> for Steps {
    type Error = InvalidValue;

    fn try_from(number: WholeNumber) -> Result<Self, InvalidValue> {
        i64::from(number).try_into()
    }
}

impl TryFrom<i64> for Steps {
    type Error = InvalidValue;

    fn try_from(steps: i64) -> Result<Self, InvalidValue> {
        match u16::try_from(steps) {
            Ok(n) if (1..=Self::MAX).contains(&steps) => Ok(Self(n)),
            _ => Err(InvalidValue::new("steps", steps, format!("a whole number from 1 to {}", Self::MAX))),
        }
    }
}

impl FromStr for Steps {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let steps: i64 = text.parse().map_err(|_| InvalidValue::new("steps", text, format!("a whole number from 1 to {}", Self::MAX)))?;
        steps.try_into()
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Classifier-free guidance scale ([Ho & Salimans](https://arxiv.org/abs/2207.12598)), 0 to 50. Up to 1 there is no guidance, as in
/// diffusers: the negative prompt has no effect and a step costs half.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64")]
pub struct GuidanceScale(f64);

impl GuidanceScale {
    /// The largest scale.
    pub const MAX: f64 = 50.0;

    /// The number.
    #[must_use]
    pub fn get(self) -> f64 {
        self.0
    }

    /// Whether the network is evaluated for the negative prompt as well.
    #[must_use]
    pub fn is_guided(self) -> bool {
        self.0 > 1.0
    }

    /// The scale times a factor of at most 1.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        Self(self.0 * factor)
    }
}

impl TryFrom<f64> for GuidanceScale {
    type Error = InvalidValue;

    fn try_from(scale: f64) -> Result<Self, InvalidValue> {
        if (0.0..=Self::MAX).contains(&scale) {
            Ok(Self(scale))
        } else {
            Err(InvalidValue::new("guidance_scale", scale, format!("a number from 0 to {}", Self::MAX)))
        }
    }
}

impl FromStr for GuidanceScale {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let scale: f64 =
            text.parse().map_err(|_| InvalidValue::new("guidance_scale", text, format!("a number from 0 to {}", Self::MAX)))?;
        scale.try_into()
    }
}

impl fmt::Display for GuidanceScale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The seed of the random numbers. As in torch's Mersenne Twister, only its low 32 bits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seed(u64);

impl Seed {
    /// A random seed of 32 bits, which a JSON number holds exactly and a person can type.
    #[must_use]
    pub fn random() -> Self {
        Self(u64::from(Uuid::new_v4().as_u128() as u32))
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }

    /// The seed of picture `index` of a request for several.
    #[must_use]
    pub fn offset(self, index: u64) -> Self {
        Self(self.0.wrapping_add(index))
    }
}

impl From<u64> for Seed {
    fn from(seed: u64) -> Self {
        Self(seed)
    }
}

impl FromStr for Seed {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        text.parse().map(Self).map_err(|_| InvalidValue::new("seed", text, format!("a whole number from 0 to {}", u64::MAX)))
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests;
