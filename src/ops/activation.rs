//! Element-wise functions between the layers.

use candle_core::{D, Result, Tensor};
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
}

impl Activation {
    /// Applies the function to each element.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Silu => x.silu(),
            Self::Gelu => x.gelu_erf(),
            Self::QuickGelu => x * candle_nn::ops::sigmoid(&(x * 1.702)?)?,
        }
    }
}

/// [GEGLU](https://arxiv.org/abs/2002.05202): the first half of the channels, gated by the GELU of the second.
/// `(batch, tokens, 2 * channels)` to `(batch, tokens, channels)`.
///
/// # Errors
/// When the number of channels is odd, or the device fails.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let channels = x.dim(D::Minus1)? / 2;
    let (value, gate) = (x.narrow(D::Minus1, 0, channels)?, x.narrow(D::Minus1, channels, channels)?);
    value * Activation::Gelu.forward(&gate.contiguous()?)?
}
