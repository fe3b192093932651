//! 3 x 3 convolutions without windows, for an arithmetic that prepares its lines: `(batch, height, width, channels)` to
//! `(batch, height', width', outputs)`.
//!
//! A band of the image's rows is prepared with zeros around it, one line a pixel. What one weight of the kernel is multiplied with, for
//! pixel after pixel, are then lines that follow each other, and the product reads them where they are: nine products, added up, are the
//! convolution. Positions are counted over the lines of the band, two more to a row than there are pixels; the sums at those two are
//! dropped. The speed is bound by multiplication: each pixel is prepared once, and not once for each of nine windows.
//!
//! An image that is enlarged to twice its size by nearest neighbours has no more than two different pixels in three neighbours. So each of
//! the four pixels that one becomes, its phases, has a 2 x 2 kernel of its own, whose weights are sums of the nine: 16 products for 36.

#![allow(unsafe_code)]

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{
    band::{BAND, prepare_pixels},
    epilogue::Epilogue,
    machine::Machine,
    matmul::tasks,
    memory::{odd_lines, with_scratch},
    norm::Normalization,
    output::Output,
    panels::Panels,
    products::{Lines, Multiplier},
};
use crate::ops::weight_type::DenseType;

/// Positions of a task: their lines and sums stay in the second-level cache while the panels run by.
const TASK: usize = 192;
/// The most panels of a task.
const TASK_PANELS: usize = 16;
/// The fewest tasks for each thread, where a band is large enough.
const TASKS: usize = 8;
/// Pixels that are prepared at a time.
const PIXELS: usize = 64;

/// Which pixels of the image a pixel of the result is a sum of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    /// 3 x 3.
    Same,
    /// The same of the image enlarged to twice its size by nearest neighbours.
    Doubling,
}

impl Kernel {
    /// Pixels that one becomes, along each side.
    pub(super) fn scale(self) -> usize {
        match self {
            Self::Same => 1,
            Self::Doubling => 2,
        }
    }

    /// Pixels of the kernel along each side.
    fn side(self) -> usize {
        match self {
            Self::Same => 3,
            Self::Doubling => 2,
        }
    }

    /// How many rows and lines a tap's pixel comes after the position's upper left neighbour.
    fn offset(self, phase: usize, tap: usize) -> (usize, usize) {
        (phase / self.scale() + tap / self.side(), phase % self.scale() + tap % self.side())
    }

    /// Packs `weight(output, channel, y, x)` as a matrix `(taps * channels, phases * outputs)`.
    pub(super) fn pack(
        self,
        machine: Machine,
        dtype: DenseType,
        (channels, outputs): (usize, usize),
        weight: impl Fn(usize, usize, usize, usize) -> f32 + Sync,
    ) -> Panels {
        let (side, scale) = (self.side(), self.scale());
        // The weights along one side that fall on the same pixel.
        let shared = |phase: usize, tap: usize| match (self, tap) {
            (Self::Same, _) => tap..tap + 1,
            (Self::Doubling, 0) => 0..1 + phase,
            (Self::Doubling, _) => 1 + phase..3,
        };
        let number = |k: usize, n: usize| {
            let (tap, channel, phase, output) = (k / channels, k % channels, n / outputs, n % outputs);
            let (ys, xs) = (shared(phase / scale, tap / side), shared(phase % scale, tap % side));
            ys.flat_map(|y| xs.clone().map(move |x| (y, x))).map(|(y, x)| weight(output, channel, y, x)).sum()
        };
        let (depth, columns) = (side * side * channels, scale * scale * outputs);
        let numbers: Vec<f32> = (0..columns * depth).into_par_iter().map(|i| number(i % depth, i / depth)).collect();
        let column = |n: usize| Some(&numbers[n * depth..][..depth]);
        Panels::new(machine, dtype, columns, column, &(0..depth).collect::<Vec<_>>())
    }

    /// Whether it can convolve such an image: a tap's channels need no padding, and no panel has outputs of two phases.
    pub(super) fn takes(self, machine: Machine, channels: usize, outputs: usize) -> bool {
        let products = machine.products;
        let width = machine.panel_width(self.scale() * self.scale() * outputs);
        !products.is_plain() && products.padded(channels) == channels && (self == Self::Same || outputs.is_multiple_of(width))
    }
}

/// A convolution of an image.
pub(super) struct PaddedConv<'a> {
    pub(super) kernel: Kernel,
    /// `(batch, height, width, channels)`; none where the result's memory holds the image, which is then written over.
    pub(super) pixels: Option<&'a [f32]>,
    /// Batch, height, width.
    pub(super) shape: (usize, usize, usize),
    pub(super) channels: usize,
    /// Is applied to the image first.
    pub(super) norm: Option<&'a Normalization>,
    /// Those of [`Kernel::pack`].
    pub(super) weights: &'a Panels,
    pub(super) epilogue: &'a Epilogue<'a>,
}

