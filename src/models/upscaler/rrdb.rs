//! `RRDBNet`: residual in residual dense blocks ([Wang et al.](https://arxiv.org/abs/1809.00219)). ESRGAN, `BSRGAN` and Real-ESRGAN are such
//! networks, and ESRGAN+ ([Rakotonirina and Rasoanaivo](https://arxiv.org/abs/2001.08073)) with another residual in each block.

use candle_core::{Result, Tensor};

use super::strips::{Reach, StripBytes, in_strips};
use crate::{
    models::pass::Interrupt,
    ops::{Added, Conv2d, Conv2dConfig, PRelu, Weights, add_images, concat_channels, concat_rows, pixel_unshuffle, scale_image},
};

/// The share of a block's result that is added to its input.
const RESIDUAL: f64 = 0.2;
/// The slope of `LeakyReLU`.
const SLOPE: f64 = 0.2;
/// The convolutions of a dense block.
const CONVS: usize = 5;
/// The sides of a picture are multiples of this before its pixels become channels.
const MULTIPLE: usize = 4;
/// The dense blocks of a block.
const DENSE: usize = 3;

/// How a network is built. Pictures have 3 channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RRDBNetConfig {
    /// Channels between the blocks.
    pub num_feat: usize,
    /// Blocks.
    pub num_block: usize,
    /// Channels that each convolution of a dense block adds.
    pub num_grow_ch: usize,
    /// How often the image is enlarged to twice its size.
    pub num_up: usize,
    /// The side of the squares of pixels that become one, with more channels, before anything else: 1 for none.
    pub unshuffle: usize,
    /// Whether each dense block has the further residuals of ESRGAN+.
    pub plus: bool,
}

impl RRDBNetConfig {
    /// How many pixels each side has for one of the picture's.
    #[must_use]
    pub fn scale(&self) -> usize {
        (1 << self.num_up) / self.unshuffle
    }
}

/// `RRDBNet`.
#[derive(Debug, Clone)]
pub struct RRDBNet {
    conv_first: Conv2d,
    body: Vec<Rrdb>,
    conv_body: Conv2d,
    conv_up: Vec<Conv2d>,
    conv_hr: Conv2d,
    conv_last: Conv2d,
    /// `LeakyReLU` of `num_feat` channels.
    lrelu: PRelu,
    config: RRDBNetConfig,
}

impl RRDBNet {
    /// Reads the weights.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(config: &RRDBNetConfig, vb: &Weights) -> Result<Self> {
        let RRDBNetConfig { num_feat: features, num_block, num_up, unshuffle, .. } = *config;
        let conv = |inputs, outputs, name: &str| Conv2d::new(inputs, outputs, Conv2dConfig::SAME_3X3, &vb.pp(name));
        Ok(Self {
            conv_first: conv(3 * unshuffle * unshuffle, features, "conv_first")?,
            body: (0..num_block).map(|i| Rrdb::new(config, &vb.pp("body").pp(i))).collect::<Result<_>>()?,
            conv_body: conv(features, features, "conv_body")?,
            conv_up: (1..=num_up).map(|i| Conv2d::doubling(features, features, &vb.pp(format!("conv_up{i}")))).collect::<Result<_>>()?,
            conv_hr: conv(features, features, "conv_hr")?,
            conv_last: conv(features, 3, "conv_last")?,
            lrelu: PRelu::leaky(features, SLOPE, vb)?,
            config: config.clone(),
        })
    }

    /// As [`Upscaler::forward`](super::Upscaler::forward).
    pub(super) fn forward(
        &self,
        picture: &Tensor,
        strip: StripBytes,
        interrupt: Interrupt,
        each: &mut impl FnMut(Tensor) -> Result<()>,
    ) -> Result<()> {
        let (_, _, height, width) = picture.dims4()?;
        let (unshuffle, scale) = (self.config.unshuffle, self.config.scale());
        let picture = if unshuffle > 1 { pixel_unshuffle(&padded(picture, MULTIPLE)?, unshuffle)? } else { padded(picture, 1)? };
        let first = self.conv_first.forward(&picture)?;
        let mut x = first.clone();
        for block in &self.body {
            x = block.forward(&x, strip, interrupt)?;
        }
        let x = self.conv_body.forward_add(&x, Added { residual: Some(&first), ..Added::default() })?;
        drop(first);

        // What the picture was padded with is cut off.
        let (width, mut left) = (width * scale, height * scale);
        let each = |rows: Tensor| {
            let rows = rows.narrow(3, 0, width)?.narrow(2, 0, rows.dim(2)?.min(left))?;
            left -= rows.dim(2)?;
            if rows.dim(2)? == 0 { Ok(()) } else { each(rows) }
        };
        in_strips(&x, strip, self.reach(), |rows| self.enlarge(rows, interrupt), each)
    }

    /// What [`RRDBNet::enlarge`] depends on.
    fn reach(&self) -> Reach {
        let scale = 1 << self.config.num_up;
        // Two convolutions at the highest resolution, and one at each, of which the first looks at half a row.
        Reach { rows: 3, numbers: self.config.num_feat * scale * scale, scale }
    }

    fn enlarge(&self, x: &Tensor, interrupt: Interrupt) -> Result<Tensor> {
        let mut x = x.clone();
        for conv in &self.conv_up {
            interrupt.check()?;
            let size = (2 * x.dim(2)?, 2 * x.dim(3)?);
            x = conv.forward_enlarged_prelu(&x, size, &self.lrelu)?;
        }
        interrupt.check()?;
        let x = self.conv_hr.forward_prelu(&x, &self.lrelu)?;
        interrupt.check()?;
        self.conv_last.forward(&x)
    }
}

