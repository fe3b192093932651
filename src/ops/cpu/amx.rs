//! Matrix products on the tile units of Intel's servers since 2023
//! ([AMX](https://www.intel.com/content/www/us/en/docs/intrinsics-guide/index.html#techs=AMX)), f32 in and out.
//!
//! The units multiply bf16 numbers, of 8 binary digits, 16 times as fast as vectors multiply f32. So each number is split into two of
//! theirs, `x = high + low`, and a product into three, `high * high + high * low + low * high`: what is left out is 2^-16 of the
//! product at most, of either sign, and sums of hundreds of products are as near to the truth as those of the Winograd algorithm.
//!
//! At the ends of f32 they are poorer: from infinities comes NaN, and numbers below 1e-38 are zeros.

#![allow(unsafe_code)]

use super::matmul::RUN;

/// Rows, columns and depth of what is multiplied at a time: two tiles by two tiles.
pub(super) const BLOCK: usize = 32;
/// Rows, and pairs of columns, of a tile.
pub(super) const TILE: usize = 16;
/// Halves of a block of weights: two tiles of high ones, two of low ones.
pub(super) const BLOCK_HALVES: usize = 2 * BLOCK * BLOCK;

/// Where in a block of weights the number is that comes at `(row, column)` of what is stored: two tiles, side by side in the block, one
/// after the other in memory; a row of a tile is two rows of the block, which take turns.
pub(super) fn place(row: usize, column: usize) -> (usize, usize) {
    (row % TILE * 2 + column % 2, row / TILE * TILE + column / 2)
}

/// Rows of numbers that were split.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lines<'a> {
    pub(super) halves: &'a [u16],
    /// From a high half to its low one.
    pub(super) low: usize,
    /// From row to row.
    pub(super) pitch: usize,
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[allow(clippy::unused_self, reason = "to have it is to know that the instructions are there")]
mod unit {
    use std::{
        arch::{
            asm,
            x86_64::{
                __cpuid_count, __m256bh, __m256i, __m512, _CMP_LT_OQ, _mm256_storeu_si256, _mm512_abs_ps, _mm512_castsi512_ps,
                _mm512_cmp_ps_mask, _mm512_cvtepu16_epi32, _mm512_cvtneps_pbh, _mm512_loadu_ps, _mm512_maskz_sub_ps, _mm512_or_si512,
                _mm512_set1_ps, _mm512_slli_epi32, _mm512_storeu_si512,
            },
        },
        mem::transmute,
        sync::LazyLock,
    };

    use super::{BLOCK, BLOCK_HALVES, Lines, RUN, TILE};

    /// The proof that there are tile units, and that this process may use them.
    #[derive(Debug, Clone, Copy)]
    pub(in super::super) struct Amx(());

    /// Tiles of 16 rows of 64 bytes: the configuration's layout is the processor's.
    #[repr(C, align(64))]
    struct Config {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    const fn eight<T: Copy>(value: [T; 2]) -> [T; 16] {
        let mut all = [value[1]; 16];
        let mut i = 0;
        while i < 8 {
            all[i] = value[0];
            i += 1;
        }
        all
    }

    static CONFIG: Config = Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: eight([64, 0]), rows: eight([TILE as u8, 0]) };

    impl Amx {
        /// If there are any. The kernel is asked for leave the first time.
        pub(in super::super) fn try_new() -> Option<Self> {
            static FOUND: LazyLock<bool> = LazyLock::new(|| {
                const REQUEST_PERMISSION: libc::c_int = 0x1023;
                const TILE_DATA: libc::c_int = 18;
                if cfg!(miri) || !is_x86_feature_detected!("avx512bf16") || pulp::x86::V4::try_new().is_none() {
                    return false;
                }
                let features = __cpuid_count(7, 0).edx;
                let (bf16, tiles) = (features >> 22 & 1 == 1, features >> 24 & 1 == 1);
                // SAFETY: changes nothing but what this process may use.
                bf16 && tiles && unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 }
            });
            FOUND.then_some(Self(()))
        }

        /// Runs what multiplies, with this thread's tiles ready.
        pub(in super::super) fn with_tiles<T>(self, work: impl FnOnce() -> T) -> T {
            struct Release;
            impl Drop for Release {
                fn drop(&mut self) {
                    // SAFETY: nobody uses the tiles any more.
                    unsafe { asm!("tilerelease", options(nostack, nomem)) };
                }
            }
            // SAFETY: the processor has tiles, and the configuration is valid.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly)) };
            let _release = Release;
            work()
        }

        /// Splits numbers, as many as both `high` and `low` have room for: a multiple of 16.
        #[inline]
        pub(in super::super) fn split(self, numbers: &[f32], high: &mut [u16], low: &mut [u16]) {
            assert!(numbers.len().is_multiple_of(TILE) && high.len() == numbers.len() && low.len() == numbers.len());
            // SAFETY: `self` says that the processor has the instructions; the lengths are as demanded.
            unsafe { split(numbers, high.as_mut_ptr(), low.as_mut_ptr()) }
        }

