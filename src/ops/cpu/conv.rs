//! Convolutions of images with their channels last: `(batch, height, width, channels)` to `(batch, height', width', outputs)`.

use std::ops::Range;

use super::{
    band::{BAND, Source},
    epilogue::Epilogue,
    machine::Machine,
    matmul::{Inputs, matmul},
    memory::written,
    norm::Normalization,
    output::Output,
    padded::{Kernel, PaddedConv},
    panels::Panels,
    products::Products,
    winograd::{self, Points},
};
use crate::ops::{Conv2dConfig, weight_type::DenseType};

/// The size of a batch of images in memory, and the size that the convolution enlarges them to first, by nearest neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) struct Shape {
    pub(in crate::ops) batch: usize,
    /// In memory.
    pub(in crate::ops) height: usize,
    /// In memory.
    pub(in crate::ops) width: usize,
    /// Height and width that the convolution sees. Those in memory, where the image is not enlarged.
    pub(in crate::ops) seen: (usize, usize),
}

/// A convolution, whose weights are a matrix `(kernel * kernel * channels, outputs)`.
#[derive(Debug, Clone)]
pub(in crate::ops) struct PackedConv {
    panels: Panels,
    bias: Vec<f32>,
    channels: usize,
    config: Conv2dConfig,
    /// Of Winograd's algorithm.
    points: Points,
    /// Whether the panels are packed for [`Kernel::Doubling`].
    doubling: bool,
}

/// How a convolution is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    /// As one matrix product: a row of inputs is the window of a pixel.
    Direct,
    /// See [`winograd`].
    Winograd,
    /// See [`padded`](super::padded).
    Padded,
}

/// An image narrower than this has too many positions at the ends of its rows for [`Algorithm::Padded`].
const PADDED_WIDTH: usize = 16;

impl PackedConv {
    /// Packs `weight` `(outputs, channels, kernel, kernel)`.
    pub(in crate::ops) fn new(
        machine: Machine,
        dtype: DenseType,
        weight: &[f32],
        channels: usize,
        bias: Vec<f32>,
        config: Conv2dConfig,
    ) -> Self {
        let points = Points::new(machine, channels);
        let machine = match config {
            Conv2dConfig::SAME_3X3 => machine.of_3x3(),
            _ if machine.products.takes_parts_of(channels) => machine,
            _ => machine.floating(),
        };
        let taps = config.kernel * config.kernel;
        let column = |n: usize| Some(&weight[n * channels * taps..][..channels * taps]);
        let offsets: Vec<usize> = (0..taps * channels).map(|k| k % channels * taps + k / channels).collect();
        let panels = Panels::new(machine, dtype, bias.len(), column, &offsets);
        Self { panels, bias, channels, config, points, doubling: false }
    }

    /// Packs a 3 x 3 convolution that takes images enlarged to twice their size, and no others.
    pub(in crate::ops) fn doubling(machine: Machine, dtype: DenseType, weight: &[f32], channels: usize, bias: Vec<f32>) -> Self {
        let exact = machine.of_3x3();
        if exact.products.is_plain() || !Kernel::Doubling.takes(exact, channels, bias.len()) {
            return Self::new(machine, dtype, weight, channels, bias, Conv2dConfig::SAME_3X3);
        }
        let at = |output: usize, channel: usize, y: usize, x: usize| weight[((output * channels + channel) * 3 + y) * 3 + x];
        let panels = Kernel::Doubling.pack(exact, dtype, (channels, bias.len()), at);
        Self { panels, bias, channels, config: Conv2dConfig::SAME_3X3, points: Points::F32, doubling: true }
    }

    /// Channels of the result.
    pub(in crate::ops) fn outputs(&self) -> usize {
        self.bias.len()
    }

    /// Channels of the image.
    pub(in crate::ops) fn channels(&self) -> usize {
        self.channels
    }

    /// Whether it takes nothing but images that are enlarged to twice their size.
    pub(in crate::ops) fn is_doubling(&self) -> bool {
        self.doubling
    }

    /// Height and width of the result.
    pub(in crate::ops) fn output_size(&self, seen: (usize, usize)) -> (usize, usize) {
        let Conv2dConfig { kernel, stride, padding } = self.config;
        let side = |side: usize| (side + 2 * padding).saturating_sub(kernel) / stride + 1;
        (side(seen.0), side(seen.1))
    }

