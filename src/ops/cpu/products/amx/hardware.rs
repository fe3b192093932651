//! The instructions of [Intel AMX](https://www.intel.com/content/www/us/en/docs/intrinsics-guide/index.html#techs=AMX) and AVX-512-BF16.
//!
//! A tile is 16 rows of 64 bytes. `TDPBF16PS` multiplies 16 rows of 32 bf16 numbers with 16 pairs of rows of 16, and adds to 16 by 16 f32
//! sums: 16 Ki operations in 16 cycles, 16 times as many as vectors of f32. What bounds the speed is loading tiles: with four tiles of sums,
//! two of lines and two of weights, every load serves two products.

#![allow(unsafe_code)]

use std::{
    arch::{
        asm,
        x86_64::{
            __cpuid_count, __m256bh, __m256i, __m512, __m512i, _CMP_LT_OQ, _mm256_storeu_si256, _mm512_abs_ps, _mm512_castsi512_ps,
            _mm512_cmp_ps_mask, _mm512_cvtepu16_epi32, _mm512_cvtneps_pbh, _mm512_loadu_ps, _mm512_maskz_sub_ps, _mm512_or_si512,
            _mm512_set1_ps, _mm512_slli_epi32, _mm512_storeu_si512,
        },
    },
    mem::transmute,
    sync::LazyLock,
};

use super::{BLOCK, BLOCK_NUMBERS, RUN, TILE};

/// The proof that the processor has the instructions and that Linux lets this process use them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Instructions(());

/// The operand of `LDTILECFG`: eight tiles of 16 rows of 64 bytes.
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

