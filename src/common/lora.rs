//! What a request says of a LoRA.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::InvalidValue;

/// How strongly a LoRA changes a network, -20 to 20: 0 not at all, 1 as it was trained.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64")]
pub struct LoraScale(f64);

/// A LoRA by its name, with its scales.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedLora {
    /// The name of its file without the ending, or the alias in the file.
    pub name: String,
    /// How strongly the text encoders are changed.
    pub text_scale: LoraScale,
    /// How strongly the denoiser is changed.
    pub denoiser_scale: LoraScale,
}

impl LoraScale {
    /// The scale of a LoRA that names none.
    pub const ONE: Self = Self(1.0);
    const MAX: f64 = 20.0;

    /// The number.
    #[must_use]
    pub fn get(self) -> f64 {
        self.0
    }

    fn invalid(value: impl fmt::Display) -> InvalidValue {
        InvalidValue::new("loras", value, format!("a LoRA's scale from -{0} to {0}", Self::MAX))
    }
}

impl TryFrom<f64> for LoraScale {
    type Error = InvalidValue;

    fn try_from(scale: f64) -> Result<Self, InvalidValue> {
        if scale.abs() <= Self::MAX { Ok(Self(scale)) } else { Err(Self::invalid(scale)) }
    }
}

impl FromStr for LoraScale {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        text.trim().parse::<f64>().map_err(|_| Self::invalid(format_args!("\"{text}\"")))?.try_into()
    }
}

impl fmt::Display for LoraScale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl NamedLora {
    /// A LoRA with one scale for all networks.
    #[must_use]
    pub fn new(name: &str, scale: LoraScale) -> Self {
        Self { name: name.to_owned(), text_scale: scale, denoiser_scale: scale }
    }

    /// The inside of A1111's `<lora:name:scale>` behind the first colon: a name, the text encoders' scale and the UNet's, which is the text
    /// encoders' where it is left out. Both may have names: `te=0.5`, `unet=1`.
    ///
    /// # Errors
    /// When a scale is no number, or out of range.
    pub fn from_tag(inside: &str) -> Result<Self, InvalidValue> {
        let mut parts = inside.split(':');
        let name = parts.next().unwrap_or_default();
        let (named, by_position): (Vec<&str>, Vec<&str>) = parts.partition(|part| part.contains('='));
        let of_name = |wanted: &str| {
            let values = named.iter().filter_map(|part| part.split_once('='));
            values.filter(|(name, _)| *name == wanted).map(|(_, value)| value).next_back()
        };
        let scale = |name: &str, position: usize| of_name(name).or(by_position.get(position).copied()).map(str::parse).transpose();
        let text_scale = scale("te", 0)?.unwrap_or(LoraScale::ONE);
        Ok(Self { name: name.to_owned(), text_scale, denoiser_scale: scale("unet", 1)?.unwrap_or(text_scale) })
    }
}

impl fmt::Display for NamedLora {
    /// A1111's `<lora:name:scale>`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, text_scale, denoiser_scale } = self;
        if text_scale == denoiser_scale {
            write!(f, "<lora:{name}:{text_scale}>")
        } else {
            write!(f, "<lora:{name}:{text_scale}:{denoiser_scale}>")
        }
    }
}

impl FromStr for NamedLora {
    type Err = InvalidValue;

    /// `NAME` or `NAME:SCALE`.
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let (name, scale) = match text.rsplit_once(':') {
            Some((name, scale)) => (name, scale.parse()?),
            None => (text, LoraScale::ONE),
        };
        Ok(Self::new(name, scale))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_read_as_a1111_reads_them() {
        for (inside, name, text, denoiser) in [
            ("Film Grain", "Film Grain", 1.0, 1.0),
            ("a:0.8", "a", 0.8, 0.8),
            ("a:0.5:1.2", "a", 0.5, 1.2),
            ("a:te=0", "a", 0.0, 0.0),
            ("a:0.5:te=0.1", "a", 0.1, 0.1),
            ("a:0.5:unet=-2", "a", 0.5, -2.0),
            ("a: 1 :dyn=3", "a", 1.0, 1.0),
        ] {
            let lora = NamedLora::from_tag(inside).unwrap();
            assert_eq!((lora.name.as_str(), lora.text_scale.get(), lora.denoiser_scale.get()), (name, text, denoiser), "{inside}");
        }
        for wrong in ["a:strong", "a:NaN", "a:inf", "a:20.5", "a:1:-21", "a:unet=x", "a:"] {
            let error = NamedLora::from_tag(wrong).unwrap_err();
            assert!(error.to_string().starts_with("must be a LoRA's scale from -20 to 20, not "), "{error}");
        }
    }

    #[test]
    fn a_tag_is_written_as_it_is_read() {
        for tag in ["<lora:Film Grain:0.8>", "<lora:a:0:-1.5>", "<lora:a:1>"] {
            let inside = tag.trim_start_matches("<lora:").trim_end_matches('>');
            assert_eq!(NamedLora::from_tag(inside).unwrap().to_string(), tag);
        }
    }

    #[test]
    fn arguments_are_a_name_and_a_scale() {
        assert_eq!("pixel".parse(), Ok(NamedLora::new("pixel", LoraScale::ONE)));
        assert_eq!("a:b:-0.5".parse(), Ok(NamedLora::new("a:b", (-0.5).try_into().unwrap())));
        assert!("pixel:much".parse::<NamedLora>().is_err());
    }
}
