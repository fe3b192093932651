//! 3 x 3 convolutions with fewer multiplications: F(4 x 4, 3 x 3) of [Lavin & Gray](https://arxiv.org/abs/1509.09308).
//!
//! Tiles of 6 x 6 pixels become 36 numbers for each channel, each of the 36 a matrix product of its own over the channels, and the
//! results become 4 x 4 pixels: 36 multiplications where there were 144.

#![allow(unsafe_code)]

use pulp::Arch;
use rayon::prelude::*;

use super::{
    conv::Pixels,
    matmul::{Block, Epilogue, MatrixRows, Panels, Shared},
};

/// Pixels of a tile of the result, along each side.
const OUT: usize = 4;
/// Pixels of a tile of the image.
const IN: usize = OUT + 2;
/// Numbers of a transformed tile.
const POINTS: usize = IN * IN;
/// Bytes of transformed tiles at a time: a share of the last-level cache.
const CACHE: usize = 12 << 20;
/// Channels that are transformed at a time: a few vectors.
const STRIP: usize = 32;
/// Tiles of a task of the matrix products.
const TASK_TILES: usize = 48;

/// The largest layers, `channels * outputs`, that are transformed. Weights grow to four times their size, and those of the coarsest
/// levels are most of a large model, while the work is elsewhere.
const LARGEST: usize = 1 << 20;

/// Whether it is worth its memory, and faster than summing directly: the transforms cost as much for one output channel as for many.
pub(super) fn pays(channels: usize, outputs: usize) -> bool {
    channels >= 16 && outputs >= 16 && channels * outputs <= LARGEST
}

/// Transformed weights: a matrix `(channels, outputs)` for each point.
#[derive(Debug, Clone)]
pub(super) struct Winograd {
    points: Vec<Panels>,
    arch: Arch,
}

impl Winograd {
    /// Transforms `weight` `(outputs, channels, 3, 3)`.
    pub(super) fn new(arch: Arch, weight: &[f32], channels: usize, outputs: usize) -> Self {
        const G: [[f64; 3]; IN] = [
            [1. / 4., 0., 0.],
            [-1. / 6., -1. / 6., -1. / 6.],
            [-1. / 6., 1. / 6., -1. / 6.],
            [1. / 24., 1. / 12., 1. / 6.],
            [1. / 24., -1. / 12., 1. / 6.],
            [0., 0., 1.],
        ];
        let value = |point: usize, k: usize, n: usize| {
            let kernel = &weight[(n * channels + k) * 9..][..9];
            let sum = |y: usize| (0..3).map(|x| f64::from(kernel[3 * y + x]) * G[point % IN][x]).sum::<f64>();
            (0..3).map(|y| G[point / IN][y] * sum(y)).sum::<f64>() as f32
        };
        let points = (0..POINTS).into_par_iter().map(|point| Panels::new(arch, channels, outputs, |k, n| value(point, k, n)));
        Self { points: points.collect(), arch }
    }

    /// The whole convolution, some tiles at a time.
    pub(super) fn forward(&self, image: &Pixels, epilogue: &Epilogue, out: &mut [f32]) {
        let (channels, outputs) = (self.points[0].depth, self.points[0].columns);
        let (height, width) = image.shape.seen;
        let grid = Grid { rows: height.div_ceil(OUT), columns: width.div_ceil(OUT) };
        let tiles = image.shape.batch * grid.rows * grid.columns;
        let batch = (CACHE / (4 * POINTS * (channels + outputs))).clamp(TASK_TILES, 1024).min(tiles);
        let mut transformed = vec![0.0; POINTS * batch * channels];
        let mut products = vec![0.0; POINTS * batch * outputs];
        let out = Shared::new(out);
        for start in (0..tiles).step_by(batch) {
            let count = batch.min(tiles - start);
            let shared = Shared::new(&mut transformed);
            (0..count).into_par_iter().for_each(|i| {
                self.arch.dispatch(|| transform_input(image, grid.place(start + i), i, batch, channels, shared));
            });
            self.multiply(&transformed, &mut products, batch, count);
            (0..count).into_par_iter().for_each(|i| {
                self.arch
                    .dispatch(|| transform_output(&products, i, batch, outputs, grid.place(start + i), (height, width), epilogue, out));
            });
        }
    }

    /// The matrix product of each point.
    fn multiply(&self, transformed: &[f32], products: &mut [f32], batch: usize, count: usize) {
        let (channels, outputs) = (self.points[0].depth, self.points[0].columns);
        let blocks = count.div_ceil(TASK_TILES);
        products.par_chunks_exact_mut(batch * outputs).enumerate().for_each(|(point, products)| {
            let inputs = MatrixRows { values: &transformed[point * batch * channels..][..batch * channels], depth: channels };
            let out = Shared::new(products);
            (0..blocks).into_par_iter().for_each(|block| {
                let rows = block * TASK_TILES..((block + 1) * TASK_TILES).min(count);
                let weights = &self.points[point];
                let panels = 0..weights.count();
                self.arch.dispatch(Block { inputs: &inputs, rows, weights, panels, epilogue: &Epilogue::default(), out });
            });
        });
    }
}

