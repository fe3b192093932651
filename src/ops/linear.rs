//! Fully connected layer.

use candle_core::{Result, Tensor};
use candle_nn::{Module, VarBuilder};

/// `x W^T + b` over the last dimension.
#[derive(Debug, Clone)]
pub struct Linear(candle_nn::Linear);

impl Linear {
    /// Reads `weight` `(out_features, in_features)` and `bias`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(in_features: usize, out_features: usize, vb: &VarBuilder) -> Result<Self> {
        candle_nn::linear(in_features, out_features, vb.clone()).map(Self)
    }

    /// Reads `weight` alone.
    ///
    /// # Errors
    /// As [`Linear::new`].
    pub fn no_bias(in_features: usize, out_features: usize, vb: &VarBuilder) -> Result<Self> {
        candle_nn::linear_no_bias(in_features, out_features, vb.clone()).map(Self)
    }

    /// Reads a 1 x 1 convolution, `weight` `(out_features, in_features, 1, 1)`, which is the same thing to a sequence of pixels.
    ///
    /// # Errors
    /// As [`Linear::new`].
    pub fn pointwise(in_features: usize, out_features: usize, vb: &VarBuilder) -> Result<Self> {
        let weight = vb.get((out_features, in_features, 1, 1), "weight")?.reshape((out_features, in_features))?;
        Ok(Self(candle_nn::Linear::new(weight, Some(vb.get(out_features, "bias")?))))
    }

    /// `(…, in_features)` to `(…, out_features)`.
    ///
    /// # Errors
    /// When the last dimension is another, or the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(x)
    }
}
