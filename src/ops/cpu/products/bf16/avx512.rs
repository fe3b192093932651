//! The instructions of AVX-512-BF16.
//!
//! A tile of 12 rows by two vectors of columns stays in registers while the depth runs by, two numbers at a time: 24 instructions for 14
//! loads.

#![allow(unsafe_code)]

use std::{
    arch::x86_64::{
        __m256bh, __m256i, __m512, __m512bh, __m512i, __mmask16, _mm256_mask_storeu_epi16, _mm512_cvtepu16_epi32, _mm512_cvtneps_pbh,
        _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_maskz_loadu_ps, _mm512_or_si512, _mm512_set1_epi32,
        _mm512_setzero_ps, _mm512_slli_epi32, _mm512_storeu_ps, _mm512_storeu_si512,
    },
    mem::transmute,
    sync::LazyLock,
};

use super::{PAIR, fma::prefetch};

/// Numbers of a vector.
pub(super) const LANES: usize = 16;
/// Words of the depth that a tile takes at a time: the panel's part of it, 16 KiB, stays in the first-level cache.
const RUN: usize = 128;

/// The proof that the processor has the instructions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Instructions(());

#[allow(clippy::unused_self, reason = "`self` proves that the processor has the instructions")]
impl Instructions {
    /// The proof, where there is one.
    pub(super) fn try_new() -> Option<Self> {
        static FOUND: LazyLock<bool> =
            LazyLock::new(|| !cfg!(miri) && is_x86_feature_detected!("avx512bf16") && pulp::x86::V4::try_new().is_some());
        FOUND.then_some(Self(()))
    }

    /// Rounds numbers to as many halves.
    #[inline]
    pub(super) fn round(self, numbers: &[f32], halves: &mut [u16]) {
        assert!(halves.len() >= numbers.len());
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { round(numbers, halves) }
    }

    /// Packs pairs of rows of `width` numbers, a multiple of 16, into words.
    #[inline]
    pub(super) fn pack(self, numbers: &[f32], width: usize, words: &mut [u32]) {
        assert!(width.is_multiple_of(LANES));
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { pack(numbers, width, words) }
    }

