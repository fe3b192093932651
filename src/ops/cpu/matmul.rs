//! The kernel under everything: rows of numbers times a panel of weights, and matrix products made of it.
//!
//! A tile of some rows and a panel's vectors of columns is kept in registers while the depth runs by: for each step one number of each
//! row is spread over a vector and multiplied with the panel's. A task takes some rows and some panels, a stretch of the depth at a
//! time: it copies the rows' numbers of that stretch together, so that they stay in the second-level cache while the panels run by, and
//! wherever they come from: a 3 x 3 convolution reads nine pixels for each row, and no image is ever unfolded.

#![allow(unsafe_code)]

use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{
    amx::{Amx, BLOCK, Lines, TILE},
    epilogue::Epilogue,
    memory::{Shared, odd_lines, with_scratch},
    panels::Panels,
};

/// Rows of a task.
const TASK_ROWS: usize = 96;
/// Panels of a task.
const TASK_PANELS: usize = 16;
/// Tasks for each thread that a product is cut into at least, where it is large enough. How it is cut changes no number.
const TASKS: usize = 8;
/// The longest stretch of the depth: the rows of a task take 250 KiB of the second-level cache, and their sums 200.
const STRETCH: usize = 640;
/// The longest run of the depth that a tile takes at once: the panel's part of it, 16 KiB, stays in the first-level cache from tile to
/// tile. Twice as long, and a third of the speed was lost to waiting for the second.
pub(super) const RUN: usize = 128;
/// Rows of the tallest tile, which tasks have a multiple of.
const TILE_ROWS: usize = 12;

/// Where the inputs of a matrix product come from.
pub(super) trait Inputs: Sync {
    /// Copies numbers of a row, from `first` on.
    fn copy(&self, row: usize, first: usize, out: &mut [f32]);

    /// Copies as many numbers of a row as `high` and `low` have room for, from `first` on, in their halves.
    fn split(&self, amx: Amx, row: usize, first: usize, high: &mut [u16], low: &mut [u16]);
}

/// The rows of a matrix.
pub(super) struct MatrixRows<'a> {
    pub(super) values: &'a [f32],
    pub(super) depth: usize,
}

impl Inputs for MatrixRows<'_> {
    #[inline(always)]
    fn copy(&self, row: usize, first: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.values[row * self.depth + first..][..out.len()]);
    }

    #[inline(always)]
    fn split(&self, amx: Amx, row: usize, first: usize, high: &mut [u16], low: &mut [u16]) {
        let numbers = &self.values[row * self.depth + first..][..high.len()];
        let whole = numbers.len() / TILE * TILE;
        amx.split(&numbers[..whole], &mut high[..whole], &mut low[..whole]);
        if whole < numbers.len() {
            let (mut rest, mut halves) = ([0.0; TILE], [[0; TILE]; 2]);
            rest[..numbers.len() - whole].copy_from_slice(&numbers[whole..]);
            let [rest_high, rest_low] = &mut halves;
            amx.split(&rest, rest_high, rest_low);
            high[whole..].copy_from_slice(&rest_high[..numbers.len() - whole]);
            low[whole..].copy_from_slice(&rest_low[..numbers.len() - whole]);
        }
    }
}

