//! Families and variants of Stable Diffusion.

use std::fmt;

use serde::Serialize;

/// Models of one architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelFamily {
    /// Stable Diffusion 1: CLIP's own text encoder.
    Sd1,
    /// Stable Diffusion 2: `OpenCLIP`'s text encoder.
    Sd2,
    /// Stable Diffusion XL: both text encoders, and the picture's size as a condition.
    Sdxl,
}

impl fmt::Display for ModelFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sd1 => "Stable Diffusion 1",
            Self::Sd2 => "Stable Diffusion 2",
            Self::Sdxl => "Stable Diffusion XL",
        })
    }
}

/// The purpose of a model's further training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelVariant {
    /// Pictures from text, in many steps.
    #[default]
    Base,
    /// Repainting a part of a picture: the network's input includes a mask and the picture around it.
    Inpainting,
    /// Pictures in few steps: [latent consistency](https://arxiv.org/abs/2310.04378).
    Lcm,
    /// Pictures in one step without guidance: [adversarial distillation](https://arxiv.org/abs/2311.17042).
    Turbo,
}
