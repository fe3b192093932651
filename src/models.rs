//! The networks of Stable Diffusion, named and laid out as in diffusers and transformers, so that a checkpoint's keys read like
//! our fields. Sizes come from a checkpoint's own `config.json` files, never from here.

mod attention;
mod clip;
mod clip_vision;
mod conditions;
mod config_error;
mod controlnet;
mod denoiser;
mod features;
mod image_projection;
mod image_prompt;
mod pass;
mod residuals;
mod resnet;
mod t2i_adapter;
mod text_context;
mod text_network;
mod unet;
mod upscaler;
mod vae;

pub use clip::{ClipTextConfig, ClipTextModel};
pub use clip_vision::{ClipVisionConfig, ClipVisionModel, ImageEmbeds};
pub use conditions::Conditions;
pub use config_error::ConfigError;
pub use controlnet::{ControlNetConfig, ControlNetModel, Hint, UnionConfig};
pub use denoiser::{Denoiser, DenoiserConfig, DenoiserContext};
pub use features::Features;
pub use image_projection::{ImageProjection, ImageProjectionConfig, ImageProjectionKind, ResamplerConfig};
pub use image_prompt::{ImageAttention, ImageAttentionLayer, ImagePrompt};
pub use pass::Interrupt;
pub use residuals::Residuals;
pub use t2i_adapter::{T2IAdapter, T2IAdapterConfig, T2IAdapterType};
pub use text_network::{HiddenState, TextNetwork, TextNetworkConfig};
pub use unet::{UNet2DConditionConfig, UNet2DConditionModel, UNetContext};
pub use upscaler::{RRDBNet, RRDBNetConfig, SRVGGNetCompact, SRVGGNetCompactConfig, StripBytes, Upscaler, UpscalerConfig};
pub use vae::{AutoencoderKl, AutoencoderKlConfig, AutoencoderTiny, AutoencoderTinyConfig, LatentDistribution, Tiling};
