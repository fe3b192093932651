//! 3 x 3 convolutions on tile units, without windows: a band of the image's rows has zeros around it, so that what one weight of the
//! kernel is multiplied with, for pixel after pixel, are lines of the band one after the other, and tiles are loaded from there.
//!
//! Positions are counted over the band's lines, two more to a row than pixels: what comes out at those two is not kept.
//!
//! Of an image that is enlarged to twice its size, three neighbours are never more than two pixels along each side: each of the four
//! pixels that one becomes has a kernel of 2 x 2 of its own, whose weights are sums of the nine, and 36 products become 16.

#![allow(unsafe_code)]

use std::ops::Range;

use bytemuck::cast_slice;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{
    amx::{Amx, BLOCK, Lines},
    band::{BAND, normalize, split},
    epilogue::Epilogue,
    matmul::tasks,
    memory::{Shared, odd_lines, with_scratch},
    norm::Normalization,
    panels::Panels,
};

/// Positions of a task: what they see, and their sums, stay in the second-level cache while the panels run by.
const TASK: usize = 192;
/// Panels of a task at most.
const TASK_PANELS: usize = 16;
/// Tasks for each thread that a band is cut into at least, where it is large enough.
const TASKS: usize = 8;
/// Pixels that are made ready at a time.
const PIXELS: usize = 64;

/// What each pixel of the result sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    /// 3 x 3.
    Same,
    /// The same of the image enlarged to twice its size by nearest neighbours.
    Doubling,
}

impl Kernel {
    /// Pixels along each side that one becomes.
    pub(super) fn scale(self) -> usize {
        match self {
            Self::Same => 1,
            Self::Doubling => 2,
        }
    }

    /// Pixels that are seen along each side.
    fn side(self) -> usize {
        match self {
            Self::Same => 3,
            Self::Doubling => 2,
        }
    }

    /// Where the pixel begins that a tap sees, from the line before the position's: rows and lines.
    fn offset(self, phase: usize, tap: usize) -> (usize, usize) {
        (phase / self.scale() + tap / self.side(), phase % self.scale() + tap % self.side())
    }

    /// Packs `weight(output, channel, y, x)`: rows are `(taps, channels)`, columns `(phases, outputs)`.
    pub(super) fn pack(
        self,
        machine: super::Machine,
        storage: crate::ops::Storage,
        (channels, outputs): (usize, usize),
        weight: impl Fn(usize, usize, usize, usize) -> f32 + Sync,
    ) -> Panels {
        let (side, scale) = (self.side(), self.scale());
        // The weights along one side that see the same pixel.
        let shared = |phase: usize, tap: usize| match (self, tap) {
            (Self::Same, _) => tap..tap + 1,
            (Self::Doubling, 0) => 0..1 + phase,
            (Self::Doubling, _) => 1 + phase..3,
        };
        let at = |k: usize, n: usize| {
            let (tap, channel, phase, output) = (k / channels, k % channels, n / outputs, n % outputs);
            let (ys, xs) = (shared(phase / scale, tap / side), shared(phase % scale, tap % side));
            ys.flat_map(|y| xs.clone().map(move |x| (y, x))).map(|(y, x)| weight(output, channel, y, x)).sum()
        };
        Panels::new(machine, storage, side * side * channels, scale * scale * outputs, at)
    }

    /// Whether channels and outputs fall into whole blocks, as they must.
    pub(super) fn takes(self, channels: usize, outputs: usize) -> bool {
        channels.is_multiple_of(BLOCK) && (self == Self::Same || outputs.is_multiple_of(BLOCK))
    }
}

/// A convolution of an image.
pub(super) struct PaddedConv<'a> {
    pub(super) kernel: Kernel,
    /// `(batch, height, width, channels)`. The result may be written over it.
    pub(super) pixels: Shared,
    /// Batch, height, width.
    pub(super) shape: (usize, usize, usize),
    pub(super) channels: usize,
    /// Applied to the image first.
    pub(super) norm: Option<&'a Normalization>,
    pub(super) amx: Amx,
    pub(super) weights: &'a Panels,
    pub(super) epilogue: &'a Epilogue<'a>,
    pub(super) out: Shared,
}

