//! The embedding of a sample's timestep and, in some families, of its guidance scale, size and pooled text. After diffusers'
//! `embeddings.py` and `unet_2d_condition.py`.

use candle_core::{Device, Result, Tensor};

use super::{UNet2DConditionConfig, config::TIME_IDS};
use crate::{
    models::conditions::Conditions,
    ops::{Adapters, Linear, Weights, for_batch},
};

const MAX_PERIOD: f64 = 10_000.0;
/// Guidance scales are multiplied by this, so that they span the range of timesteps
/// ([Luo et al.](https://arxiv.org/abs/2310.04378)).
const GUIDANCE_SCALING: f64 = 1000.0;

/// `Timesteps`: a number as sines and cosines of it.
#[derive(Debug, Clone, Copy)]
pub(in crate::models) struct Timesteps {
    channels: usize,
    flip_sin_to_cos: bool,
    freq_shift: f64,
}

impl Timesteps {
    /// Of so many channels, with the frequencies of a UNet's.
    pub(in crate::models) fn new(channels: usize, config: &UNet2DConditionConfig) -> Self {
        Self { channels, flip_sin_to_cos: config.flip_sin_to_cos, freq_shift: config.freq_shift }
    }

    /// `channels` numbers from -1 to 1.
    fn phases(&self, number: f64) -> Vec<f32> {
        // In f64 whatever the network's type: in f16, the phases of t = 900 are off by whole turns.
        let half = self.channels / 2;
        let frequency = |i: usize| (-MAX_PERIOD.ln() * i as f64 / (half as f64 - self.freq_shift)).exp();
        let (sin, cos): (Vec<f32>, Vec<f32>) =
            (0..half).map(|i| (number * frequency(i)).sin_cos()).map(|(sin, cos)| (sin as f32, cos as f32)).unzip();
        if self.flip_sin_to_cos { [cos, sin] } else { [sin, cos] }.concat()
    }

    /// Those of several numbers, `(numbers, channels)`, with the type and on the device of `like`.
    pub(in crate::models) fn forward(&self, numbers: &[f64], like: &Tensor) -> Result<Tensor> {
        let phases: Vec<f32> = numbers.iter().flat_map(|number| self.phases(*number)).collect();
        Tensor::from_vec(phases, (numbers.len(), self.channels), &Device::Cpu)?.to_device(like.device())?.to_dtype(like.dtype())
    }
}

/// `TimestepEmbedding`.
#[derive(Debug, Clone)]
pub(in crate::models) struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
}

impl TimestepEmbedding {
    pub(in crate::models) fn new(channels: usize, width: usize, vb: &Weights) -> Result<Self> {
        Ok(Self { linear_1: Linear::new(channels, width, &vb.pp("linear_1"))?, linear_2: Linear::new(width, width, &vb.pp("linear_2"))? })
    }

    pub(in crate::models) fn forward(&self, x: &Tensor, adapters: &Adapters) -> Result<Tensor> {
        self.linear_2.with(adapters).forward(&self.linear_1.with(adapters).forward(x)?.silu()?)
    }
}

/// The time embedding, which every residual block looks at.
#[derive(Debug, Clone)]
#[allow(clippy::struct_field_names, reason = "the names are the checkpoint's")]
pub(super) struct TimeEmbedding {
    time_proj: Timesteps,
    time_embedding: TimestepEmbedding,
    /// Of models that are distilled to look at the guidance scale: its [`Timesteps`] and their projection.
    cond_proj: Option<(Timesteps, Linear)>,
    /// `text_time` of SDXL: [`Timesteps`] of the picture's sizes, and the embedding of those and the pooled text.
    add_embedding: Option<(Timesteps, TimestepEmbedding)>,
}

/// What the conditions add to the time embedding, the same in every step.
#[derive(Debug, Clone)]
pub(super) struct AddEmbedding {
    /// The projected guidance scale, added to the timestep's phases, `(generations, channels)`.
    guidance: Option<Tensor>,
    /// The embedded sizes and pooled text, added to the timestep's embedding, `(batch, time_embed_dim)`.
    pub(super) text_time: Option<Tensor>,
}

impl AddEmbedding {
    /// Those of several generations, one after the other.
    pub(super) fn join(all: &[&Self]) -> Result<Self> {
        let join = |part: fn(&Self) -> Option<&Tensor>| {
            let tensors: Vec<&Tensor> = all.iter().filter_map(|one| part(one)).collect();
            if tensors.is_empty() { Ok(None) } else { Tensor::cat(&tensors, 0).map(Some) }
        };
        Ok(Self { guidance: join(|one| one.guidance.as_ref())?, text_time: join(|one| one.text_time.as_ref())? })
    }
}

