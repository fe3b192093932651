//! The instructions of AVX-512-VNNI and AVX-VNNI.
//!
//! A tile of some rows by two vectors of columns stays in registers while a block runs by, four numbers at a time.

#![allow(unsafe_code)]

#[cfg(test)]
use std::arch::x86_64::_mm256_dpbusd_epi32;
use std::{
    arch::x86_64::{
        __m256, __m256i, __m512, __m512i, _mm256_cvtepi32_ps, _mm256_dpbusd_avx_epi32, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32,
    },
    mem::transmute,
    sync::LazyLock,
};

use pulp::{
    Simd, f32x8, f32x16, u32x8, u32x16,
    x86::{V3, V4},
};

use super::{super::tiles::prefetch, LINE_WORDS, QUADS, WEIGHT_ROWS};

/// Blocks of the depth that a tile takes at a time: the panel's part of them, 9 KiB, stays in the first-level cache with the lines.
const RUN: usize = 4;

/// The proof that the processor has the instructions.
#[derive(Debug, Clone, Copy)]
pub(super) enum Instructions {
    /// AVX-512-VNNI.
    Avx512(V4),
    /// AVX-VNNI.
    Avx(V3),
    /// AVX-512-VNNI for shorter vectors: what stands around AVX-VNNI's instruction is tested with it.
    #[cfg(test)]
    Short(V3),
}

impl Instructions {
    /// The proof, where there is one, for vectors of `lanes` f32.
    pub(super) fn try_new(lanes: usize) -> Option<Self> {
        static HAS: LazyLock<[bool; 2]> =
            LazyLock::new(|| [is_x86_feature_detected!("avx512vnni"), is_x86_feature_detected!("avxvnni")].map(|has| has && !cfg!(miri)));
        let [avx512, avx] = *HAS;
        match lanes {
            16 if avx512 => V4::try_new().map(Self::Avx512),
            8 if avx => V3::try_new().map(Self::Avx),
            #[cfg(test)]
            8 if avx512 && V4::try_new().is_some() => V3::try_new().map(Self::Short),
            _ => None,
        }
    }

    /// `sums (rows, width) = lines * weights`, or `sums += …` where `add` says so: lines that are `pitch` words apart, and weights of one
    /// vector or two. `soon` is prefetched.
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
        let blocks = weights.len() / (WEIGHT_ROWS * width);
        if rows == 0 || blocks == 0 {
            return;
        }
        let last = (rows - 1).checked_mul(pitch).and_then(|last| last.checked_add(blocks * LINE_WORDS));
        assert!(last.is_some_and(|end| end <= lines.len()) && sums.len() / width >= rows);
        let share = soon.len().div_ceil(rows * blocks * QUADS);
        for first in (0..blocks).step_by(RUN) {
            let run = Run {
                lines: lines[first * LINE_WORDS..].as_ptr(),
                pitch,
                weights: weights[first * WEIGHT_ROWS * width..].as_ptr(),
                soon: soon.as_ptr().wrapping_add(first * QUADS * rows * share),
                share,
                blocks: RUN.min(blocks - first),
                sums: sums.as_mut_ptr(),
                add: add || first > 0,
            };
            // SAFETY: `self` proves that the processor has the instructions; by the assertions above, all blocks of all rows are in `lines`,
            // as many blocks of the width in `weights`, and `rows` rows of it in `sums`.
            unsafe {
                match self {
                    Self::Avx512(simd) => avx512(simd, run, rows, width),
                    Self::Avx(simd) => avx(simd, run, rows, width),
                    #[cfg(test)]
                    Self::Short(simd) => short(simd, run, rows, width),
                }
            }
        }
    }
}

/// # Safety
/// As [`Run::all`], and the processor has the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni")]
unsafe fn avx512(simd: V4, run: Run, rows: usize, width: usize) {
    // SAFETY: as the caller says.
    unsafe { run.of_width::<V4, Avx512>(simd, rows, width) }
}

