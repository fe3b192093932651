//! The network that denoises latents: [Rombach et al.](https://arxiv.org/abs/2112.10752). After diffusers'
//! `unet_2d_condition.py` and `unet_2d_blocks.py`.

mod blocks;
mod config;
mod embeddings;
mod encoder;
mod transformer;

use blocks::UpBlock;
use candle_core::{Result, Tensor};
pub use config::UNet2DConditionConfig;
use embeddings::AddEmbedding;
pub(super) use embeddings::{TimestepEmbedding, Timesteps};
pub(super) use encoder::{Encoded, Encoder};

use super::{
    conditions::Conditions,
    features::Features,
    image_prompt::ImageContext,
    pass::{Interrupt, Pass},
    residuals::Residuals,
    text_context::TextContext,
};
use crate::ops::{Adapters, Added, Conv2d, Conv2dConfig, GroupNorm, LayerNames, Weights, for_batch};

/// What the network's layers make of the [`Conditions`] of one generation, or of several. It stays the same from step to step.
#[derive(Debug, Clone)]
pub struct UNetContext {
    text: TextContext,
    images: ImageContext,
    add_embedding: AddEmbedding,
    adapters: Adapters,
}

impl UNetContext {
    /// The context of several generations, one after the other.
    ///
    /// # Errors
    /// When they differ in their number of samples, or the device fails.
    pub fn join(all: &[&Self]) -> Result<Self> {
        if let Some([one, other]) = all.array_windows().find(|[one, other]| one.text.batch() != other.text.batch()) {
            candle_core::bail!("the texts of {} and of {} samples do not fit into one pass", one.text.batch(), other.text.batch());
        }
        let texts: Vec<&TextContext> = all.iter().map(|one| &one.text).collect();
        let add_embeddings: Vec<&AddEmbedding> = all.iter().map(|one| &one.add_embedding).collect();
        let adapters: Vec<&Adapters> = all.iter().map(|one| &one.adapters).collect();
        Ok(Self {
            text: TextContext::join(&texts)?,
            images: ImageContext::join(&all.iter().map(|one| &one.images).collect::<Vec<_>>()),
            add_embedding: AddEmbedding::join(&add_embeddings)?,
            adapters: Adapters::join(&adapters),
        })
    }

    /// The same with an embedding `(1, time_embed_dim)` added to every sample's time embedding.
    pub(super) fn with_added(&self, embedding: &Tensor) -> Result<Self> {
        let embedding = for_batch(embedding, self.text.batch())?;
        Ok(Self { add_embedding: self.add_embedding.clone().with_added(embedding)?, ..self.clone() })
    }

    /// A pass with this context.
    pub(super) fn pass<'a>(&'a self, temb: &'a Tensor, interrupt: Interrupt<'a>) -> Pass<'a> {
        Pass { temb: Some(temb), text: Some(&self.text), images: &self.images, adapters: &self.adapters, interrupt }
    }

    /// The embedding of sizes and pooled text, `(batch, time_embed_dim)`, in networks that look at them: diffusers' `aug_emb`.
    #[must_use]
    pub fn add_embedding(&self) -> Option<&Tensor> {
        self.add_embedding.text_time.as_ref()
    }
}

/// `UNet2DConditionModel`.
#[derive(Debug, Clone)]
pub struct UNet2DConditionModel {
    encoder: Encoder,
    up_blocks: Vec<UpBlock>,
    /// The finest level of the way up.
    last_up_block: UpBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    config: UNet2DConditionConfig,
    layer_names: LayerNames,
}