/// Those rows of `out = epilogue(inputs * weights)`, on all cores.
pub(super) fn matmul(inputs: &impl Inputs, of: Range<usize>, weights: &Panels, epilogue: &Epilogue, out: Shared) {
    let rows = of.len();
    if rows == 0 {
        return;
    }
    let (task_rows, tile_rows) = if weights.machine.amx.is_some() { (2 * TASK_ROWS, BLOCK) } else { (TASK_ROWS, TILE_ROWS) };
    let blocks = rows.div_ceil(task_rows);
    let block = rows.div_ceil(blocks).next_multiple_of(tile_rows);
    let per_task = (blocks * weights.count() / (TASKS * rayon::current_num_threads())).clamp(1, TASK_PANELS);
    let chunks = weights.count().div_ceil(per_task);
    let per_task = weights.count().div_ceil(chunks);
    tasks(blocks * chunks).for_each(|task| {
        let (first_row, first_panel) = (task / chunks * block, task % chunks * per_task);
        let rows = (of.start + first_row).min(of.end)..(of.start + first_row + block).min(of.end);
        let panels = first_panel.min(weights.count())..(first_panel + per_task).min(weights.count());
        let stretch = stretch(weights);
        let lines = rows.len().next_multiple_of(tile_rows);
        let numbers = lines * (odd_lines(stretch) + panels.len() * weights.width) + weights.scratch(stretch);
        with_scratch(numbers, |scratch| weights.machine.run(Task { inputs, rows, weights, panels, epilogue, out, scratch }));
    });
}

/// Of which each can be taken by another thread: one that has nothing left to do waits for no more than the end of a task. Left alone,
/// rayon hands out several at a time, and in small products a thread waited for a tenth of the time.
pub(super) fn tasks(count: usize) -> impl IndexedParallelIterator<Item = usize> {
    (0..count).into_par_iter().with_max_len(1)
}

/// Equal parts of the depth, of whole blocks where there are tile units.
fn stretch(weights: &Panels) -> usize {
    let equal = weights.depth.div_ceil(weights.depth.div_ceil(STRETCH));
    if weights.machine.amx.is_some() { equal.next_multiple_of(BLOCK) } else { equal }
}

/// Some rows times some panels.
struct Task<'a, I> {
    inputs: &'a I,
    rows: Range<usize>,
    weights: &'a Panels,
    panels: Range<usize>,
    epilogue: &'a Epilogue<'a>,
    out: Shared,
    scratch: &'a mut [f32],
}

impl<I: Inputs> WithSimd for Task<'_, I> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { inputs, rows, weights, panels, epilogue, out, scratch } = self;
        let (depth, width, stretch) = (weights.depth, weights.width, stretch(weights));
        let height = if weights.machine.amx.is_some() { rows.len().next_multiple_of(BLOCK) } else { rows.len() };
        let (pitch, sums) = (odd_lines(stretch), height * width);
        let (lines, rest) = scratch.split_at_mut(height * pitch);
        let (all_sums, decoded) = rest.split_at_mut(panels.len() * sums);
        for first in (0..depth).step_by(stretch) {
            let count = stretch.min(depth - first);
            for (line, row) in lines.chunks_exact_mut(pitch).zip(rows.clone()) {
                match weights.machine.amx {
                    None => inputs.copy(row, first, &mut line[..count]),
                    Some(amx) => split_row(amx, inputs, row, first, count, line),
                }
            }
            for (i, panel) in panels.clone().enumerate() {
                // Where one stretch is all there is, the sums of a panel need not outlast it.
                let sums = &mut all_sums[if stretch >= depth { 0 } else { i * sums }..][..sums];
                match weights.machine.amx {
                    None => {
                        let soon = weights.stored((panel + 1) % weights.count(), first, count);
                        let weights = weights.rows(panel, first, count, decoded);
                        multiply_then(simd, lines, (pitch, 1), height, (weights, soon), width, sums, first > 0);
                    }
                    Some(amx) => {
                        let weights = weights.blocks(amx, panel, first, count, decoded);
                        let lines = Lines { halves: cast_slice(lines), low: count.next_multiple_of(BLOCK), pitch: 2 * pitch };
                        amx.multiply(lines, height, weights, sums, first > 0);
                    }
                }
                if first + count == depth {
                    for (sums, row) in sums.chunks_exact(width).zip(rows.clone()) {
                        // SAFETY: this task alone writes these rows of these panels.
                        unsafe { epilogue.write(simd, row, panel * width, sums, out) };
                    }
                }
            }
        }
    }
}

