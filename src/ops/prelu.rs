//! Activations with numbers of their own.

use candle_core::{DType, Result, Tensor};

use super::Weights;

/// [`PReLU`](https://arxiv.org/abs/1502.01852): what is negative is multiplied by a number of its channel.
#[derive(Debug, Clone)]
pub struct PRelu {
    slopes: Vec<f32>,
    /// The same on the network's device, `(1, channels, 1, 1)`.
    tensor: Tensor,
}

impl PRelu {
    /// Reads `weight` `(channels)`.
    ///
    /// # Errors
    /// When it is missing or has another shape.
    pub fn new(channels: usize, vb: &Weights) -> Result<Self> {
        Self::of(&vb.get(channels, "weight")?)
    }

    /// `LeakyReLU`: one number for all channels.
    ///
    /// # Errors
    /// When the device fails.
    pub fn leaky(channels: usize, slope: f64, vb: &Weights) -> Result<Self> {
        Self::of(&Tensor::full(slope as f32, channels, vb.device())?.to_dtype(vb.dtype())?)
    }

    fn of(slopes: &Tensor) -> Result<Self> {
        Ok(Self { slopes: slopes.to_dtype(DType::F32)?.to_vec1()?, tensor: slopes.reshape((1, (), 1, 1))? })
    }

    /// The number of each channel.
    pub(super) fn slopes(&self) -> &[f32] {
        &self.slopes
    }

    /// `(batch, channels, height, width)` to the same shape.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.lt(0.0)?.where_cond(&x.broadcast_mul(&self.tensor)?, x)
    }
}
