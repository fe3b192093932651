//! What follows a matrix product or convolution, done to each row of sums before it is written, while it is in registers.

use pulp::{Simd, bytemuck};

use super::{
    math::{gelu, quick_gelu, relu, silu},
    output::Output,
};
use crate::ops::Activation;

/// What is added to a row of sums, and applied to it, in the order of the fields.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::ops) struct Epilogue<'a> {
    /// Columns of the result.
    pub(in crate::ops) columns: usize,
    /// One number for each column.
    pub(in crate::ops) bias: Option<&'a [f32]>,
    /// Whether every second vector of sums, after GELU, gates the one before it, and nothing else but the bias is added.
    pub(in crate::ops) gated: bool,
    /// `(samples, columns)`, and the number of rows of a sample: one row of numbers for all rows of a sample.
    pub(in crate::ops) sample_bias: Option<(&'a [f32], usize)>,
    /// Of the result's shape.
    pub(in crate::ops) residual: Option<&'a [f32]>,
    /// Whether the numbers that the result's memory holds are added.
    pub(in crate::ops) onto: bool,
    pub(in crate::ops) activation: Option<Activation>,
    /// One number for each column, by which what is negative is multiplied last: `PReLU`.
    pub(in crate::ops) slopes: Option<&'a [f32]>,
}

impl Epilogue<'_> {
    /// Finishes and writes the sums of a row from `column` on. Sums beyond the last column, the padding of a panel, are left out.
    #[inline(always)]
    pub(super) fn write<S: Simd>(&self, simd: S, row: usize, column: usize, sums: &[f32], out: &mut Output) {
        let vectors: &[S::f32s] = bytemuck::cast_slice(sums);
        if self.gated {
            assert!(vectors.len() == 2 && column / 2 < self.columns);
            let bias: &[S::f32s] = bytemuck::cast_slice(&self.bias.unwrap_or_default()[column..][..2 * S::F32_LANES]);
            let value = simd.add_f32s(vectors[0], bias[0]);
            let gate = map(simd.add_f32s(vectors[1], bias[1]), gelu);
            return self.store::<S>(row, column / 2, simd.mul_f32s(value, gate), out);
        }
        for (j, sum) in vectors.iter().enumerate() {
            let column = column + j * S::F32_LANES;
            if column < self.columns {
                self.store::<S>(row, column, self.finish(simd, row, column, *sum, out), out);
            }
        }
    }

    #[inline(always)]
    fn finish<S: Simd>(&self, simd: S, row: usize, column: usize, mut value: S::f32s, out: &Output) -> S::f32s {
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
            value = simd.add_f32s(value, load(simd, out.read(row * self.columns + column, n)));
        }
        let value = match self.activation {
            None => value,
            Some(Activation::Silu) => map(value, silu),
            Some(Activation::Gelu) => map(value, gelu),
            Some(Activation::QuickGelu) => map(value, quick_gelu),
            Some(Activation::Relu) => map(value, relu),
        };
        let Some(slopes) = self.slopes else { return value };
        // NaN is not less than 0, and stays.
        let is_negative = simd.less_than_f32s(value, simd.splat_f32s(0.0));
        simd.select_f32s(is_negative, simd.mul_f32s(value, load(simd, &slopes[column..][..n])), value)
    }

    #[inline(always)]
    fn store<S: Simd>(&self, row: usize, column: usize, value: S::f32s, out: &mut Output) {
        let n = S::F32_LANES.min(self.columns - column);
        store::<S>(value, n, row * self.columns + column, out);
    }
}

/// A vector of the slice's numbers, filled up with zeros. Whole vectors, which nearly all are, are loaded without a function call.
#[inline(always)]
pub(super) fn load<S: Simd>(simd: S, numbers: &[f32]) -> S::f32s {
    if numbers.len() == S::F32_LANES { bytemuck::cast_slice(numbers)[0] } else { simd.partial_load_f32s(numbers) }
}

/// Writes the first `n` numbers of a vector from `start` on.
#[inline(always)]
pub(super) fn store<S: Simd>(value: S::f32s, n: usize, start: usize, out: &mut Output) {
    let value = [value];
    let numbers: &[f32] = bytemuck::cast_slice(&value);
    if n == S::F32_LANES { out.write(start, &numbers[..S::F32_LANES]) } else { out.write(start, &numbers[..n]) }
}

/// A function of each number of a vector.
#[inline(always)]
pub(super) fn map<V: bytemuck::Pod>(mut vector: V, f: impl Fn(f32) -> f32) -> V {
    for x in bytemuck::cast_slice_mut::<V, f32>(std::slice::from_mut(&mut vector)) {
        *x = f(*x);
    }
    vector
}
