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
use embeddings::{TimeEmbedding, Told};
use text_context::TextContext;

use crate::ops::{Added, Conv2d, Conv2dConfig, GroupNorm, Weights, for_batch};

/// What the network is told beside latents and timestep.
#[derive(Debug, Clone, Copy)]
pub struct Conditions<'a> {
    /// Text embeddings, `(batch, tokens, cross_attention_dim)`.
    pub text: &'a Tensor,
    /// The pooled text, `(batch, pooled_dim)`, for networks that look at it: SDXL.
    pub pooled: Option<&'a Tensor>,
    /// Height and width of the picture in pixels. SDXL looks at them.
    pub size: (usize, usize),
    /// The guidance scale. Networks that are distilled to know it look at it.
    pub guidance_scale: f64,
}

impl<'a> Conditions<'a> {
    /// For networks that look at nothing but the text.
    #[must_use]
    pub fn of_text(text: &'a Tensor) -> Self {
        Self { text, pooled: None, size: (0, 0), guidance_scale: 1.0 }
    }

    /// A picture that is the whole of its original, as diffusers has it by default.
    fn time_ids(&self) -> [f64; config::TIME_IDS] {
        let (height, width) = (self.size.0 as f64, self.size.1 as f64);
        [height, width, 0.0, 0.0, height, width]
    }
}

/// [`Conditions`] of one generation, or of several, as the network's layers look at them, which stays the same from step to step.
/// [`context`](UNet2DConditionModel::context) makes it of one.
#[derive(Debug, Clone)]
pub struct UNetContext {
    text: TextContext,
    told: Told,
}

impl UNetContext {
    /// That of several generations, one after the other.
    ///
    /// # Errors
    /// When they have not as many samples each, or the device fails.
    pub fn join(all: &[&Self]) -> Result<Self> {
        if let Some([one, other]) = all.array_windows().find(|[one, other]| one.text.batch() != other.text.batch()) {
            candle_core::bail!("the texts of {} and of {} samples cannot be looked at in one pass", one.text.batch(), other.text.batch());
        }
        let (texts, told): (Vec<&TextContext>, Vec<&Told>) = all.iter().map(|one| (&one.text, &one.told)).unzip();
        Ok(Self { text: TextContext::join(&texts)?, told: Told::join(&told)? })
    }

    /// What is added to the time embedding, `(batch, time_embed_dim)`, in networks that look at the pooled text.
    #[must_use]
    pub fn added(&self) -> Option<&Tensor> {
        self.told.added.as_ref()
    }
}

/// `UNet2DConditionModel`.
#[derive(Debug, Clone)]
pub struct UNet2DConditionModel {
    conv_in: Conv2d,
    time_embedding: TimeEmbedding,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
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
            time_embedding: TimeEmbedding::new(&config, vb)?,
            down_blocks: (0..levels).map(down_block).collect::<Result<_>>()?,
            mid_block: config.mid_block_type.map(|_| MidBlock::new(&config, &vb.pp("mid_block"))).transpose()?,
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

    /// What the network's layers make of the conditions, once for all steps.
    ///
    /// # Errors
    /// When a width is another, the pooled text is missing, or the device fails.
    pub fn context(&self, conditions: &Conditions) -> Result<UNetContext> {
        let down = self.down_blocks.iter().flat_map(DownBlock::layers);
        let up = self.up_blocks.iter().flat_map(UpBlock::layers);
        let layers = down.chain(self.mid_block.iter().flat_map(MidBlock::layers)).chain(up);
        let text = TextContext::new(conditions.text, layers.flat_map(Layer::cross_attentions))?;
        Ok(UNetContext { text, told: self.time_embedding.tell(conditions)? })
    }

    /// What the network says of noisy latents `(batch, in_channels, height, width)`, given the conditions of as many samples: noise or
    /// velocity, `(batch, out_channels, height, width)`. There is a timestep for each generation of the context.
    ///
    /// Latents of one sample a generation are those of every sample of its text. Up to where samples are first told different things,
    /// they are then worked on once for all: with the two sides of guidance, that is one of the few transformers at full resolution.
    ///
    /// What it says of a generation does not depend on the others: on a CPU, to the last bit.
    ///
    /// # Errors
    /// When a shape does not fit, or the device fails.
    pub fn forward(&self, latents: &Tensor, timesteps: &[f64], context: &UNetContext) -> Result<Tensor> {
        let (text, generations) = (&context.text, timesteps.len());
        if !text.batch().is_multiple_of(generations) || ![generations, text.batch()].contains(&latents.dim(0)?) {
            let (shape, batch) = (latents.shape(), text.batch());
            candle_core::bail!("latents {shape:?} of {generations} generations with the text of {batch} samples");
        }
        let temb = self.time_embedding.forward(timesteps, &context.told, latents)?;
        let mut x = self.conv_in.forward(latents)?;
        if temb.dim(0)? > x.dim(0)? {
            x = for_batch(&x, temb.dim(0)?)?;
        }
        let mut skips = vec![x.clone()];
        for block in &self.down_blocks {
            x = block.forward(&x, &temb, text, &mut skips)?;
        }
        if let Some(mid_block) = &self.mid_block {
            x = mid_block.forward(&x, &temb, text)?;
        }
        for block in &self.up_blocks {
            x = block.forward(&x, &temb, text, &mut skips)?;
        }
        self.conv_out.forward_normed(&self.conv_norm_out, &x, Added::default())
    }
}