impl UNet2DConditionModel {
    /// Reads the weights.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(config: UNet2DConditionConfig, vb: &Weights) -> Result<Self> {
        let levels = config.block_out_channels.len();
        let finest = config.block_out_channels[0];
        let up_block = |i: usize| UpBlock::new(&config, levels - 1 - i, &vb.pp("up_blocks").pp(i));
        Ok(Self {
            encoder: Encoder::new(&config, vb)?,
            up_blocks: (0..levels - 1).map(up_block).collect::<Result<_>>()?,
            last_up_block: up_block(levels - 1)?,
            conv_norm_out: GroupNorm::new(config.norm_num_groups, finest, config.norm_eps, &vb.pp("conv_norm_out"))?,
            conv_out: Conv2d::new(finest, config.out_channels, Conv2dConfig::SAME_3X3, &vb.pp("conv_out"))?,
            config,
            layer_names: vb.layer_names(),
        })
    }

    /// The configuration that it was built from.
    #[must_use]
    pub fn config(&self) -> &UNet2DConditionConfig {
        &self.config
    }

    /// The numbers of the network's layers, by their names in the checkpoint.
    #[must_use]
    pub fn layer_names(&self) -> &LayerNames {
        &self.layer_names
    }

    /// What the network's layers make of the conditions of one generation, once for all steps.
    ///
    /// # Errors
    /// When a tensor has another width, the pooled text is missing, or the device fails.
    pub fn context(&self, conditions: &Conditions) -> Result<UNetContext> {
        self.encoder.context(conditions, self.up_blocks.iter().chain([&self.last_up_block]).flat_map(UpBlock::layers))
    }

    /// Noisy latents `(batch, in_channels, height, width)` to the model's prediction, noise or velocity,
    /// `(batch, out_channels, height, width)`, and to what enters the last layer on the way up, `(batch, channels, height, width)`, for
    /// [`Features`]. There is one timestep for each generation of the context. `residuals` are what other networks add.
    ///
    /// Latents may have one sample for each generation instead of one for each sample of its text. The samples then share all layers up
    /// to the first that looks at what they differ in: with guidance, one of the few transformers at full resolution is run once
    /// instead of twice.
    ///
    /// The prediction for a generation does not depend on the others: on a CPU, to the last bit.
    ///
    /// # Errors
    /// When a shape does not fit, the device fails, or the pass is interrupted.
    pub fn forward_keeping(
        &self,
        latents: &Tensor,
        timesteps: &[f64],
        context: &UNetContext,
        residuals: &Residuals,
        interrupt: Interrupt,
    ) -> Result<(Tensor, Tensor)> {
        let temb = self.encoder.time_embedding(latents, timesteps, context)?;
        let pass = &context.pass(&temb, interrupt);
        let Encoded { middle: mut x, mut skips } = self.encoder.forward(latents, None, residuals, pass)?;
        for block in &self.up_blocks {
            x = block.forward(&x, pass, &mut skips)?;
        }
        let deep = self.last_up_block.forward_to_last_layer(&x, pass, &mut skips)?;
        drop(x);
        Ok((self.last_layers(&deep, skips, pass)?, deep))
    }

    /// A shallow pass: the first and the last layers, with the `features` of an earlier full pass in place of what the others would make of
    /// these latents. After the package `DeepCache`, branch 0.
    ///
    /// # Errors
    /// As [`forward_keeping`](Self::forward_keeping).
    pub fn forward_shallow(
        &self,
        latents: &Tensor,
        timesteps: &[f64],
        context: &UNetContext,
        features: &Features,
        interrupt: Interrupt,
    ) -> Result<Tensor> {
        let temb = self.encoder.time_embedding(latents, timesteps, context)?;
        let pass = &context.pass(&temb, interrupt);
        let first = features.guided(&self.encoder.first_layer(latents, pass)?)?;
        self.last_layers(features.deep(), vec![first], pass)
    }

    /// What enters the last layer on the way up to the prediction.
    fn last_layers(&self, deep: &Tensor, mut skips: Vec<Tensor>, pass: &Pass) -> Result<Tensor> {
        let x = self.last_up_block.forward_last_layer(deep, pass, &mut skips)?;
        self.conv_out.with(pass.adapters).forward_normed(self.conv_norm_out.with(pass.adapters), &x, Added::default())
    }
}
