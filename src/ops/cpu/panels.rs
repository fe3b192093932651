//! Weights in the order in which they are multiplied, in f32 or in fewer bits.

use std::ops::Range;

use bytemuck::{Zeroable, cast_slice};
use half::{
    bf16, f16,
    slice::{HalfBitsSliceExt, HalfFloatSliceExt},
};
use rayon::prelude::*;

use super::{blocks::Blocks, machine::Machine, memory::zeros};
use crate::ops::weight_type::DenseType;

/// A matrix `(depth, columns)`, cut into panels of `width` columns, each `(rows, width)` in memory. `rows` is the depth as the machine's
/// arithmetic pads it; padding is zeros.
#[derive(Debug, Clone)]
pub(super) struct Panels {
    values: Values,
    pub(super) depth: usize,
    pub(super) columns: usize,
    /// Columns of a panel.
    pub(super) width: usize,
    pub(super) machine: Machine,
}

/// The numbers of all panels: packed, or in fewer bits than that takes.
#[derive(Debug, Clone)]
enum Values {
    /// Packed weights.
    Packed(Vec<f32>),
    /// These and the following are in the order of [`Products::place`](super::products::Products::place), and packed when they are used.
    F16(Vec<u16>),
    Bf16(Vec<u16>),
    /// Whole numbers, and the factors that they are multiplied with, one row for each
    /// [`Products::group_rows`](super::products::Products::group_rows) rows of a panel.
    Q8_0(Vec<i8>, Vec<f32>),
}

