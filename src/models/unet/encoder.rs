//! The first half of a UNet: its way down and its middle. A ControlNet is a copy of it.

use candle_core::{Result, Tensor};

use super::{
    UNet2DConditionConfig, UNetContext,
    blocks::{DownBlock, MidBlock, ResnetAttention},
    embeddings::TimeEmbedding,
};
use crate::{
    models::{conditions::Conditions, image_prompt::ImageContext, pass::Pass, residuals::Residuals, text_context::TextContext},
    ops::{Adapters, Conv2d, Conv2dConfig, Weights, add_images, for_batch},
};

/// From latents to the middle of a UNet.
#[derive(Debug, Clone)]
pub(in crate::models) struct Encoder {
    conv_in: Conv2d,
    time_embedding: TimeEmbedding,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
}

/// What the layers of a UNet make of latents on the way to the middle.
#[derive(Debug)]
pub(in crate::models) struct Encoded {
    /// The output of the middle.
    pub(in crate::models) middle: Tensor,
    /// The output of each layer on the way down, the finest first.
    pub(in crate::models) skips: Vec<Tensor>,
}

impl Encoder {
    /// Reads the weights.
    pub(in crate::models) fn new(config: &UNet2DConditionConfig, vb: &Weights) -> Result<Self> {
        let down_block = |level: usize| DownBlock::new(config, level, &vb.pp("down_blocks").pp(level));
        Ok(Self {
            conv_in: Conv2d::new(config.in_channels, config.block_out_channels[0], Conv2dConfig::SAME_3X3, &vb.pp("conv_in"))?,
            time_embedding: TimeEmbedding::new(config, vb)?,
            down_blocks: (0..config.block_out_channels.len()).map(down_block).collect::<Result<_>>()?,
            mid_block: config.mid_block_type.map(|_| MidBlock::new(config, &vb.pp("mid_block"))).transpose()?,
        })
    }

    /// What these layers, and `further` ones, make of the conditions of one generation.
    pub(in crate::models) fn context<'a>(
        &'a self,
        conditions: &Conditions,
        further: impl Iterator<Item = &'a ResnetAttention>,
    ) -> Result<UNetContext> {
        let down = self.down_blocks.iter().flat_map(DownBlock::layers);
        let layers = down.chain(self.mid_block.iter().flat_map(MidBlock::layers)).chain(further);
        let cross_attentions = layers.flat_map(ResnetAttention::cross_attentions);
        let adapters = Adapters::new(conditions.adapters.cloned());
        let text = TextContext::new(conditions.text, cross_attentions.map(|layer| layer.key_values(conditions.text, &adapters)))?;
        let add_embedding = self.time_embedding.add_embedding(conditions, &adapters)?;
        Ok(UNetContext { text, images: ImageContext::new(conditions.images)?, add_embedding, adapters })
    }

    /// The time embedding of these timesteps, one for each generation of the context.
    ///
    /// # Errors
    /// When the latents have another number of samples than the generations or the context.
    pub(in crate::models) fn time_embedding(&self, latents: &Tensor, timesteps: &[f64], context: &UNetContext) -> Result<Tensor> {
        let (batch, generations) = (context.text.batch(), timesteps.len());
        if !batch.is_multiple_of(generations) || ![generations, batch].contains(&latents.dim(0)?) {
            candle_core::bail!("latents {:?} of {generations} generations with the text of {batch} samples", latents.shape());
        }
        self.time_embedding.forward(timesteps, &context.add_embedding, &context.adapters, latents)
    }

    /// The first layer alone.
    pub(in crate::models) fn first_layer(&self, latents: &Tensor, pass: &Pass) -> Result<Tensor> {
        self.conv_in.with(pass.adapters).forward(latents)
    }

    /// `hint` is added to the first layer's output; `residuals` are added where [`Residuals`] says.
    pub(in crate::models) fn forward(
        &self,
        latents: &Tensor,
        hint: Option<&Tensor>,
        residuals: &Residuals,
        pass: &Pass,
    ) -> Result<Encoded> {
        let mut x = self.first_layer(latents, pass)?;
        if let Some(hint) = hint {
            x = add_images(&x, hint)?;
        }
        let batch = pass.temb.map_or(Ok(0), |temb| temb.dim(0))?;
        if batch > x.dim(0)? {
            x = for_batch(&x, batch)?;
        }
        let mut skips = vec![x.clone()];
        for (level, block) in self.down_blocks.iter().enumerate() {
            x = block.forward(&x, residuals.of_level(level), pass, &mut skips)?;
        }
        if let Some(mid_block) = &self.mid_block {
            x = mid_block.forward(&x, pass)?;
        }
        let (middle, skips) = residuals.add_to(x, skips, self.down_blocks.len())?;
        Ok(Encoded { middle, skips })
    }
}
