//! Convolution over images with their channels last.

use std::ops::Range;

use bytemuck::cast_slice;

use super::{
    amx::Amx,
    band::{BAND, Source},
    epilogue::Epilogue,
    machine::Machine,
    matmul::{Inputs, matmul},
    memory::{Shared, written},
    norm::Normalization,
    padded::{Kernel, PaddedConv},
    panels::Panels,
    winograd,
};
use crate::ops::{Conv2dConfig, Storage};

/// The size of an image in memory and, if it is enlarged on the way, as the convolution sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) struct Shape {
    /// Pictures.
    pub(in crate::ops) batch: usize,
    /// Rows of pixels in memory.
    pub(in crate::ops) height: usize,
    /// Pixels of a row in memory.
    pub(in crate::ops) width: usize,
    /// Rows and pixels of a row that are seen: by nearest neighbours, where they are more.
    pub(in crate::ops) seen: (usize, usize),
}

/// The weights of a convolution: a matrix `(kernel * kernel * channels, outputs)`.
#[derive(Debug, Clone)]
pub(in crate::ops) struct PackedConv {
    panels: Panels,
    bias: Vec<f32>,
    channels: usize,
    config: Conv2dConfig,
    /// Whether the panels are those of [`Kernel::Doubling`].
    doubling: bool,
}

