//! Residual blocks and changes of resolution, shared by UNet and VAE. After diffusers' `resnet.py`, `downsampling.py` and
//! `upsampling.py`.

use candle_core::{Result, Tensor};

use super::pass::Pass;
use crate::ops::{Added, Conv2d, Conv2dConfig, GroupNorm, Linear, Weights};

/// Settings that the residual blocks of a network share.
#[derive(Debug, Clone, Copy)]
pub(super) struct ResnetConfig {
    pub(super) norm_num_groups: usize,
    pub(super) norm_eps: f64,
    /// Width of the time embedding; the VAE has none.
    pub(super) time_embed_dim: Option<usize>,
}

/// `ResnetBlock2D`.
#[derive(Debug, Clone)]
pub(super) struct ResnetBlock2D {
    norms: [GroupNorm; 2],
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    conv2: Conv2d,
    /// Only where the number of channels changes.
    conv_shortcut: Option<Conv2d>,
}

impl ResnetBlock2D {
    pub(super) fn new(in_channels: usize, out_channels: usize, config: ResnetConfig, vb: &Weights) -> Result<Self> {
        let norm = |channels, name| GroupNorm::new(config.norm_num_groups, channels, config.norm_eps, &vb.pp(name));
        let time_emb_proj = config.time_embed_dim.map(|dim| Linear::new(dim, out_channels, &vb.pp("time_emb_proj")));
        let conv_shortcut =
            (in_channels != out_channels).then(|| Conv2d::new(in_channels, out_channels, Conv2dConfig::POINTWISE, &vb.pp("conv_shortcut")));
        Ok(Self {
            norms: [norm(in_channels, "norm1")?, norm(out_channels, "norm2")?],
            conv1: Conv2d::new(in_channels, out_channels, Conv2dConfig::SAME_3X3, &vb.pp("conv1"))?,
            time_emb_proj: time_emb_proj.transpose()?,
            conv2: Conv2d::new(out_channels, out_channels, Conv2dConfig::SAME_3X3, &vb.pp("conv2"))?,
            conv_shortcut: conv_shortcut.transpose()?,
        })
    }

    /// `(batch, in_channels, height, width)` to `(batch, out_channels, height, width)`.
    pub(super) fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        self.forward_with(&self.norms, x, pass)
    }

    /// The same with other norms than its own: those of a larger image that `x` is a part of.
    pub(super) fn forward_with(&self, [norm1, norm2]: &[GroupNorm; 2], x: &Tensor, pass: &Pass) -> Result<Tensor> {
        pass.check()?;
        let time = match (&self.time_emb_proj, pass.temb) {
            (Some(projection), Some(temb)) => Some(projection.with(pass.adapters).forward(temb)?),
            _ => None,
        };
        let [norm1, norm2] = [norm1, norm2].map(|norm| norm.with(pass.adapters));
        let [conv1, conv2] = [&self.conv1, &self.conv2].map(|conv| conv.with(pass.adapters));
        let hidden = conv1.forward_normed(norm1, x, Added { sample_bias: time.as_ref(), residual: None })?;
        pass.check()?;
        // `hidden` is nobody else's and may be written over: at the finest level of a decoder, it is the largest tensor of all.
        let Some(conv_shortcut) = &self.conv_shortcut else {
            return conv2.forward_normed_in_place(norm2, hidden, Added { sample_bias: None, residual: Some(x) });
        };
        let hidden = conv2.forward_normed_in_place(norm2, hidden, Added::default())?;
        pass.check()?;
        conv_shortcut.with(pass.adapters).forward_onto(x, hidden)
    }

    pub(super) fn norms(&self) -> &[GroupNorm; 2] {
        &self.norms
    }

    /// The convolution between the two norms.
    pub(super) fn conv1(&self) -> &Conv2d {
        &self.conv1
    }

    pub(super) fn out_channels(&self) -> usize {
        self.conv2.out_channels()
    }
}

/// `Downsample2D`: half the resolution by a convolution of stride 2.
#[derive(Debug, Clone)]
pub(super) struct Downsample2D {
    conv: Conv2d,
    padding: usize,
}

impl Downsample2D {
    pub(super) fn new(channels: usize, padding: usize, vb: &Weights) -> Result<Self> {
        let config = Conv2dConfig { kernel: 3, stride: 2, padding };
        Ok(Self { conv: Conv2d::new(channels, channels, config, &vb.pp("conv"))?, padding })
    }

    pub(super) fn channels(&self) -> usize {
        self.conv.out_channels()
    }

    pub(super) fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        pass.check()?;
        if self.padding > 0 {
            return self.conv.with(pass.adapters).forward(x);
        }
        // Without padding all round, diffusers pads the right and the bottom.
        self.conv.with(pass.adapters).forward(&x.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?)
    }
}

/// `Upsample2D`: a larger resolution by nearest neighbours and a convolution.
#[derive(Debug, Clone)]
pub(super) struct Upsample2D {
    conv: Conv2d,
}

impl Upsample2D {
    pub(super) fn new(channels: usize, vb: &Weights) -> Result<Self> {
        Ok(Self { conv: Conv2d::new(channels, channels, Conv2dConfig::SAME_3X3, &vb.pp("conv"))? })
    }

    /// The same for images that become exactly twice as large.
    pub(super) fn doubling(channels: usize, vb: &Weights) -> Result<Self> {
        Ok(Self::of(Conv2d::doubling(channels, channels, &vb.pp("conv"))?))
    }

    /// The same by a convolution that follows the enlargement.
    pub(super) fn of(conv: Conv2d) -> Self {
        Self { conv }
    }

    pub(super) fn channels(&self) -> usize {
        self.conv.out_channels()
    }

    /// To `size` (height, width): twice the input's, or one less where the way down halved an odd number.
    pub(super) fn forward(&self, x: &Tensor, size: (usize, usize), pass: &Pass) -> Result<Tensor> {
        pass.check()?;
        self.conv.with(pass.adapters).forward_enlarged(x, size)
    }
}