    /// Pixels of an image, normalized first if `norm` says how, to pixels of the result.
    pub(in crate::ops) fn forward(&self, pixels: &[f32], shape: Shape, norm: Option<&Normalization>, epilogue: Epilogue) -> Vec<f32> {
        self.forward_by(self.algorithm(shape), pixels, shape, norm, epilogue)
    }

    /// Whether the result can take the memory of such an image.
    pub(in crate::ops) fn works_in_place(&self, shape: Shape) -> bool {
        let keeps_shape = self.output_size(shape.seen) == (shape.height, shape.width) && self.outputs() == self.channels;
        keeps_shape && !self.doubling && self.algorithm(shape) != Algorithm::Direct
    }

    /// [`PackedConv::forward`] where [`PackedConv::works_in_place`]: the result takes the place of the image.
    pub(in crate::ops) fn forward_in_place(&self, pixels: &mut [f32], shape: Shape, norm: Option<&Normalization>, epilogue: Epilogue) {
        self.write(self.algorithm(shape), None, shape, norm, epilogue, &mut Output::over(pixels));
    }

    /// Adds the result to `onto`, which has its shape.
    pub(in crate::ops) fn forward_onto(&self, pixels: &[f32], shape: Shape, onto: &mut [f32]) {
        let epilogue = Epilogue { onto: true, ..Epilogue::default() };
        self.write(self.algorithm(shape), Some(pixels), shape, None, epilogue, &mut Output::over(onto));
    }

    /// With a choice of algorithm, for tests.
    #[allow(unsafe_code)]
    pub(super) fn forward_by(
        &self,
        algorithm: Algorithm,
        pixels: &[f32],
        shape: Shape,
        norm: Option<&Normalization>,
        epilogue: Epilogue,
    ) -> Vec<f32> {
        let (height, width) = self.output_size(shape.seen);
        let write = |out: &mut [_]| self.write(algorithm, Some(pixels), shape, norm, epilogue, &mut Output::new(out));
        // SAFETY: every row of the result is written, and the panels have a column for each output.
        unsafe { written(shape.batch * height * width * self.outputs(), write) }
    }

    /// The fastest algorithm. It follows from the size of one image: the rest of the batch must not change an image's numbers.
    fn algorithm(&self, shape: Shape) -> Algorithm {
        let fastest = if self.panels.machine.products.is_plain() {
            if winograd::pays(self.channels, shape.seen) { Algorithm::Winograd } else { Algorithm::Direct }
        } else if self.doubling || shape.width >= PADDED_WIDTH {
            Algorithm::Padded
        } else {
            Algorithm::Direct
        };
        if self.takes(fastest, shape) { fastest } else { Algorithm::Direct }
    }

    /// Whether an algorithm can convolve such an image.
    fn takes(&self, algorithm: Algorithm, shape: Shape) -> bool {
        let same = self.config == Conv2dConfig::SAME_3X3 && self.output_size(shape.seen) == shape.seen;
        let enlarged = |scale: usize| shape.seen == (scale * shape.height, scale * shape.width);
        match algorithm {
            Algorithm::Padded if self.doubling => same && enlarged(2),
            Algorithm::Padded => same && enlarged(1) && Kernel::Same.takes(self.panels.machine, self.channels, self.outputs()),
            Algorithm::Winograd => same && !self.doubling && self.panels.machine.products.is_plain(),
            Algorithm::Direct => !self.doubling,
        }
    }

    /// Writes every row of the result. Where there are no `pixels`, the result's memory holds the image, whose shape it must have; the
    /// direct algorithm cannot do that.
    fn write(
        &self,
        algorithm: Algorithm,
        pixels: Option<&[f32]>,
        shape: Shape,
        norm: Option<&Normalization>,
        epilogue: Epilogue,
        out: &mut Output,
    ) {
        let Shape { batch, height, width, seen } = shape;
        let (output, numbers) = (self.output_size(seen), batch * height * width * self.channels);
        assert!(self.takes(algorithm, shape), "{algorithm:?} does not take {shape:?}");
        assert!(out.len() == batch * output.0 * output.1 * self.outputs());
        assert!(pixels.map_or(output == (height, width) && out.len() == numbers, |pixels| pixels.len() == numbers));
        let epilogue = Epilogue { columns: self.outputs(), bias: Some(&self.bias), ..epilogue };
        match (algorithm, pixels) {
            (Algorithm::Padded, _) => {
                let kernel = if self.doubling { Kernel::Doubling } else { Kernel::Same };
                let (shape, weights, epilogue) = ((batch, height, width), &self.panels, &epilogue);
                PaddedConv { kernel, pixels, shape, channels: self.channels, norm, weights, epilogue }.run(out);
            }
            (Algorithm::Winograd, _) => {
                winograd::convolve(pixels, (shape, self.channels), norm, (&self.panels, self.points), &epilogue, out);
            }
            (Algorithm::Direct, Some(values)) => {
                let image = Pixels { values, first: 0, pitch: self.channels, shape, channels: self.channels };
                let source = Source { image, norm, products: self.panels.machine.products };
                self.direct(&source, output, &epilogue, out);
            }
            (Algorithm::Direct, None) => panic!("a direct convolution takes memory of its own"),
        }
    }