#[allow(clippy::unused_self, reason = "`self` proves that the processor has the instructions")]
impl Instructions {
    /// The proof, where there is one. The first call asks Linux for leave to use the tiles.
    pub(super) fn try_new() -> Option<Self> {
        static FOUND: LazyLock<bool> = LazyLock::new(|| {
            const REQUEST_PERMISSION: libc::c_int = 0x1023;
            const TILE_DATA: libc::c_int = 18;
            if cfg!(miri) || !is_x86_feature_detected!("avx512bf16") || pulp::x86::V4::try_new().is_none() {
                return false;
            }
            let features = __cpuid_count(7, 0).edx;
            let (bf16, tiles) = (features >> 22 & 1 == 1, features >> 24 & 1 == 1);
            // SAFETY: the call changes nothing but what this process may use.
            bf16 && tiles && unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 }
        });
        FOUND.then_some(Self(()))
    }

    /// Configures this thread's tiles, and clears them.
    pub(super) fn configure_tiles(self) {
        // SAFETY: `self` proves that the processor has tiles, and the configuration is a valid one. Compiled code uses no tiles.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly)) };
    }

    /// Releases this thread's tiles.
    ///
    /// # Safety
    /// No code on this thread that relies on configured tiles runs after this, until they are configured again.
    pub(super) unsafe fn release_tiles(self) {
        // SAFETY: `self` proves that the processor has tiles; nobody relies on them by the caller's word.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }

    /// Splits numbers, a multiple of 16, into as many high halves, and as many low ones or none.
    #[inline]
    pub(super) fn split(self, numbers: &[f32], high: &mut [u16], low: &mut [u16]) {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { split(numbers, high, low) }
    }

    /// The same for a block `(32, 32)`, in the tiles' order.
    #[inline]
    pub(super) fn pack(self, numbers: &[f32; BLOCK_NUMBERS], high: &mut [u16], low: &mut [u16]) {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { pack(numbers, high, low) }
    }

    /// `sums (rows, 32) = lines (rows, depth) * weights (depth, 32)`, or `sums += …` where `add` says so.
    ///
    /// `lines` are their halves, the halves from a high one to its low one, if numbers are split, and from line to line. Rows are a multiple
    /// of 16, the depth of 32.
    ///
    /// # Safety
    /// This thread's tiles are configured.
    pub(super) unsafe fn multiply(
        self,
        (lines, low, pitch): (&[u16], Option<usize>, usize),
        rows: usize,
        weights: &[u16],
        sums: &mut [f32],
        add: bool,
    ) {
        let (block, low) = (if low.is_some() { 2 } else { 1 } * BLOCK_NUMBERS, low.unwrap_or(0));
        let blocks = weights.len() / block;
        assert!(rows.is_multiple_of(TILE) && sums.len() / BLOCK >= rows && weights.len().is_multiple_of(block));
        if rows == 0 || blocks == 0 {
            return;
        }
        let end = (rows - 1).checked_mul(pitch).and_then(|last| last.checked_add(low)).and_then(|last| last.checked_add(blocks * BLOCK));
        assert!(end.is_some_and(|end| end <= lines.len()));
        for first in (0..blocks).step_by(RUN) {
            let blocks = RUN.min(blocks - first);
            let add = add || first > 0;
            for row in (0..rows).step_by(BLOCK) {
                let product = Product {
                    line: &raw const lines[row * pitch + first * BLOCK],
                    pitch: 2 * pitch,
                    low: 2 * low,
                    weights: &raw const weights[first * block],
                    block: 2 * block,
                    blocks,
                    sums: &raw mut sums[row * BLOCK],
                    add,
                };
                // SAFETY: `self` proves that the processor has tiles; they are configured by the caller's word. By the assertions above, of
                // 16 rows from `row` on, and of 32 where more than 16 are left, all lines, weights and sums are in their slices.
                unsafe { if rows - row > TILE { product.of_two_tiles() } else { product.of_one_tile() } }
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn split(numbers: &[f32], high: &mut [u16], low: &mut [u16]) {
    let (numbers, high, low) = (numbers.as_chunks().0, high.as_chunks_mut().0, low.as_chunks_mut().0);
    for (i, (numbers, high)) in numbers.iter().zip(high).enumerate() {
        let numbers = load(numbers);
        store(nearest(numbers), high);
        if let Some(low) = low.get_mut(i) {
            store(nearest(rest(numbers)), low);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn pack(numbers: &[f32; BLOCK_NUMBERS], high: &mut [u16], low: &mut [u16]) {
    let wide = |bits: __m256i| _mm512_cvtepu16_epi32(bits);
    let pair = |even: __m256i, odd: __m256i| _mm512_or_si512(wide(even), _mm512_slli_epi32::<16>(wide(odd)));
    let (numbers, high, low) = (numbers.as_chunks().0, high.as_chunks_mut().0, low.as_chunks_mut().0);
    for (i, high) in high.iter_mut().enumerate() {
        // A row of the block is one of both tiles.
        let (tile, row) = (i / TILE, i % TILE);
        let (even, odd) = (load(&numbers[4 * row + tile]), load(&numbers[4 * row + 2 + tile]));
        store_pairs(pair(nearest(even), nearest(odd)), high);
        if let Some(low) = low.get_mut(i) {
            store_pairs(pair(nearest(rest(even)), nearest(rest(odd))), low);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(numbers: &[f32; TILE]) -> __m512 {
    // SAFETY: the array has the 16 numbers of a vector, which need not be aligned.
    unsafe { _mm512_loadu_ps(numbers.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(halves: __m256i, to: &mut [u16; TILE]) {
    // SAFETY: the array has room for the 16 halves of a vector, and need not be aligned.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), halves) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_pairs(pairs: __m512i, to: &mut [u16; BLOCK]) {
    // SAFETY: the array has room for the 32 halves of a vector, and need not be aligned.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), pairs) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn nearest(x: __m512) -> __m256i {
    // SAFETY: a vector of bf16 is one of 16-bit numbers.
    unsafe { transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x)) }
}

/// What the nearest bf16 numbers leave: zero of an infinity.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn rest(x: __m512) -> __m512 {
    let high = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(nearest(x))));
    let finite = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_abs_ps(high), _mm512_set1_ps(f32::INFINITY));
    _mm512_maskz_sub_ps(finite, x, high)
}

/// A run of the depth for 16 or 32 rows and 32 columns. Distances are in bytes.
struct Product {
    line: *const u16,
    pitch: usize,
    /// From a high half to its low one. 0 where there are no low ones.
    low: usize,
    weights: *const u16,
    /// From block to block of weights.
    block: usize,
    blocks: usize,
    sums: *mut f32,
    add: bool,
}

impl Product {
    /// 32 rows: four tiles of sums, so that three other products run until the sums of one are needed again.
    ///
    /// # Safety
    /// The tiles are configured, `blocks` is not 0, and of 32 lines and rows of sums, and of all blocks of weights, every byte is valid.
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
                "test {low}, {low}",
                "jz 4f",
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
                "sub {line}, {low}; sub {next}, {low}",
                "jmp 5f",
                "4:",
                "tileloadd tmm6, [{weights} + {half_row}]",
                "tileloadd tmm7, [{weights} + {half_row} + 1024]",
                "tileloadd tmm5, [{next} + {pitch}]",
                "5:",
                "tdpbf16ps tmm0, tmm4, tmm6; tdpbf16ps tmm1, tmm4, tmm7; tdpbf16ps tmm2, tmm5, tmm6; tdpbf16ps tmm3, tmm5, tmm7",
                "add {line}, 64; add {next}, 64",
                "add {weights}, {block}",
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
                block = in(reg) self.block,
                half_row = in(reg) 2 * BLOCK,
                blocks = inout(reg) self.blocks => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// 16 rows.
    ///
    /// # Safety
    /// As for two tiles, of 16 lines and rows of sums.
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
                "test {low}, {low}",
                "jz 4f",
                "tileloadd tmm6, [{weights} + {half_row} + 2048]",
                "tileloadd tmm7, [{weights} + {half_row} + 3072]",
                "tdpbf16ps tmm0, tmm4, tmm6; tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm6, [{weights} + {half_row}]",
                "tileloadd tmm7, [{weights} + {half_row} + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6; tdpbf16ps tmm1, tmm4, tmm7",
                "add {line}, {low}",
                "tileloadd tmm4, [{line} + {pitch}]",
                "sub {line}, {low}",
                "jmp 5f",
                "4:",
                "tileloadd tmm6, [{weights} + {half_row}]",
                "tileloadd tmm7, [{weights} + {half_row} + 1024]",
                "5:",
                "tdpbf16ps tmm0, tmm4, tmm6; tdpbf16ps tmm1, tmm4, tmm7",
                "add {line}, 64",
                "add {weights}, {block}",
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
                block = in(reg) self.block,
                half_row = in(reg) 2 * BLOCK,
                blocks = inout(reg) self.blocks => _,
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}
