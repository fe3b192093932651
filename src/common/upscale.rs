//! How finished pictures are enlarged.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{ImageSize, InvalidValue, NamedSampler, NamedSchedule, Steps, Strength};

/// How many pixels each side of a picture has after it is enlarged, for one before: 1 to 8.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct UpscaleScale(f64);

impl UpscaleScale {
    /// The largest scale.
    pub const MAX: f64 = 8.0;

    /// The number.
    #[must_use]
    pub fn get(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for UpscaleScale {
    type Error = InvalidValue;

    fn try_from(scale: f64) -> Result<Self, InvalidValue> {
        let is_valid = (1.0..=Self::MAX).contains(&scale);
        is_valid.then_some(Self(scale)).ok_or_else(|| InvalidValue::new("scale", scale, format!("a number from 1 to {}", Self::MAX)))
    }
}

impl FromStr for UpscaleScale {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let number = text.parse::<f64>();
        number.map_err(|_| InvalidValue::new("scale", format_args!("\"{text}\""), format!("a number from 1 to {}", Self::MAX)))?.try_into()
    }
}

impl From<UpscaleScale> for f64 {
    fn from(scale: UpscaleScale) -> Self {
        scale.0
    }
}

impl fmt::Display for UpscaleScale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What enlarges a picture, by its name, and how much: in text, `NAME` or `NAME,scale=2`, and `NAME,scale=2,strength=0.5,steps=10` where it is
/// drawn again.
#[derive(Debug, Clone, PartialEq)]
pub struct UpscaleSettings {
    /// The name of a network, or of a filter.
    pub name: String,
    /// The network's own where it is left out.
    pub scale: Option<UpscaleScale>,
    /// How it is drawn again at its new size, if it is.
    pub redraw: Option<RedrawSettings>,
}

/// How an enlarged picture is drawn again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RedrawSettings {
    /// How much of it is changed.
    pub strength: Strength,
    /// The steps that are taken; as many as the first picture's where it is left out.
    pub steps: Option<Steps>,
    /// The size, whatever the scale.
    pub size: Option<ImageSize>,
    /// The solver; the first picture's where it is left out.
    pub sampler: Option<NamedSampler>,
    /// How noise levels are spaced; as for the first picture where it is left out.
    pub schedule: Option<NamedSchedule>,
}

impl RedrawSettings {
    /// Those where all is left out that can be.
    #[must_use]
    pub fn new(strength: Strength) -> Self {
        Self { strength, steps: None, size: None, sampler: None, schedule: None }
    }

    /// The settings of `strength` and `steps`; none without both.
    ///
    /// # Errors
    /// When there are steps without a strength.
    pub fn of(strength: Option<Strength>, steps: Option<Steps>) -> Result<Option<Self>, InvalidValue> {
        match (strength, steps) {
            (Some(strength), steps) => Ok(Some(Self { steps, ..Self::new(strength) })),
            (None, Some(steps)) => {
                Err(InvalidValue::new("steps", steps, "left out, or beside a strength: only what is drawn again has steps"))
            }
            (None, None) => Ok(None),
        }
    }
}

impl FromStr for UpscaleSettings {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let (mut name, mut scale, mut strength, mut steps) = (text, None, None, None);
        // A name may have commas and signs of equality.
        while let Some((rest, value)) = name.rsplit_once(',') {
            match value.split_once('=').map(|(setting, value)| (setting.trim(), value.trim())) {
                Some(("scale", value)) => scale = Some(value.parse()?),
                Some(("strength", value)) => strength = Some(value.parse()?),
                Some(("steps", value)) => steps = Some(value.parse()?),
                _ => break,
            }
            name = rest;
        }
        if name.trim().is_empty() {
            return Err(InvalidValue::new("upscale", format_args!("\"{text}\""), "NAME, NAME,scale=2 or NAME,scale=2,strength=0.5"));
        }
        Ok(Self { name: name.trim().to_owned(), scale, redraw: RedrawSettings::of(strength, steps)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_alone_or_with_a_scale() {
        let read = |text: &str| text.parse::<UpscaleSettings>();
        let settings = |name: &str, scale: Option<f64>| {
            let scale = scale.map(|scale| scale.try_into().unwrap());
            UpscaleSettings { name: name.to_owned(), scale, redraw: None }
        };
        assert_eq!(read("a b").unwrap(), settings("a b", None));
        assert_eq!(read("a,b,scale=1.5").unwrap(), settings("a,b", Some(1.5)));
        let redraw = |steps| Some(RedrawSettings { steps, ..RedrawSettings::new("0.5".parse().unwrap()) });
        let again = |name, scale, steps| UpscaleSettings { redraw: redraw(steps), ..settings(name, scale) };
        assert_eq!(read("a,strength=0.5").unwrap(), again("a", None, None));
        assert_eq!(read("a=1,b, steps = 7, strength=0.5 ,scale=2").unwrap(), again("a=1,b", Some(2.0), "7".parse().ok()));
        for (text, reason) in [
            ("", "NAME"),
            (",scale=2", "NAME"),
            ("a,scale=x", "a number"),
            ("a,scale=9", "from 1 to 8"),
            ("a,scale=NaN", "from 1 to 8"),
            ("a,strength=2", "from 0 to 1"),
            ("a,steps=7", "beside a strength"),
            ("a,steps=x,strength=1", "whole number"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
