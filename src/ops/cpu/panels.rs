//! Weights in the order in which the kernel reads them, in f32 or stored in half the space.

use std::ops::Range;

use bytemuck::{Zeroable, cast_slice, cast_slice_mut};
use half::{bf16, f16};
use rayon::prelude::*;

use super::{
    amx::{self, Amx, BLOCK, BLOCK_HALVES},
    machine::Machine,
    memory::zeros,
};
use crate::ops::Storage;

/// A matrix `(depth, columns)` in panels of as many columns as two vectors hold (one, where that is enough), each panel row by row; for
/// tile units, in blocks of 32 by 32 in their order.
#[derive(Debug, Clone)]
pub(super) struct Panels {
    values: Values,
    pub(super) depth: usize,
    pub(super) columns: usize,
    /// Columns of a panel.
    pub(super) width: usize,
    pub(super) machine: Machine,
}

#[derive(Debug, Clone)]
enum Values {
    F32(Vec<f32>),
    /// Blocks as the tile units take them.
    Split(Vec<u16>),
    F16(Vec<u16>),
    Bf16(Vec<u16>),
    /// Whole numbers, and a row of factors for every [`QUANTIZED`] rows.
    Q8(Vec<i8>, Vec<f32>),
}

/// Weights of a column that share a factor.
const QUANTIZED: usize = 32;

impl Panels {
    /// Packs the matrix whose element at `(k, n)` is `at(k, n)`.
    pub(super) fn new(machine: Machine, storage: Storage, depth: usize, columns: usize, at: impl Fn(usize, usize) -> f32 + Sync) -> Self {
        assert!(depth > 0, "a matrix without rows");
        let lanes = machine.lanes();
        let Some(amx) = machine.amx else {
            let width = if columns > lanes { 2 * lanes } else { lanes };
            return Self { values: Values::new(storage, (depth, columns, width), (QUANTIZED, 1), at), depth, columns, width, machine };
        };
        let shape = (depth.next_multiple_of(BLOCK), columns.next_multiple_of(BLOCK), BLOCK);
        let in_tiles = |k: usize, n: usize| {
            let (row, column) = amx::place(k % BLOCK, n % BLOCK);
            let (k, n) = (k / BLOCK * BLOCK + row, n / BLOCK * BLOCK + column);
            if k < depth && n < columns { at(k, n) } else { 0.0 }
        };
        let values = match storage {
            Storage::F32 => Values::Split(split(amx, shape, in_tiles)),
            // Of a block, a column is two numbers of each row of a tile.
            _ => Values::new(storage, shape, (QUANTIZED / 2, 2), in_tiles),
        };
        Self { values, depth, columns, width: BLOCK, machine }
    }

    pub(super) fn count(&self) -> usize {
        self.columns.div_ceil(self.width)
    }

    /// How many numbers of scratch memory it takes to make so many rows of a panel ready.
    pub(super) fn scratch(&self, rows: usize) -> usize {
        let copies = match (&self.values, self.machine.amx) {
            (Values::F32(_) | Values::Split(_), _) => 0,
            (_, None) => 1,
            (_, Some(_)) => 2,
        };
        copies * rows.next_multiple_of(BLOCK) * self.width
    }

    /// Rows of a panel in f32, which what is stored otherwise becomes in `scratch`: `width` numbers for each.
    #[inline(always)]
    pub(super) fn rows<'a>(&'a self, panel: usize, first: usize, count: usize, scratch: &'a mut [f32]) -> &'a [f32] {
        let part = self.part(panel, first, count);
        match &self.values {
            Values::Split(_) => unreachable!("what is split is for tile units"),
            Values::F32(values) => &values[part],
            Values::F16(values) => decode(&values[part], scratch, f16_to_f32),
            Values::Bf16(values) => decode(&values[part], scratch, |bits| f32::from_bits(u32::from(bits) << 16)),
            Values::Q8(values, factors) => {
                let shared = if self.machine.amx.is_some() { QUANTIZED / 2 } else { QUANTIZED };
                let factors = &factors[panel * self.stored_depth().div_ceil(shared) * self.width..];
                let scratch = &mut scratch[..part.len()];
                for (k, (wide, values)) in scratch.chunks_exact_mut(self.width).zip(values[part].chunks_exact(self.width)).enumerate() {
                    let factors = &factors[(first + k) / shared * self.width..][..self.width];
                    for ((wide, value), factor) in wide.iter_mut().zip(values).zip(factors) {
                        *wide = f32::from(*value) * factor;
                    }
                }
                scratch
            }
        }
    }

