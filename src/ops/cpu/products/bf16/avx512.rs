//! The instructions of AVX-512-BF16.

#![allow(unsafe_code)]

use std::{
    arch::x86_64::{
        __m256bh, __m256i, __m512, __m512bh, __mmask16, _mm256_mask_storeu_epi16, _mm512_cvtepu16_epi32, _mm512_cvtneps_pbh,
        _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_maskz_loadu_ps, _mm512_or_si512, _mm512_slli_epi32, _mm512_storeu_si512,
    },
    mem::transmute,
    sync::LazyLock,
};

use pulp::{f32x16, x86::V4};

use super::{
    super::tiles::{self, Dot},
    PAIR,
};

/// Numbers of a vector.
pub(super) const LANES: usize = 16;

/// The proof that the processor has the instructions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Instructions(V4);

#[allow(clippy::unused_self, reason = "`self` proves that the processor has the instructions")]
impl Instructions {
    /// The proof, where there is one.
    pub(super) fn try_new() -> Option<Self> {
        static HAS: LazyLock<bool> = LazyLock::new(|| !cfg!(miri) && is_x86_feature_detected!("avx512bf16"));
        V4::try_new().filter(|_| *HAS).map(Self)
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

    /// `sums (rows, width) = lines * weights`, or `sums += …` where `add` says so, of words: see [`tiles::multiply`]. `soon` is prefetched,
    /// and for `LINES` the lines that are read next.
    #[inline]
    #[allow(clippy::too_many_arguments, reason = "three matrices and their shapes")]
    pub(super) fn multiply<const LINES: bool>(
        self,
        lines: (&[f32], &[f32]),
        pitch: usize,
        rows: usize,
        weights: (&[f32], &[u8]),
        width: usize,
        sums: &mut [f32],
        add: bool,
    ) {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { multiply::<LINES>(self, lines, pitch, rows, weights, width, sums, add) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16")]
#[allow(clippy::too_many_arguments, reason = "three matrices and their shapes")]
fn multiply<const LINES: bool>(
    instructions: Instructions,
    lines: (&[f32], &[f32]),
    pitch: usize,
    rows: usize,
    weights: (&[f32], &[u8]),
    width: usize,
    sums: &mut [f32],
    add: bool,
) {
    tiles::multiply::<_, _, LINES, true>((instructions.0, instructions), lines, (pitch, 1), rows, weights, width, sums, add);
}

impl Dot<V4> for Instructions {
    #[inline(always)]
    fn add(self, _: V4, word: f32x16, weights: f32x16, sums: f32x16) -> f32x16 {
        // SAFETY: `self` proves that the processor has the instructions. Vectors of bf16 are words.
        unsafe {
            let [word, weights] = transmute::<[f32x16; 2], [__m512bh; 2]>([word, weights]);
            transmute::<__m512, f32x16>(_mm512_dpbf16_ps(transmute::<f32x16, __m512>(sums), word, weights))
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
