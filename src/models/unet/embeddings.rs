//! The timestep as a vector. After diffusers' `embeddings.py`.

use candle_core::{Result, Tensor};

use super::UNet2DConditionConfig;
use crate::ops::{Linear, Weights};

const MAX_PERIOD: f64 = 10_000.0;

/// `Timesteps` and `TimestepEmbedding`, with the activation that every residual block begins with.
#[derive(Debug, Clone)]
pub(super) struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
    channels: usize,
    flip_sin_to_cos: bool,
    freq_shift: f64,
}

impl TimestepEmbedding {
    pub(super) fn new(config: &UNet2DConditionConfig, vb: &Weights) -> Result<Self> {
        let (channels, width) = (config.block_out_channels[0], config.time_embed_dim());
        Ok(Self {
            linear_1: Linear::new(channels, width, &vb.pp("linear_1"))?,
            linear_2: Linear::new(width, width, &vb.pp("linear_2"))?,
            channels,
            flip_sin_to_cos: config.flip_sin_to_cos,
            freq_shift: config.freq_shift,
        })
    }

    /// `silu(embedding)` of a timestep, `(1, time_embed_dim)`, with the type and on the device of `like`.
    pub(super) fn forward(&self, timestep: f64, like: &Tensor) -> Result<Tensor> {
        // In f64 whatever the network's type: at t = 900 the phases in f16 would be off by whole turns.
        let half = self.channels / 2;
        let frequency = |i: usize| (-MAX_PERIOD.ln() * i as f64 / (half as f64 - self.freq_shift)).exp();
        let (sin, cos): (Vec<f32>, Vec<f32>) =
            (0..half).map(|i| (timestep * frequency(i)).sin_cos()).map(|(sin, cos)| (sin as f32, cos as f32)).unzip();
        let phases = if self.flip_sin_to_cos { [cos, sin] } else { [sin, cos] }.concat();
        let phases = Tensor::from_vec(phases, (1, 2 * half), like.device())?.to_dtype(like.dtype())?;
        self.linear_2.forward(&self.linear_1.forward(&phases)?.silu()?)?.silu()
    }
}
