//! Several kinds of pictures for one ControlNet: `ControlNet++` (xinsir's "union" models). After diffusers' `controlnet_union.py`.

use candle_core::{Result, Tensor};
use serde::Deserialize;

use crate::{
    models::{
        UNet2DConditionConfig,
        unet::{TimestepEmbedding, Timesteps},
    },
    ops::{Activation, Adapters, LayerNorm, Linear, Weights, add_images, scale_image},
};

const LAYER_NORM_EPS: f64 = 1e-5;

/// The fields that such a network has beside those of others.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct UnionConfig {
    /// Kinds of pictures.
    pub num_control_type: usize,
    /// Width of the transformer that looks at the pictures.
    pub num_trans_channel: usize,
    /// Its layers.
    pub num_trans_layer: usize,
    /// Channels of what it gives.
    pub num_proj_channel: usize,
}

/// A picture as a ControlNet sees it.
#[derive(Debug, Clone, Copy)]
pub struct Hint<'a> {
    /// [`ControlNetModel::embed`](super::ControlNetModel::embed) of it.
    pub embedding: &'a Tensor,
    /// Its kind, in networks that know several.
    pub kind: usize,
    /// How strongly it counts. Of a single one, the result is not scaled.
    pub scale: f64,
}

/// The layers that join pictures of several kinds.
#[derive(Debug, Clone)]
pub(super) struct Union {
    /// `(kinds, channels)`.
    task_embedding: Tensor,
    layers: Vec<Layer>,
    spatial_ch_projs: Linear,
    kinds: Timesteps,
    control_add_embedding: TimestepEmbedding,
    kind_count: usize,
}

impl Union {
    pub(super) fn new(config: UnionConfig, unet: &UNet2DConditionConfig, vb: &Weights) -> Result<Self> {
        let UnionConfig { num_control_type, num_trans_channel: channels, num_trans_layer, num_proj_channel, .. } = config;
        let dim = unet.addition_time_embed_dim.unwrap_or_default();
        let layer = |i: usize| Layer::new(config, &vb.pp("transformer_layes").pp(i));
        Ok(Self {
            task_embedding: vb.get((num_control_type, channels), "task_embedding")?,
            layers: (0..num_trans_layer).map(layer).collect::<Result<_>>()?,
            spatial_ch_projs: Linear::new(channels, num_proj_channel, &vb.pp("spatial_ch_projs"))?,
            kinds: Timesteps::new(dim, unet),
            control_add_embedding: TimestepEmbedding::new(dim * num_control_type, unet.time_embed_dim(), &vb.pp("control_add_embedding"))?,
            kind_count: num_control_type,
        })
    }

    /// What the kinds of these pictures add to the time embedding, `(1, time_embed_dim)`.
    pub(super) fn embed_kinds(&self, hints: &[Hint]) -> Result<Tensor> {
        let is_there = |kind: usize| if hints.iter().any(|hint| hint.kind == kind) { 1.0 } else { 0.0 };
        let flags: Vec<f64> = (0..self.kind_count).map(is_there).collect();
        let phases = self.kinds.forward(&flags, &self.task_embedding)?.flatten_all()?.unsqueeze(0)?;
        self.control_add_embedding.forward(&phases, Adapters::NONE)
    }

    /// What is added to the first layer's output of all pictures, `(1, channels, height, width)`: their sum, each shifted by what a small
    /// transformer makes of its mean and its kind.
    pub(super) fn join(&self, hints: &[Hint]) -> Result<Tensor> {
        // A single one is scaled by what comes out.
        let scale = |hint: &Hint| if hints.len() > 1 { hint.scale } else { 1.0 };
        let token = |hint: &Hint| (hint.embedding.mean((2, 3))? + self.task_embedding.narrow(0, hint.kind, 1)?)? * scale(hint);
        let mut tokens = Tensor::cat(&hints.iter().map(token).collect::<Result<Vec<_>>>()?, 0)?;
        for layer in &self.layers {
            tokens = layer.forward(&tokens)?;
        }
        let shifts = self.spatial_ch_projs.forward(&tokens)?;
        let shifted = hints.iter().enumerate().map(|(i, hint)| {
            let shift = shifts.narrow(0, i, 1)?.unsqueeze(2)?.unsqueeze(3)?.broadcast_as(hint.embedding.shape())?;
            scale_image(&add_images(hint.embedding, &shift)?, scale(hint))
        });
        let mut shifted = shifted.collect::<Result<Vec<_>>>()?.into_iter();
        let Some(first) = shifted.next() else { candle_core::bail!("a ControlNet sees a picture, and there is none") };
        shifted.try_fold(first, |sum, other| add_images(&sum, &other))
    }
}

/// `ResidualAttentionBlock`.
#[derive(Debug, Clone)]
struct Layer {
    ln_1: LayerNorm,
    /// The values' projection, `(channels, channels)`, and its bias.
    values: (Tensor, Tensor),
    out_proj: Linear,
    ln_2: LayerNorm,
    c_fc: Linear,
    c_proj: Linear,
}

impl Layer {
    fn new(UnionConfig { num_trans_channel: channels, .. }: UnionConfig, vb: &Weights) -> Result<Self> {
        let norm = |name: &str| LayerNorm::new(channels, LAYER_NORM_EPS, &vb.pp(name));
        let attn = vb.pp("attn");
        // Queries and keys come first.
        let (weight, bias) = (attn.get((3 * channels, channels), "in_proj_weight")?, attn.get(3 * channels, "in_proj_bias")?);
        Ok(Self {
            ln_1: norm("ln_1")?,
            values: (weight.narrow(0, 2 * channels, channels)?, bias.narrow(0, 2 * channels, channels)?),
            out_proj: Linear::new(channels, channels, &attn.pp("out_proj"))?,
            ln_2: norm("ln_2")?,
            c_fc: Linear::new(channels, 4 * channels, &vb.pp("mlp.c_fc"))?,
            c_proj: Linear::new(4 * channels, channels, &vb.pp("mlp.c_proj"))?,
        })
    }

    /// `(tokens, channels)`, one token for each picture. The network was trained with attention from sample to sample of a batch, where from token
    /// to token may have been meant. The samples of one picture are alike here, and a picture does not depend on others: what attention finds is
    /// each token's own value.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = &self.values;
        let values = self.ln_1.forward(x)?.matmul(&weight.t()?)?.broadcast_add(bias)?;
        let x = self.out_proj.forward_add(&values, x)?;
        let hidden = self.c_fc.forward_activated(&self.ln_2.forward(&x)?, Activation::QuickGelu)?;
        self.c_proj.forward_add(&hidden, &x)
    }
}
