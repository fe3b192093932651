//! The resampler of IP-Adapter Plus: latents that look at the tokens of a picture, after
//! [Flamingo](https://arxiv.org/abs/2204.14198)'s perceiver.

use candle_core::{D, Result, Tensor};

use super::{EPS, ImageProjectionConfig, ResamplerConfig};
use crate::{
    models::pass::Interrupt,
    ops::{Activation, ComputeType, LayerNorm, Linear, Weights, attention},
};

/// diffusers' `IPAdapterPlusImageProjection`.
#[derive(Debug, Clone)]
pub(super) struct Resampler {
    latents: Tensor,
    proj_in: Linear,
    layers: Vec<Layer>,
    proj_out: Linear,
    norm_out: LayerNorm,
}

impl Resampler {
    pub(super) fn new(config: &ImageProjectionConfig, resampler: ResamplerConfig, vb: &Weights) -> Result<Self> {
        let width = resampler.hidden_dim;
        Ok(Self {
            latents: vb.get((1, config.tokens, width), "latents")?,
            proj_in: Linear::new(config.input_dim, width, &vb.pp("proj_in"))?,
            layers: (0..resampler.depth).map(|i| Layer::new(resampler, &vb.pp("layers").pp(i))).collect::<Result<_>>()?,
            proj_out: Linear::new(width, config.cross_attention_dim, &vb.pp("proj_out"))?,
            norm_out: LayerNorm::new(config.cross_attention_dim, EPS, &vb.pp("norm_out"))?,
        })
    }

    /// `(batch, any number, input_dim)` to `(batch, tokens, cross_attention_dim)`.
    pub(super) fn forward(&self, x: &Tensor, interrupt: Interrupt) -> Result<Tensor> {
        let x = self.proj_in.forward(x)?;
        let (_, tokens, width) = self.latents.dims3()?;
        let mut latents = self.latents.expand((x.dim(0)?, tokens, width))?.contiguous()?;
        for layer in &self.layers {
            interrupt.check()?;
            latents = layer.forward(&x, &latents)?;
        }
        self.norm_out.forward(&self.proj_out.forward(&latents)?)
    }
}

/// diffusers' `IPAdapterPlusImageProjectionBlock`: attention, `0`, and an MLP, `1`.
#[derive(Debug, Clone)]
struct Layer {
    norm1: LayerNorm,
    norm2: LayerNorm,
    to_q: Linear,
    /// Keys and values, side by side.
    to_kv: Linear,
    to_out: Linear,
    heads: usize,
    norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Layer {
    fn new(config: ResamplerConfig, vb: &Weights) -> Result<Self> {
        let (width, inner, middle) = (config.hidden_dim, config.attention_dim(), config.intermediate_dim);
        let (attention, mlp) = (vb.pp(0), vb.pp(1));
        Ok(Self {
            norm1: LayerNorm::new(width, EPS, &attention.pp("norm1"))?,
            norm2: LayerNorm::new(width, EPS, &attention.pp("norm2"))?,
            to_q: Linear::no_bias(width, inner, &attention.pp("to_q"))?,
            to_kv: Linear::no_bias(width, 2 * inner, &attention.pp("to_kv"))?,
            to_out: Linear::no_bias(inner, width, &attention.pp("to_out"))?,
            heads: config.heads,
            norm: LayerNorm::new(width, EPS, &mlp.pp(0))?,
            fc1: Linear::no_bias(width, middle, &mlp.pp(1))?,
            fc2: Linear::no_bias(middle, width, &mlp.pp(3))?,
        })
    }

    /// Latents look at the picture and at each other.
    fn forward(&self, x: &Tensor, latents: &Tensor) -> Result<Tensor> {
        let normed = self.norm2.forward(latents)?;
        let q = self.to_q.forward(&normed)?;
        let kv = self.to_kv.forward(&Tensor::cat(&[&self.norm1.forward(x)?, &normed], 1)?)?;
        let inner = kv.dim(D::Minus1)? / 2;
        let (k, v) = (kv.narrow(D::Minus1, 0, inner)?, kv.narrow(D::Minus1, inner, inner)?);
        let latents = self.to_out.forward_add(&attention(ComputeType::F32, &q, &k, &v, self.heads, false)?, latents)?;
        let hidden = self.fc1.forward_activated(&self.norm.forward(&latents)?, Activation::Gelu)?;
        self.fc2.forward_add(&hidden, &latents)
    }
}
