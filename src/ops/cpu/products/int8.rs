//! Products of whole numbers of 8 bits, on vectors that add four of them to each sum.
//!
//! 64 numbers of a line, or of a column of weights, share a factor, so that the largest of them becomes 127 or -127. Products of whole
//! numbers are exact; the sum of 64 of them is multiplied with both factors and added up in f32. `VPDPBUSD` wants one side without a sign:
//! 128 is added to weights, and what that makes too much is taken off each line's sums at once.
//!
//! Layouts, in words: 64 numbers of a prepared line are their factor, -128 times their sum, and the numbers, four to a word; the line is
//! padded to a multiple of 64. 64 rows of packed weights are a row of factors, one for each column, and 16 rows of words with four numbers
//! of a column each.

#[cfg(target_arch = "x86_64")]
mod vnni;

use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};

use super::{Blocking, Lines, fma};

/// Numbers that share a factor.
const BLOCK: usize = 64;
/// Numbers of a word.
const QUAD: usize = 4;
/// Rows of words of a block of weights.
const QUADS: usize = BLOCK / QUAD;
/// Rows of words of a block of weights, with that of factors.
const WEIGHT_ROWS: usize = 1 + QUADS;
/// Words of a block of a line.
const LINE_WORDS: usize = 2 + QUADS;
/// The most columns of a panel.
const MOST_COLUMNS: usize = 32;
/// What weights are larger by than they are.
const OFFSET: i32 = 128;

pub(super) const BLOCKING: Blocking = Blocking { depth: BLOCK, ..fma::BLOCKING };

/// The proof that there are vectors that multiply whole numbers.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Int8(Units);

#[derive(Debug, Clone, Copy)]
enum Units {
    #[cfg(target_arch = "x86_64")]
    Hardware(vnni::Instructions),
    /// The same sums in plain Rust, so that a machine without the units can test what is around them.
    #[cfg(test)]
    Emulated,
}

impl Int8 {
    /// The processor's units for vectors of `lanes` f32, if it has any.
    pub(super) fn try_new(lanes: usize) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        return vnni::Instructions::try_new(lanes).map(|instructions| Self(Units::Hardware(instructions)));
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    #[cfg(test)]
    pub(super) fn emulated() -> Self {
        Self(Units::Emulated)
    }

    #[cfg(test)]
    pub(super) fn is_emulated(self) -> bool {
        matches!(self.0, Units::Emulated)
    }

    /// See [`super::Multiplier::multiply`].
    #[inline]
    pub(super) fn multiply(self, lines: Lines, rows: usize, (weights, soon): (&[f32], &[u8]), width: usize, sums: &mut [f32], add: bool) {
        let words = (cast_slice::<_, u32>(lines.words), lines.pitch);
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Units::Hardware(instructions) => instructions.multiply(words, rows, (cast_slice(weights), soon), width, sums, add),
            #[cfg(test)]
            Units::Emulated => emulated(words, rows, cast_slice(weights), width, sums, add),
        }
    }
}

/// Words of a prepared line of so many numbers, padding included.
pub(super) fn words(numbers: usize) -> usize {
    numbers / BLOCK * LINE_WORDS
}

/// Words of so many packed weights.
pub(super) fn packed_words(weights: usize) -> usize {
    weights / BLOCK * WEIGHT_ROWS
}

/// The factor of numbers whose largest has these bits without its sign, and what they are multiplied with to be whole. Numbers near those
/// that have no reciprocal count as zeros; where one is no number or infinite, no product with the factor is finite.
#[inline(always)]
fn factors(largest: u32) -> (f32, f32) {
    const SMALLEST: f32 = 1e-30;
    let largest = f32::from_bits(largest);
    if largest < SMALLEST { (0.0, 0.0) } else { (largest / 127.0, 127.0 / largest) }
}

/// The bits of the nearest whole number, even where two are as near, in the lowest bits of the result.
#[inline(always)]
fn whole(x: f32) -> u32 {
    // Sums above 2^23 have no digits behind the point.
    const FIRST: f32 = (3 << 22) as f32;
    (x + FIRST).to_bits()
}

