//! Products of f32 numbers, on vectors that multiply and add with one rounding. Lines and weights are the numbers themselves.

use std::ops::Range;

use pulp::Simd;

use super::{
    Blocking,
    tiles::{self, Dot, TILE_ROWS},
};

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

/// Each number is a word of its own.
#[derive(Clone, Copy)]
struct MulAdd;

impl<S: Simd> Dot<S> for MulAdd {
    #[inline(always)]
    fn add(self, simd: S, word: S::f32s, weights: S::f32s, sums: S::f32s) -> S::f32s {
        simd.mul_add_e_f32s(word, weights, sums)
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
    tiles::multiply::<_, _, false, false>((simd, MulAdd), (lines, lines), strides, rows, (weights, &[]), width, sums, add);
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
    tiles::multiply::<_, _, false, true>((simd, MulAdd), (lines, lines), strides, rows, weights, width, sums, add);
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
    tiles::multiply::<_, _, true, true>((simd, MulAdd), lines, (pitch, 1), rows, weights, width, sums, add);
}