/// Tiles of a picture.
#[derive(Clone, Copy)]
struct Grid {
    rows: usize,
    columns: usize,
}

/// Where a tile begins in the result.
#[derive(Clone, Copy)]
struct Place {
    batch: usize,
    y: usize,
    x: usize,
}

impl Grid {
    fn place(self, tile: usize) -> Place {
        let (batch, tile) = (tile / (self.rows * self.columns), tile % (self.rows * self.columns));
        Place { batch, y: tile / self.columns * OUT, x: tile % self.columns * OUT }
    }
}

type Strip = [f32; STRIP];

/// `B^T d` for one column of six strips.
#[inline(always)]
fn input_column(d: [&Strip; IN]) -> [Strip; IN] {
    let mut t = [[0.0; STRIP]; IN];
    for c in 0..STRIP {
        let (d0, d1, d2, d3, d4, d5) = (d[0][c], d[1][c], d[2][c], d[3][c], d[4][c], d[5][c]);
        t[0][c] = 4.0 * d0 - 5.0 * d2 + d4;
        t[1][c] = -4.0 * (d1 + d2) + d3 + d4;
        t[2][c] = 4.0 * (d1 - d2) - d3 + d4;
        t[3][c] = 2.0 * (d3 - d1) - d2 + d4;
        t[4][c] = 2.0 * (d1 - d3) - d2 + d4;
        t[5][c] = 4.0 * d1 - 5.0 * d3 + d5;
    }
    t
}

/// `A^T m` for one column of six strips.
#[inline(always)]
fn output_column(m: [&Strip; IN]) -> [Strip; OUT] {
    let mut t = [[0.0; STRIP]; OUT];
    for c in 0..STRIP {
        let (sum12, difference12) = (m[1][c] + m[2][c], m[1][c] - m[2][c]);
        let (sum34, difference34) = (m[3][c] + m[4][c], m[3][c] - m[4][c]);
        t[0][c] = m[0][c] + sum12 + sum34;
        t[1][c] = difference12 + 2.0 * difference34;
        t[2][c] = sum12 + 4.0 * sum34;
        t[3][c] = difference12 + 8.0 * difference34 + m[5][c];
    }
    t
}

/// `B^T d B` of one tile, `STRIP` channels at a time.
#[inline(always)]
fn transform_input(image: &Pixels, place: Place, index: usize, batch: usize, channels: usize, out: Shared) {
    for start in (0..channels).step_by(STRIP) {
        let n = STRIP.min(channels - start);
        let mut columns = [[[0.0; STRIP]; IN]; IN];
        for (x, column) in columns.iter_mut().enumerate() {
            let mut pixels = [[0.0; STRIP]; IN];
            for (y, pixel) in pixels.iter_mut().enumerate() {
                let at = image.at(place.batch, (place.y + y).cast_signed() - 1, (place.x + x).cast_signed() - 1);
                pixel[..n].copy_from_slice(&at[start..start + n]);
            }
            *column = input_column(pixels.each_ref());
        }
        for y in 0..IN {
            let row = input_column(columns.each_ref().map(|column| &column[y]));
            for (x, strip) in row.iter().enumerate() {
                let at = ((y * IN + x) * batch + index) * channels + start;
                // SAFETY: each tile has places of its own.
                unsafe { out.part(at, n) }.copy_from_slice(&strip[..n]);
            }
        }
    }
}

/// `A^T m A` of one tile, with the epilogue.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the loop body of one function, compiled once for each set of instructions")]
fn transform_output(
    products: &[f32],
    index: usize,
    batch: usize,
    outputs: usize,
    place: Place,
    (height, width): (usize, usize),
    epilogue: &Epilogue,
    out: Shared,
) {
    for start in (0..outputs).step_by(STRIP) {
        let n = STRIP.min(outputs - start);
        let mut columns = [[[0.0; STRIP]; OUT]; IN];
        for (x, column) in columns.iter_mut().enumerate() {
            let mut points = [[0.0; STRIP]; IN];
            for (y, point) in points.iter_mut().enumerate() {
                let at = ((y * IN + x) * batch + index) * outputs + start;
                point[..n].copy_from_slice(&products[at..at + n]);
            }
            *column = output_column(points.each_ref());
        }
        for y in 0..OUT.min(height - place.y) {
            let row = output_column(columns.each_ref().map(|column| &column[y]));
            for (x, mut strip) in row.into_iter().enumerate().take(width - place.x) {
                let pixel = (place.batch * height + place.y + y) * width + place.x + x;
                let values = &mut strip[..n];
                epilogue.apply(pixel, start, outputs, values);
                // SAFETY: each tile has pixels of its own.
                unsafe { out.part(pixel * outputs + start, n) }.copy_from_slice(values);
            }
        }
    }
}
