//! What IP-Adapter makes of a picture's embeddings: tokens that cross-attention looks at beside the text.
//! [Ye et al.](https://arxiv.org/abs/2308.06721), after diffusers' `ImageProjection` and `IPAdapterPlusImageProjection`, with the names of
//! the published files.

mod config;
mod resampler;

use candle_core::{DType, Device, Result, Tensor};
pub use config::{ImageProjectionConfig, ImageProjectionKind, ResamplerConfig};
use resampler::Resampler;

use super::{
    clip_vision::{ClipVisionModel, ImageEmbeds},
    pass::Interrupt,
};
use crate::ops::{LayerNorm, Linear, Weights};

/// Added to the variance in all norms: torch's default.
const EPS: f64 = 1e-5;

/// The projection of one IP-Adapter file.
#[derive(Debug, Clone)]
pub struct ImageProjection {
    config: ImageProjectionConfig,
    network: Network,
    dtype: DType,
    device: Device,
}

#[derive(Debug, Clone)]
enum Network {
    Plain { proj: Linear, norm: LayerNorm },
    Plus(Resampler),
}

impl ImageProjection {
    /// Reads the weights of a file: those whose names begin with `image_proj.`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(config: ImageProjectionConfig, vb: &Weights) -> Result<Self> {
        let vb = vb.pp("image_proj");
        let network = match config.kind {
            ImageProjectionKind::Plain => Network::Plain {
                proj: Linear::new(config.input_dim, config.tokens * config.cross_attention_dim, &vb.pp("proj"))?,
                norm: LayerNorm::new(config.cross_attention_dim, EPS, &vb.pp("norm"))?,
            },
            ImageProjectionKind::Plus(resampler) => Network::Plus(Resampler::new(&config, resampler, &vb)?),
        };
        Ok(Self { config, network, dtype: vb.dtype(), device: vb.device().clone() })
    }

    /// The sizes.
    #[must_use]
    pub fn config(&self) -> &ImageProjectionConfig {
        &self.config
    }

    /// What the encoder makes of pictures, to tokens `(batch, tokens, cross_attention_dim)`.
    ///
    /// # Errors
    /// When the embeddings are of another width, the device fails, or the pass is interrupted.
    pub fn forward(&self, embeds: &ImageEmbeds, interrupt: Interrupt) -> Result<Tensor> {
        match &self.network {
            Network::Plain { .. } => self.project(&embeds.projected, interrupt),
            Network::Plus(_) => self.project(&embeds.penultimate, interrupt),
        }
    }

    /// The tokens of no picture, `(1, tokens, cross_attention_dim)`, which the unconditional side of guidance looks at. As in diffusers,
    /// they are what becomes of zeros: in place of the projected embedding, or in place of the encoder's pixels, which is a mean grey.
    ///
    /// # Errors
    /// As [`ImageProjection::forward`].
    pub fn unconditional(&self, encoder: &ClipVisionModel, interrupt: Interrupt) -> Result<Tensor> {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, self.dtype, &self.device);
        match &self.network {
            Network::Plain { .. } => self.project(&zeros(&[1, self.config.input_dim])?, interrupt),
            Network::Plus(_) => {
                let side = encoder.config().image_size;
                self.project(&encoder.forward(&zeros(&[1, 3, side, side])?, interrupt)?.penultimate, interrupt)
            }
        }
    }

    fn project(&self, input: &Tensor, interrupt: Interrupt) -> Result<Tensor> {
        match &self.network {
            Network::Plain { proj, norm } => {
                let tokens = proj.forward(input)?;
                norm.forward(&tokens.reshape(((), self.config.tokens, self.config.cross_attention_dim))?)
            }
            Network::Plus(resampler) => resampler.forward(input, interrupt),
        }
    }
}

#[cfg(test)]
mod tests;