/// How a convolution is worked out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    /// As it is defined.
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
    pub(in crate::ops) fn new(storage: Storage, weight: &[f32], channels: usize, bias: Vec<f32>, config: Conv2dConfig) -> Self {
        Self::on(Machine::best(), storage, weight, channels, bias, config)
    }

    /// With a choice of instructions, for tests.
    pub(super) fn on(machine: Machine, storage: Storage, weight: &[f32], channels: usize, bias: Vec<f32>, config: Conv2dConfig) -> Self {
        let taps = config.kernel * config.kernel;
        let at = |k: usize, n: usize| weight[(n * channels + k % channels) * taps + k / channels];
        let panels = Panels::new(machine, storage, taps * channels, bias.len(), at);
        Self { panels, bias, channels, config, doubling: false }
    }

    /// Packs a 3 x 3 convolution for images that are enlarged to twice their size, and no others.
    pub(in crate::ops) fn doubling(storage: Storage, weight: &[f32], channels: usize, bias: Vec<f32>) -> Self {
        Self::doubling_on(Machine::best(), storage, weight, channels, bias)
    }

    /// With a choice of instructions, for tests.
    pub(super) fn doubling_on(machine: Machine, storage: Storage, weight: &[f32], channels: usize, bias: Vec<f32>) -> Self {
        if machine.amx.is_none() || !Kernel::Doubling.takes(channels, bias.len()) {
            return Self::on(machine, storage, weight, channels, bias, Conv2dConfig::SAME_3X3);
        }
        let at = |output: usize, channel: usize, y: usize, x: usize| weight[((output * channels + channel) * 3 + y) * 3 + x];
        let panels = Kernel::Doubling.pack(machine, storage, (channels, bias.len()), at);
        Self { panels, bias, channels, config: Conv2dConfig::SAME_3X3, doubling: true }
    }

    /// Channels of the result.
    pub(in crate::ops) fn outputs(&self) -> usize {
        self.bias.len()
    }

    /// Channels of the image.
    pub(in crate::ops) fn channels(&self) -> usize {
        self.channels
    }

    /// Whether it takes images that are enlarged to twice their size alone.
    pub(in crate::ops) fn is_doubling(&self) -> bool {
        self.doubling
    }

    /// Height and width of the result.
    pub(in crate::ops) fn output_size(&self, seen: (usize, usize)) -> (usize, usize) {
        let Conv2dConfig { kernel, stride, padding } = self.config;
        let side = |side: usize| (side + 2 * padding).saturating_sub(kernel) / stride + 1;
        (side(seen.0), side(seen.1))
    }

    /// Pixels of an image, normalised on the way if `norm` says how, to pixels of the result.
    pub(in crate::ops) fn forward(&self, pixels: &[f32], shape: Shape, norm: Option<&Normalization>, epilogue: Epilogue) -> Vec<f32> {
        self.forward_by(self.algorithm(shape), pixels, shape, norm, epilogue)
    }

    /// The same, and where the algorithm can do it, the result takes the image's memory.
    #[allow(unsafe_code)]
    pub(in crate::ops) fn forward_in_place(
        &self,
        mut pixels: Vec<f32>,
        shape: Shape,
        norm: Option<&Normalization>,
        epilogue: Epilogue,
    ) -> Vec<f32> {
        let algorithm = self.algorithm(shape);
        let keeps_shape = shape.seen == (shape.height, shape.width) && self.outputs() == self.channels && !self.doubling;
        if algorithm == Algorithm::Direct || !keeps_shape {
            return self.forward(&pixels, shape, norm, epilogue);
        }
        let memory = Shared::of(&mut pixels);
        // SAFETY: the vector is at hand here alone.
        unsafe { self.write(algorithm, memory, shape, norm, epilogue, memory) };
        pixels
    }

    /// Adds the result to what `onto` holds, of the result's shape.
    #[allow(unsafe_code)]
    pub(in crate::ops) fn forward_onto(&self, pixels: &[f32], shape: Shape, mut onto: Vec<f32>) -> Vec<f32> {
        let (epilogue, out) = (Epilogue { onto: true, ..Epilogue::default() }, Shared::of(&mut onto));
        // SAFETY: the vector is at hand here alone, and all of it is written.
        unsafe { self.write(self.algorithm(shape), Shared::to_read(pixels), shape, None, epilogue, out) };
        onto
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
        let write = |out: &mut [_]| unsafe {
            // SAFETY: the memory is new.
            self.write(algorithm, Shared::to_read(pixels), shape, norm, epilogue, Shared::new(out));
        };
        // SAFETY: every row of the result is written.
        unsafe { written(shape.batch * height * width * self.outputs(), write) }
    }

    /// The fastest. Of one picture: the others of a batch must not change its numbers.
    fn algorithm(&self, shape: Shape) -> Algorithm {
        let same = self.config == Conv2dConfig::SAME_3X3;
        // Tile units do the four times as many multiplications faster than vectors do the transforms.
        if self.panels.machine.amx.is_none() {
            return if same && winograd::pays(self.channels, shape.seen) { Algorithm::Winograd } else { Algorithm::Direct };
        }
        let plain = same && shape.seen == (shape.height, shape.width) && Kernel::Same.takes(self.channels, self.outputs());
        if self.doubling || plain && shape.width >= PADDED_WIDTH { Algorithm::Padded } else { Algorithm::Direct }
    }

    /// Writes every row of the result.
    ///
    /// # Safety
    /// Nobody else writes to the image or looks at the result. They may be the same memory, but for [`Algorithm::Direct`], where the shape
    /// stays.
    #[allow(unsafe_code)]
    unsafe fn write(
        &self,
        algorithm: Algorithm,
        pixels: Shared,
        shape: Shape,
        norm: Option<&Normalization>,
        epilogue: Epilogue,
        out: Shared,
    ) {
        let Shape { batch, height, width, seen } = shape;
        let (output, numbers) = (self.output_size(seen), batch * height * width * self.channels);
        assert!(pixels.len() == numbers && out.len() == batch * output.0 * output.1 * self.outputs());
        let epilogue = Epilogue { columns: self.outputs(), bias: Some(&self.bias), ..epilogue };
        if let (Algorithm::Padded, Some(amx)) = (algorithm, self.panels.machine.amx) {
            let kernel = if self.doubling { Kernel::Doubling } else { Kernel::Same };
            assert_eq!(seen, (kernel.scale() * height, kernel.scale() * width));
            let (shape, weights, epilogue) = ((batch, height, width), &self.panels, &epilogue);
            let conv = PaddedConv { kernel, pixels, shape, channels: self.channels, norm, amx, weights, epilogue, out };
            // SAFETY: by the caller's word.
            return unsafe { conv.run() };
        }
        if algorithm == Algorithm::Winograd {
            // SAFETY: by the caller's word.
            return unsafe { winograd::convolve(pixels, (shape, self.channels), norm, &self.panels, &epilogue, out) };
        }
        // SAFETY: the image is not the result.
        let values = unsafe { pixels.read(0, numbers) };
        let image = Pixels { values, first: 0, pitch: self.channels, shape, channels: self.channels };
        let source = Source { image, norm, amx: self.panels.machine.amx };
        self.direct(&source, output, &epilogue, out);
    }

    fn direct(&self, source: &Source, (height, width): (usize, usize), epilogue: &Epilogue, out: Shared) {
        let Shape { batch, height: image_height, seen, .. } = source.image.shape;
        let Conv2dConfig { kernel, stride, padding } = self.config;
        let rows = batch * height;
        let bands = if source.is_ready() { 1 } else { (batch * image_height * source.row_bytes()).div_ceil(BAND) };
        let band = rows.div_ceil(bands.max(1)).max(1);
        for first in (0..rows).step_by(band) {
            let last = (first + band).min(rows) - 1;
            // Rows that are seen, and where they are in memory.
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

/// An image with nothing around it.
#[derive(Clone, Copy)]
pub(super) struct Pixels<'a> {
    pub(super) values: &'a [f32],
    /// The first pixel that `values` has, counted over all of the batch.
    pub(super) first: usize,
    /// Numbers from pixel to pixel.
    pub(super) pitch: usize,
    pub(super) shape: Shape,
    pub(super) channels: usize,
}

impl Pixels<'_> {
    /// The memory of a pixel, wherever it is: none outside.
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

/// What each pixel of the result sees.
struct Windows<'a> {
    image: Pixels<'a>,
    config: Conv2dConfig,
    output: (usize, usize),
}