/// The halves of a row's `count` numbers from `first` on, each kind with zeros to the end of a block.
#[inline(always)]
fn split_row(amx: Amx, inputs: &impl Inputs, row: usize, first: usize, count: usize, line: &mut [f32]) {
    let depth = count.next_multiple_of(BLOCK);
    let (high, rest) = cast_slice_mut(line).split_at_mut(depth);
    let low = &mut rest[..depth];
    inputs.split(amx, row, first, &mut high[..count], &mut low[..count]);
    high[count..].fill(0);
    low[count..].fill(0);
}

/// `sums = lines * weights`, or `sums += …` where `add` says so, for `rows` rows and the columns of one panel.
///
/// `lines` holds the number `k` of row `i` at `i * strides.0 + k * strides.1`. They and the weights are in a cache near by; where they
/// are not, see [`multiply_then`] and [`multiply_ahead`].
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "three matrices and their shapes")]
pub(super) fn multiply<S: Simd>(
    simd: S,
    lines: &[f32],
    strides: (usize, usize),
    rows: usize,
    weights: &[f32],
    width: usize,
    sums: &mut [f32],
    add: bool,
) {
    multiply_tiles::<_, false, false>(simd, (lines, lines), strides, rows, (weights, &[]), width, sums, add);
}

/// The same, and meanwhile asks for weights that are read soon after, `weights.1`: from memory they come no faster than a few rows use
/// them up.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "three matrices and their shapes")]
pub(super) fn multiply_then<S: Simd>(
    simd: S,
    lines: &[f32],
    strides: (usize, usize),
    rows: usize,
    weights: (&[f32], &[u8]),
    width: usize,
    sums: &mut [f32],
    add: bool,
) {
    multiply_tiles::<_, false, true>(simd, (lines, lines), strides, rows, weights, width, sums, add);
}

/// The same once more for lines that are one number after another but lie in a far cache: each tile asks for the lines of the next, and
/// the last one for those at `lines.1`, which are multiplied after `lines.0`. Winograd's sums were a quarter of their time waiting without.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "three matrices and their shapes")]
pub(super) fn multiply_ahead<S: Simd>(
    simd: S,
    lines: (&[f32], &[f32]),
    pitch: usize,
    rows: usize,
    weights: (&[f32], &[u8]),
    width: usize,
    sums: &mut [f32],
    add: bool,
) {
    multiply_tiles::<_, true, true>(simd, lines, (pitch, 1), rows, weights, width, sums, add);
}

#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "three matrices and their shapes")]
fn multiply_tiles<S: Simd, const LINES: bool, const WEIGHTS: bool>(
    simd: S,
    (lines, after): (&[f32], &[f32]),
    strides: (usize, usize),
    rows: usize,
    (weights, soon): (&[f32], &[u8]),
    width: usize,
    sums: &mut [f32],
    add: bool,
) {
    let depth = weights.len() / width;
    assert!(rows == 0 || depth == 0 || lines.len() > (rows - 1) * strides.0 + (depth - 1) * strides.1);
    assert!(sums.len() >= rows * width && width.is_multiple_of(S::F32_LANES));
    let sums = sums.as_mut_ptr();
    let share = soon.len().div_ceil((rows * depth).max(1));
    for first in (0..depth).step_by(RUN) {
        let after = if first + RUN < depth { &lines[(first + RUN) * strides.1..] } else { after }.as_ptr();
        let (lines, weights) = (&lines[first * strides.1..], &weights[first * width..]);
        let (lines, weights, depth) = (lines.as_ptr(), weights.as_ptr(), RUN.min(depth - first));
        let soon = soon.as_ptr().wrapping_add(first * rows * share);
        let tiles = Tiles { simd, lines, after, strides, weights, soon, share, depth, sums, add: add || first > 0 };
        // SAFETY: the assertions above.
        unsafe { if width == S::F32_LANES { tiles.run::<1, LINES, WEIGHTS>(rows) } else { tiles.run::<2, LINES, WEIGHTS>(rows) } }
    }
}

/// Numbers of a cache line.
const LINE: usize = 16;