    /// `sums (rows, width) = lines * weights`, or `sums += …` where `add` says so: lines of words that are `pitch` apart, and weights
    /// `(words, width)` of one vector or two. `soon` is prefetched.
    #[inline]
    pub(super) fn multiply(
        self,
        (lines, pitch): (&[u32], usize),
        rows: usize,
        (weights, soon): (&[u32], &[u8]),
        width: usize,
        sums: &mut [f32],
        add: bool,
    ) {
        assert!((width == LANES || width == 2 * LANES) && sums.len() / width >= rows);
        let depth = weights.len() / width;
        if rows == 0 || depth == 0 {
            return;
        }
        assert!((rows - 1).checked_mul(pitch).and_then(|last| last.checked_add(depth)).is_some_and(|end| end <= lines.len()));
        let share = soon.len().div_ceil(rows * depth);
        for first in (0..depth).step_by(RUN) {
            let run = Run {
                lines: lines[first..].as_ptr(),
                pitch,
                weights: weights[first * width..].as_ptr(),
                soon: soon.as_ptr().wrapping_add(first * rows * share),
                share,
                depth: RUN.min(depth - first),
                sums: sums.as_mut_ptr(),
                add: add || first > 0,
            };
            // SAFETY: `self` proves that the processor has the instructions; by the assertions above, all words of all rows are in `lines`,
            // as many rows of the width in `weights`, and `rows` rows of it in `sums`.
            unsafe { if width == LANES { run.all::<1>(rows) } else { run.all::<2>(rows) } }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn nearest(x: __m512) -> __m256i {
    // SAFETY: a vector of bf16 is one of 16-bit numbers.
    unsafe { transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x)) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn round(numbers: &[f32], halves: &mut [u16]) {
    for (numbers, halves) in numbers.chunks(LANES).zip(halves.chunks_mut(LANES)) {
        let mask = (u32::MAX >> (32 - numbers.len())) as __mmask16;
        // SAFETY: the mask has a bit for each number, and the halves are as many or more.
        unsafe { _mm256_mask_storeu_epi16(halves.as_mut_ptr().cast(), mask, nearest(_mm512_maskz_loadu_ps(mask, numbers.as_ptr()))) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pack(numbers: &[f32], width: usize, words: &mut [u32]) {
    for (rows, words) in numbers.chunks_exact(PAIR * width).zip(words.chunks_exact_mut(width)) {
        let (even, odd) = rows.split_at(width);
        let (even, odd, words) = (even.as_chunks::<LANES>().0, odd.as_chunks::<LANES>().0, words.as_chunks_mut::<LANES>().0);
        for ((even, odd), words) in even.iter().zip(odd).zip(words) {
            // SAFETY: the arrays have the 16 numbers of a vector, which need not be aligned.
            unsafe {
                let [even, odd] = [even, odd].map(|row| _mm512_cvtepu16_epi32(nearest(_mm512_loadu_ps(row.as_ptr()))));
                _mm512_storeu_si512(words.as_mut_ptr().cast(), _mm512_or_si512(even, _mm512_slli_epi32::<16>(odd)));
            }
        }
    }
}

/// A run of the depth for all rows. Distances are in words.
#[derive(Clone, Copy)]
struct Run {
    lines: *const u32,
    pitch: usize,
    weights: *const u32,
    /// Bytes to prefetch, and how many of them for each word of each row.
    soon: *const u8,
    share: usize,
    depth: usize,
    sums: *mut f32,
    add: bool,
}

impl Run {
    /// As many tall tiles as fit, then lower ones.
    ///
    /// # Safety
    /// `lines` holds `depth` words of each row, `weights` as many rows of `VECTORS` vectors, and `sums` that many vectors for each row.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn all<const VECTORS: usize>(self, rows: usize) {
        let mut row = 0;
        // SAFETY: a tile's rows are among those that the caller vouches for.
        unsafe {
            while row < rows {
                row += match rows - row {
                    12.. => self.tile::<12, VECTORS>(row),
                    8.. => self.tile::<8, VECTORS>(row),
                    4.. => self.tile::<4, VECTORS>(row),
                    2.. => self.tile::<2, VECTORS>(row),
                    _ => self.tile::<1, VECTORS>(row),
                };
            }
        }
    }

    /// # Safety
    /// As [`Run::all`], for `ROWS` rows from `row` on.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn tile<const ROWS: usize, const VECTORS: usize>(self, row: usize) -> usize {
        // SAFETY: the offsets are those of the words that the caller vouches for. A prefetch reads nothing. Vectors of bf16 are words.
        unsafe {
            let sums = self.sums.add(row * VECTORS * LANES);
            let mut lines = [self.lines; ROWS];
            for (i, line) in lines.iter_mut().enumerate() {
                *line = line.add((row + i) * self.pitch);
            }
            let mut tile = [[_mm512_setzero_ps(); VECTORS]; ROWS];
            if self.add {
                for (i, tile) in tile.iter_mut().enumerate() {
                    for (j, sum) in tile.iter_mut().enumerate() {
                        *sum = _mm512_loadu_ps(sums.add((i * VECTORS + j) * LANES));
                    }
                }
            }
            let pair = |word: __m512i| transmute::<__m512i, __m512bh>(word);
            let mut weights = self.weights;
            for k in 0..self.depth {
                prefetch::<true, _>(self.soon.wrapping_add((row * self.depth + k * ROWS) * self.share));
                let mut panel = [pair(_mm512_set1_epi32(0)); VECTORS];
                for (j, vector) in panel.iter_mut().enumerate() {
                    *vector = pair(_mm512_loadu_si512(weights.add(j * LANES).cast()));
                }
                weights = weights.add(VECTORS * LANES);
                for i in 0..ROWS {
                    let numbers = pair(_mm512_set1_epi32(lines[i].add(k).read().cast_signed()));
                    for j in 0..VECTORS {
                        tile[i][j] = _mm512_dpbf16_ps(tile[i][j], numbers, panel[j]);
                    }
                }
            }
            for (i, tile) in tile.iter().enumerate() {
                for (j, sum) in tile.iter().enumerate() {
                    _mm512_storeu_ps(sums.add((i * VECTORS + j) * LANES), *sum);
                }
            }
        }
        ROWS
    }
}
