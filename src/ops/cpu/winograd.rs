//! 3 x 3 convolutions with fewer multiplications: F(4 x 4, 3 x 3) of [Lavin & Gray](https://arxiv.org/abs/1509.09308).
//!
//! Tiles of 6 x 6 pixels become 36 numbers for each channel, each of the 36 a matrix product of its own over the channels, and the
//! results become 4 x 4 pixels: 36 multiplications where there were 144.
//!
//! The weights stay as they are and are transformed by the task that multiplies with them, a panel at a time: against the products
//! that is little work, the transformed weights never leave the caches, and a model takes no more memory than its weights do.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use pulp::{Simd, WithSimd, bytemuck};
use rayon::prelude::*;

use super::{
    band::Source,
    conv::{Pixels, Shape},
    epilogue::{Epilogue, load, store},
    matmul::multiply,
    memory::{Shared, odd_lines, with_scratch},
    panels::Panels,
};

/// Pixels of a tile of the result, along each side.
const OUT: usize = 4;
/// Pixels of a tile of the image.
const IN: usize = OUT + 2;
/// Numbers of a transformed tile.
const POINTS: usize = IN * IN;
/// Bytes of transformed tiles at a time: a share of the last-level cache.
const CACHE: usize = 16 << 20;
/// Tiles of a task, at least where there are as many: the weights are transformed for each task.
const TASK_TILES: usize = 128;
/// Tiles that are multiplied and finished at a time: their sums stay in the second-level cache.
const BLOCK: usize = 48;
/// Channels whose weights are transformed at a time.
const STRETCH: usize = 32;
/// Kernel values.
const TAPS: usize = 9;
/// What transforming the weights costs, in multiplications of a tile's point.
const WEIGHTS_COST: usize = 150;

/// Whether it is faster than summing directly: not where a picture has so few pixels that the weights are most of the work, nor where
/// there are so few channels that the transforms are. Of one picture: the others of a batch must not change its numbers.
pub(super) fn pays(channels: usize, (height, width): (usize, usize)) -> bool {
    let tiles = height.div_ceil(OUT) * width.div_ceil(OUT);
    channels >= 16 && POINTS * tiles + WEIGHTS_COST < TAPS * height * width
}

/// The whole convolution. `weights` are `(9 * channels, outputs)`.
pub(super) fn convolve(source: &Source, weights: &Panels, epilogue: &Epilogue, out: Shared) {
    let Pixels { shape, channels, .. } = source.image;
    let (height, width) = shape.seen;
    let grid = Grid { rows: height.div_ceil(OUT), columns: width.div_ceil(OUT) };
    let tiles = shape.batch * grid.rows * grid.columns;
    let most = (CACHE / (4 * POINTS * channels)).next_multiple_of(BLOCK);
    let equal = tiles.div_ceil(tiles.div_ceil(most).max(1)).max(1);
    // Whole rows of tiles, where they are not too many: rows of pixels are made ready again for each time that they are seen.
    let at_once = if equal > grid.columns { equal.next_multiple_of(grid.columns) } else { equal };
    let pitch = odd_lines(channels);
    let plane = odd_lines(at_once * pitch);
    with_scratch(POINTS * plane, |transformed| {
        for start in (0..tiles).step_by(at_once) {
            let count = at_once.min(tiles - start);
            let shared = Shared::new(uninit(transformed));
            source.with_rows(grid.image_rows(start..start + count, shape), |image| {
                (0..count).into_par_iter().with_min_len(4).for_each(|i| {
                    let work = TransformInput { image, place: grid.place(start + i), at: i * pitch, plane, out: shared };
                    weights.machine.vectors.dispatch(work);
                });
            });
            let parts = (count / TASK_TILES).max(1);
            let part = count.div_ceil(parts);
            (0..weights.count() * parts).into_par_iter().for_each(|task| {
                let (panel, first) = (task / parts, task % parts * part);
                let tiles = first.min(count)..(first + part).min(count);
                let places = Places { grid, start, size: (height, width) };
                let numbers = weights.width * (POINTS * (channels + BLOCK) + TAPS * STRETCH);
                with_scratch(numbers, |scratch| {
                    let work = Multiply { transformed, pitch, plane, tiles, places, weights, panel, epilogue, out };
                    weights.machine.vectors.dispatch(WithScratch { work, scratch });
                });
            });
        }
    });
}

fn uninit(values: &mut [f32]) -> &mut [MaybeUninit<f32>] {
    // SAFETY: the same in memory, and whoever gets it writes nothing but numbers.
    unsafe { &mut *(std::ptr::from_mut(values) as *mut [MaybeUninit<f32>]) }
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

    /// The rows of an image that tiles see, counted over all of the batch.
    fn image_rows(self, tiles: std::ops::Range<usize>, shape: Shape) -> std::ops::Range<usize> {
        let row = |Place { batch, .. }, seen: usize| batch * shape.height + seen.min(shape.seen.0 - 1) * shape.height / shape.seen.0;
        let (first, last) = (self.place(tiles.start), self.place(tiles.end - 1));
        let (top, bottom) = (first.y.saturating_sub(1), last.y + OUT);
        row(first, top)..row(last, bottom) + 1
    }
}