/// # Safety
/// As [`avx512`].
#[target_feature(enable = "avx,avx2,fma,avxvnni")]
unsafe fn avx(simd: V3, run: Run, rows: usize, width: usize) {
    // SAFETY: as the caller says.
    unsafe { run.of_width::<V3, Avx>(simd, rows, width) }
}

/// # Safety
/// As [`avx512`].
#[cfg(test)]
#[target_feature(enable = "avx,avx2,fma,avx512f,avx512vl,avx512vnni")]
unsafe fn short(simd: V3, run: Run, rows: usize, width: usize) {
    // SAFETY: as the caller says.
    unsafe { run.of_width::<V3, Short>(simd, rows, width) }
}

/// What vectors of `S` lack. Its functions are inlined where the processor is known to have the instructions.
trait Whole<S: Simd> {
    /// Adds the products of four weights without a sign and four numbers.
    unsafe fn dot(sums: S::u32s, weights: S::u32s, numbers: S::u32s) -> S::u32s;
    /// Whole numbers with a sign as f32.
    unsafe fn to_f32s(whole: S::u32s) -> S::f32s;
}

struct Avx512;

impl Whole<V4> for Avx512 {
    #[inline(always)]
    unsafe fn dot(sums: u32x16, weights: u32x16, numbers: u32x16) -> u32x16 {
        // SAFETY: vectors of the same size; the caller has the instruction.
        unsafe {
            let [sums, weights, numbers] = transmute::<[u32x16; 3], [__m512i; 3]>([sums, weights, numbers]);
            transmute::<__m512i, u32x16>(_mm512_dpbusd_epi32(sums, weights, numbers))
        }
    }

    #[inline(always)]
    unsafe fn to_f32s(whole: u32x16) -> f32x16 {
        // SAFETY: as above.
        unsafe { transmute::<__m512, f32x16>(_mm512_cvtepi32_ps(transmute::<u32x16, __m512i>(whole))) }
    }
}

struct Avx;

impl Whole<V3> for Avx {
    #[inline(always)]
    unsafe fn dot(sums: u32x8, weights: u32x8, numbers: u32x8) -> u32x8 {
        // SAFETY: as for longer vectors.
        unsafe {
            let [sums, weights, numbers] = transmute::<[u32x8; 3], [__m256i; 3]>([sums, weights, numbers]);
            transmute::<__m256i, u32x8>(_mm256_dpbusd_avx_epi32(sums, weights, numbers))
        }
    }

    #[inline(always)]
    unsafe fn to_f32s(whole: u32x8) -> f32x8 {
        // SAFETY: as for longer vectors.
        unsafe { transmute::<__m256, f32x8>(_mm256_cvtepi32_ps(transmute::<u32x8, __m256i>(whole))) }
    }
}

#[cfg(test)]
struct Short;

#[cfg(test)]
impl Whole<V3> for Short {
    #[inline(always)]
    unsafe fn dot(sums: u32x8, weights: u32x8, numbers: u32x8) -> u32x8 {
        // SAFETY: as for longer vectors.
        unsafe {
            let [sums, weights, numbers] = transmute::<[u32x8; 3], [__m256i; 3]>([sums, weights, numbers]);
            transmute::<__m256i, u32x8>(_mm256_dpbusd_epi32(sums, weights, numbers))
        }
    }

    #[inline(always)]
    unsafe fn to_f32s(whole: u32x8) -> f32x8 {
        // SAFETY: as the caller says.
        unsafe { Avx::to_f32s(whole) }
    }
}

/// A run of blocks for all rows. Distances are in words.
#[derive(Clone, Copy)]
struct Run {
    lines: *const u32,
    pitch: usize,
    weights: *const u32,
    /// Bytes to prefetch, and how many of them for each word of each row.
    soon: *const u8,
    share: usize,
    blocks: usize,
    sums: *mut f32,
    add: bool,
}

