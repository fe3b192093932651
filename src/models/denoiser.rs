//! The network that denoises latents, whatever its architecture. Each architecture is one variant of the enums here.

use candle_core::{Result, Tensor};

use super::{
    ConfigError,
    conditions::Conditions,
    features::Features,
    pass::Interrupt,
    residuals::Residuals,
    unet::{UNet2DConditionConfig, UNet2DConditionModel, UNetContext},
};
use crate::ops::{LayerNames, Weights};

/// The configuration of a denoiser.
#[derive(Debug, Clone)]
pub enum DenoiserConfig {
    /// `unet/config.json`.
    UNet(UNet2DConditionConfig),
}

/// A network that predicts, of noisy latents, noise or velocity.
#[derive(Debug, Clone)]
pub enum Denoiser {
    /// The UNet of Stable Diffusion 1, 2 and XL.
    UNet(UNet2DConditionModel),
}

/// What a denoiser makes of the [`Conditions`] of one generation, or of several. It stays the same from step to step.
#[derive(Debug, Clone)]
pub enum DenoiserContext {
    /// A UNet's.
    UNet(UNetContext),
}

impl DenoiserConfig {
    /// Reads and checks `config.json` of a UNet.
    ///
    /// # Errors
    /// When it is no valid JSON, or describes a network that cannot be or that is not supported.
    pub fn unet_from_json(json: &[u8]) -> std::result::Result<Self, ConfigError> {
        UNet2DConditionConfig::from_json(json).map(Self::UNet)
    }

    /// Side of the latents in training.
    #[must_use]
    pub fn sample_size(&self) -> usize {
        match self {
            Self::UNet(config) => config.sample_size,
        }
    }

    /// Channels of the input: noisy latents and, in inpainting models, mask and masked picture.
    #[must_use]
    pub fn in_channels(&self) -> usize {
        match self {
            Self::UNet(config) => config.in_channels,
        }
    }

    /// Channels of the prediction.
    #[must_use]
    pub fn out_channels(&self) -> usize {
        match self {
            Self::UNet(config) => config.out_channels,
        }
    }

    /// Width of the text embeddings.
    #[must_use]
    pub fn text_dim(&self) -> usize {
        match self {
            Self::UNet(config) => config.cross_attention_dim,
        }
    }

    /// Width of the pooled text, if the network looks at it.
    #[must_use]
    pub fn pooled_dim(&self) -> Option<usize> {
        match self {
            Self::UNet(config) => config.text_time().map(|widths| widths.pooled_dim),
        }
    }

    /// Whether the network looks at the guidance scale, as distilled ones do.
    #[must_use]
    pub fn embeds_guidance(&self) -> bool {
        match self {
            Self::UNet(config) => config.time_cond_proj_dim.is_some(),
        }
    }
}

impl Denoiser {
    /// Reads the weights.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(config: &DenoiserConfig, vb: &Weights) -> Result<Self> {
        match config {
            DenoiserConfig::UNet(config) => UNet2DConditionModel::new(config.clone(), vb).map(Self::UNet),
        }
    }

    /// The configuration that it was built from.
    #[must_use]
    pub fn config(&self) -> DenoiserConfig {
        match self {
            Self::UNet(unet) => DenoiserConfig::UNet(unet.config().clone()),
        }
    }

    /// The numbers of the network's layers, by their names in the checkpoint.
    #[must_use]
    pub fn layer_names(&self) -> &LayerNames {
        match self {
            Self::UNet(unet) => unet.layer_names(),
        }
    }

    /// What the network's layers make of the conditions of one generation, once for all steps.
    ///
    /// # Errors
    /// When a tensor has another width, the pooled text is missing, or the device fails.
    pub fn context(&self, conditions: &Conditions) -> Result<DenoiserContext> {
        match self {
            Self::UNet(unet) => unet.context(conditions).map(DenoiserContext::UNet),
        }
    }

    /// Noisy latents `(batch, in_channels, height, width)` to the prediction, `(batch, out_channels, height, width)`, with one timestep for
    /// each generation of the context, and with what other networks add. The prediction for a generation does not depend on the others: on a
    /// CPU, to the last bit.
    ///
    /// # Errors
    /// When a shape does not fit, the device fails, or the pass is interrupted.
    pub fn forward(
        &self,
        latents: &Tensor,
        timesteps: &[f64],
        context: &DenoiserContext,
        residuals: &Residuals,
        interrupt: Interrupt,
    ) -> Result<Tensor> {
        self.forward_keeping(latents, timesteps, context, residuals, interrupt).map(|(prediction, _)| prediction)
    }

    /// The same, with what [`Features`] keep of this pass.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_keeping(
        &self,
        latents: &Tensor,
        timesteps: &[f64],
        context: &DenoiserContext,
        residuals: &Residuals,
        interrupt: Interrupt,
    ) -> Result<(Tensor, Tensor)> {
        match (self, context) {
            (Self::UNet(unet), DenoiserContext::UNet(context)) => unet.forward_keeping(latents, timesteps, context, residuals, interrupt),
        }
    }

    /// A shallow pass, with the `features` of an earlier full one of the same generations.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_shallow(
        &self,
        latents: &Tensor,
        timesteps: &[f64],
        context: &DenoiserContext,
        features: &Features,
        interrupt: Interrupt,
    ) -> Result<Tensor> {
        match (self, context) {
            (Self::UNet(unet), DenoiserContext::UNet(context)) => unet.forward_shallow(latents, timesteps, context, features, interrupt),
        }
    }
}

impl DenoiserContext {
    /// The context of several generations, one after the other.
    ///
    /// # Errors
    /// When they differ in their number of samples, or the device fails.
    pub fn join(all: &[&Self]) -> Result<Self> {
        let unets: Vec<&UNetContext> = all.iter().map(|Self::UNet(context)| context).collect();
        UNetContext::join(&unets).map(Self::UNet)
    }
}