/// The tiles that are worked on at a time.
#[derive(Clone, Copy)]
struct Places {
    grid: Grid,
    start: usize,
    /// Height and width of a picture.
    size: (usize, usize),
}

/// Short names for what the transforms are made of.
#[derive(Clone, Copy)]
struct Arithmetic<S>(S);

impl<S: Simd> Arithmetic<S> {
    #[inline(always)]
    fn add(self, a: S::f32s, b: S::f32s) -> S::f32s {
        self.0.add_f32s(a, b)
    }

    #[inline(always)]
    fn sub(self, a: S::f32s, b: S::f32s) -> S::f32s {
        self.0.sub_f32s(a, b)
    }

    /// `factor * a`
    #[inline(always)]
    fn times(self, factor: f32, a: S::f32s) -> S::f32s {
        self.0.mul_f32s(self.0.splat_f32s(factor), a)
    }

    /// `factor * a + b`
    #[inline(always)]
    fn times_add(self, factor: f32, a: S::f32s, b: S::f32s) -> S::f32s {
        self.0.mul_add_e_f32s(self.0.splat_f32s(factor), a, b)
    }

    /// `G g`
    #[inline(always)]
    fn weights(self, g: [S::f32s; 3]) -> [S::f32s; IN] {
        let (outer, middle) = (self.times(-1. / 6., self.add(g[0], g[2])), self.times(1. / 6., g[1]));
        let (far, near) = (self.times_add(1. / 24., g[0], self.times(1. / 6., g[2])), self.times(1. / 12., g[1]));
        [self.times(0.25, g[0]), self.sub(outer, middle), self.add(outer, middle), self.add(far, near), self.sub(far, near), g[2]]
    }

    /// `B^T d`
    #[inline(always)]
    fn input(self, d: [S::f32s; IN]) -> [S::f32s; IN] {
        let (even, odd) = (self.times_add(-4., d[2], d[4]), self.times_add(-4., d[1], d[3]));
        let (even_2, odd_2) = (self.sub(d[4], d[2]), self.times(2., self.sub(d[3], d[1])));
        [
            self.times_add(4., d[0], self.times_add(-5., d[2], d[4])),
            self.add(even, odd),
            self.sub(even, odd),
            self.add(even_2, odd_2),
            self.sub(even_2, odd_2),
            self.times_add(4., d[1], self.times_add(-5., d[3], d[5])),
        ]
    }

    /// `A^T m`
    #[inline(always)]
    fn output(self, m: [S::f32s; IN]) -> [S::f32s; OUT] {
        let (sum_12, difference_12) = (self.add(m[1], m[2]), self.sub(m[1], m[2]));
        let (sum_34, difference_34) = (self.add(m[3], m[4]), self.sub(m[3], m[4]));
        [
            self.add(self.add(m[0], sum_12), sum_34),
            self.times_add(2., difference_34, difference_12),
            self.times_add(4., sum_34, sum_12),
            self.add(self.times_add(8., difference_34, difference_12), m[5]),
        ]
    }
}

/// `B^T d B` of one tile.
struct TransformInput<'a> {
    image: &'a Pixels<'a>,
    place: Place,
    /// Where its numbers of the first point begin.
    at: usize,
    /// Numbers from point to point.
    plane: usize,
    out: Shared,
}

impl WithSimd for TransformInput<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Place { batch, y, x } = self.place;
        let pixel = |point: usize| {
            let (dy, dx) = (point / IN, point % IN);
            self.image.at(batch, (y + dy).cast_signed() - 1, (x + dx).cast_signed() - 1)
        };
        let pixels: [Option<&[f32]>; POINTS] = std::array::from_fn(pixel);
        for channel in (0..self.image.channels).step_by(S::F32_LANES) {
            let n = S::F32_LANES.min(self.image.channels - channel);
            let mut tile = [simd.splat_f32s(0.0); POINTS];
            for (number, pixel) in tile.iter_mut().zip(pixels) {
                if let Some(pixel) = pixel {
                    *number = load(simd, &pixel[channel..channel + n]);
                }
            }
            for x in 0..IN {
                let column =
                    Arithmetic(simd).input([tile[x], tile[IN + x], tile[2 * IN + x], tile[3 * IN + x], tile[4 * IN + x], tile[5 * IN + x]]);
                for y in 0..IN {
                    tile[y * IN + x] = column[y];
                }
            }
            for y in 0..IN {
                let row = &tile[y * IN..][..IN];
                let row = Arithmetic(simd).input([row[0], row[1], row[2], row[3], row[4], row[5]]);
                for (x, vector) in row.iter().enumerate() {
                    let at = (y * IN + x) * self.plane + self.at + channel;
                    // SAFETY: each tile has places of its own.
                    unsafe { store::<S>(*vector, n, at, self.out) };
                }
            }
        }
    }
}

