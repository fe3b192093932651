//! Transformers over the pixels of an image. After diffusers' `transformer_2d.py` and `attention.py`.

use candle_core::{Result, Tensor};

use super::UNet2DConditionConfig;
use crate::{
    models::{
        attention::{Attention, CrossAttention},
        pass::Pass,
    },
    ops::{Geglu, GroupNorm, LayerNorm, Linear, Weights, for_batch, to_image, to_sequence},
};

const GROUP_NORM_EPS: f64 = 1e-6;
const LAYER_NORM_EPS: f64 = 1e-5;

/// `Transformer2DModel`.
#[derive(Debug, Clone)]
pub(super) struct Transformer2DModel {
    norm: GroupNorm,
    proj_in: Linear,
    transformer_blocks: Vec<BasicTransformerBlock>,
    proj_out: Linear,
}

impl Transformer2DModel {
    /// `depth` is the number of blocks. In some checkpoints the projections are 1 x 1 convolutions (`use_linear_projection` is false),
    /// which are the same thing to a sequence of pixels.
    pub(super) fn new(config: &UNet2DConditionConfig, level: usize, depth: usize, vb: &Weights) -> Result<Self> {
        let channels = config.block_out_channels[level];
        let projection = |name: &str| Linear::new(channels, channels, &vb.pp(name));
        let block = |i: usize| BasicTransformerBlock::new(config, level, &vb.pp("transformer_blocks").pp(i));
        Ok(Self {
            norm: GroupNorm::new(config.norm_num_groups, channels, GROUP_NORM_EPS, &vb.pp("norm"))?,
            proj_in: projection("proj_in")?,
            transformer_blocks: (0..depth).map(block).collect::<Result<_>>()?,
            proj_out: projection("proj_out")?,
        })
    }

    /// The layers that look at the text.
    pub(super) fn cross_attentions(&self) -> impl Iterator<Item = &CrossAttention> {
        self.transformer_blocks.iter().map(|block| &block.attn2)
    }

    /// `x` is `(batch, channels, height, width)`, or of one sample a generation, which becomes as many samples as its text has.
    pub(super) fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let normed = to_sequence(&self.norm.with(pass.adapters).forward(x)?)?;
        let mut hidden = self.proj_in.with(pass.adapters).forward(&normed)?;
        for block in &self.transformer_blocks {
            hidden = block.forward(&hidden, pass)?;
        }
        let residual = for_batch(&to_sequence(x)?, hidden.dim(0)?)?;
        to_image(&self.proj_out.with(pass.adapters).forward_add(&hidden, &residual)?, x)
    }
}

/// `BasicTransformerBlock`: self-attention, attention to the text, feed-forward.
#[derive(Debug, Clone)]
struct BasicTransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: CrossAttention,
    norm3: LayerNorm,
    ff: FeedForward,
}

impl BasicTransformerBlock {
    fn new(config: &UNet2DConditionConfig, level: usize, vb: &Weights) -> Result<Self> {
        let (channels, heads) = (config.block_out_channels[level], config.heads(level));
        let norm = |name: &str| LayerNorm::new(channels, LAYER_NORM_EPS, &vb.pp(name));
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: Attention::new(channels, channels, heads, &vb.pp("attn1"))?,
            norm2: norm("norm2")?,
            attn2: CrossAttention::new(channels, config.cross_attention_dim, heads, &vb.pp("attn2"))?,
            norm3: norm("norm3")?,
            ff: FeedForward::new(channels, &vb.pp("ff.net"))?,
        })
    }

    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let x = self.attn1.forward_self(&self.norm1.with(pass.adapters).forward(x)?, x, pass)?;
        let x = self.attn2.forward(&self.norm2.with(pass.adapters).forward(&x)?, &x, pass)?;
        self.ff.forward(&self.norm3.with(pass.adapters).forward(&x)?, &x, pass)
    }
}

/// `FeedForward` with GEGLU.
#[derive(Debug, Clone)]
struct FeedForward {
    proj: Geglu,
    out: Linear,
}

impl FeedForward {
    fn new(channels: usize, vb: &Weights) -> Result<Self> {
        let inner = 4 * channels;
        Ok(Self { proj: Geglu::new(channels, inner, &vb.pp("0.proj"))?, out: Linear::new(inner, channels, &vb.pp("2"))? })
    }

    fn forward(&self, x: &Tensor, residual: &Tensor, pass: &Pass) -> Result<Tensor> {
        pass.check()?;
        self.out.with(pass.adapters).forward_add(&self.proj.with(pass.adapters).forward(x)?, residual)
    }
}
