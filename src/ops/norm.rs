//! Normalisation over groups of channels and over features.

use candle_core::{Result, Tensor};
use candle_nn::{Module, VarBuilder};

/// [Group normalisation](https://arxiv.org/abs/1803.08494) of `(batch, channels, …)`.
#[derive(Debug, Clone)]
pub struct GroupNorm(candle_nn::GroupNorm);

impl GroupNorm {
    /// Reads `weight` and `bias`, one number a channel.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape, or when the groups do not divide the channels.
    pub fn new(groups: usize, channels: usize, eps: f64, vb: &VarBuilder) -> Result<Self> {
        if groups == 0 || !channels.is_multiple_of(groups) {
            candle_core::bail!("{}: {channels} channels do not fall into {groups} groups", vb.prefix());
        }
        candle_nn::group_norm(groups, channels, eps, vb.clone()).map(Self)
    }

    /// Keeps the shape.
    ///
    /// # Errors
    /// When the number of channels is another, or the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(x)
    }

    /// Followed by SiLU, as almost everywhere in these networks.
    ///
    /// # Errors
    /// As [`GroupNorm::forward`].
    pub fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        self.forward(x)?.silu()
    }
}

/// [Layer normalisation](https://arxiv.org/abs/1607.06450) over the last dimension.
#[derive(Debug, Clone)]
pub struct LayerNorm(candle_nn::LayerNorm);

impl LayerNorm {
    /// Reads `weight` and `bias`, one number a feature.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(features: usize, eps: f64, vb: &VarBuilder) -> Result<Self> {
        candle_nn::layer_norm(features, eps, vb.clone()).map(Self)
    }

    /// Keeps the shape.
    ///
    /// # Errors
    /// When the last dimension is another, or the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(x)
    }
}