    /// The memory of rows of a panel, for who wants it near before it is read.
    pub(super) fn stored(&self, panel: usize, first: usize, count: usize) -> &[u8] {
        let part = self.part(panel, first, count);
        match &self.values {
            Values::F32(values) => cast_slice(&values[part]),
            Values::Split(halves) => cast_slice(&halves[2 * part.start..2 * part.end]),
            Values::F16(values) | Values::Bf16(values) => cast_slice(&values[part]),
            Values::Q8(values, _) => cast_slice(&values[part]),
        }
    }

    /// Rows of a panel as tile units take them. `count` is rounded up to whole blocks, and `first` begins one.
    #[inline(always)]
    pub(super) fn blocks<'a>(&'a self, amx: Amx, panel: usize, first: usize, count: usize, scratch: &'a mut [f32]) -> &'a [u16] {
        let count = count.next_multiple_of(BLOCK);
        if let Values::Split(halves) = &self.values {
            let part = self.part(panel, first, count);
            return &halves[2 * part.start..2 * part.end];
        }
        let (decoded, halves) = scratch.split_at_mut(count * self.width);
        let numbers = self.rows(panel, first, count, decoded);
        let halves = &mut cast_slice_mut(halves)[..2 * numbers.len()];
        split_blocks(amx, numbers, halves);
        halves
    }

    /// Where rows of a panel are.
    fn part(&self, panel: usize, first: usize, count: usize) -> Range<usize> {
        let start = (panel * self.stored_depth() + first) * self.width;
        start..start + count * self.width
    }

    fn stored_depth(&self) -> usize {
        if self.machine.amx.is_some() { self.depth.next_multiple_of(BLOCK) } else { self.depth }
    }
}

impl Values {
    /// `shared` rows of `paired` columns each have a factor in common, where there are factors.
    fn new(
        storage: Storage,
        (depth, columns, width): (usize, usize, usize),
        (shared, paired): (usize, usize),
        at: impl Fn(usize, usize) -> f32 + Sync,
    ) -> Self {
        let shape = (depth, columns, width);
        match storage {
            Storage::F32 => Self::F32(pack(shape, at)),
            Storage::F16 => Self::F16(pack(shape, |k, n| f16::from_f32(at(k, n)).to_bits())),
            Storage::Bf16 => Self::Bf16(pack(shape, |k, n| bf16::from_f32(at(k, n)).to_bits())),
            Storage::Q8_0 => {
                let groups = depth.div_ceil(shared);
                let largest = |group: usize, n: usize| {
                    let rows = group * shared..((group + 1) * shared).min(depth);
                    let of_row = |k| (n / paired * paired..(n / paired + 1) * paired).map(move |n| (k, n));
                    rows.flat_map(of_row).map(|(k, n)| at(k, n).abs()).fold(0.0, f32::max)
                };
                let factors = pack((groups, columns, width), |group, n| largest(group, n) / f32::from(i8::MAX));
                let factor = |k: usize, n: usize| factors[(n / width * groups + k / shared) * width + n % width];
                // Where all are zero, so is the factor: what comes of a division by it is a zero again.
                Self::Q8(pack(shape, |k, n| (at(k, n) / factor(k, n)).round() as i8), factors)
            }
        }
    }
}

/// Of whole blocks.
fn split(amx: Amx, (depth, columns, width): (usize, usize, usize), at: impl Fn(usize, usize) -> f32 + Sync) -> Vec<u16> {
    let mut halves = zeros(2 * depth * columns);
    halves.par_chunks_exact_mut(2 * depth * width).enumerate().for_each(|(panel, halves)| {
        for (first, halves) in (0..depth).step_by(BLOCK).zip(halves.chunks_exact_mut(BLOCK_HALVES)) {
            let numbers: [f32; BLOCK * BLOCK] = std::array::from_fn(|i| at(first + i / width, panel * width + i % width));
            split_blocks(amx, &numbers, halves);
        }
    });
    halves
}

/// The high halves of each block, then its low ones.
#[inline(always)]
fn split_blocks(amx: Amx, numbers: &[f32], halves: &mut [u16]) {
    for (numbers, halves) in numbers.chunks_exact(BLOCK * BLOCK).zip(halves.chunks_exact_mut(BLOCK_HALVES)) {
        let (high, low) = halves.split_at_mut(BLOCK * BLOCK);
        amx.split(numbers, high, low);
    }
}

fn pack<T: Zeroable + Send>((depth, columns, width): (usize, usize, usize), at: impl Fn(usize, usize) -> T + Sync) -> Vec<T> {
    let mut values = zeros(columns.div_ceil(width) * depth * width);
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
