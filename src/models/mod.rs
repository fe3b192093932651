//! The networks of Stable Diffusion, named and laid out as in diffusers and transformers, so that a checkpoint's keys read like
//! our fields. Sizes come from a checkpoint's own `config.json` files, never from here.

mod attention;
mod clip;
mod interrupt;
mod resnet;
mod unet;
mod vae;

pub use clip::{ClipTextConfig, ClipTextModel};
pub use interrupt::{Interrupt, interruptible};
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

    /// A field that is a list in some checkpoints must have one value for each block.
    fn unless_one_each<T>(name: &str, values: &[T], blocks: usize) -> Result<(), Self> {
        Self::unless(values.len() == blocks, || format!("{name} has {} entries, but there are {blocks} blocks", values.len()))
    }
}

impl From<serde_json::Error> for ConfigError {
    fn from(error: serde_json::Error) -> Self {
        Self(error.to_string())
    }
}
