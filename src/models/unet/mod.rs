//! The network that denoises latents: [Rombach et al.](https://arxiv.org/abs/2112.10752). After diffusers'
//! `unet_2d_condition.py` and `unet_2d_blocks.py`.

mod blocks;
mod config;
mod embeddings;
mod text_context;
mod transformer;

use blocks::{DownBlock, Layer, MidBlock, UpBlock};
use candle_core::{Result, Tensor};
pub use config::UNet2DConditionConfig;
use embeddings::TimestepEmbedding;
pub use text_context::TextContext;

use crate::ops::{Added, Conv2d, Conv2dConfig, GroupNorm, Weights};

/// `UNet2DConditionModel`.
#[derive(Debug, Clone)]
pub struct UNet2DConditionModel {
    conv_in: Conv2d,
    time_embedding: TimestepEmbedding,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    config: UNet2DConditionConfig,
}

impl UNet2DConditionModel {
    /// Reads the weights.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(config: UNet2DConditionConfig, vb: &Weights) -> Result<Self> {
        let levels = config.block_out_channels.len();
        let finest = config.block_out_channels[0];
        let down_block = |level: usize| DownBlock::new(&config, level, &vb.pp("down_blocks").pp(level));
        let up_block = |i: usize| UpBlock::new(&config, levels - 1 - i, &vb.pp("up_blocks").pp(i));
        Ok(Self {
            conv_in: Conv2d::new(config.in_channels, finest, Conv2dConfig::SAME_3X3, &vb.pp("conv_in"))?,
            time_embedding: TimestepEmbedding::new(&config, &vb.pp("time_embedding"))?,
            down_blocks: (0..levels).map(down_block).collect::<Result<_>>()?,
            mid_block: MidBlock::new(&config, &vb.pp("mid_block"))?,
            up_blocks: (0..levels).map(up_block).collect::<Result<_>>()?,
            conv_norm_out: GroupNorm::new(config.norm_num_groups, finest, config.norm_eps, &vb.pp("conv_norm_out"))?,
            conv_out: Conv2d::new(finest, config.out_channels, Conv2dConfig::SAME_3X3, &vb.pp("conv_out"))?,
            config,
        })
    }

    /// The configuration that it was built from.
    #[must_use]
    pub fn config(&self) -> &UNet2DConditionConfig {
        &self.config
    }

    /// Text embeddings `(batch, tokens, cross_attention_dim)` as the network's layers look at them, once for all steps.
    ///
    /// # Errors
    /// When the width is another, or the device fails.
    pub fn text_context(&self, text_embeddings: &Tensor) -> Result<TextContext> {
        let down = self.down_blocks.iter().flat_map(DownBlock::layers);
        let up = self.up_blocks.iter().flat_map(UpBlock::layers);
        let layers = down.chain(self.mid_block.layers()).chain(up);
        TextContext::new(text_embeddings, layers.flat_map(Layer::cross_attentions))
    }

    /// What the network says of noisy latents `(batch, in_channels, height, width)` at a timestep, given the text of as many samples:
    /// noise or velocity, `(batch, out_channels, height, width)`.
    ///
    /// Latents of one sample are those of every sample of the text. Up to where the text is first looked at, they are then worked on
    /// once for all: with the two sides of guidance, that is one of the few transformers at full resolution.
    ///
    /// # Errors
    /// When a shape does not fit, or the device fails.
    pub fn forward(&self, latents: &Tensor, timestep: f64, context: &TextContext) -> Result<Tensor> {
        if ![1, context.batch()].contains(&latents.dim(0)?) {
            candle_core::bail!("latents {:?} with the text of {} samples", latents.shape(), context.batch());
        }
        let temb = self.time_embedding.forward(timestep, latents)?;
        let mut x = self.conv_in.forward(latents)?;
        let mut skips = vec![x.clone()];
        for block in &self.down_blocks {
            x = block.forward(&x, &temb, context, &mut skips)?;
        }
        x = self.mid_block.forward(&x, &temb, context)?;
        for block in &self.up_blocks {
            x = block.forward(&x, &temb, context, &mut skips)?;
        }
        self.conv_out.forward_normed(&self.conv_norm_out, &x, Added::default())
    }
}