impl Windows<'_> {
    /// Goes through `len` numbers of a row from `first` on: where a run of them goes, its pixel, and the first of the pixel's channels.
    #[inline(always)]
    fn runs(&self, row: usize, first: usize, len: usize, mut run: impl FnMut(Range<usize>, Option<&[f32]>, usize)) {
        let Conv2dConfig { kernel, stride, padding } = self.config;
        let (height, width) = self.output;
        let (batch, y, x) = (row / (height * width), row / width % height, row % width);
        let at = |output: usize, tap: usize| (output * stride + tap).cast_signed() - padding.cast_signed();
        let (mut tap, mut channel, mut done) = (first / self.image.channels, first % self.image.channels, 0);
        while done < len {
            let end = len.min(done + self.image.channels - channel);
            run(done..end, self.image.at(batch, at(y, tap / kernel), at(x, tap % kernel)), channel);
            (tap, channel, done) = (tap + 1, 0, end);
        }
    }
}

impl Inputs for Windows<'_> {
    #[inline(always)]
    fn copy(&self, row: usize, first: usize, out: &mut [f32]) {
        self.runs(row, first, out.len(), |run, pixel, channel| match pixel {
            Some(pixel) => out[run.clone()].copy_from_slice(&pixel[channel..channel + run.len()]),
            None => out[run].fill(0.0),
        });
    }

    /// The image was split before.
    #[inline(always)]
    fn split(&self, _: Amx, row: usize, first: usize, high: &mut [u16], low: &mut [u16]) {
        self.runs(row, first, high.len(), |run, pixel, channel| {
            let (high, low) = (&mut high[run.clone()], &mut low[run]);
            let Some(pixel) = pixel else {
                high.fill(0);
                return low.fill(0);
            };
            let (all_high, all_low) = cast_slice::<_, u16>(pixel).split_at(self.image.pitch);
            high.copy_from_slice(&all_high[channel..channel + high.len()]);
            low.copy_from_slice(&all_low[channel..channel + low.len()]);
        });
    }
}
