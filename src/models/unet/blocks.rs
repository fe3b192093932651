//! The levels of the UNet: down, middle, up.

use candle_core::{Result, Tensor};

use super::{UNet2DConditionConfig, transformer::Transformer2DModel};
use crate::{
    models::{
        attention::CrossAttention,
        pass::Pass,
        resnet::{Downsample2D, ResnetBlock2D, ResnetConfig, Upsample2D},
    },
    ops::{Weights, add_images, concat_channels, for_batch},
};

impl UNet2DConditionConfig {
    fn resnet(&self) -> ResnetConfig {
        ResnetConfig { norm_num_groups: self.norm_num_groups, norm_eps: self.norm_eps, time_embed_dim: Some(self.time_embed_dim()) }
    }
}

/// A residual block and, on levels that look at the text, the transformer after it.
#[derive(Debug, Clone)]
pub(in crate::models) struct ResnetAttention {
    resnet: ResnetBlock2D,
    attention: Option<Transformer2DModel>,
}

impl ResnetAttention {
    pub(super) fn cross_attentions(&self) -> impl Iterator<Item = &CrossAttention> {
        self.attention.iter().flat_map(Transformer2DModel::cross_attentions)
    }

    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let x = self.resnet.forward(x, pass)?;
        self.attention.as_ref().map_or(Ok(x.clone()), |attention| attention.forward(&x, pass))
    }
}

/// `DownBlock2D` and `CrossAttnDownBlock2D`.
#[derive(Debug, Clone)]
pub(super) struct DownBlock {
    layers: Vec<ResnetAttention>,
    downsampler: Option<Downsample2D>,
}

impl DownBlock {
    pub(super) fn new(config: &UNet2DConditionConfig, level: usize, vb: &Weights) -> Result<Self> {
        let channels = &config.block_out_channels;
        let layers = config.layers_per_block.at(level);
        let layer = |i: usize| {
            let from = if i == 0 { channels[level.saturating_sub(1)] } else { channels[level] };
            let transformer = |depth| Transformer2DModel::new(config, level, depth, &vb.pp("attentions").pp(i));
            let attention = config.down_depth(level, i).map(transformer);
            let resnet = ResnetBlock2D::new(from, channels[level], config.resnet(), &vb.pp("resnets").pp(i))?;
            Ok(ResnetAttention { resnet, attention: attention.transpose()? })
        };
        let is_last = level == channels.len() - 1;
        let downsampler = (!is_last).then(|| Downsample2D::new(channels[level], config.downsample_padding, &vb.pp("downsamplers.0")));
        Ok(Self { layers: (0..layers).map(layer).collect::<Result<_>>()?, downsampler: downsampler.transpose()? })
    }

    pub(super) fn layers(&self) -> &[ResnetAttention] {
        &self.layers
    }

    /// Pushes the output of each layer onto `skips`, for the way up. `added` is added to the output of the last layer with attention, or,
    /// where none has, to that of the whole block: diffusers' two ways with T2I-Adapters.
    pub(super) fn forward(&self, x: &Tensor, added: Option<&Tensor>, pass: &Pass, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        let has_attention = self.layers.iter().any(|layer| layer.attention.is_some());
        let outputs = self.layers.len() + usize::from(self.downsampler.is_some() && !has_attention);
        let mut keep = |x: Tensor, layer: usize| -> Result<Tensor> {
            let x = match added {
                Some(added) if layer + 1 == outputs => add_images(&x, added)?,
                _ => x,
            };
            skips.push(x.clone());
            Ok(x)
        };
        let mut x = x.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            x = keep(layer.forward(&x, pass)?, i)?;
        }
        match &self.downsampler {
            Some(downsampler) => keep(downsampler.forward(&x, pass)?, self.layers.len()),
            None => Ok(x),
        }
    }
}

/// `UNetMidBlock2DCrossAttn`, or `UNetMidBlock2D`, which ends after its first residual block.
#[derive(Debug, Clone)]
pub(super) struct MidBlock {
    first: ResnetAttention,
    last: Option<ResnetBlock2D>,
}

