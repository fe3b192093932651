//! Element-wise functions between the layers.

use candle_core::{Result, Tensor};
use serde::Deserialize;

/// Activation functions, under the names that checkpoints use for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Activation {
    /// `x * sigmoid(x)`
    #[serde(rename = "silu", alias = "swish")]
    Silu,
    /// [GELU](https://arxiv.org/abs/1606.08415) with the exact error function, not the tanh approximation.
    #[serde(rename = "gelu")]
    Gelu,
    /// `x * sigmoid(1.702 x)`, `OpenAI` CLIP's GELU.
    #[serde(rename = "quick_gelu")]
    QuickGelu,
    /// `max(x, 0)`
    #[serde(rename = "relu")]
    Relu,
}

impl Activation {
    /// Applies the function to each element.
    pub(super) fn forward(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Silu => x.silu(),
            Self::Gelu => x.gelu_erf(),
            Self::QuickGelu => x * candle_nn::ops::sigmoid(&(x * 1.702)?)?,
            // candle's own makes 0 of NaN.
            Self::Relu => x.lt(0.0)?.where_cond(&x.zeros_like()?, x),
        }
    }
}