    fn direct(&self, source: &Source, (height, width): (usize, usize), epilogue: &Epilogue, out: &mut Output) {
        let Shape { batch, height: image_height, seen, .. } = source.image.shape;
        let Conv2dConfig { kernel, stride, padding } = self.config;
        let rows = batch * height;
        let bands = if source.is_prepared() { 1 } else { (batch * image_height * source.row_bytes()).div_ceil(BAND) };
        let band = rows.div_ceil(bands.max(1)).max(1);
        for first in (0..rows).step_by(band) {
            let last = (first + band).min(rows) - 1;
            // Where a row that the convolution sees is in memory.
            let place = |row: usize, seen_row: usize| row / height * image_height + seen_row.min(seen.0 - 1) * image_height / seen.0;
            let from = place(first, (first % height * stride).saturating_sub(padding));
            let to = place(last, (last % height * stride + kernel - 1).saturating_sub(padding));
            source.with_rows(from..to + 1, |image| {
                let windows = Windows { image: *image, config: self.config, output: (height, width) };
                matmul(&windows, first * width..(last + 1) * width, &self.panels, epilogue, out);
            });
        }
    }
}

/// Some rows of a batch of images, as they are or prepared.
#[derive(Clone, Copy)]
pub(super) struct Pixels<'a> {
    pub(super) values: &'a [f32],
    /// The first pixel of `values`, counted over the whole batch.
    pub(super) first: usize,
    /// Words from pixel to pixel.
    pub(super) pitch: usize,
    pub(super) shape: Shape,
    pub(super) channels: usize,
}

impl Pixels<'_> {
    /// The pixel at a place of the enlarged image; none outside of it.
    #[inline(always)]
    pub(super) fn at(&self, batch: usize, y: isize, x: isize) -> Option<&[f32]> {
        let Shape { height, width, seen, .. } = self.shape;
        if y < 0 || x < 0 || y as usize >= seen.0 || x as usize >= seen.1 {
            return None;
        }
        let (y, x) = (y as usize * height / seen.0, x as usize * width / seen.1);
        let start = ((batch * height + y) * width + x - self.first) * self.pitch;
        Some(&self.values[start..start + self.pitch])
    }
}

/// The windows of all pixels of the result: rows of `kernel * kernel * channels` numbers, with zeros outside of the image.
struct Windows<'a> {
    image: Pixels<'a>,
    config: Conv2dConfig,
    /// Height and width of the result.
    output: (usize, usize),
}

impl Inputs for Windows<'_> {
    /// A window's pixels are prepared already.
    #[inline(always)]
    fn prepare(&self, products: Products, row: usize, from: Range<usize>, line: &mut [f32]) {
        let Conv2dConfig { kernel, stride, padding } = self.config;
        let (height, width) = self.output;
        let (batch, y, x) = (row / (height * width), row / width % height, row % width);
        let at = |output: usize, tap: usize| (output * stride + tap).cast_signed() - padding.cast_signed();
        let channels = self.image.channels;
        let (mut tap, mut channel, mut done) = (from.start / channels, from.start % channels, 0);
        while done < from.len() {
            let end = from.len().min(done + channels - channel);
            let pixel = self.image.at(batch, at(y, tap / kernel), at(x, tap % kernel));
            products.copy(pixel.map(|pixel| (pixel, channel)), line, done..end);
            (tap, channel, done) = (tap + 1, 0, end);
        }
        products.copy(None, line, done..products.padded(done));
    }
}
