//! 3 x 3 convolutions with fewer multiplications: F(4 x 4, 3 x 3) of [Lavin & Gray](https://arxiv.org/abs/1509.09308).
//!
//! `(batch, height, width, channels)` to `(batch, height, width, outputs)`. A tile of 6 x 6 pixels is transformed to 36 points, each a row
//! of `channels` numbers. Each point has a matrix product of its own with the weights of that point, and the 36 results are transformed to
//! 4 x 4 pixels: 36 multiplications where there were 144. In memory, transformed tiles are `(36, tiles, channels)`.
//!
//! The weights are transformed by the task that multiplies with them, one panel at a time: that is little work beside the products, the
//! transformed weights stay in the caches, and a model takes no more memory than its weights do. The speed is bound by the products, and by
//! the last-level cache, which the transformed tiles go through.

#![allow(unsafe_code)]

mod points;
mod transforms;

use std::ops::Range;

use pulp::{Simd, WithSimd, bytemuck};
use rayon::prelude::*;

pub(super) use points::Points;
use points::paired;
use transforms::{At, Even, Transforms, Whole};

use super::{
    band::Source,
    conv::{Pixels, Shape},
    epilogue::{Epilogue, load, store},
    matmul::tasks,
    memory::{odd_lines, with_scratch},
    norm::Normalization,
    output::Output,
    panels::Panels,
    products::Products,
};

/// Pixels of a tile of the result, along each side.
const OUT: usize = 4;
/// Pixels of a tile of the image.
const IN: usize = OUT + 2;
/// Points of a transformed tile.
const POINTS: usize = IN * IN;
/// Bytes of transformed tiles at a time: a share of the last-level cache.
const CACHE: usize = 16 << 20;
/// The most tiles of a task. More would save transforms of weights, but the sums must fit the second-level cache.
const TASK_TILES: usize = 192;
/// Words of the depth of a task at a time: their transformed weights stay there too.
const DEPTH: usize = 64;
/// Channels whose weights are decoded at a time.
const STRETCH: usize = 32;
/// Weights of a kernel.
const TAPS: usize = 9;
/// The cost of transforming the weights, in multiplications of a tile's point.
const WEIGHTS_COST: usize = 150;

/// Whether this is faster than a direct convolution: not for so few pixels that transforming the weights is most of the work, nor for so few
/// channels that transforming pixels is. It follows from the size of one image: the rest of the batch must not change an image's numbers.
pub(super) fn pays(channels: usize, (height, width): (usize, usize)) -> bool {
    let tiles = height.div_ceil(OUT) * width.div_ceil(OUT);
    channels >= 16 && POINTS * tiles + WEIGHTS_COST < TAPS * height * width
}

