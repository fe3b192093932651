//! What happens to a result before it is written.

#![allow(unsafe_code)]

use pulp::{Simd, bytemuck};

use super::{
    math::{gelu, quick_gelu, silu},
    memory::Shared,
};
use crate::ops::Activation;

/// What happens to a row of sums before it is written.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::ops) struct Epilogue<'a> {
    /// Numbers of a row of the result.
    pub(in crate::ops) columns: usize,
    /// Added to each row.
    pub(in crate::ops) bias: Option<&'a [f32]>,
    /// Every second vector of sums, through a GELU, gates the one before it.
    pub(in crate::ops) gated: bool,
    /// Added to each row of a sample: one row of numbers a sample, and the number of rows that a sample has.
    pub(in crate::ops) sample_bias: Option<(&'a [f32], usize)>,
    /// Of the shape of the result, added to it.
    pub(in crate::ops) residual: Option<&'a [f32]>,
    /// Whether what the result's memory holds is added to it.
    pub(in crate::ops) onto: bool,
    /// Applied at last.
    pub(in crate::ops) activation: Option<Activation>,
}

impl Epilogue<'_> {
    /// Finishes and writes the sums of a row from `column` on. Those past the last column fill up a panel, and are left out.
    ///
    /// # Safety
    /// No other task writes there.
    #[inline(always)]
    pub(super) unsafe fn write<S: Simd>(&self, simd: S, row: usize, column: usize, sums: &[f32], out: Shared) {
        let vectors: &[S::f32s] = bytemuck::cast_slice(sums);
        if self.gated {
            let bias: &[S::f32s] = bytemuck::cast_slice(&self.bias.unwrap_or_default()[column..][..2 * S::F32_LANES]);
            let value = simd.add_f32s(vectors[0], bias[0]);
            let gate = map(simd.add_f32s(vectors[1], bias[1]), gelu);
            // SAFETY: by the caller's word.
            return unsafe { self.store::<S>(row, column / 2, simd.mul_f32s(value, gate), out) };
        }
        for (j, sum) in vectors.iter().enumerate() {
            let column = column + j * S::F32_LANES;
            if column < self.columns {
                // SAFETY: by the caller's word.
                unsafe { self.store::<S>(row, column, self.finish(simd, row, column, *sum, out), out) };
            }
        }
    }

    /// # Safety
    /// As [`Epilogue::write`].
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, simd: S, row: usize, column: usize, mut value: S::f32s, out: Shared) -> S::f32s {
        let n = S::F32_LANES.min(self.columns - column);
        if let Some(bias) = self.bias {
            value = simd.add_f32s(value, load(simd, &bias[column..][..n]));
        }
        if let Some((bias, rows)) = self.sample_bias {
            value = simd.add_f32s(value, load(simd, &bias[row / rows * self.columns + column..][..n]));
        }
        if let Some(residual) = self.residual {
            value = simd.add_f32s(value, load(simd, &residual[row * self.columns + column..][..n]));
        }
        if self.onto {
            // SAFETY: by the caller's word; whoever sets this vouches that all is written.
            value = simd.add_f32s(value, load(simd, unsafe { out.read(row * self.columns + column, n) }));
        }
        match self.activation {
            None => value,
            Some(Activation::Silu) => map(value, silu),
            Some(Activation::Gelu) => map(value, gelu),
            Some(Activation::QuickGelu) => map(value, quick_gelu),
        }
    }

    /// # Safety
    /// As [`Epilogue::write`].
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, row: usize, column: usize, value: S::f32s, out: Shared) {
        let n = S::F32_LANES.min(self.columns - column);
        // SAFETY: by the caller's word.
        unsafe { store::<S>(value, n, row * self.columns + column, out) };
    }
}

/// The numbers of a slice, no more than a vector holds, and zeros. Whole vectors, nearly all, without the detour of a function that can
/// do less.
#[inline(always)]
pub(super) fn load<S: Simd>(simd: S, numbers: &[f32]) -> S::f32s {
    if numbers.len() == S::F32_LANES { bytemuck::cast_slice(numbers)[0] } else { simd.partial_load_f32s(numbers) }
}

/// Writes the first `n` numbers of a vector.
///
/// # Safety
/// As [`Shared::write`].
#[inline(always)]
pub(super) unsafe fn store<S: Simd>(value: S::f32s, n: usize, start: usize, out: Shared) {
    let value = [value];
    let numbers: &[f32] = bytemuck::cast_slice(&value);
    // SAFETY: by the caller's word.
    unsafe { if n == S::F32_LANES { out.write(start, &numbers[..S::F32_LANES]) } else { out.write(start, &numbers[..n]) } }
}

/// A function of each number of a vector.
#[inline(always)]
pub(super) fn map<V: bytemuck::Pod>(mut vector: V, f: impl Fn(f32) -> f32) -> V {
    for x in bytemuck::cast_slice_mut::<V, f32>(std::slice::from_mut(&mut vector)) {
        *x = f(*x);
    }
    vector
}
