//! Products of bf16 numbers, on vectors that multiply pairs of them.
//!
//! A bf16 number has 8 binary digits. Inputs and weights are rounded to it, and products are added up in f32. `VDPBF16PS` adds two of them
//! to each sum where a vector of f32 adds one. The speed is bound by that instruction, as [`fma`]'s is by multiply-add.
//!
//! Layouts, in halves of a word: a prepared line of `n` numbers, padded to an even number, holds their `n` halves; a word of packed weights
//! holds rows `2 r` and `2 r + 1` of a column.

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(test)]
mod emulated;

use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};

use super::{Blocking, fma};

/// Numbers of a word.
const PAIR: usize = 2;

pub(super) const BLOCKING: Blocking = Blocking { depth: PAIR, ..fma::BLOCKING };

/// The proof that there are vectors that multiply bf16.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Bf16(Units);

#[derive(Debug, Clone, Copy)]
enum Units {
    /// AVX-512-BF16.
    #[cfg(target_arch = "x86_64")]
    Hardware(avx512::Instructions),
    /// The same layouts and sums in plain Rust, so that a machine without the units can test what is around them.
    #[cfg(test)]
    Emulated,
}

impl Bf16 {
    /// The processor's units for vectors of `lanes` f32, if it has any.
    pub(super) fn try_new(lanes: usize) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        return avx512::Instructions::try_new().filter(|_| lanes == avx512::LANES).map(|instructions| Self(Units::Hardware(instructions)));
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    #[cfg(test)]
    pub(super) fn emulated() -> Self {
        Self(Units::Emulated)
    }

    /// See [`super::Multiplier::multiply`]. For `LINES`, `lines.1` is what comes after them, see [`fma::multiply_ahead`].
    #[inline]
    #[allow(clippy::too_many_arguments, reason = "three matrices and their shapes")]
    pub(in super::super) fn multiply<const LINES: bool>(
        self,
        lines: (&[f32], &[f32]),
        pitch: usize,
        rows: usize,
        weights: (&[f32], &[u8]),
        width: usize,
        sums: &mut [f32],
        add: bool,
    ) {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Units::Hardware(instructions) => instructions.multiply::<LINES>(lines, pitch, rows, weights, width, sums, add),
            #[cfg(test)]
            Units::Emulated => emulated::multiply((cast_slice(lines.0), PAIR * pitch), rows, cast_slice(weights.0), width, sums, add),
        }
    }
}

/// Prepares a line. See the top of this file.
#[inline(always)]
pub(super) fn prepare(units: Bf16, numbers: &[f32], line: &mut [f32]) {
    let halves = cast_slice_mut::<_, u16>(line);
    assert!(halves.len() == numbers.len().next_multiple_of(PAIR));
    match units.0 {
        #[cfg(target_arch = "x86_64")]
        Units::Hardware(instructions) => instructions.round(numbers, halves),
        #[cfg(test)]
        Units::Emulated => emulated::round(numbers, halves),
    }
    halves[numbers.len()..].fill(0);
}

/// See [`super::Products::copy`].
#[inline(always)]
pub(super) fn copy(from: Option<(&[f32], usize)>, line: &mut [f32], to: Range<usize>) {
    let line = &mut cast_slice_mut::<_, u16>(line)[to];
    match from {
        Some((other, first)) => line.copy_from_slice(&cast_slice(other)[first..first + line.len()]),
        None => line.fill(0),
    }
}

/// Packs pairs of rows of `width` numbers.
#[inline(always)]
pub(super) fn pack(units: Bf16, numbers: &[f32], width: usize, packed: &mut [f32]) {
    assert!(numbers.len().is_multiple_of(PAIR * width) && packed.len() * PAIR == numbers.len());
    let words = cast_slice_mut::<_, u32>(packed);
    match units.0 {
        #[cfg(target_arch = "x86_64")]
        Units::Hardware(instructions) => instructions.pack(numbers, width, words),
        #[cfg(test)]
        Units::Emulated => emulated::pack(numbers, width, words),
    }
}