/// Prepares a line. See the top of this file.
#[inline(always)]
pub(super) fn prepare(numbers: &[f32], line: &mut [f32]) {
    let line: &mut [u32] = cast_slice_mut(line);
    assert!(line.len() == words(numbers.len().next_multiple_of(BLOCK)));
    let (blocks, rest) = numbers.as_chunks::<BLOCK>();
    let (words, last) = line.split_at_mut(blocks.len() * LINE_WORDS);
    for (numbers, words) in blocks.iter().zip(words.as_chunks_mut().0) {
        prepare_block(numbers, words);
    }
    if let Some(words) = last.as_chunks_mut().0.first_mut() {
        let mut numbers = [0.0; BLOCK];
        numbers[..rest.len()].copy_from_slice(rest);
        prepare_block(&numbers, words);
    }
}

#[inline(always)]
fn prepare_block(numbers: &[f32; BLOCK], words: &mut [u32; LINE_WORDS]) {
    let largest = numbers.iter().map(|x| x.abs().to_bits()).fold(0, u32::max);
    let (factor, inverse) = factors(largest);
    let mut bytes = [0; BLOCK];
    for (byte, x) in bytes.iter_mut().zip(numbers) {
        *byte = whole(x * inverse) as u8;
    }
    let sum: i32 = bytes.iter().map(|byte| i32::from(byte.cast_signed())).sum();
    words[0] = factor.to_bits();
    words[1] = (-OFFSET * sum).cast_unsigned();
    words[2..].copy_from_slice(cast_slice(&bytes));
}

/// See [`super::Products::copy`]. Blocks are filled whole, those that begin in `to`.
#[inline(always)]
pub(super) fn copy(from: Option<(&[f32], usize)>, line: &mut [f32], to: Range<usize>) {
    let line = &mut line[words(to.start.next_multiple_of(BLOCK))..words(to.end.next_multiple_of(BLOCK))];
    match from {
        Some((other, first)) => {
            assert!(to.start.is_multiple_of(BLOCK) && first.is_multiple_of(BLOCK), "a part of a block");
            line.copy_from_slice(&other[words(first)..][..line.len()]);
        }
        None => line.fill(0.0),
    }
}

/// Packs blocks of rows of `width` numbers, at most [`MOST_COLUMNS`].
#[inline(always)]
pub(super) fn pack(numbers: &[f32], width: usize, packed: &mut [f32]) {
    assert!(width <= MOST_COLUMNS && numbers.len().is_multiple_of(BLOCK * width) && packed.len() == packed_words(numbers.len()));
    for (rows, packed) in numbers.chunks_exact(BLOCK * width).zip(packed.chunks_exact_mut(WEIGHT_ROWS * width)) {
        let (row, words) = packed.split_at_mut(width);
        let mut largest = [0; MOST_COLUMNS];
        for numbers in rows.chunks_exact(width) {
            largest.iter_mut().zip(numbers).for_each(|(largest, x)| *largest = (*largest).max(x.abs().to_bits()));
        }
        let of_column = largest.map(factors);
        row.iter_mut().zip(of_column).for_each(|(factor, (of_column, _))| *factor = of_column);
        let inverses = of_column.map(|(_, inverse)| inverse);
        for (numbers, words) in rows.chunks_exact(QUAD * width).zip(cast_slice_mut::<_, u32>(words).chunks_exact_mut(width)) {
            words.fill(0);
            for (i, numbers) in numbers.chunks_exact(width).enumerate() {
                for ((word, x), inverse) in words.iter_mut().zip(numbers).zip(inverses) {
                    let byte = whole(x * inverse).wrapping_add(OFFSET.cast_unsigned()) & 0xff;
                    *word |= byte << (8 * i);
                }
            }
        }
    }
}

/// What the vectors do.
#[cfg(test)]
fn emulated((lines, pitch): (&[u32], usize), rows: usize, weights: &[u32], width: usize, sums: &mut [f32], add: bool) {
    for (row, sums) in sums.chunks_exact_mut(width).enumerate().take(rows) {
        if !add && !weights.is_empty() {
            sums.fill(0.0);
        }
        let line = lines.get(row * pitch..).unwrap_or_default();
        for (line, weights) in line.chunks(LINE_WORDS).zip(weights.chunks_exact(WEIGHT_ROWS * width)) {
            for (column, sum) in sums.iter_mut().enumerate() {
                let mut whole = line[1].cast_signed();
                for (quad, numbers) in line[2..].iter().enumerate() {
                    let bytes = numbers.to_ne_bytes().into_iter().zip(weights[(1 + quad) * width + column].to_ne_bytes());
                    whole += bytes.map(|(x, weight)| i32::from(x.cast_signed()) * i32::from(weight)).sum::<i32>();
                }
                *sum = (whole as f32 * f32::from_bits(weights[column])).mul_add(f32::from_bits(line[0]), *sum);
            }
        }
    }
}