        /// Splits the numbers of whole blocks `(row, column)`, and puts them in the tiles' order.
        #[inline]
        pub(in super::super) fn pack(self, numbers: &[f32], blocks: &mut [u16]) {
            assert!(numbers.len().is_multiple_of(BLOCK * BLOCK) && blocks.len() == 2 * numbers.len());
            // SAFETY: `self` says that the processor has the instructions; the lengths are as demanded.
            unsafe { pack(numbers, blocks) }
        }

        /// `sums = lines * weights`, or `sums += …` where `add` says so, for a multiple of 16 rows and the 32 columns of a panel.
        ///
        /// Only to be called from [`Amx::with_tiles`].
        pub(in super::super) fn multiply(self, lines: Lines, rows: usize, weights: &[u16], sums: &mut [f32], add: bool) {
            let Lines { halves, low, pitch } = lines;
            let blocks = weights.len() / BLOCK_HALVES;
            assert!(rows.is_multiple_of(TILE) && sums.len() >= rows * BLOCK && weights.len().is_multiple_of(BLOCK_HALVES));
            assert!(rows == 0 || blocks == 0 || halves.len() >= (rows - 1) * pitch + low + blocks * BLOCK);
            for first in (0..blocks).step_by(RUN / BLOCK) {
                let blocks = (RUN / BLOCK).min(blocks - first);
                let add = add || first > 0;
                for row in (0..rows).step_by(BLOCK) {
                    let product = Product {
                        line: &raw const halves[row * pitch + first * BLOCK],
                        pitch: 2 * pitch,
                        low: 2 * low,
                        weights: &raw const weights[first * BLOCK_HALVES],
                        blocks,
                        sums: &raw mut sums[row * BLOCK],
                        add,
                    };
                    // SAFETY: the assertions above, and the caller's tiles are ready.
                    unsafe { if rows - row > TILE { product.of_two_tiles() } else { product.of_one_tile() } }
                }
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn split(numbers: &[f32], high: *mut u16, low: *mut u16) {
        // SAFETY: the caller's lengths.
        unsafe {
            for i in (0..numbers.len()).step_by(TILE) {
                let x = _mm512_loadu_ps(numbers.as_ptr().add(i));
                let (bits, rest) = halve(x);
                _mm256_storeu_si256(high.add(i).cast(), bits);
                _mm256_storeu_si256(low.add(i).cast(), nearest(rest));
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn pack(numbers: &[f32], blocks: &mut [u16]) {
        let wide = |bits: __m256i| _mm512_cvtepu16_epi32(bits);
        let pair = |even: __m256i, odd: __m256i| _mm512_or_si512(wide(even), _mm512_slli_epi32::<16>(wide(odd)));
        // SAFETY: the caller's lengths.
        unsafe {
            for (numbers, halves) in numbers.chunks_exact(BLOCK * BLOCK).zip(blocks.chunks_exact_mut(BLOCK_HALVES)) {
                let (numbers, halves) = (numbers.as_ptr(), halves.as_mut_ptr());
                for i in 0..2 * TILE {
                    let (row, tile) = (i / 2, i % 2);
                    let (even, even_rest) = halve(_mm512_loadu_ps(numbers.add(2 * row * BLOCK + tile * TILE)));
                    let (odd, odd_rest) = halve(_mm512_loadu_ps(numbers.add((2 * row + 1) * BLOCK + tile * TILE)));
                    let high = halves.add((tile * TILE + row) * BLOCK);
                    _mm512_storeu_si512(high.cast(), pair(even, odd));
                    _mm512_storeu_si512(high.add(2 * TILE * BLOCK).cast(), pair(nearest(even_rest), nearest(odd_rest)));
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    fn nearest(x: __m512) -> __m256i {
        // SAFETY: a vector of bf16 is one of 16-bit numbers.
        unsafe { transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x)) }
    }

    /// The nearest bf16 numbers, and what they leave: nothing of an infinity.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    fn halve(x: __m512) -> (__m256i, __m512) {
        let bits = nearest(x);
        let high = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)));
        let finite = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_abs_ps(high), _mm512_set1_ps(f32::INFINITY));
        (bits, _mm512_maskz_sub_ps(finite, x, high))
    }

    /// Rows of 32 columns; all distances in bytes.
    struct Product {
        line: *const u16,
        pitch: usize,
        /// From a high half to its low one.
        low: usize,
        weights: *const u16,
        blocks: usize,
        sums: *mut f32,
        add: bool,
    }

    impl Product {
        /// 32 rows: four tiles of sums, so that each product has the time of three others until its sums are needed again.
        #[inline]
        unsafe fn of_two_tiles(self) {
            // SAFETY: by the caller's word.
            unsafe {
                asm!(
                    "test {add}, {add}",
                    "jnz 2f",
                    "tilezero tmm0; tilezero tmm1; tilezero tmm2; tilezero tmm3",
                    "jmp 3f",
                    "2:",
                    "tileloadd tmm0, [{sums} + {row}]",
                    "tileloadd tmm1, [{sums} + {row} + 64]",
                    "tileloadd tmm2, [{sums} + {row} + 2048]",
                    "tileloadd tmm3, [{sums} + {row} + 2112]",
                    "3:",
                    "tileloadd tmm4, [{line} + {pitch}]",
                    "tileloadd tmm6, [{weights} + {half_row} + 2048]",
                    "tileloadd tmm7, [{weights} + {half_row} + 3072]",
                    "tileloadd tmm5, [{next} + {pitch}]",
                    "tdpbf16ps tmm0, tmm4, tmm6; tdpbf16ps tmm1, tmm4, tmm7; tdpbf16ps tmm2, tmm5, tmm6; tdpbf16ps tmm3, tmm5, tmm7",
                    "tileloadd tmm6, [{weights} + {half_row}]",
                    "tileloadd tmm7, [{weights} + {half_row} + 1024]",
                    "tdpbf16ps tmm0, tmm4, tmm6; tdpbf16ps tmm1, tmm4, tmm7; tdpbf16ps tmm2, tmm5, tmm6; tdpbf16ps tmm3, tmm5, tmm7",
                    "add {line}, {low}; add {next}, {low}",
                    "tileloadd tmm4, [{line} + {pitch}]",
                    "tileloadd tmm5, [{next} + {pitch}]",
                    "tdpbf16ps tmm0, tmm4, tmm6; tdpbf16ps tmm1, tmm4, tmm7; tdpbf16ps tmm2, tmm5, tmm6; tdpbf16ps tmm3, tmm5, tmm7",
                    "sub {line}, {low}; sub {next}, {low}",
                    "add {line}, 64; add {next}, 64",
                    "add {weights}, 4096",
                    "dec {blocks}",
                    "jnz 3b",
                    "tilestored [{sums} + {row}], tmm0",
                    "tilestored [{sums} + {row} + 64], tmm1",
                    "tilestored [{sums} + {row} + 2048], tmm2",
                    "tilestored [{sums} + {row} + 2112], tmm3",
                    add = in(reg) usize::from(self.add),
                    sums = in(reg) self.sums,
                    row = in(reg) 4 * BLOCK,
                    line = inout(reg) self.line => _,
                    next = inout(reg) self.line.byte_add(TILE * self.pitch) => _,
                    pitch = in(reg) self.pitch,
                    low = in(reg) self.low,
                    weights = inout(reg) self.weights => _,
                    half_row = in(reg) 2 * BLOCK,
                    blocks = inout(reg) self.blocks => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }

        /// 16 rows.
        #[inline]
        unsafe fn of_one_tile(self) {
            // SAFETY: by the caller's word.
            unsafe {
                asm!(
                    "test {add}, {add}",
                    "jnz 2f",
                    "tilezero tmm0; tilezero tmm1",
                    "jmp 3f",
                    "2:",
                    "tileloadd tmm0, [{sums} + {row}]",
                    "tileloadd tmm1, [{sums} + {row} + 64]",
                    "3:",
                    "tileloadd tmm4, [{line} + {pitch}]",
                    "tileloadd tmm6, [{weights} + {half_row} + 2048]",
                    "tileloadd tmm7, [{weights} + {half_row} + 3072]",
                    "tdpbf16ps tmm0, tmm4, tmm6; tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm6, [{weights} + {half_row}]",
                    "tileloadd tmm7, [{weights} + {half_row} + 1024]",
                    "tdpbf16ps tmm0, tmm4, tmm6; tdpbf16ps tmm1, tmm4, tmm7",
                    "add {line}, {low}",
                    "tileloadd tmm4, [{line} + {pitch}]",
                    "tdpbf16ps tmm0, tmm4, tmm6; tdpbf16ps tmm1, tmm4, tmm7",
                    "sub {line}, {low}",
                    "add {line}, 64",
                    "add {weights}, 4096",
                    "dec {blocks}",
                    "jnz 3b",
                    "tilestored [{sums} + {row}], tmm0",
                    "tilestored [{sums} + {row} + 64], tmm1",
                    add = in(reg) usize::from(self.add),
                    sums = in(reg) self.sums,
                    row = in(reg) 4 * BLOCK,
                    line = inout(reg) self.line => _,
                    pitch = in(reg) self.pitch,
                    low = in(reg) self.low,
                    weights = inout(reg) self.weights => _,
                    half_row = in(reg) 2 * BLOCK,
                    blocks = inout(reg) self.blocks => _,
                    out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod unit {
    use super::Lines;

    /// There are none.
    #[derive(Debug, Clone, Copy)]
    pub(in super::super) enum Amx {}

    impl Amx {
        pub(in super::super) fn try_new() -> Option<Self> {
            None
        }

        pub(in super::super) fn with_tiles<T>(self, _: impl FnOnce() -> T) -> T {
            match self {}
        }

        pub(in super::super) fn split(self, _: &[f32], _: &mut [u16], _: &mut [u16]) {
            match self {}
        }

        pub(in super::super) fn pack(self, _: &[f32], _: &mut [u16]) {
            match self {}
        }

        pub(in super::super) fn multiply(self, _: Lines, _: usize, _: &[u16], _: &mut [f32], _: bool) {
            match self {}
        }
    }
}

pub(super) use unit::Amx;