impl Panels {
    /// Packs a matrix: `column(n)` has the numbers of column `n`, or is none for a column of zeros, and `offsets[k]` tells which of them is in
    /// row `k`.
    pub(super) fn new<'a>(
        machine: Machine,
        dtype: DenseType,
        columns: usize,
        column: impl Fn(usize) -> Option<&'a [f32]> + Sync,
        offsets: &[usize],
    ) -> Self {
        let mut panels = Self::empty(machine, offsets.len(), columns);
        let columns_of = |panel: usize| -> Vec<&[f32]> {
            let columns = panel * panels.width..(panel + 1) * panels.width;
            columns.map(|n| if n < panels.columns { column(n).unwrap_or_default() } else { &[] }).collect()
        };
        let packs_to_halves = machine.products.packs_to(size_of::<u16>());
        panels.values = match dtype {
            DenseType::F16 if !packs_to_halves => Values::F16(panels.place_halves(columns_of, offsets, |numbers, halves| {
                halves.reinterpret_cast_mut::<f16>().convert_from_f32_slice(numbers);
            })),
            DenseType::Bf16 if !packs_to_halves => Values::Bf16(panels.place_halves(columns_of, offsets, |numbers, halves| {
                halves.reinterpret_cast_mut::<bf16>().convert_from_f32_slice(numbers);
            })),
            _ => Values::Packed(panels.pack(columns_of, offsets)),
        };
        panels
    }

    /// Packs a matrix whose column `n` is row `row(n)` of `blocks`, or zeros where there is none.
    pub(super) fn of_blocks(machine: Machine, blocks: &Blocks, columns: usize, row: impl Fn(usize) -> Option<usize> + Sync) -> Self {
        let mut panels = Self::empty(machine, blocks.columns(), columns);
        if machine.products.packs_to(size_of::<i8>()) {
            let (depth, width) = (panels.depth, panels.width);
            let column = |n: usize| row(n).filter(|_| n < columns).map(|row| (0..depth).map(|k| blocks.number(row, k)).collect());
            let columns_of =
                |panel| -> Vec<Vec<f32>> { (panel * width..(panel + 1) * width).map(|n| column(n).unwrap_or_default()).collect() };
            panels.values = Values::Packed(panels.pack(columns_of, &(0..depth).collect::<Vec<_>>()));
            return panels;
        }
        let values = panels.place(|k, n| row(n).map_or(0, |row| blocks.value(row, k)));
        let factor = |k, n| row(n).map_or(0.0, |row| blocks.factor(row, k));
        let per_group = machine.products.group_rows();
        let factors = fill(panels.count(), panels.rows().div_ceil(per_group), panels.width, |group, column| {
            panels.element(group * per_group, column).map_or(0.0, |(k, n)| factor(k, n))
        });
        panels.values = Values::Q8_0(values, factors);
        panels
    }

    fn empty(machine: Machine, depth: usize, columns: usize) -> Self {
        assert!(depth > 0, "a matrix without rows");
        Self { values: Values::Packed(Vec::new()), depth, columns, width: machine.panel_width(columns), machine }
    }

    pub(super) fn count(&self) -> usize {
        self.columns.div_ceil(self.width)
    }

    /// The memory that they take, in bytes.
    pub(super) fn bytes(&self) -> usize {
        match &self.values {
            Values::Packed(values) => size_of_val(&**values),
            Values::F16(values) | Values::Bf16(values) => size_of_val(&**values),
            Values::Q8_0(values, factors) => size_of_val(&**values) + size_of_val(&**factors),
        }
    }

    /// Rows of a panel.
    fn rows(&self) -> usize {
        self.machine.products.padded(self.depth)
    }

    /// Which element of the matrix belongs at `(row, column)` of all panels side by side; none where there is padding.
    fn element(&self, row: usize, column: usize) -> Option<(usize, usize)> {
        let (k, n) = self.machine.products.place(row, column);
        (k < self.depth && n < self.columns).then_some((k, n))
    }

    /// Numbers in the order of [`Products::place`](super::products::Products::place).
    fn place<T: Zeroable + Send>(&self, at: impl Fn(usize, usize) -> T + Sync) -> Vec<T> {
        fill(self.count(), self.rows(), self.width, |row, column| self.element(row, column).map_or_else(T::zeroed, |(k, n)| at(k, n)))
    }

    /// The same of 16 bits, which `halve` makes of a row of a panel.
    fn place_halves<'a>(
        &self,
        columns_of: impl Fn(usize) -> Vec<&'a [f32]> + Sync,
        offsets: &[usize],
        halve: impl Fn(&[f32], &mut [u16]) + Sync,
    ) -> Vec<u16> {
        let (products, width) = (self.machine.products, self.width);
        let mut values = zeros(self.count() * self.rows() * width);
        values.par_chunks_exact_mut(self.rows() * width).enumerate().for_each(|(panel, values)| {
            let (columns, mut numbers) = (columns_of(panel), vec![0.0; width]);
            for (row, values) in values.chunks_exact_mut(width).enumerate() {
                for (column, number) in numbers.iter_mut().enumerate() {
                    // Its place is in the same panel.
                    let (k, n) = products.place(row, column);
                    *number = offsets.get(k).and_then(|offset| columns[n].get(*offset)).copied().unwrap_or_default();
                }
                halve(&numbers, values);
            }
        });
        values
    }

    /// Packed weights.
    fn pack<C: AsRef<[f32]>>(&self, columns_of: impl Fn(usize) -> Vec<C> + Sync, offsets: &[usize]) -> Vec<f32> {
        let (products, width) = (self.machine.products, self.width);
        let step = products.blocking().depth;
        let words = products.packed_words(self.rows() * width);
        let mut packed = zeros(self.count() * words);
        packed.par_chunks_exact_mut(words).enumerate().for_each(|(panel, packed)| {
            let (columns, mut numbers) = (columns_of(panel), vec![0.0; step * width]);
            for (offsets, packed) in offsets.chunks(step).zip(packed.chunks_exact_mut(products.packed_words(step * width))) {
                numbers[offsets.len() * width..].fill(0.0);
                for (offset, row) in offsets.iter().zip(numbers.chunks_exact_mut(width)) {
                    for (number, column) in row.iter_mut().zip(&columns) {
                        *number = column.as_ref().get(*offset).copied().unwrap_or_default();
                    }
                }
                products.pack(&numbers, width, packed);
            }
        });
        packed
    }

    /// Words of scratch memory that [`Panels::packed`] needs for so many rows.
    pub(super) fn scratch(&self, rows: usize) -> usize {
        let products = self.machine.products;
        let copies = match &self.values {
            Values::Packed(_) => 0,
            Values::F16(_) | Values::Bf16(_) | Values::Q8_0(..) => 1 + usize::from(!products.is_plain()),
        };
        copies * products.padded(rows) * self.width
    }

    /// Packed weights: `count` rows of a panel from `first` on. `count` is rounded up, and `first` a multiple of, what the arithmetic pads
    /// to. `scratch` is for weights that are not f32.
    #[inline(always)]
    pub(super) fn packed<'a>(&'a self, panel: usize, first: usize, count: usize, scratch: &'a mut [f32]) -> &'a [f32] {
        let products = self.machine.products;
        let part = self.part(panel, first, products.padded(count));
        let (numbers, packed) = match &self.values {
            Values::Packed(values) => return &values[self.words(part)],
            Values::F16(_) | Values::Bf16(_) | Values::Q8_0(..) => scratch.split_at_mut(part.len()),
        };
        match &self.values {
            Values::Packed(_) => {}
            Values::F16(values) => decode(&values[part], numbers, f16_to_f32),
            Values::Bf16(values) => decode(&values[part], numbers, |bits| f32::from_bits(u32::from(bits) << 16)),
            Values::Q8_0(values, factors) => {
                let (shared, width) = (products.group_rows(), self.width);
                let factors = &factors[panel * self.rows().div_ceil(shared) * width..];
                for (k, (numbers, values)) in numbers.chunks_exact_mut(width).zip(values[part].chunks_exact(width)).enumerate() {
                    let factors = &factors[(first + k) / shared * width..][..width];
                    for ((number, value), factor) in numbers.iter_mut().zip(values).zip(factors) {
                        *number = f32::from(*value) * factor;
                    }
                }
            }
        }
        if products.is_plain() {
            return numbers;
        }
        let packed = &mut packed[..products.packed_words(numbers.len())];
        products.pack_placed(numbers, self.width, packed);
        packed
    }

    /// The memory of rows of a panel, to be fetched before it is read.
    pub(super) fn stored(&self, panel: usize, first: usize, count: usize) -> &[u8] {
        let part = self.part(panel, first, count);
        match &self.values {
            Values::Packed(values) => cast_slice(&values[self.words(part)]),
            Values::F16(values) | Values::Bf16(values) => cast_slice(&values[part]),
            Values::Q8_0(values, _) => cast_slice(&values[part]),
        }
    }

    /// Where the words of packed weights are.
    fn words(&self, part: Range<usize>) -> Range<usize> {
        let products = self.machine.products;
        products.packed_words(part.start)..products.packed_words(part.end)
    }

    /// Where rows of a panel are.
    fn part(&self, panel: usize, first: usize, count: usize) -> Range<usize> {
        let start = (panel * self.rows() + first) * self.width;
        start..start + count * self.width
    }
}