/// Writes the whole convolution of an image `(batch, height, width, channels)`. Where there are no `pixels`, the result's memory holds the
/// image, whose shape the result must have, and is written over. `weights` are `(9 * channels, outputs)`.
pub(super) fn convolve(
    pixels: Option<&[f32]>,
    (shape, channels): (Shape, usize),
    norm: Option<&Normalization>,
    (weights, points): (&Panels, Points),
    epilogue: &Epilogue,
    out: &mut Output,
) {
    let grid = Grid { rows: shape.seen.0.div_ceil(OUT), columns: shape.seen.1.div_ceil(OUT) };
    let tiles = shape.batch * grid.rows * grid.columns;
    let words = channels / points.per_word();
    let most = (CACHE / (4 * POINTS * words)).next_multiple_of(TASK_TILES);
    let equal = tiles.div_ceil(tiles.div_ceil(most).max(1));
    // Whole rows of tiles: a row of pixels is prepared again each time that it is read.
    let at_once = equal.next_multiple_of(grid.columns.max(1));
    let pitch = odd_lines(words);
    let plane = odd_lines(at_once * pitch);
    let line = shape.width * channels;
    let kept_line = if pixels.is_none() { line } else { 0 };
    with_scratch(POINTS * plane + kept_line, |scratch| {
        let (transformed, kept) = scratch.split_at_mut(POINTS * plane);
        for start in (0..tiles).step_by(at_once) {
            let count = at_once.min(tiles - start);
            let rows = grid.image_rows(start..start + count, shape);
            let above = rows.start * line;
            // In place, the row above was written over. Its pixels are put back as long as they are read.
            let put_back = !kept.is_empty() && grid.origin(start).y > 0;
            if put_back {
                out.swap(above, kept);
            }
            let values = match pixels {
                Some(pixels) => &pixels[above..above + rows.len() * line],
                None => out.read(above, rows.len() * line),
            };
            let image = Pixels { values, first: rows.start * shape.width, pitch: channels, shape, channels };
            let all_points = Output::over(transformed);
            Source { image, norm, products: Products::Fma }.with_rows(rows.clone(), |image| {
                (0..count).into_par_iter().with_min_len(4).for_each(|i| {
                    // SAFETY: each tile has numbers of its own at each point, and nobody reads them.
                    let out = unsafe { all_points.for_task() };
                    let (origin, at) = (grid.origin(start + i), i * pitch);
                    weights.machine.vectors.dispatch(TransformInput { image, origin, points, at, plane, out });
                });
            });
            if put_back {
                out.swap(above, kept);
            }
            if !kept.is_empty() && start + count < tiles && grid.origin(start + count).y > 0 {
                let next = grid.image_rows(start + count..start + count + 1, shape).start;
                kept.copy_from_slice(out.read(next * line, line));
            }
            let out = &*out;
            let parts = count.div_ceil(TASK_TILES);
            let part = count.div_ceil(parts);
            tasks(weights.count() * parts).for_each(|task| {
                let (panel, first) = (task / parts, task % parts * part);
                let tiles = first.min(count)..(first + part).min(count);
                let origins = Origins { grid, start, size: shape.seen };
                let [kernel, sums] = [DEPTH, tiles.len()].map(|rows| odd_lines(rows * weights.width));
                let numbers = POINTS * (kernel + sums) + TAPS * STRETCH * weights.width;
                with_scratch(numbers, |scratch| {
                    // SAFETY: a task writes the pixels of its tiles, of its panel's outputs; no two tasks have both in common. Nobody reads.
                    let out = unsafe { out.for_task() };
                    let work = Multiply { transformed, points, pitch, plane, tiles, origins, weights, panel, epilogue };
                    weights.machine.vectors.dispatch(WithScratch { work, out, scratch });
                });
            });
        }
    });
}

/// The tiles of a batch of images, row by row.
#[derive(Clone, Copy)]
struct Grid {
    rows: usize,
    columns: usize,
}

/// Where a tile begins in the result.
#[derive(Clone, Copy)]
struct Origin {
    batch: usize,
    y: usize,
    x: usize,
}

impl Grid {
    fn origin(self, tile: usize) -> Origin {
        let (batch, tile) = (tile / (self.rows * self.columns), tile % (self.rows * self.columns));
        Origin { batch, y: tile / self.columns * OUT, x: tile % self.columns * OUT }
    }

    /// The rows of the image that tiles read, counted over the whole batch.
    fn image_rows(self, tiles: Range<usize>, shape: Shape) -> Range<usize> {
        let row = |Origin { batch, .. }, seen: usize| batch * shape.height + seen.min(shape.seen.0 - 1) * shape.height / shape.seen.0;
        let (first, last) = (self.origin(tiles.start), self.origin(tiles.end - 1));
        let (top, bottom) = (first.y.saturating_sub(1), last.y + OUT);
        row(first, top)..row(last, bottom) + 1
    }
}

/// Where the tiles of a round begin in the result.
#[derive(Clone, Copy)]
struct Origins {
    grid: Grid,
    start: usize,
    /// Height and width of the result.
    size: (usize, usize),
}

