//! The vector kernel under products of floating-point numbers: `sums (rows, width) = lines (rows, depth) * weights (depth, width)`.
//!
//! A tile of a few rows by one or two vectors of columns stays in registers while the depth runs by. Each step spreads one word of
//! every row over a vector, and adds its products with the weights to the row's sums: 24 products for 14 loads with 32 registers. The
//! weights are read in the order of memory. The speed is bound by a core's units for multiplication, as long as lines and weights come from
//! a near cache; for those that do not, there are prefetches. After Goto & van de Geijn, "Anatomy of High-Performance Matrix
//! Multiplication".

#![allow(unsafe_code)]

use pulp::Simd;

/// Rows of the tallest tile.
pub(super) const TILE_ROWS: usize = 12;
/// Words of the depth that a tile takes at a time: the panel's part of it, 16 KiB, stays in the first-level cache from tile to tile.
/// Twice as long, and a third of the speed was lost to waiting for the second.
const RUN: usize = 128;
/// Words of a cache line.
const LINE: usize = 16;

/// What a word of a line and a word of weights are multiplied as.
pub(super) trait Dot<S: Simd>: Copy {
    /// Adds the products of a word, spread over a vector, and a vector of weights.
    fn add(self, simd: S, word: S::f32s, weights: S::f32s, sums: S::f32s) -> S::f32s;
}

/// `sums (rows, width) = lines (rows, depth) * weights (depth, width)` in words, or `sums += …` where `add` says so. `width` is one vector
/// or two. Word `k` of row `i` is at `i * strides.0 + k * strides.1` of `lines`. For `WEIGHTS`, `soon` is prefetched. For `LINES`, each tile
/// prefetches the lines of the next, and the last tile those at `after`.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "three matrices and their shapes")]
pub(super) fn multiply<S: Simd, D: Dot<S>, const LINES: bool, const WEIGHTS: bool>(
    (simd, dot): (S, D),
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
        let run = Run { simd, dot, lines, after, strides, weights, soon, share, depth, sums, add: add || first > 0 };
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
struct Run<S, D> {
    simd: S,
    dot: D,
    lines: *const f32,
    /// The lines that are read next.
    after: *const f32,
    strides: (usize, usize),
    weights: *const f32,
    /// Bytes to prefetch, and how many of them for each word of each row.
    soon: *const u8,
    share: usize,
    depth: usize,
    sums: *mut f32,
    add: bool,
}

impl<S: Simd, D: Dot<S>> Run<S, D> {
    /// As many tall tiles as fit, then lower ones. 24 sums, two weights and a word fit 32 registers; 12 sums fit 16.
    ///
    /// # Safety
    /// `lines` holds `depth` words of each row, `weights` as many rows of `VECTORS` vectors, and `sums` that many vectors for each row.
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
        let Self { simd, dot, strides, depth, .. } = self;
        // SAFETY: the offsets are those of the words that the caller vouches for. A prefetch reads nothing.
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
                    // One cache line of each row while so many words of it are multiplied.
                    prefetch::<false, _>(next.wrapping_add(k % LINE * strides.0 + k / LINE * LINE));
                }
                let mut panel = [simd.splat_f32s(0.0); VECTORS];
                for (j, vector) in panel.iter_mut().enumerate() {
                    *vector = weights.add(j).read_unaligned();
                }
                weights = weights.add(VECTORS);
                for i in 0..ROWS {
                    let word = simd.splat_f32s(*lines[i].add(k * strides.1));
                    for j in 0..VECTORS {
                        tile[i][j] = dot.add(simd, word, panel[j], tile[i][j]);
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