/// A picture whose sides are at least 2 and multiples of `multiple`: it goes on, below and on the right, as in a mirror, and beyond that with
/// its last pixels. As spandrel's `pad_tensor` does it.
fn padded(picture: &Tensor, multiple: usize) -> Result<Tensor> {
    let mut padded = picture.clone();
    for dim in [3, 2] {
        let side = picture.dim(dim)?;
        let length = side.max(2).next_multiple_of(multiple);
        if length > side {
            let mirrored = |i: usize| if i < side { i } else { (2 * side - 2).saturating_sub(i) };
            // What is mirrored ends with the first pixel; the last of it is repeated.
            let index: Vec<u32> = (0..length).map(|i| mirrored(i) as u32).collect();
            padded = padded.contiguous()?.index_select(&Tensor::from_vec(index, length, picture.device())?, dim)?;
        }
    }
    Ok(padded)
}

/// A residual in residual dense block.
#[derive(Debug, Clone)]
struct Rrdb {
    rdb: Vec<ResidualDenseBlock>,
}

impl Rrdb {
    fn new(config: &RRDBNetConfig, vb: &Weights) -> Result<Self> {
        let rdb = (1..=DENSE).map(|i| ResidualDenseBlock::new(config, &vb.pp(format!("rdb{i}"))));
        Ok(Self { rdb: rdb.collect::<Result<_>>()? })
    }

    /// `(1, num_feat, height, width)` to the same shape.
    fn forward(&self, x: &Tensor, strip: StripBytes, interrupt: Interrupt) -> Result<Tensor> {
        let mut out = x.clone();
        for block in &self.rdb {
            let mut parts = Vec::new();
            in_strips(
                &out,
                strip,
                block.reach(),
                |rows| block.forward(rows, interrupt),
                |rows| {
                    parts.push(rows);
                    Ok(())
                },
            )?;
            out = if let [whole] = &*parts { whole.clone() } else { concat_rows(&parts)? };
        }
        add_images(&scale_image(&out, RESIDUAL)?, x)
    }
}

/// Convolutions, each of which sees the results of all before it.
#[derive(Debug, Clone)]
struct ResidualDenseBlock {
    convs: Vec<Conv2d>,
    conv5: Conv2d,
    /// Of ESRGAN+.
    conv1x1: Option<Conv2d>,
    /// `LeakyReLU` of `num_grow_ch` channels.
    lrelu: PRelu,
}

impl ResidualDenseBlock {
    fn new(config: &RRDBNetConfig, vb: &Weights) -> Result<Self> {
        let RRDBNetConfig { num_feat: features, num_grow_ch: grown, .. } = *config;
        let conv = |i: usize, outputs| Conv2d::new(features + (i - 1) * grown, outputs, Conv2dConfig::SAME_3X3, &vb.pp(format!("conv{i}")));
        let conv1x1 = config.plus.then(|| Conv2d::without_bias(features, grown, Conv2dConfig::POINTWISE, &vb.pp("conv1x1")));
        Ok(Self {
            convs: (1..CONVS).map(|i| conv(i, grown)).collect::<Result<_>>()?,
            conv5: conv(CONVS, features)?,
            conv1x1: conv1x1.transpose()?,
            lrelu: PRelu::leaky(grown, SLOPE, vb)?,
        })
    }

    fn reach(&self) -> Reach {
        let grown = self.convs.iter().map(Conv2d::out_channels).sum::<usize>();
        Reach { rows: CONVS, numbers: self.conv5.out_channels() + grown, scale: 1 }
    }

    /// `(1, num_feat, height, width)` to the same shape.
    fn forward(&self, x: &Tensor, interrupt: Interrupt) -> Result<Tensor> {
        let mut all = x.clone();
        let mut second = None;
        for (i, conv) in self.convs.iter().enumerate() {
            interrupt.check()?;
            let mut grown = conv.forward_prelu(&all, &self.lrelu)?;
            match (&self.conv1x1, &second) {
                (Some(conv1x1), None) if i == 1 => {
                    grown = conv1x1.forward_onto(x, grown)?;
                    second = Some(grown.clone());
                }
                (Some(_), Some(second)) if i == 3 => grown = add_images(&grown, second)?,
                _ => {}
            }
            all = concat_channels(&all, &grown)?;
        }
        interrupt.check()?;
        add_images(&scale_image(&self.conv5.forward(&all)?, RESIDUAL)?, x)
    }
}