/// `B^T d B` of one tile.
struct TransformInput<'a> {
    image: &'a Pixels<'a>,
    origin: Origin,
    points: Points,
    /// Where its first point begins.
    at: usize,
    /// Words from point to point.
    plane: usize,
    out: Output<'a>,
}

impl WithSimd for TransformInput<'_> {
    type Output = ();

    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "an index is of several arrays at once")]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let Origin { batch, y, x } = self.origin;
        let pixel = |point: usize| {
            let (dy, dx) = (point / IN, point % IN);
            self.image.at(batch, (y + dy).cast_signed() - 1, (x + dx).cast_signed() - 1)
        };
        let pixels: [Option<&[f32]>; POINTS] = std::array::from_fn(pixel);
        let channels = self.image.channels;
        let step = S::F32_LANES * self.points.per_word();
        for channel in (0..channels).step_by(step) {
            let n = S::F32_LANES.min(channels - channel);
            let at = self.at + channel / self.points.per_word();
            let words = match self.points {
                Points::F32 => transform_input(Transforms::<S, Whole>::new(simd), &pixels, channel..channel + n),
                Points::Bf16(_) => {
                    let transforms = Transforms::<S, Even>::new(simd);
                    let low = transform_input(transforms, &pixels, channel..channel + n);
                    paired(simd, low, transform_input(transforms, &pixels, channel + n..channel + 2 * n))
                }
            };
            for (y, row) in words.into_iter().enumerate() {
                for (x, vector) in row.into_iter().enumerate() {
                    store::<S>(vector, n, (y * IN + x) * self.plane + at, &mut self.out);
                }
            }
        }
    }
}

/// `B^T d B` of some channels.
#[inline(always)]
fn transform_input<S: Simd, P: At>(
    transforms: Transforms<S, P>,
    pixels: &[Option<&[f32]>; POINTS],
    channels: Range<usize>,
) -> [[S::f32s; IN]; IN] {
    // Written out: an array that begins as zeros is filled by a function call, which cost as much as all the sums.
    let columns = [
        input_column(transforms, pixels, 0, &channels),
        input_column(transforms, pixels, 1, &channels),
        input_column(transforms, pixels, 2, &channels),
        input_column(transforms, pixels, 3, &channels),
        input_column(transforms, pixels, 4, &channels),
        input_column(transforms, pixels, 5, &channels),
    ];
    [
        input_row(transforms, &columns, 0),
        input_row(transforms, &columns, 1),
        input_row(transforms, &columns, 2),
        input_row(transforms, &columns, 3),
        input_row(transforms, &columns, 4),
        input_row(transforms, &columns, 5),
    ]
}

/// `d B` of a row of columns that are transformed.
#[inline(always)]
fn input_row<S: Simd, P: At>(transforms: Transforms<S, P>, columns: &[[S::f32s; IN]; IN], y: usize) -> [S::f32s; IN] {
    transforms.input([columns[0][y], columns[1][y], columns[2][y], columns[3][y], columns[4][y], columns[5][y]])
}

/// `B^T d` of a column of pixels.
#[inline(always)]
fn input_column<S: Simd, P: At>(
    transforms: Transforms<S, P>,
    pixels: &[Option<&[f32]>; POINTS],
    x: usize,
    channels: &Range<usize>,
) -> [S::f32s; IN] {
    let mut column = [transforms.simd.splat_f32s(0.0); IN];
    for (y, number) in column.iter_mut().enumerate() {
        if let Some(pixel) = pixels[y * IN + x] {
            *number = load(transforms.simd, &pixel[channels.clone()]);
        }
    }
    transforms.input(column)
}

/// Some tiles times one panel of weights, with the epilogue.
struct Multiply<'a> {
    transformed: &'a [f32],
    points: Points,
    /// Words from tile to tile.
    pitch: usize,
    /// Words from point to point.
    plane: usize,
    tiles: Range<usize>,
    origins: Origins,
    weights: &'a Panels,
    panel: usize,
    epilogue: &'a Epilogue<'a>,
}

