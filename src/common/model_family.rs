//! Which of all Stable Diffusions a model is.

use serde::Serialize;

/// Models of one architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelFamily {
    /// Stable Diffusion 1: CLIP's own text encoder.
    Sd1,
    /// Stable Diffusion 2: `OpenCLIP`'s text encoder.
    Sd2,
    /// Stable Diffusion XL: both, and the size of the picture.
    Sdxl,
}

/// What a model of a family was trained further for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelVariant {
    /// Pictures from text, in many steps.
    #[default]
    Base,
    /// Fills in a part of a picture: its network looks at a mask and at what is around it.
    Inpainting,
    /// Few steps: [latent consistency](https://arxiv.org/abs/2310.04378).
    Lcm,
    /// One step, without guidance: [adversarial distillation](https://arxiv.org/abs/2311.17042).
    Turbo,
}