impl MidBlock {
    pub(super) fn new(config: &UNet2DConditionConfig, vb: &Weights) -> Result<Self> {
        let level = config.block_out_channels.len() - 1;
        let channels = config.block_out_channels[level];
        let resnet = |i: usize| ResnetBlock2D::new(channels, channels, config.resnet(), &vb.pp("resnets").pp(i));
        let depth = config.mid_depth();
        let attention = depth.map(|depth| Transformer2DModel::new(config, level, depth, &vb.pp("attentions.0"))).transpose()?;
        Ok(Self { first: ResnetAttention { resnet: resnet(0)?, attention }, last: depth.map(|_| resnet(1)).transpose()? })
    }

    pub(super) fn layers(&self) -> &[ResnetAttention] {
        std::slice::from_ref(&self.first)
    }

    pub(super) fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let x = self.first.forward(x, pass)?;
        self.last.as_ref().map_or(Ok(x.clone()), |last| last.forward(&x, pass))
    }
}

/// `UpBlock2D` and `CrossAttnUpBlock2D`.
#[derive(Debug, Clone)]
pub(super) struct UpBlock {
    layers: Vec<ResnetAttention>,
    upsampler: Option<Upsample2D>,
}

impl UpBlock {
    pub(super) fn new(config: &UNet2DConditionConfig, level: usize, vb: &Weights) -> Result<Self> {
        let channels = &config.block_out_channels;
        let coarsest = channels.len() - 1;
        let layers = config.layers_per_block.at(level);
        let layer = |i: usize| {
            let from = if i == 0 { channels[(level + 1).min(coarsest)] } else { channels[level] };
            // Each level of the way down begins with the channels of the level above.
            let skip = if i == layers { channels[level.saturating_sub(1)] } else { channels[level] };
            let transformer = |depth| Transformer2DModel::new(config, level, depth, &vb.pp("attentions").pp(i));
            let attention = config.up_depth(level, i).map(transformer);
            let resnet = ResnetBlock2D::new(from + skip, channels[level], config.resnet(), &vb.pp("resnets").pp(i))?;
            Ok(ResnetAttention { resnet, attention: attention.transpose()? })
        };
        let upsampler = (level > 0).then(|| Upsample2D::new(channels[level], &vb.pp("upsamplers.0")));
        Ok(Self { layers: (0..=layers).map(layer).collect::<Result<_>>()?, upsampler: upsampler.transpose()? })
    }

    pub(super) fn layers(&self) -> &[ResnetAttention] {
        &self.layers
    }

    /// Pops from `skips` what the way down pushed.
    pub(super) fn forward(&self, x: &Tensor, pass: &Pass, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        let x = climb(&self.layers, x, pass, skips)?;
        match (&self.upsampler, skips.last()) {
            // Where the way down halved an odd size, the next skip is not twice as large.
            (Some(upsampler), Some(next)) => upsampler.forward(&x, (next.dim(2)?, next.dim(3)?), pass),
            _ => Ok(x),
        }
    }

    /// All but the last layer of the finest level.
    pub(super) fn forward_to_last_layer(&self, x: &Tensor, pass: &Pass, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        climb(&self.layers[..self.layers.len() - 1], x, pass, skips)
    }

    /// The last layer of the finest level.
    pub(super) fn forward_last_layer(&self, x: &Tensor, pass: &Pass, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        climb(&self.layers[self.layers.len() - 1..], x, pass, skips)
    }
}

/// Some layers on the way up, each with the latest of `skips`.
fn climb(layers: &[ResnetAttention], x: &Tensor, pass: &Pass, skips: &mut Vec<Tensor>) -> Result<Tensor> {
    let mut x = x.clone();
    for layer in layers {
        let Some(skip) = skips.pop() else { candle_core::bail!("the way up has more layers than the way down") };
        x = layer.forward(&concat_channels(&x, &for_batch(&skip, x.dim(0)?)?)?, pass)?;
    }
    Ok(x)
}
