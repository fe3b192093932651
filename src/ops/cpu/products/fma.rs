//! The vector kernel under every f32 product: `sums (rows, width) = lines (rows, depth) * weights (depth, width)`.
//!
//! A tile of a few rows by one or two vectors of columns stays in registers while the depth runs by. Each step spreads one number of
//! every row over a vector, and multiplies and adds it to the row's sums: 24 products for 14 loads with 32 registers. The weights are read
//! in the order of memory. The speed is bound by a core's units for multiply-add, as long as lines and weights come from a near
//! cache; for those that do not, there are prefetches. After Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication".

#![allow(unsafe_code)]

use std::ops::Range;

use pulp::Simd;

use super::Blocking;

/// Rows of the tallest tile.
const TILE_ROWS: usize = 12;
/// Numbers of the depth that a tile takes at a time: the panel's part of it, 16 KiB, stays in the first-level cache from tile to tile.
/// Twice as long, and a third of the speed was lost to waiting for the second.
const RUN: usize = 128;
/// Numbers of a cache line.
const LINE: usize = 16;

pub(super) const BLOCKING: Blocking = Blocking { depth: 1, rows: 1, task_rows: 96, task_row_step: TILE_ROWS };

/// Two vectors, or one where that is enough.
pub(super) fn panel_width(lanes: usize, columns: usize) -> usize {
    if columns > lanes { 2 * lanes } else { lanes }
}

/// See [`super::Products::copy`].
#[inline(always)]
pub(super) fn copy(from: Option<(&[f32], usize)>, line: &mut [f32], to: Range<usize>) {
    let line = &mut line[to];
    match from {
        Some((other, first)) => line.copy_from_slice(&other[first..first + line.len()]),
        None => line.fill(0.0),
    }
}

/// `sums (rows, width) = lines (rows, depth) * weights (depth, width)`, or `sums += …` where `add` says so. `width` is one vector or two.
///
/// Number `k` of row `i` is at `i * strides.0 + k * strides.1` of `lines`. Lines and weights should be in a near cache; where they are not,
/// see [`multiply_then`] and [`multiply_ahead`].
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "three matrices and their shapes")]
pub(in super::super) fn multiply<S: Simd>(
    simd: S,
    lines: &[f32],
    strides: (usize, usize),
    rows: usize,
    weights: &[f32],
    width: usize,
    sums: &mut [f32],
    add: bool,
) {
    multiply_runs::<_, false, false>(simd, (lines, lines), strides, rows, (weights, &[]), width, sums, add);
}

/// [`multiply`], while it prefetches `weights.1`, which is read next: weights come from memory no faster than a few rows use them up.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "three matrices and their shapes")]
pub(in super::super) fn multiply_then<S: Simd>(
    simd: S,
    lines: &[f32],
    strides: (usize, usize),
    rows: usize,
    weights: (&[f32], &[u8]),
    width: usize,
    sums: &mut [f32],
    add: bool,
) {
    multiply_runs::<_, false, true>(simd, (lines, lines), strides, rows, weights, width, sums, add);
}

/// [`multiply_then`] of contiguous lines in a far cache: each tile prefetches the lines of the next, and the last tile those at `lines.1`,
/// which are multiplied after `lines.0`. Without it, Winograd's products spent a quarter of their time waiting.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "three matrices and their shapes")]
pub(in super::super) fn multiply_ahead<S: Simd>(
    simd: S,
    lines: (&[f32], &[f32]),
    pitch: usize,
    rows: usize,
    weights: (&[f32], &[u8]),
    width: usize,
    sums: &mut [f32],
    add: bool,
) {
    multiply_runs::<_, true, true>(simd, lines, (pitch, 1), rows, weights, width, sums, add);
}

#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "three matrices and their shapes")]
fn multiply_runs<S: Simd, const LINES: bool, const WEIGHTS: bool>(
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
    if rows == 0 || depth == 0 {
        return;
    }
    let last = (rows - 1).checked_mul(strides.0).zip((depth - 1).checked_mul(strides.1)).and_then(|(row, k)| row.checked_add(k));
    assert!(last.is_some_and(|last| last < lines.len()));
    assert!((width == S::F32_LANES || width == 2 * S::F32_LANES) && sums.len() / width >= rows);
    let sums = sums.as_mut_ptr();
    let share = soon.len().div_ceil(rows * depth);
    for first in (0..depth).step_by(RUN) {
        let after = if first + RUN < depth { &lines[(first + RUN) * strides.1..] } else { after }.as_ptr();
        let (lines, weights) = (&lines[first * strides.1..], &weights[first * width..]);
        let (lines, weights, depth) = (lines.as_ptr(), weights.as_ptr(), RUN.min(depth - first));
        let soon = soon.as_ptr().wrapping_add(first * rows * share);
        let run = Run { simd, lines, after, strides, weights, soon, share, depth, sums, add: add || first > 0 };
        // SAFETY: by the assertions above, each number of each row is in `lines`; by its definition, `depth` rows of the width are in
        // `weights`; `rows` rows of it are in `sums`.
        unsafe { if width == S::F32_LANES { run.all::<1, LINES, WEIGHTS>(rows) } else { run.all::<2, LINES, WEIGHTS>(rows) } }
    }
}

/// Prefetches a cache line, if there is memory at this address: into the first-level cache or, for `LATER`, the second-level cache.
#[inline(always)]
pub(super) fn prefetch<const LATER: bool, T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction is a hint, which every address is allowed for.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        if LATER { _mm_prefetch::<_MM_HINT_T1>(at.cast()) } else { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// A run of the depth for all rows.
#[derive(Clone, Copy)]
struct Run<S> {
    simd: S,
    lines: *const f32,
    /// The lines that are read next.
    after: *const f32,
    strides: (usize, usize),
    weights: *const f32,
    /// Bytes to prefetch, and how many of them for each number of each row.
    soon: *const u8,
    share: usize,
    depth: usize,
    sums: *mut f32,
    add: bool,
}

impl<S: Simd> Run<S> {
    /// As many tall tiles as fit, then lower ones. 24 sums, two weights and a number fit 32 registers; 12 sums fit 16.
    ///
    /// # Safety
    /// `lines` holds `depth` numbers of each row, `weights` as many rows of `VECTORS` vectors, and `sums` that many vectors for each row.
    #[inline(always)]
    unsafe fn all<const VECTORS: usize, const LINES: bool, const WEIGHTS: bool>(self, rows: usize) {
        let tall = S::REGISTER_COUNT >= 32;
        let mut row = 0;
        // SAFETY: a tile's rows are among those that the caller vouches for.
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

    /// # Safety
    /// As [`Run::all`], for `ROWS` rows from `row` on.
    #[inline(always)]
    unsafe fn tile<const ROWS: usize, const VECTORS: usize, const LINES: bool, const WEIGHTS: bool>(
        self,
        row: usize,
        rows: usize,
    ) -> usize {
        let Self { simd, strides, depth, .. } = self;
        // SAFETY: the offsets are those of the numbers that the caller vouches for. A prefetch reads nothing.
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
