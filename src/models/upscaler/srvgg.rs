//! `SRVGGNetCompact`: convolutions of one width, whose last one makes all pixels of the result. Real-ESRGAN's small networks, such as
//! `realesr-general-x4v3` ([Wang et al.](https://arxiv.org/abs/2107.10833)).

use candle_core::{Result, Tensor};

use super::strips::{Reach, StripBytes, in_strips};
use crate::{
    models::pass::Interrupt,
    ops::{Added, Conv2d, Conv2dConfig, PRelu, Weights, pixel_shuffle, repeat_channels},
};

/// How a network is built. Pictures have 3 channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SRVGGNetCompactConfig {
    /// Channels between the layers.
    pub num_feat: usize,
    /// Convolutions between the first and the last.
    pub num_conv: usize,
    /// How many pixels each side has for one of the picture's.
    pub upscale: usize,
}

/// `SRVGGNetCompact`.
#[derive(Debug, Clone)]
pub struct SRVGGNetCompact {
    body: Vec<(Conv2d, PRelu)>,
    last: Conv2d,
    config: SRVGGNetCompactConfig,
}

impl SRVGGNetCompact {
    /// Reads the weights.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(config: &SRVGGNetCompactConfig, vb: &Weights) -> Result<Self> {
        let SRVGGNetCompactConfig { num_feat, num_conv, upscale } = *config;
        let body = vb.pp("body");
        // Activations have numbers of their own.
        let layer = |i: usize| {
            let conv = Conv2d::new(if i == 0 { 3 } else { num_feat }, num_feat, Conv2dConfig::SAME_3X3, &body.pp(2 * i))?;
            Ok((conv, PRelu::new(num_feat, &body.pp(2 * i + 1))?))
        };
        let layers = (0..=num_conv).map(layer).collect::<Result<_>>()?;
        let last = Conv2d::new(num_feat, 3 * upscale * upscale, Conv2dConfig::SAME_3X3, &body.pp(2 * num_conv + 2))?;
        Ok(Self { body: layers, last, config: config.clone() })
    }

    /// As [`Upscaler::forward`](super::Upscaler::forward).
    pub(super) fn forward(
        &self,
        picture: &Tensor,
        strip: StripBytes,
        interrupt: Interrupt,
        each: &mut impl FnMut(Tensor) -> Result<()>,
    ) -> Result<()> {
        let SRVGGNetCompactConfig { num_feat, num_conv, upscale: scale } = self.config;
        let reach = Reach { rows: num_conv + 2, numbers: num_feat.max(3 * scale * scale), scale };
        in_strips(picture, strip, reach, |rows| self.enlarge(rows, interrupt), each)
    }

    fn enlarge(&self, picture: &Tensor, interrupt: Interrupt) -> Result<Tensor> {
        let scale = self.config.upscale;
        let mut x = picture.clone();
        for (conv, prelu) in &self.body {
            interrupt.check()?;
            x = conv.forward_prelu(&x, prelu)?;
        }
        // The network learns what nearest neighbours lack.
        let nearest = repeat_channels(picture, scale * scale)?;
        pixel_shuffle(&self.last.forward_add(&x, Added { residual: Some(&nearest), ..Added::default() })?, scale)
    }
}
