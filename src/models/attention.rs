//! Multi-head attention, after diffusers' `attention_processor.py`.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::ops::{Linear, attention};

/// diffusers' `Attention` without its many options: of a sequence to itself, or to another one.
#[derive(Debug, Clone)]
pub(super) struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
}

/// What one [`Attention`] looks at: keys and values, `(batch, keys, channels)`.
#[derive(Debug, Clone)]
pub(super) struct KeyValues {
    keys: Tensor,
    values: Tensor,
}

impl Attention {
    /// `channels` is the width of the queries and of the result, `context` that of the sequence that is looked at.
    pub(super) fn new(channels: usize, context: usize, heads: usize, vb: &VarBuilder) -> Result<Self> {
        Ok(Self {
            to_q: Linear::no_bias(channels, channels, &vb.pp("to_q"))?,
            to_k: Linear::no_bias(context, channels, &vb.pp("to_k"))?,
            to_v: Linear::no_bias(context, channels, &vb.pp("to_v"))?,
            to_out: Linear::new(channels, channels, &vb.pp("to_out.0"))?,
            heads,
        })
    }

    /// The VAE's: one head, projections with bias. Older checkpoints have other names for the same.
    pub(super) fn for_vae(channels: usize, vb: &VarBuilder) -> Result<Self> {
        let names =
            if vb.contains_tensor("query.weight") { ["query", "key", "value", "proj_attn"] } else { ["to_q", "to_k", "to_v", "to_out.0"] };
        let [to_q, to_k, to_v, to_out] = names.map(|name| Linear::new(channels, channels, &vb.pp(name)));
        Ok(Self { to_q: to_q?, to_k: to_k?, to_v: to_v?, to_out: to_out?, heads: 1 })
    }

    /// What there is to look at in a sequence `(batch, keys, context)`.
    pub(super) fn key_values(&self, context: &Tensor) -> Result<KeyValues> {
        Ok(KeyValues { keys: self.to_k.forward(context)?, values: self.to_v.forward(context)? })
    }

    /// `x` and `residual`, which is added to the result, are `(batch, tokens, channels)`.
    pub(super) fn forward(&self, x: &Tensor, seen: &KeyValues, residual: &Tensor) -> Result<Tensor> {
        self.to_out.forward_add(&attention(&self.to_q.forward(x)?, &seen.keys, &seen.values, self.heads, false)?, residual)
    }

    /// A sequence looks at itself.
    pub(super) fn forward_self(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.forward(x, &self.key_values(x)?, residual)
    }
}

/// `(batch, channels, height, width)` to a sequence of pixels, `(batch, height * width, channels)`.
pub(super) fn to_sequence(x: &Tensor) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    x.permute((0, 2, 3, 1))?.reshape((batch, height * width, channels))
}

/// The way back, to the size of `like`.
pub(super) fn to_image(x: &Tensor, like: &Tensor) -> Result<Tensor> {
    let (batch, _, height, width) = like.dims4()?;
    x.reshape((batch, height, width, x.dim(2)?))?.permute((0, 3, 1, 2))
}
