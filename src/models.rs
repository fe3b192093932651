//! The networks of Stable Diffusion, named and laid out as in diffusers and transformers, so that a checkpoint's keys read like
//! our fields. Sizes come from a checkpoint's own `config.json` files, never from here.

mod attention;
mod clip;
mod pass;
mod resnet;
mod text_context;
mod unet;
mod vae;

use serde::de::DeserializeOwned;
use serde_json::Value;

pub use clip::{ClipTextConfig, ClipTextModel};
pub use pass::Interrupt;
pub use unet::{Conditions, UNet2DConditionConfig, UNet2DConditionModel, UNetContext};
pub use vae::{AutoencoderKl, AutoencoderKlConfig, LatentDistribution, Tiling};

/// A configuration that describes no network that can be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    fn unless(condition: bool, message: impl FnOnce() -> String) -> Result<(), Self> {
        if condition { Ok(()) } else { Err(Self(message())) }
    }

    /// A field that is a list in some checkpoints must have one value for each of so many `what`.
    fn unless_one_each<T>(name: &str, values: &[T], count: usize, what: &str) -> Result<(), Self> {
        Self::unless(values.len() == count, || format!("{name} has {} entries, but there are {count} {what}", values.len()))
    }

    /// The fields of a file. Null is as if a field were left out, unless it has a meaning in that field.
    fn read_fields(json: &[u8], meaningful_nulls: &[&str]) -> Result<serde_json::Map<String, Value>, Self> {
        let mut fields: serde_json::Map<String, Value> = serde_json::from_slice(json).map_err(|error| Self(error.to_string()))?;
        fields.retain(|name, value| !value.is_null() || meaningful_nulls.contains(&name.as_str()));
        Ok(fields)
    }

    /// What fields say. An error names the field.
    fn read<T: DeserializeOwned>(fields: Value) -> Result<T, Self> {
        serde_path_to_error::deserialize(fields).map_err(|error| Self(error.to_string()))
    }
}
