//! How finished pictures are enlarged.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::InvalidValue;

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

/// What enlarges a picture, by its name, and how much: in text, `NAME` or `NAME,scale=2`.
#[derive(Debug, Clone, PartialEq)]
pub struct UpscaleSettings {
    /// The name of a network, or of a filter.
    pub name: String,
    /// The network's own where it is left out.
    pub scale: Option<UpscaleScale>,
}

impl FromStr for UpscaleSettings {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let (name, scale) = match text.rsplit_once(",scale=") {
            Some((name, scale)) => {
                let number = scale.trim().parse::<f64>();
                let number = number.map_err(|_| InvalidValue::new("scale", format_args!("\"{scale}\""), "a number from 1 to 8"));
                (name, Some(number?.try_into()?))
            }
            None => (text, None),
        };
        if name.trim().is_empty() {
            return Err(InvalidValue::new("upscale", format_args!("\"{text}\""), "NAME or NAME,scale=2"));
        }
        Ok(Self { name: name.trim().to_owned(), scale })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_alone_or_with_a_scale() {
        let read = |text: &str| text.parse::<UpscaleSettings>();
        let settings =
            |name: &str, scale: Option<f64>| UpscaleSettings { name: name.to_owned(), scale: scale.map(|scale| scale.try_into().unwrap()) };
        assert_eq!(read("a b").unwrap(), settings("a b", None));
        assert_eq!(read("a,b,scale=1.5").unwrap(), settings("a,b", Some(1.5)));
        for (text, reason) in
            [("", "NAME"), (",scale=2", "NAME"), ("a,scale=x", "a number"), ("a,scale=9", "from 1 to 8"), ("a,scale=NaN", "from 1 to 8")]
        {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