impl PaddedConv<'_> {
    /// Writes all of the result.
    pub(super) fn run(&self, out: &mut Output) {
        let (batch, height, _) = self.shape;
        let phases = self.kernel.scale() * self.kernel.scale();
        assert!(self.weights.count() > 0 && self.weights.count().is_multiple_of(phases), "weights of {phases} phases");
        let row = self.line() * self.pitch();
        let rows = (BAND / (4 * row)).clamp(1, height.max(1));
        // The last positions, rounded up, reach beyond the band.
        let spare = (self.weights.machine.products.blocking().rows + 2) * self.pitch();
        with_scratch((rows + 2) * row + spare, |words| {
            for sample in 0..batch {
                for first in (0..height).step_by(rows) {
                    let count = rows.min(height - first);
                    // The last two rows of a band are the first two of the next. Their pixels may have been written over.
                    let kept = if first > 0 { 2 } else { 0 };
                    words.copy_within(rows * row..(rows + kept) * row, 0);
                    self.prepare(sample, first + kept, &mut words[kept * row..(count + 2) * row], out);
                    self.multiply(sample, first, count, words, out);
                }
            }
        });
    }

    /// Positions of a row.
    fn line(&self) -> usize {
        self.shape.2 + 2
    }

    /// Words from position to position.
    fn pitch(&self) -> usize {
        odd_lines(self.weights.machine.products.words(self.channels))
    }

    /// Prepares rows, counted from the one above the image, with zeros above and below it and at both ends of each row.
    fn prepare(&self, sample: usize, first: usize, rows: &mut [f32], out: &Output) {
        let ((_, height, width), channels, pitch) = (self.shape, self.channels, self.pitch());
        rows.par_chunks_exact_mut(self.line() * pitch).enumerate().for_each(|(i, row)| {
            let Some(y) = (first + i).checked_sub(1).filter(|y| *y < height) else {
                return row.fill(0.0);
            };
            row[..pitch].fill(0.0);
            row[(width + 1) * pitch..].fill(0.0);
            for (x, lines) in (0..width).step_by(PIXELS).zip(row[pitch..(width + 1) * pitch].chunks_mut(PIXELS * pitch)) {
                let (start, numbers) = (((sample * height + y) * width + x) * channels, lines.len() / pitch * channels);
                let pixels = match self.pixels {
                    Some(pixels) => &pixels[start..start + numbers],
                    None => out.read(start, numbers),
                };
                prepare_pixels(self.weights.machine.products, self.norm, sample, (pixels, channels), (lines, pitch));
            }
        });
    }

    /// Writes rows of a sample's result, from prepared rows.
    fn multiply(&self, sample: usize, first: usize, count: usize, words: &[f32], out: &mut Output) {
        let out = &*out;
        let blocking = self.weights.machine.products.blocking();
        let positions = count * self.line() - 2;
        let block = positions.div_ceil(positions.div_ceil(TASK)).next_multiple_of(blocking.task_row_step);
        let (blocks, panels) = (positions.div_ceil(block), self.weights.count());
        let per_task = (blocks * panels / (TASKS * rayon::current_num_threads())).clamp(1, TASK_PANELS);
        let chunks = panels.div_ceil(per_task);
        let per_task = panels.div_ceil(chunks);
        tasks(blocks * chunks).for_each(|task| {
            let (first_position, first_panel) = (task / chunks * block, task % chunks * per_task);
            let positions = first_position..(first_position + block).min(positions);
            let panels = first_panel.min(panels)..(first_panel + per_task).min(panels);
            with_scratch(block * self.weights.width + self.weights.scratch(self.channels), |scratch| {
                // SAFETY: a task writes the pixels of its positions, of its panels' phases and outputs. No two tasks have positions and
                // panels in common, and nobody reads: what the image had at these pixels is prepared already.
                let out = unsafe { out.for_task() };
                let machine = self.weights.machine;
                machine.run(|multiplier| Task { multiplier, conv: self, words, sample, first, positions, panels, out, scratch });
            });
        });
    }
}

/// Some positions times some panels.
struct Task<'a> {
    multiplier: Multiplier,
    conv: &'a PaddedConv<'a>,
    words: &'a [f32],
    sample: usize,
    /// The first row.
    first: usize,
    positions: Range<usize>,
    panels: Range<usize>,
    out: Output<'a>,
    scratch: &'a mut [f32],
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { multiplier, conv, words, sample, first, positions, panels, mut out, scratch } = self;
        let PaddedConv { kernel, shape: (_, height, width), channels, weights, epilogue, .. } = *conv;
        let (line, pitch, scale) = (conv.line(), conv.pitch(), kernel.scale());
        let of_phase = weights.count() / (scale * scale);
        let rows = positions.len().next_multiple_of(weights.machine.products.blocking().rows);
        let (sums, decoded) = scratch.split_at_mut(rows * weights.width);
        for panel in panels {
            let (phase, column) = (panel / of_phase, panel % of_phase * weights.width);
            for tap in 0..weights.depth / channels {
                let (down, right) = kernel.offset(phase, tap);
                let start = positions.start + down * line + right;
                let lines = Lines { words: &words[start * pitch..], pitch, numbers: channels };
                let packed = weights.packed(panel, tap * channels, channels, decoded);
                multiplier.multiply(simd, lines, rows, (packed, &[]), weights.width, sums, tap > 0);
            }
            for (sums, position) in sums.chunks_exact(weights.width).zip(positions.clone()) {
                let (y, x) = (first + position / line, position % line);
                if x < width {
                    let (y, x) = (scale * y + phase / scale, scale * x + phase % scale);
                    let row = (sample * scale * height + y) * scale * width + x;
                    epilogue.write(simd, row, column, sums, &mut out);
                }
            }
        }
    }
}
