//! Weights in the order in which the kernel reads them, in f32 or stored in half the space.

use half::{bf16, f16};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::ops::Storage;

/// A matrix `(depth, columns)` in panels of as many columns as two vectors hold (one, where that is enough), each panel row by row.
#[derive(Debug, Clone)]
pub(super) struct Panels {
    values: Values,
    pub(super) depth: usize,
    pub(super) columns: usize,
    /// Columns of a panel.
    pub(super) width: usize,
    pub(super) arch: Arch,
}

#[derive(Debug, Clone)]
enum Values {
    F32(Vec<f32>),
    F16(Vec<u16>),
    Bf16(Vec<u16>),
    /// Whole numbers, and a row of factors for every [`QUANTIZED`] rows.
    Q8(Vec<i8>, Vec<f32>),
}

/// Weights of a column that share a factor.
const QUANTIZED: usize = 32;

impl Panels {
    /// Packs the matrix whose element at `(k, n)` is `at(k, n)`.
    pub(super) fn new(arch: Arch, storage: Storage, depth: usize, columns: usize, at: impl Fn(usize, usize) -> f32 + Sync) -> Self {
        let lanes = lanes(arch);
        let width = if columns > lanes { 2 * lanes } else { lanes };
        let shape = (depth, columns, width);
        let values = match storage {
            Storage::F32 => Values::F32(pack(shape, at)),
            Storage::F16 => Values::F16(pack(shape, |k, n| f16::from_f32(at(k, n)).to_bits())),
            Storage::Bf16 => Values::Bf16(pack(shape, |k, n| bf16::from_f32(at(k, n)).to_bits())),
            Storage::Q8_0 => {
                let group = |k: usize| k * QUANTIZED..((k + 1) * QUANTIZED).min(depth);
                let largest = |k: usize, n: usize| group(k).map(|k| at(k, n).abs()).fold(0.0, f32::max);
                let factors = pack((depth.div_ceil(QUANTIZED), columns, width), |k, n| largest(k, n) / f32::from(i8::MAX));
                let factor = |k: usize, n: usize| factors[(n / width * depth.div_ceil(QUANTIZED) + k / QUANTIZED) * width + n % width];
                // Where all are zero, so is the factor: what comes of a division by it is a zero again.
                Values::Q8(pack(shape, |k, n| (at(k, n) / factor(k, n)).round() as i8), factors)
            }
        };
        Self { values, depth, columns, width, arch }
    }

    pub(super) fn count(&self) -> usize {
        self.columns.div_ceil(self.width)
    }

    /// Rows of a panel in f32, which what is stored otherwise becomes in `scratch`: `width` numbers for each.
    #[inline(always)]
    pub(super) fn rows<'a>(&'a self, panel: usize, first: usize, count: usize, scratch: &'a mut [f32]) -> &'a [f32] {
        let start = (panel * self.depth + first) * self.width;
        let part = start..start + count * self.width;
        match &self.values {
            Values::F32(values) => &values[part],
            Values::F16(values) => decode(&values[part], scratch, f16_to_f32),
            Values::Bf16(values) => decode(&values[part], scratch, |bits| f32::from_bits(u32::from(bits) << 16)),
            Values::Q8(values, factors) => {
                let factors = &factors[panel * self.depth.div_ceil(QUANTIZED) * self.width..];
                let scratch = &mut scratch[..part.len()];
                for (k, (wide, values)) in scratch.chunks_exact_mut(self.width).zip(values[part].chunks_exact(self.width)).enumerate() {
                    let factors = &factors[(first + k) / QUANTIZED * self.width..][..self.width];
                    for ((wide, value), factor) in wide.iter_mut().zip(values).zip(factors) {
                        *wide = f32::from(*value) * factor;
                    }
                }
                scratch
            }
        }
    }
}

fn pack<T: Copy + Default + Send>((depth, columns, width): (usize, usize, usize), at: impl Fn(usize, usize) -> T + Sync) -> Vec<T> {
    let mut values = vec![T::default(); columns.div_ceil(width) * depth * width];
    values.par_chunks_exact_mut((depth * width).max(1)).enumerate().for_each(|(panel, values)| {
        for (k, row) in values.chunks_exact_mut(width).enumerate() {
            for (n, value) in row.iter_mut().enumerate().take(columns - panel * width) {
                *value = at(k, panel * width + n);
            }
        }
    });
    values
}

#[inline(always)]
fn decode<'a>(values: &[u16], scratch: &'a mut [f32], one: impl Fn(u16) -> f32) -> &'a [f32] {
    let scratch = &mut scratch[..values.len()];
    scratch.iter_mut().zip(values).for_each(|(wide, value)| *wide = one(*value));
    scratch
}

/// With choices in place of branches, so that loops over it become vector code on every machine, and without arithmetic on denormal
/// numbers, which some machines are slow at.
#[inline(always)]
fn f16_to_f32(bits: u16) -> f32 {
    const BIAS: u32 = (127 - 15) << 23;
    const SMALLEST_NORMAL: u32 = (127 - 14) << 23;
    let wide = u32::from(bits);
    let (shifted, exponent) = ((wide & 0x7fff) << 13, wide & 0x7c00);
    let denormal = f32::from_bits(shifted + SMALLEST_NORMAL) - f32::from_bits(SMALLEST_NORMAL);
    let normal = shifted + BIAS + if exponent == 0x7c00 { BIAS } else { 0 };
    let magnitude = if exponent == 0 { denormal.to_bits() } else { normal };
    f32::from_bits(magnitude | (wide & 0x8000) << 16)
}

#[cfg(test)]
#[test]
fn every_half_is_read_as_what_it_is() {
    for bits in (0..=u16::MAX).step_by(if cfg!(miri) { 251 } else { 1 }) {
        let (ours, right) = (f16_to_f32(bits), f16::from_bits(bits).to_f32());
        assert!(ours.to_bits() == right.to_bits() || (ours.is_nan() && right.is_nan()), "{bits:#x}: {ours}, not {right}");
    }
}

/// Numbers of a vector.
pub(super) fn lanes(arch: Arch) -> usize {
    arch.dispatch(Lanes)
}

struct Lanes;

impl WithSimd for Lanes {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        S::F32_LANES
    }
}
