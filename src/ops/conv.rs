//! Two-dimensional convolution.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

/// Shape of a convolution.
#[derive(Debug, Clone, Copy)]
pub struct Conv2dConfig {
    /// Side of the square kernel.
    pub kernel: usize,
    /// Step between outputs, in pixels.
    pub stride: usize,
    /// Zeros around the image, in pixels.
    pub padding: usize,
}

impl Conv2dConfig {
    /// 1 x 1.
    pub const POINTWISE: Self = Self { kernel: 1, stride: 1, padding: 0 };
    /// 3 x 3, the image keeps its size.
    pub const SAME_3X3: Self = Self { kernel: 3, stride: 1, padding: 1 };
}

/// A convolution with bias.
#[derive(Debug, Clone)]
pub struct Conv2d {
    weight: Tensor,
    bias: Tensor,
    config: Conv2dConfig,
}

impl Conv2d {
    /// Reads `weight` `(out_channels, in_channels, kernel, kernel)` and `bias`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(in_channels: usize, out_channels: usize, config: Conv2dConfig, vb: &VarBuilder) -> Result<Self> {
        let weight = vb.get((out_channels, in_channels, config.kernel, config.kernel), "weight")?;
        let bias = vb.get(out_channels, "bias")?.reshape((1, out_channels, 1, 1))?;
        Ok(Self { weight, bias, config })
    }

    /// `(batch, in_channels, height, width)` to `(batch, out_channels, height', width')`.
    ///
    /// # Errors
    /// When the number of channels is another, or the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.conv2d(&self.weight, self.config.padding, self.config.stride, 1, 1)?.broadcast_add(&self.bias)
    }
}
