//! What turns latents into a picture.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{InvalidValue, invalid_value::one_of};

/// The decoder of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum Decoder {
    /// The model's own VAE.
    #[default]
    Full,
    /// A tiny autoencoder: rough, in a fraction of the time.
    Tiny,
}

impl Decoder {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Full, Self::Tiny];

    /// The name in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Tiny => "tiny",
        }
    }
}

impl FromStr for Decoder {
    type Err = InvalidValue;

    fn from_str(name: &str) -> Result<Self, InvalidValue> {
        let found = Self::ALL.into_iter().find(|decoder| decoder.name() == name);
        found.ok_or_else(|| InvalidValue::new("decoder", format_args!("\"{name}\""), one_of(&Self::ALL)))
    }
}

impl TryFrom<String> for Decoder {
    type Error = InvalidValue;

    fn try_from(name: String) -> Result<Self, InvalidValue> {
        name.parse()
    }
}

impl From<Decoder> for &'static str {
    fn from(decoder: Decoder) -> Self {
        decoder.name()
    }
}

impl fmt::Display for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