/// Some tiles times one panel of weights, and what becomes of it.
struct Multiply<'a> {
    transformed: &'a [f32],
    /// Numbers from tile to tile.
    pitch: usize,
    /// Numbers from point to point.
    plane: usize,
    tiles: std::ops::Range<usize>,
    places: Places,
    weights: &'a Panels,
    panel: usize,
    epilogue: &'a Epilogue<'a>,
    out: Shared,
}

/// With memory for weights and sums.
struct WithScratch<'a> {
    work: Multiply<'a>,
    scratch: &'a mut [f32],
}

impl WithSimd for WithScratch<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { work, scratch } = self;
        let (channels, width) = (work.weights.depth / TAPS, work.weights.width);
        let (kernel, sums) = (channels * width, BLOCK * width);
        let (kernels, rest) = scratch.split_at_mut(POINTS * kernel);
        let (all_sums, decoded) = rest.split_at_mut(POINTS * sums);
        work.transform_weights(simd, kernels, decoded);
        for first in work.tiles.clone().step_by(BLOCK) {
            let count = BLOCK.min(work.tiles.end - first);
            for point in 0..POINTS {
                let lines = &work.transformed[point * work.plane + first * work.pitch..];
                let (kernel, sums) = (&kernels[point * kernel..][..kernel], &mut all_sums[point * sums..][..sums]);
                multiply(simd, lines, (work.pitch, 1), count, kernel, width, sums, false);
            }
            for tile in 0..count {
                work.transform_output(simd, first + tile, &all_sums[tile * width..], sums);
            }
        }
    }
}

impl Multiply<'_> {
    /// `G g G^T` of each channel and output: `(points, channels, width)`.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "an index is of several slices at once")]
    fn transform_weights<S: Simd>(&self, simd: S, out: &mut [f32], decoded: &mut [f32]) {
        let (channels, width) = (self.weights.depth / TAPS, self.weights.width);
        for first in (0..channels).step_by(STRETCH) {
            let count = STRETCH.min(channels - first);
            let mut taps = [&[][..]; TAPS];
            for (tap, (rows, decoded)) in taps.iter_mut().zip(decoded.chunks_exact_mut(STRETCH * width)).enumerate() {
                *rows = bytemuck::cast_slice(self.weights.rows(self.panel, tap * channels + first, count, decoded));
            }
            for i in 0..count * width / S::F32_LANES {
                let mut columns = [[simd.splat_f32s(0.0); IN]; 3];
                for (x, column) in columns.iter_mut().enumerate() {
                    *column = Arithmetic(simd).weights([taps[x][i], taps[3 + x][i], taps[6 + x][i]]);
                }
                for y in 0..IN {
                    let row: [S::f32s; IN] = Arithmetic(simd).weights([columns[0][y], columns[1][y], columns[2][y]]);
                    for (x, vector) in row.into_iter().enumerate() {
                        let at = ((y * IN + x) * channels + first) * width + i * S::F32_LANES;
                        bytemuck::cast_slice_mut(&mut out[at..at + S::F32_LANES])[0] = vector;
                    }
                }
            }
        }
    }

    /// `A^T m A` of one tile, with the epilogue. `sums` holds its numbers of the first point, those of the next are `step` further on.
    #[inline(always)]
    fn transform_output<S: Simd>(&self, simd: S, tile: usize, sums: &[f32], step: usize) {
        let Place { batch, y, x } = self.places.grid.place(self.places.start + tile);
        let (height, width) = self.places.size;
        let first = self.panel * self.weights.width;
        for column in (0..self.weights.width).step_by(S::F32_LANES) {
            let mut columns = [[simd.splat_f32s(0.0); OUT]; IN];
            for (x, column_sums) in columns.iter_mut().enumerate() {
                let mut points = [simd.splat_f32s(0.0); IN];
                for (y, number) in points.iter_mut().enumerate() {
                    *number = bytemuck::cast_slice(&sums[(y * IN + x) * step + column..][..S::F32_LANES])[0];
                }
                *column_sums = Arithmetic(simd).output(points);
            }
            for dy in 0..OUT.min(height - y) {
                let mut points = [simd.splat_f32s(0.0); IN];
                for (number, column) in points.iter_mut().zip(&columns) {
                    *number = column[dy];
                }
                let row: [S::f32s; OUT] = Arithmetic(simd).output(points);
                for (dx, vector) in row.iter().enumerate().take(width - x) {
                    let pixel = (batch * height + y + dy) * width + x + dx;
                    // SAFETY: each tile has pixels of its own, and each task columns.
                    unsafe {
                        self.epilogue.write(simd, pixel, first + column, bytemuck::cast_slice(std::slice::from_ref(vector)), self.out);
                    };
                }
            }
        }
    }
}
