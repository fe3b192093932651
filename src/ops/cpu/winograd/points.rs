//! The numbers at the points of tiles, and the products of them.

use pulp::Simd;

use super::IN;
use crate::ops::cpu::{
    machine::Machine,
    products::{Bf16, Products, fma},
};

/// How the numbers at points are kept and multiplied. Words are rows of the depth.
#[derive(Debug, Clone, Copy)]
pub(in super::super) enum Points {
    /// A word is a number.
    F32,
    /// A word is two numbers in bf16, of channels that are a vector apart. The transforms enlarge what that rounds away to a hundredth of the
    /// result: this is for networks that multiply whole numbers elsewhere, whose rounding costs as much.
    Bf16(Bf16),
}

impl Points {
    /// The fastest for images of so many channels that are as exact as the rest of the network asks for.
    pub(in super::super) fn new(machine: Machine, channels: usize) -> Self {
        match (machine.products, machine.floating().products) {
            (Products::Int8(_), Products::Bf16(units)) if channels.is_multiple_of(2 * machine.lanes()) => Self::Bf16(units),
            _ => Self::F32,
        }
    }

    /// Numbers of a word.
    pub(super) fn per_word(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16(_) => 2,
        }
    }

    /// See [`fma::multiply_ahead`].
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "three matrices and their shapes")]
    pub(super) fn multiply<S: Simd>(
        self,
        simd: S,
        lines: (&[f32], &[f32]),
        pitch: usize,
        rows: usize,
        weights: (&[f32], &[u8]),
        width: usize,
        sums: &mut [f32],
        add: bool,
    ) {
        match self {
            Self::F32 => fma::multiply_ahead(simd, lines, pitch, rows, weights, width, sums, add),
            Self::Bf16(units) => units.multiply::<true>(lines, pitch, rows, weights, width, sums, add),
        }
    }
}

/// Words of two numbers in bf16 for each point.
#[inline(always)]
pub(super) fn paired<S: Simd>(simd: S, mut low: [[S::f32s; IN]; IN], high: [[S::f32s; IN]; IN]) -> [[S::f32s; IN]; IN] {
    for (low, high) in low.iter_mut().zip(high) {
        for (low, high) in low.iter_mut().zip(high) {
            *low = pairs(simd, *low, high);
        }
    }
    low
}

/// The nearest numbers in bf16; of two as near, the larger. What arithmetic makes of no number stays none. The operations are spelled out:
/// the compiler made loops over points of them, with a scattered word at a time.
#[inline(always)]
fn pairs<S: Simd>(simd: S, low: S::f32s, high: S::f32s) -> S::f32s {
    let half = simd.splat_u32s(1 << 15);
    let low = simd.wrapping_dyn_shr_u32s(simd.add_u32s(simd.transmute_u32s_f32s(low), half), simd.splat_u32s(16));
    let high = simd.and_u32s(simd.add_u32s(simd.transmute_u32s_f32s(high), half), simd.splat_u32s(0xffff_0000));
    simd.transmute_f32s_u32s(simd.or_u32s(low, high))
}