/// The same with memory for weights and sums.
struct WithScratch<'a> {
    work: Multiply<'a>,
    out: Output<'a>,
    scratch: &'a mut [f32],
}

impl WithSimd for WithScratch<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { work, mut out, scratch } = self;
        let (channels, width) = (work.weights.depth / TAPS, work.weights.width);
        let count = work.tiles.len();
        // Points are not a power of two apart, or they would compete for the same sets of a cache.
        let [kernel_plane, sums_plane] = [DEPTH, count].map(|rows| odd_lines(rows * width));
        let (kernels, rest) = scratch.split_at_mut(POINTS * kernel_plane);
        let (all_sums, decoded) = rest.split_at_mut(POINTS * sums_plane);
        let per_word = work.points.per_word();
        for first in (0..channels).step_by(DEPTH * per_word) {
            let depth = (DEPTH * per_word).min(channels - first);
            work.transform_weights(simd, first..first + depth, (kernels, kernel_plane), decoded);
            for point in 0..POINTS {
                let lines = |point: usize, channel: usize| {
                    &work.transformed[point * work.plane + work.tiles.start * work.pitch + channel / per_word..]
                };
                let next = if point + 1 < POINTS { (point + 1, first) } else { (0, (first + depth) % channels) };
                let (lines, after) = (lines(point, first), lines(next.0, next.1));
                let (kernel, sums) = (&kernels[point * kernel_plane..][..depth / per_word * width], &mut all_sums[point * sums_plane..]);
                let soon = work.stored_weights(point, first + depth);
                work.points.multiply(simd, (lines, after), work.pitch, count, (kernel, soon), width, sums, first > 0);
            }
        }
        for (i, tile) in work.tiles.clone().enumerate() {
            let sums = &all_sums[i * width..];
            match work.points {
                Points::F32 => work.transform_output(Transforms::<S, Whole>::new(simd), tile, sums, sums_plane, &mut out),
                Points::Bf16(_) => work.transform_output(Transforms::<S, Even>::new(simd), tile, sums, sums_plane, &mut out),
            }
        }
    }
}