impl AddEmbedding {
    /// The same with an embedding `(batch, time_embed_dim)` added.
    pub(super) fn with_added(self, embedding: Tensor) -> Result<Self> {
        let text_time = match &self.text_time {
            Some(text_time) => (text_time + embedding)?,
            None => embedding,
        };
        Ok(Self { text_time: Some(text_time), ..self })
    }
}

impl TimeEmbedding {
    pub(super) fn new(config: &UNet2DConditionConfig, vb: &Weights) -> Result<Self> {
        let (channels, width) = (config.block_out_channels[0], config.time_embed_dim());
        let time_proj = Timesteps::new(channels, config);
        let cond_proj = config.time_cond_proj_dim.map(|dim| -> Result<_> {
            let numbers = Timesteps { channels: dim, flip_sin_to_cos: false, freq_shift: 1.0 };
            Ok((numbers, Linear::no_bias(dim, channels, &vb.pp("time_embedding.cond_proj"))?))
        });
        let add_embedding = config.text_time().map(|text_time| -> Result<_> {
            let numbers = Timesteps { channels: text_time.time_dim, ..time_proj };
            let inputs = text_time.pooled_dim + TIME_IDS * text_time.time_dim;
            Ok((numbers, TimestepEmbedding::new(inputs, width, &vb.pp("add_embedding"))?))
        });
        Ok(Self {
            time_proj,
            time_embedding: TimestepEmbedding::new(channels, width, &vb.pp("time_embedding"))?,
            cond_proj: cond_proj.transpose()?,
            add_embedding: add_embedding.transpose()?,
        })
    }

    /// What these conditions add in every step.
    pub(super) fn add_embedding(&self, conditions: &Conditions, adapters: &Adapters) -> Result<AddEmbedding> {
        let guidance = self.cond_proj.as_ref().map(|(numbers, projection)| {
            let scale = numbers.forward(&[(conditions.guidance_scale - 1.0) * GUIDANCE_SCALING], conditions.text)?;
            projection.with(adapters).forward(&scale)
        });
        let text_time = self.add_embedding.as_ref().map(|(numbers, embedding)| {
            let Some(pooled) = conditions.pooled else {
                candle_core::bail!("this network looks at pooled text, and the conditions have none")
            };
            let sizes = for_batch(&numbers.forward(&time_ids(conditions.size), pooled)?.flatten_all()?.unsqueeze(0)?, pooled.dim(0)?)?;
            embedding.forward(&Tensor::cat(&[pooled, &sizes], 1)?, adapters)
        });
        Ok(AddEmbedding { guidance: guidance.transpose()?, text_time: text_time.transpose()? })
    }

    /// `silu(embedding)` of each generation's timestep, `(generations, time_embed_dim)`, or `(batch, time_embed_dim)` where the samples of
    /// a generation differ in it. Its type and device are those of `like`.
    pub(super) fn forward(&self, timesteps: &[f64], add_embedding: &AddEmbedding, adapters: &Adapters, like: &Tensor) -> Result<Tensor> {
        let mut phases = self.time_proj.forward(timesteps, like)?;
        if let Some(guidance) = &add_embedding.guidance {
            phases = (phases + guidance)?;
        }
        let embedding = self.time_embedding.forward(&phases, adapters)?;
        match &add_embedding.text_time {
            Some(text_time) => (for_batch(&embedding, text_time.dim(0)?)? + text_time)?.silu(),
            None => embedding.silu(),
        }
    }
}

/// SDXL's `time_ids` of a picture that is the whole of its original, which is diffusers' default.
fn time_ids((height, width): (usize, usize)) -> [f64; TIME_IDS] {
    let (height, width) = (height as f64, width as f64);
    [height, width, 0.0, 0.0, height, width]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are those of `get_timestep_embedding(torch.tensor([3.5]), 6, flip_sin_to_cos, downscale_freq_shift)`.
    #[test]
    fn phases_are_those_of_diffusers() {
        let close = |ours: Vec<f32>, theirs: [f32; 6]| {
            assert!(ours.iter().zip(theirs).all(|(a, b)| (a - b).abs() < 1e-6), "{ours:?} is not {theirs:?}");
        };
        let numbers = |flip_sin_to_cos, freq_shift| Timesteps { channels: 6, flip_sin_to_cos, freq_shift }.phases(3.5);
        close(numbers(false, 0.0), [-0.350_783_23, 0.161_741_97, 0.007_540_45, -0.936_456_7, 0.986_833_1, 0.999_971_57]);
        close(numbers(true, 1.0), [-0.936_456_7, 0.999_387_56, 0.999_999_94, -0.350_783_23, 0.034_992_855, 0.000_35]);
    }
}