impl PaddedConv<'_> {
    /// Writes all of the result.
    ///
    /// # Safety
    /// Nobody else writes to the image or looks at the result.
    pub(super) unsafe fn run(&self) {
        let (batch, height, _) = self.shape;
        let row = self.line() * self.pitch();
        let rows = (BAND / (4 * row)).clamp(1, height.max(1));
        // The last tile of positions may look past the end.
        with_scratch((rows + 2) * row + (BLOCK + 2) * self.pitch(), |ready| {
            for sample in 0..batch {
                for first in (0..height).step_by(rows) {
                    let count = rows.min(height - first);
                    // The last two rows of a band are the first two of the next. Their pixels may have been written over.
                    let kept = if first > 0 { 2 } else { 0 };
                    ready.copy_within(rows * row..(rows + kept) * row, 0);
                    // SAFETY: by the caller's word; of these rows nothing was written yet.
                    unsafe { self.prepare(sample, first + kept, &mut ready[kept * row..(count + 2) * row]) };
                    self.multiply(sample, first, count, ready);
                }
            }
        });
    }

    /// Positions of a row.
    fn line(&self) -> usize {
        self.shape.2 + 2
    }

    /// Numbers from position to position.
    fn pitch(&self) -> usize {
        odd_lines(self.channels)
    }

    /// Rows of the image in halves, with a row of zeros above the first and below the last, and a pixel of them at both ends of each.
    ///
    /// # Safety
    /// Nobody writes to these rows meanwhile.
    unsafe fn prepare(&self, sample: usize, first: usize, ready: &mut [f32]) {
        let ((_, height, width), pitch) = (self.shape, self.pitch());
        ready.par_chunks_exact_mut(self.line() * pitch).enumerate().for_each(|(i, ready)| {
            let Some(y) = (first + i).checked_sub(1).filter(|y| *y < height) else {
                return ready.fill(0.0);
            };
            ready[..pitch].fill(0.0);
            ready[(width + 1) * pitch..].fill(0.0);
            for (x, ready) in (0..width).step_by(PIXELS).zip(ready[pitch..(width + 1) * pitch].chunks_mut(PIXELS * pitch)) {
                let numbers = ready.len() / pitch * self.channels;
                // SAFETY: pixels of this row, which nobody writes to by the caller's word.
                let pixels = unsafe { self.pixels.read(((sample * height + y) * width + x) * self.channels, numbers) };
                match self.norm {
                    None => split(self.amx, pixels, self.channels, ready, (pitch, self.channels)),
                    Some(norm) => with_scratch(numbers, |normed| {
                        normalize(norm, sample, pixels, normed);
                        split(self.amx, normed, self.channels, ready, (pitch, self.channels));
                    }),
                }
            }
        });
    }

    /// Some rows of a sample's result, from what is ready.
    fn multiply(&self, sample: usize, first: usize, count: usize, ready: &[f32]) {
        let positions = count * self.line() - 2;
        let block = positions.div_ceil(positions.div_ceil(TASK)).next_multiple_of(BLOCK);
        let (blocks, panels) = (positions.div_ceil(block), self.weights.count());
        let per_task = (blocks * panels / (TASKS * rayon::current_num_threads())).clamp(1, TASK_PANELS);
        let chunks = panels.div_ceil(per_task);
        let per_task = panels.div_ceil(chunks);
        tasks(blocks * chunks).for_each(|task| {
            let (first_position, first_panel) = (task / chunks * block, task % chunks * per_task);
            let positions = first_position..(first_position + block).min(positions);
            let panels = first_panel.min(panels)..(first_panel + per_task).min(panels);
            with_scratch(block * BLOCK + self.weights.scratch(self.channels), |scratch| {
                self.weights.machine.run(Task { conv: self, ready, sample, first, positions, panels, scratch });
            });
        });
    }
}

/// Some positions times some panels.
struct Task<'a> {
    conv: &'a PaddedConv<'a>,
    ready: &'a [f32],
    sample: usize,
    /// The first row.
    first: usize,
    positions: Range<usize>,
    panels: Range<usize>,
    scratch: &'a mut [f32],
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { conv, ready, sample, first, positions, panels, scratch } = self;
        let PaddedConv { kernel, shape: (_, height, width), channels, amx, weights, epilogue, out, .. } = *conv;
        let (line, pitch, scale) = (conv.line(), conv.pitch(), kernel.scale());
        let of_phase = weights.count() / (scale * scale);
        let rows = positions.len().next_multiple_of(BLOCK);
        let (sums, decoded) = scratch.split_at_mut(rows * BLOCK);
        for panel in panels {
            let (phase, column) = (panel / of_phase, panel % of_phase * BLOCK);
            for tap in 0..weights.depth / channels {
                let (down, right) = kernel.offset(phase, tap);
                let start = positions.start + down * line + right;
                let lines = Lines { halves: cast_slice(&ready[start * pitch..]), low: channels, pitch: 2 * pitch };
                amx.multiply(lines, rows, weights.blocks(amx, panel, tap * channels, channels, decoded), sums, tap > 0);
            }
            for (sums, position) in sums.chunks_exact(BLOCK).zip(positions.clone()) {
                let (y, x) = (first + position / line, position % line);
                if x < width {
                    let (y, x) = (scale * y + phase / scale, scale * x + phase % scale);
                    let row = (sample * scale * height + y) * scale * width + x;
                    // SAFETY: this task alone writes these pixels of these panels, and what the image had there is ready already.
                    unsafe { epilogue.write(simd, row, column, sums, out) };
                }
            }
        }
    }
}