/// Asks for the cache line of what is needed soon, if it is anything's: next, or a little later.
#[inline(always)]
fn prefetch<const LATER: bool, T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which reads nothing.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        if LATER { _mm_prefetch::<_MM_HINT_T1>(at.cast()) } else { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

#[derive(Clone, Copy)]
struct Tiles<S> {
    simd: S,
    lines: *const f32,
    /// What is read after them.
    after: *const f32,
    strides: (usize, usize),
    weights: *const f32,
    /// Bytes that are asked for, and how many of them for each number of each row.
    soon: *const u8,
    share: usize,
    depth: usize,
    sums: *mut f32,
    add: bool,
}

impl<S: Simd> Tiles<S> {
    /// As many tall tiles as fit, then lower ones. 24 sums, two weights and a number fit 32 registers; 12 sums fit 16.
    #[inline(always)]
    unsafe fn run<const VECTORS: usize, const LINES: bool, const WEIGHTS: bool>(self, rows: usize) {
        let tall = S::REGISTER_COUNT >= 32;
        let mut row = 0;
        // SAFETY: the rows of each tile are among the rows that the caller vouches for.
        unsafe {
            while row < rows {
                row += match rows - row {
                    12.. if tall => self.tile::<12, VECTORS, LINES, WEIGHTS>(row, rows),
                    8.. if tall => self.tile::<8, VECTORS, LINES, WEIGHTS>(row, rows),
                    6.. if !tall => self.tile::<6, VECTORS, LINES, WEIGHTS>(row, rows),
                    4.. => self.tile::<4, VECTORS, LINES, WEIGHTS>(row, rows),
                    2.. => self.tile::<2, VECTORS, LINES, WEIGHTS>(row, rows),
                    _ => self.tile::<1, VECTORS, LINES, WEIGHTS>(row, rows),
                };
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<const ROWS: usize, const VECTORS: usize, const LINES: bool, const WEIGHTS: bool>(
        self,
        row: usize,
        rows: usize,
    ) -> usize {
        let Self { simd, strides, depth, .. } = self;
        // SAFETY: `lines` holds `depth` numbers of each row, `weights` as many rows of `VECTORS` vectors, and `sums` that many vectors a row.
        unsafe {
            let sums = self.sums.cast::<S::f32s>().add(row * VECTORS);
            let mut lines = [self.lines; ROWS];
            for (i, line) in lines.iter_mut().enumerate() {
                *line = line.add((row + i) * strides.0);
            }
            let mut weights = self.weights.cast::<S::f32s>();
            let mut tile = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
            if self.add {
                for (i, tile) in tile.iter_mut().enumerate() {
                    for (j, sum) in tile.iter_mut().enumerate() {
                        *sum = sums.add(i * VECTORS + j).read_unaligned();
                    }
                }
            }
            let next = if row + ROWS < rows { self.lines.wrapping_add((row + ROWS) * strides.0) } else { self.after };
            for k in 0..depth {
                if WEIGHTS {
                    prefetch::<true, _>(self.soon.wrapping_add((row * depth + k * ROWS) * self.share));
                }
                if LINES {
                    // One cache line of each row while so many numbers of it are multiplied.
                    prefetch::<false, _>(next.wrapping_add(k % LINE * strides.0 + k / LINE * LINE));
                }
                let mut panel = [simd.splat_f32s(0.0); VECTORS];
                for (j, vector) in panel.iter_mut().enumerate() {
                    *vector = weights.add(j).read_unaligned();
                }
                weights = weights.add(VECTORS);
                for i in 0..ROWS {
                    let number = simd.splat_f32s(*lines[i].add(k * strides.1));
                    for j in 0..VECTORS {
                        tile[i][j] = simd.mul_add_e_f32s(number, panel[j], tile[i][j]);
                    }
                }
            }
            for (i, tile) in tile.iter().enumerate() {
                for (j, sum) in tile.iter().enumerate() {
                    sums.add(i * VECTORS + j).write_unaligned(*sum);
                }
            }
        }
        ROWS
    }
}