impl Run {
    /// # Safety
    /// As [`Run::all`], for a width of one vector or two.
    #[inline(always)]
    unsafe fn of_width<S: Simd, W: Whole<S>>(self, simd: S, rows: usize, width: usize) {
        assert!(width == S::F32_LANES || width == 2 * S::F32_LANES, "{width} columns");
        // SAFETY: as the caller says.
        unsafe { if width == S::F32_LANES { self.all::<S, W, 1>(simd, rows) } else { self.all::<S, W, 2>(simd, rows) } }
    }

    /// As many tall tiles as fit, then lower ones. 24 sums, two weights and a number fit 32 registers; 12 sums fit 16.
    ///
    /// # Safety
    /// `lines` holds `blocks` blocks of each row, `weights` as many blocks of `VECTORS` vectors, and `sums` that many vectors for each row.
    /// `W` is what the processor has.
    #[inline(always)]
    unsafe fn all<S: Simd, W: Whole<S>, const VECTORS: usize>(self, simd: S, rows: usize) {
        let tall = S::REGISTER_COUNT >= 32;
        let mut row = 0;
        // SAFETY: a tile's rows are among those that the caller vouches for.
        unsafe {
            while row < rows {
                row += match rows - row {
                    12.. if tall => self.tile::<S, W, 12, VECTORS>(simd, row),
                    8.. if tall => self.tile::<S, W, 8, VECTORS>(simd, row),
                    6.. if !tall => self.tile::<S, W, 6, VECTORS>(simd, row),
                    4.. => self.tile::<S, W, 4, VECTORS>(simd, row),
                    2.. => self.tile::<S, W, 2, VECTORS>(simd, row),
                    _ => self.tile::<S, W, 1, VECTORS>(simd, row),
                };
            }
        }
    }

    /// # Safety
    /// As [`Run::all`], for `ROWS` rows from `row` on.
    #[inline(always)]
    unsafe fn tile<S: Simd, W: Whole<S>, const ROWS: usize, const VECTORS: usize>(self, simd: S, row: usize) -> usize {
        // SAFETY: the offsets are those of the words that the caller vouches for. A prefetch reads nothing.
        unsafe {
            let sums = self.sums.cast::<S::f32s>().add(row * VECTORS);
            for block in 0..self.blocks {
                let lines: [*const u32; ROWS] = std::array::from_fn(|i| self.lines.add((row + i) * self.pitch + block * LINE_WORDS));
                let weights = self.weights.cast::<S::u32s>().add(block * WEIGHT_ROWS * VECTORS);
                let soon = self.soon.wrapping_add((row * self.blocks + block * ROWS) * QUADS * self.share);
                let mut tile = [[simd.splat_u32s(0); VECTORS]; ROWS];
                for i in 0..ROWS {
                    tile[i] = [simd.splat_u32s(*lines[i].add(1)); VECTORS];
                }
                for k in 0..QUADS {
                    prefetch::<true, _>(soon.wrapping_add(k * ROWS * self.share));
                    let panel: [S::u32s; VECTORS] = std::array::from_fn(|j| weights.add((1 + k) * VECTORS + j).read_unaligned());
                    for i in 0..ROWS {
                        let numbers = simd.splat_u32s(*lines[i].add(2 + k));
                        for j in 0..VECTORS {
                            tile[i][j] = W::dot(tile[i][j], panel[j], numbers);
                        }
                    }
                }
                let add = self.add || block > 0;
                for (i, tile) in tile.iter().enumerate() {
                    let row_factor = simd.splat_f32s(f32::from_bits(*lines[i]));
                    for (j, whole) in tile.iter().enumerate() {
                        let (sum, factors) = (sums.add(i * VECTORS + j), weights.cast::<S::f32s>().add(j).read_unaligned());
                        let before = if add { sum.read_unaligned() } else { simd.splat_f32s(0.0) };
                        let product = simd.mul_f32s(W::to_f32s(*whole), factors);
                        sum.write_unaligned(simd.mul_add_e_f32s(product, row_factor, before));
                    }
                }
            }
        }
        ROWS
    }
}
