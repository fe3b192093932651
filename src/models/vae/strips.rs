//! Images that are too large to be worked out whole: strip by strip, with the same numbers.
//!
//! A strip of rows is worked out from all the rows that its convolutions see, so nothing needs to be blended. Group norms alone see the
//! whole image: before a norm is used, all strips are worked out as far as to it, for its statistics. Up to the last norm, the image is held
//! whole wherever it is small enough; what is larger is worked out again from there, for every norm and for the result. That takes several times
//! the work, and nothing of the picture changes: statistics from a sample of the image, as others estimate them, leave seams or shift
//! colours.

use std::{collections::VecDeque, ops::Range};

use candle_core::{Result, Tensor};

use super::{Tiling, tiny::AutoencoderTinyBlock};
use crate::{
    models::{
        pass::Pass,
        resnet::{Downsample2D, ResnetBlock2D, Upsample2D},
    },
    ops::{Added, Conv2d, GroupNorm, GroupStatistics, concat_rows},
};

/// A layer whose output rows depend on few input rows. Its norms alone depend on the whole image.
#[derive(Debug, Clone)]
pub(super) enum StripLayer<'a> {
    /// 3 x 3.
    Conv(&'a Conv2d),
    /// The same, and then ReLU.
    ConvRelu(&'a Conv2d),
    /// 3 x 3, of the image after a norm and SiLU.
    NormedConv(GroupNorm, &'a Conv2d),
    /// A block, with the norms in place of its own.
    Resnet([GroupNorm; 2], &'a ResnetBlock2D),
    /// A block without norms.
    Tiny(&'a AutoencoderTinyBlock),
    /// To half the size.
    Down(&'a Downsample2D),
    /// To twice the size.
    Up(&'a Upsample2D),
}

/// Limits of memory, in bytes of f32.
#[derive(Debug, Clone, Copy)]
pub(super) struct StripLimits {
    /// The largest image that is held whole.
    pub(super) whole: usize,
    /// About the size of a strip, without the rows above and below that its layers look at.
    pub(super) strip: usize,
}

impl StripLimits {
    /// With the strips' own tensors, these keep a picture of 4096 x 4096 within 6 GiB.
    const LARGEST: Self = Self { whole: 4 << 30, strip: 256 << 20 };

    /// The limits for an image that takes `bytes` as a whole; `None` if it is not cut.
    pub(super) fn of(tiling: Tiling, bytes: usize) -> Option<Self> {
        let Self { whole, strip } = Self::LARGEST;
        match tiling {
            Tiling::Auto => (bytes > whole).then_some(Self::LARGEST),
            Tiling::On => Some(Self { whole: whole.min(bytes / 3), strip: strip.min(bytes / 16).max(1) }),
            Tiling::Off => None,
        }
    }
}

/// The size of an image.
#[derive(Debug, Clone, Copy)]
struct Extent {
    channels: usize,
    height: usize,
    width: usize,
}

impl Extent {
    fn of(x: &Tensor) -> Result<Self> {
        let (_, channels, height, width) = x.dims4()?;
        Ok(Self { channels, height, width })
    }

    fn bytes(self) -> usize {
        self.channels * self.height * self.width * size_of::<f32>()
    }
}

impl<'a> StripLayer<'a> {
    pub(super) fn resnet(block: &'a ResnetBlock2D) -> Self {
        Self::Resnet(block.norms().clone(), block)
    }

    fn has_norms(&self) -> bool {
        matches!(self, Self::NormedConv(..) | Self::Resnet(..))
    }

    /// `(batch, channels, height, width)`, all of an image or some rows of it.
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        pass.check()?;
        match self {
            Self::Conv(conv) => conv.forward(x),
            Self::ConvRelu(conv) => conv.forward_relu(x, Added::default()),
            Self::NormedConv(norm, conv) => conv.forward_normed(norm, x, Added::default()),
            Self::Resnet(norms, block) => block.forward_with(norms, x, pass),
            Self::Tiny(block) => block.forward(x, pass),
            Self::Down(down) => down.forward(x, pass),
            Self::Up(up) => up.forward(x, (2 * x.dim(2)?, 2 * x.dim(3)?), pass),
        }
    }

    /// What becomes of an image of this size.
    fn output(&self, extent: Extent) -> Extent {
        let Extent { height, width, .. } = extent;
        match self {
            Self::Tiny(_) => extent,
            Self::Conv(conv) | Self::ConvRelu(conv) | Self::NormedConv(_, conv) => Extent { channels: conv.out_channels(), height, width },
            Self::Resnet(_, block) => Extent { channels: block.out_channels(), height, width },
            Self::Down(down) => Extent { channels: down.channels(), height: height / 2, width: width / 2 },
            Self::Up(up) => Extent { channels: up.channels(), height: 2 * height, width: 2 * width },
        }
    }

    /// The rows of an image of this height that `rows` of the result depend on.
    fn seen(&self, rows: &Range<usize>, height: usize) -> Range<usize> {
        let around = |by: usize| rows.start.saturating_sub(by)..(rows.end + by).min(height);
        match self {
            Self::Conv(_) | Self::ConvRelu(_) | Self::NormedConv(..) => around(1),
            Self::Resnet(..) => around(2),
            Self::Tiny(_) => around(AutoencoderTinyBlock::SEEN),
            Self::Down(_) => 2 * rows.start..(2 * rows.end + 1).min(height),
            Self::Up(_) => rows.start.saturating_sub(1) / 2..(rows.end + 1).div_ceil(2).min(height),
        }
    }

    /// Where the result of rows from `start` on begins.
    fn begin(&self, start: usize) -> usize {
        match self {
            Self::Conv(_) | Self::ConvRelu(_) | Self::NormedConv(..) | Self::Resnet(..) | Self::Tiny(_) => start,
            Self::Down(_) => start / 2,
            Self::Up(_) => 2 * start,
        }
    }
}

/// The whole image through all layers.
pub(super) fn forward_whole(mut x: Tensor, layers: &[StripLayer], pass: &Pass) -> Result<Tensor> {
    for layer in layers {
        x = layer.forward(&x, pass)?;
    }
    Ok(x)
}

/// The most bytes that [`forward_whole`] takes, about: what goes into a layer and what comes out of it.
pub(super) fn bytes_whole(x: &Tensor, layers: &[StripLayer]) -> Result<usize> {
    let (mut before, mut most) = (Extent::of(x)?, 0);
    for layer in layers {
        let after = layer.output(before);
        most = most.max(before.bytes() + after.bytes());
        before = after;
    }
    Ok(most * x.dim(0)?)
}

/// The same as [`forward_whole`] up to rounding, of one image `(1, channels, height, width)`.
pub(super) fn forward_in_strips(x: Tensor, layers: Vec<StripLayer>, limits: StripLimits, pass: &Pass) -> Result<Tensor> {
    let extent = Extent::of(&x)?;
    let mut strips = Strips { held: Held { bands: [x].into(), first: 0, extent }, pending: Vec::new(), limits, pass };
    // Nothing after the last norm is worked out twice.
    let last_norm = layers.iter().rposition(StripLayer::has_norms).unwrap_or_default();
    for (i, mut layer) in layers.into_iter().enumerate() {
        strips.settle(&mut layer)?;
        strips.pending.push(layer);
        if i < last_norm && strips.extent().bytes() <= limits.whole {
            strips.hold()?;
        }
    }
    strips.hold()?;
    concat_rows(strips.held.bands.make_contiguous())
}

/// An image in bands of rows, the upper ones of which may be gone.
struct Held {
    bands: VecDeque<Tensor>,
    /// The first row that is still there.
    first: usize,
    extent: Extent,
}

impl Held {
    fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        let (mut parts, mut start) = (Vec::new(), self.first);
        for band in &self.bands {
            let end = start + band.dim(2)?;
            let (from, to) = (rows.start.max(start), rows.end.min(end));
            if from < to {
                parts.push(band.narrow(2, from - start, to - from)?);
            }
            start = end;
        }
        match parts.as_slice() {
            [part] => Ok(part.clone()),
            parts => concat_rows(parts),
        }
    }

    fn forget_before(&mut self, row: usize) -> Result<()> {
        while let Some(band) = self.bands.front() {
            let end = self.first + band.dim(2)?;
            if end > row {
                break;
            }
            self.first = end;
            self.bands.pop_front();
        }
        Ok(())
    }
}

/// An image that is held, and layers that are still to be applied to it.
struct Strips<'a> {
    held: Held,
    /// Their norms have their statistics.
    pending: Vec<StripLayer<'a>>,
    limits: StripLimits,
    pass: &'a Pass<'a>,
}

impl<'a> Strips<'a> {
    /// Gives the norms of the layer that is next the statistics of the whole image.
    fn settle(&mut self, layer: &mut StripLayer<'a>) -> Result<()> {
        match layer {
            StripLayer::Conv(_) | StripLayer::ConvRelu(_) | StripLayer::Tiny(_) | StripLayer::Down(_) | StripLayer::Up(_) => {}
            StripLayer::NormedConv(norm, _) => *norm = self.settled(norm)?,
            StripLayer::Resnet([first, second], block) => {
                *first = self.settled(first)?;
                self.pending.push(StripLayer::NormedConv(first.clone(), block.conv1()));
                *second = self.settled(second)?;
                self.pending.pop();
            }
        }
        Ok(())
    }

    fn settled(&self, norm: &GroupNorm) -> Result<GroupNorm> {
        let of_strip = |rows: Range<usize>| Ok((norm.statistics(&self.strip(&rows)?)?, rows.len()));
        let parts = self.cut().map(of_strip).collect::<Result<Vec<_>>>()?;
        Ok(norm.with_statistics(GroupStatistics::joined(&parts)))
    }

    /// Applies the layers to the whole image. What is held is given back from the top on, as soon as no strip sees it any more.
    fn hold(&mut self) -> Result<()> {
        let (extent, mut bands) = (self.extent(), VecDeque::new());
        for rows in self.cut().collect::<Vec<_>>() {
            self.held.forget_before(self.seen(&rows)[0].start)?;
            // A copy: the rows around it are not held.
            bands.push_back(concat_rows(&[self.strip(&rows)?])?);
        }
        self.held = Held { bands, first: 0, extent };
        self.pending.clear();
        Ok(())
    }

    /// The image's size before and after each layer.
    fn extents(&self) -> Vec<Extent> {
        let mut extents = vec![self.held.extent];
        for (layer, i) in self.pending.iter().zip(0..) {
            extents.push(layer.output(extents[i]));
        }
        extents
    }

    fn extent(&self) -> Extent {
        self.pending.iter().fold(self.held.extent, |extent, layer| layer.output(extent))
    }

    /// The result's rows, in strips.
    fn cut(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let most = self.extents().into_iter().map(Extent::bytes).max().unwrap_or_default();
        let height = self.extent().height;
        let rows = height.div_ceil(most.div_ceil(self.limits.strip)).max(1);
        (0..height).step_by(rows).map(move |start| start..(start + rows).min(height))
    }

    /// The rows that are needed of the held image, and of what each layer makes of it.
    fn seen(&self, rows: &Range<usize>) -> Vec<Range<usize>> {
        let mut seen = vec![rows.clone()];
        for (layer, extent) in self.pending.iter().zip(self.extents()).rev() {
            seen.insert(0, layer.seen(&seen[0], extent.height));
        }
        seen
    }

    fn strip(&self, rows: &Range<usize>) -> Result<Tensor> {
        let seen = self.seen(rows);
        let mut x = self.held.rows(seen[0].clone())?;
        for (layer, seen) in self.pending.iter().zip(seen.windows(2)) {
            // At the ends of the strip come rows that saw nothing beyond them: nobody needs those.
            x = layer.forward(&x, self.pass)?.narrow(2, seen[1].start - layer.begin(seen[0].start), seen[1].len())?;
        }
        Ok(x)
    }
}

#[cfg(test)]
mod tests;
