//! Weights of linear layers in fewer bits than a float.

use candle_core::Result;
use rayon::prelude::*;

use super::memory::zeroed;

/// Numbers of a row that share a factor.
pub(super) const GROUP: usize = 32;

/// A matrix in [ggml](https://github.com/ggml-org/ggml)'s `q8_0`: whole numbers from -127 to 127, and a factor for each 32 of a row.
#[derive(Debug)]
pub(in crate::ops) struct Blocks {
    /// `(rows, columns)`.
    values: Vec<i8>,
    /// `(rows, groups)`. The last group of a row may have fewer numbers.
    factors: Vec<f32>,
    columns: usize,
}

impl Blocks {
    /// Rounds a matrix `(rows, columns)`, so that the largest number of each group becomes 127 or -127.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(in crate::ops) fn quantize(numbers: &[f32], columns: usize) -> Result<Self> {
        let groups = columns.div_ceil(GROUP);
        let mut values = zeroed(numbers.len())?;
        let mut factors = zeroed(numbers.len() / columns.max(1) * groups)?;
        let rows = numbers.par_chunks_exact(columns).zip(values.par_chunks_exact_mut(columns)).zip(factors.par_chunks_exact_mut(groups));
        rows.for_each(|((numbers, values), factors)| {
            for ((numbers, values), factor) in numbers.chunks(GROUP).zip(values.chunks_mut(GROUP)).zip(factors) {
                *factor = numbers.iter().fold(0.0, |largest: f32, number| largest.max(number.abs())) / f32::from(i8::MAX);
                for (number, value) in numbers.iter().zip(values) {
                    // Where all are zero, so is the factor: the conversion makes a zero of 0 / 0.
                    *value = (number / *factor).round() as i8;
                }
            }
        });
        Ok(Self { values, factors, columns })
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// The whole number at a row and column.
    pub(super) fn value(&self, row: usize, column: usize) -> i8 {
        self.values[row * self.columns + column]
    }

    /// The number at a row and column.
    pub(super) fn number(&self, row: usize, column: usize) -> f32 {
        f32::from(self.value(row, column)) * self.factor(row, column)
    }

    /// What the whole number at a row and column is multiplied with.
    pub(super) fn factor(&self, row: usize, column: usize) -> f32 {
        self.factors[row * self.columns.div_ceil(GROUP) + column / GROUP]
    }
}
