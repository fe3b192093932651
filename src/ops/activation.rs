//! Element-wise functions between the layers.

use candle_core::{D, Device, Result, Tensor};
use rayon::prelude::*;
use serde::Deserialize;

use super::cpu;

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
    pub(super) fn forward(self, x: &Tensor) -> Result<Tensor> {
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
/// When the device fails.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let channels = x.dim(D::Minus1)? / 2;
    if !cpu::is_fast(x) {
        let (value, gate) = (x.narrow(D::Minus1, 0, channels)?, x.narrow(D::Minus1, channels, channels)?);
        return value * Activation::Gelu.forward(&gate.contiguous()?)?;
    }
    let (batch, tokens, _) = x.dims3()?;
    let gated = cpu::Rows::new(x)?.with(|values| {
        let arch = pulp::Arch::new();
        let mut out = vec![0.0; batch * tokens * channels];
        out.par_chunks_mut(channels).zip(values.par_chunks(2 * channels)).for_each(|(out, row)| {
            arch.dispatch(|| {
                let (value, gate) = row.split_at(channels);
                for ((o, value), gate) in out.iter_mut().zip(value).zip(gate) {
                    *o = value * cpu::gelu(*gate);
                }
            });
        });
        Ok(out)
    })?;
    Tensor::from_vec(gated, (batch, tokens, channels), &Device::Cpu)
}