impl Multiply<'_> {
    /// The memory of a share of the weights that are transformed next, another for each point: of channels from `first` on, or of the next
    /// panel.
    fn stored_weights(&self, point: usize, first: usize) -> &[u8] {
        let channels = self.weights.depth / TAPS;
        let (panel, first) = if first < channels { (self.panel, first) } else { ((self.panel + 1) % self.weights.count(), 0) };
        let depth = (DEPTH * self.points.per_word()).min(channels - first);
        let (tap, share) = (point * TAPS / POINTS, depth.div_ceil(POINTS / TAPS));
        let from = (point % (POINTS / TAPS) * share).min(depth);
        self.weights.stored(panel, tap * channels + first + from, share.min(depth - from))
    }

    /// `G g G^T` for some channels and all outputs of the panel: `(words, width)` for each point. Points are `plane` words apart.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "an index is of several slices at once")]
    fn transform_weights<S: Simd>(&self, simd: S, of: Range<usize>, (out, plane): (&mut [f32], usize), decoded: &mut [f32]) {
        let (channels, width) = (self.weights.depth / TAPS, self.weights.width);
        for first in of.clone().step_by(STRETCH) {
            let count = STRETCH.min(of.end - first);
            let mut taps = [&[][..]; TAPS];
            for (tap, (rows, decoded)) in taps.iter_mut().zip(decoded.chunks_exact_mut(STRETCH * width)).enumerate() {
                *rows = bytemuck::cast_slice(self.weights.packed(self.panel, tap * channels + first, count, decoded));
            }
            let start = (first - of.start) / self.points.per_word() * width;
            for i in 0..count / self.points.per_word() * width / S::F32_LANES {
                let kernel = match self.points {
                    Points::F32 => transform_kernel(Transforms::<S, Whole>::new(simd), &taps, i),
                    Points::Bf16(_) => {
                        // Of each two vectors of rows, one of the first and the same of the second.
                        let (i, transforms) = (i / width * 2 * width + i % width, Transforms::<S, Even>::new(simd));
                        paired(simd, transform_kernel(transforms, &taps, i), transform_kernel(transforms, &taps, i + width))
                    }
                };
                for (y, row) in kernel.into_iter().enumerate() {
                    for (x, vector) in row.into_iter().enumerate() {
                        let at = (y * IN + x) * plane + start + i * S::F32_LANES;
                        bytemuck::cast_slice_mut(&mut out[at..at + S::F32_LANES])[0] = vector;
                    }
                }
            }
        }
    }

    /// `A^T m A` of one tile, with the epilogue. `sums` begins with its first point; points are `step` numbers apart.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "an index is of several arrays at once")]
    fn transform_output<S: Simd, P: At>(&self, transforms: Transforms<S, P>, tile: usize, sums: &[f32], step: usize, out: &mut Output) {
        let Origin { batch, y, x } = self.origins.grid.origin(self.origins.start + tile);
        let (height, width) = self.origins.size;
        let first = self.panel * self.weights.width;
        for column in (0..self.weights.width).step_by(S::F32_LANES) {
            let sums = &sums[column..];
            let columns = [
                output_column(transforms, sums, step, 0),
                output_column(transforms, sums, step, 1),
                output_column(transforms, sums, step, 2),
                output_column(transforms, sums, step, 3),
                output_column(transforms, sums, step, 4),
                output_column(transforms, sums, step, 5),
            ];
            for dy in 0..OUT.min(height - y) {
                let points = [columns[0][dy], columns[1][dy], columns[2][dy], columns[3][dy], columns[4][dy], columns[5][dy]];
                let row: [S::f32s; OUT] = transforms.output(points);
                for (dx, vector) in row.iter().enumerate().take(width - x) {
                    let pixel = (batch * height + y + dy) * width + x + dx;
                    self.epilogue.write(transforms.simd, pixel, first + column, bytemuck::cast_slice(std::slice::from_ref(vector)), out);
                }
            }
        }
    }
}

/// `G g G^T` of a vector of weights.
#[inline(always)]
fn transform_kernel<S: Simd, P: At>(transforms: Transforms<S, P>, taps: &[&[S::f32s]; TAPS], i: usize) -> [[S::f32s; IN]; IN] {
    let columns = [kernel_column(transforms, taps, i, 0), kernel_column(transforms, taps, i, 1), kernel_column(transforms, taps, i, 2)];
    [
        kernel_row(transforms, &columns, 0),
        kernel_row(transforms, &columns, 1),
        kernel_row(transforms, &columns, 2),
        kernel_row(transforms, &columns, 3),
        kernel_row(transforms, &columns, 4),
        kernel_row(transforms, &columns, 5),
    ]
}

/// `G g` of a column of weights.
#[inline(always)]
fn kernel_column<S: Simd, P: At>(transforms: Transforms<S, P>, taps: &[&[S::f32s]; TAPS], i: usize, x: usize) -> [S::f32s; IN] {
    transforms.weights([taps[x][i], taps[3 + x][i], taps[6 + x][i]])
}

/// `g G^T` of a row of columns that are transformed.
#[inline(always)]
fn kernel_row<S: Simd, P: At>(transforms: Transforms<S, P>, columns: &[[S::f32s; IN]; 3], y: usize) -> [S::f32s; IN] {
    transforms.weights([columns[0][y], columns[1][y], columns[2][y]])
}

/// `A^T m` of a column of points, which are `step` numbers apart.
#[inline(always)]
fn output_column<S: Simd, P: At>(transforms: Transforms<S, P>, sums: &[f32], step: usize, x: usize) -> [S::f32s; OUT] {
    let mut points = [transforms.simd.splat_f32s(0.0); IN];
    for (y, number) in points.iter_mut().enumerate() {
        *number = bytemuck::cast_slice(&sums[(y * IN + x) * step..][..S::F32_LANES])[0];
    }
    transforms.output(points)
}