/// `panels` panels `(rows, width)` of what `at` says belongs at a row and column of all of them side by side.
fn fill<T: Zeroable + Send>(panels: usize, rows: usize, width: usize, at: impl Fn(usize, usize) -> T + Sync) -> Vec<T> {
    let mut values = zeros(panels * rows * width);
    values.par_chunks_exact_mut(rows * width).enumerate().for_each(|(panel, values)| {
        for (row, values) in values.chunks_exact_mut(width).enumerate() {
            for (column, value) in values.iter_mut().enumerate() {
                *value = at(row, panel * width + column);
            }
        }
    });
    values
}

#[inline(always)]
fn decode(values: &[u16], numbers: &mut [f32], one: impl Fn(u16) -> f32) {
    numbers.iter_mut().zip(values).for_each(|(number, value)| *number = one(*value));
}

/// Selects instead of branching, so that loops become vector code on every machine, and does no arithmetic on subnormal numbers, which
/// some machines are slow at.
#[inline(always)]
fn f16_to_f32(bits: u16) -> f32 {
    const BIAS: u32 = (127 - 15) << 23;
    const SMALLEST_NORMAL: u32 = (127 - 14) << 23;
    let wide = u32::from(bits);
    let (shifted, exponent) = ((wide & 0x7fff) << 13, wide & 0x7c00);
    let subnormal = f32::from_bits(shifted + SMALLEST_NORMAL) - f32::from_bits(SMALLEST_NORMAL);
    let normal = shifted + BIAS + if exponent == 0x7c00 { BIAS } else { 0 };
    let magnitude = if exponent == 0 { subnormal.to_bits() } else { normal };
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
