//! The arithmetics in which matrices are multiplied, behind one enum. Nothing outside this file and its folder knows which one is in use.
//!
//! A product is `sums (rows, columns) = lines (rows, depth) * weights (depth, columns)` in f32, for the columns of one panel of weights.
//! An arithmetic has a form of its own for either factor, which it keeps in memory of f32 words:
//!
//! - a *prepared line* is one row of inputs, see [`Products::prepare`],
//! - *packed weights* are rows of a panel, see [`Products::pack`].
//!
//! A further arithmetic is a variant here and a file in `products/`: the compiler then names every match that lacks it.

#[cfg_attr(
    not(all(target_arch = "x86_64", target_os = "linux")),
    allow(unreachable_code, unused, reason = "only tests have such units elsewhere")
)]
mod amx;
#[cfg_attr(not(target_arch = "x86_64"), allow(unreachable_code, unused, reason = "only tests have such units elsewhere"))]
mod bf16;
pub(super) mod fma;
#[cfg_attr(not(target_arch = "x86_64"), allow(unreachable_code, unused, reason = "only tests have such units elsewhere"))]
mod int8;
mod tiles;

use std::ops::Range;

use pulp::Simd;

use amx::{Amx, Halves, Tiles};
pub(super) use bf16::Bf16;
use int8::Int8;

use super::blocks::GROUP;

/// An arithmetic that the processor has.
#[derive(Debug, Clone, Copy)]
pub(super) enum Products {
    /// Vectors of f32, multiplied and added with one rounding. Lines and weights are the numbers themselves.
    Fma,
    /// Tile units for bf16. Each f32 is split into two bf16 numbers, so that products keep 16 binary digits, or is rounded to one.
    Amx(Amx),
    /// Vectors of bf16. Each f32 is rounded to one, so that products keep 8 binary digits.
    Bf16(Bf16),
    /// Vectors of whole numbers of 8 bits. Each 64 f32 are rounded to such numbers with one factor.
    Int8(Int8),
}

/// How an arithmetic wants matrices to be cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blocking {
    /// The depth of lines and weights is padded with zeros to a multiple of this.
    pub(super) depth: usize,
    /// The rows of a product are a multiple of this.
    pub(super) rows: usize,
    /// The most rows of a task, whose lines and sums stay in the second-level cache.
    pub(super) task_rows: usize,
    /// The rows of a task are a multiple of this, so that the fastest kernel serves all but the last of them.
    pub(super) task_row_step: usize,
}

/// Rows of inputs, each a prepared line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lines<'a> {
    /// From the first line on.
    pub(super) words: &'a [f32],
    /// Words from line to line.
    pub(super) pitch: usize,
    /// Numbers of a line, padding included.
    pub(super) numbers: usize,
}

impl Products {
    /// The fastest arithmetic of this processor.
    pub(super) fn best() -> Self {
        Amx::try_new(Halves::Both).map_or(Self::Fma, Self::Amx)
    }

    /// The fastest arithmetic of this processor for bf16, next to vectors of `lanes` f32, if it has one that is faster than for f32.
    pub(super) fn bf16(lanes: usize) -> Option<Self> {
        Amx::try_new(Halves::High).map(Self::Amx).or_else(|| Bf16::try_new(lanes).map(Self::Bf16))
    }

    /// The same for whole numbers of 8 bits. Tile units would have to give back their sums after each 64 of them, for the factors: that
    /// takes what they gain over bf16.
    pub(super) fn int8(lanes: usize) -> Option<Self> {
        Int8::try_new(lanes).filter(|_| Amx::try_new(Halves::High).is_none()).map(Self::Int8)
    }

    pub(super) fn blocking(self) -> Blocking {
        match self {
            Self::Fma => fma::BLOCKING,
            Self::Amx(_) => amx::BLOCKING,
            Self::Bf16(_) => bf16::BLOCKING,
            Self::Int8(_) => int8::BLOCKING,
        }
    }

    /// Columns of a panel of weights, in a matrix of so many columns, where vectors hold `lanes` numbers.
    pub(super) fn panel_width(self, lanes: usize, columns: usize) -> usize {
        match self {
            Self::Fma | Self::Bf16(_) | Self::Int8(_) => fma::panel_width(lanes, columns),
            Self::Amx(_) => amx::BLOCK,
        }
    }

    /// Whether lines and weights are the numbers themselves, so that nothing has to be prepared or packed.
    pub(super) fn is_plain(self) -> bool {
        match self {
            Self::Fma => true,
            Self::Amx(_) | Self::Bf16(_) | Self::Int8(_) => false,
        }
    }

    /// The fastest arithmetic for what whole numbers are too coarse for, or do not fit.
    pub(super) fn floating(self, lanes: usize) -> Self {
        match self {
            Self::Fma | Self::Amx(_) | Self::Bf16(_) => self,
            #[cfg(test)]
            Self::Int8(units) if units.is_emulated() => Self::Bf16(Bf16::emulated()),
            Self::Int8(_) => Self::bf16(lanes).unwrap_or(Self::Fma),
        }
    }

    /// Whether numbers of lines can be copied and multiplied in parts of so many.
    pub(super) fn takes_parts_of(self, numbers: usize) -> bool {
        match self {
            Self::Fma | Self::Amx(_) | Self::Bf16(_) => true,
            Self::Int8(_) => self.padded(numbers) == numbers,
        }
    }

    /// The arithmetic for 3 x 3 convolutions. Winograd's algorithm takes a quarter of the multiplications, and transforms weights in f32.
    pub(super) fn of_3x3(self) -> Self {
        match self {
            Self::Fma | Self::Bf16(_) | Self::Int8(_) => Self::Fma,
            Self::Amx(_) => self,
        }
    }

    /// Numbers of a line once it is padded.
    pub(super) fn padded(self, numbers: usize) -> usize {
        numbers.next_multiple_of(self.blocking().depth)
    }

    /// Words of a prepared line of so many numbers.
    pub(super) fn words(self, numbers: usize) -> usize {
        match self {
            Self::Fma => numbers,
            Self::Amx(amx) => self.padded(numbers) * amx.halves() / 2,
            Self::Bf16(_) => self.padded(numbers) / 2,
            Self::Int8(_) => int8::words(self.padded(numbers)),
        }
    }

    /// Words of so many packed weights.
    pub(super) fn packed_words(self, weights: usize) -> usize {
        match self {
            Self::Fma => weights,
            Self::Amx(amx) => weights * amx.halves() / 2,
            Self::Bf16(_) => weights / 2,
            Self::Int8(_) => int8::packed_words(weights),
        }
    }

    /// Whether packed weights take no more than so many bytes for each, and a factor for some of them.
    pub(super) fn packs_to(self, bytes: usize) -> bool {
        const SOME: usize = 64;
        self.packed_words(SOME) <= SOME * bytes / size_of::<f32>() + 1
    }

    /// Prepares a row of numbers as a line of [`Products::words`] words.
    #[inline(always)]
    pub(super) fn prepare(self, numbers: &[f32], line: &mut [f32]) {
        match self {
            Self::Fma => line.copy_from_slice(numbers),
            Self::Amx(amx) => amx::prepare(amx, numbers, line),
            Self::Bf16(units) => bf16::prepare(units, numbers, line),
            Self::Int8(_) => int8::prepare(numbers, line),
        }
    }

    /// Prepares rows of `len` numbers. Their lines are `pitch` words apart.
    pub(super) fn prepare_rows(self, rows: &[f32], len: usize, lines: &mut [f32], pitch: usize) {
        let words = self.words(len);
        for (row, line) in rows.chunks_exact(len).zip(lines.chunks_exact_mut(pitch)) {
            self.prepare(row, &mut line[..words]);
        }
    }

    /// Fills the numbers `to` of a prepared line with those of another line from `first` on, or with zeros where there is none.
    #[inline(always)]
    pub(super) fn copy(self, from: Option<(&[f32], usize)>, line: &mut [f32], to: Range<usize>) {
        match self {
            Self::Fma => fma::copy(from, line, to),
            Self::Amx(amx) => amx::copy(amx, from, line, to),
            Self::Bf16(_) => bf16::copy(from, line, to),
            Self::Int8(_) => int8::copy(from, line, to),
        }
    }

    /// Packs rows of a panel, `(depth, width)` with the depth padded, into [`Products::packed_words`].
    #[inline(always)]
    pub(super) fn pack(self, numbers: &[f32], width: usize, packed: &mut [f32]) {
        match self {
            Self::Fma => packed.copy_from_slice(numbers),
            Self::Amx(amx) => amx::pack(amx, numbers, packed),
            Self::Bf16(units) => bf16::pack(units, numbers, width, packed),
            Self::Int8(_) => int8::pack(numbers, width, packed),
        }
    }

    /// Which element of a panel, as row and column, belongs at `(row, column)` of its packed form: weights of other types than f32 are
    /// kept in that order.
    pub(super) fn place(self, row: usize, column: usize) -> (usize, usize) {
        match self {
            Self::Fma | Self::Bf16(_) | Self::Int8(_) => (row, column),
            Self::Amx(_) => amx::place(row, column),
        }
    }

    /// Rows of a panel in the order of [`Products::place`] whose numbers in one column belong to the same [`GROUP`] of the depth.
    pub(super) fn group_rows(self) -> usize {
        match self {
            Self::Fma | Self::Bf16(_) | Self::Int8(_) => GROUP,
            Self::Amx(_) => amx::GROUP_ROWS,
        }
    }

    /// Packs rows of a panel whose numbers are in the order of [`Products::place`].
    #[inline(always)]
    pub(super) fn pack_placed(self, numbers: &[f32], width: usize, packed: &mut [f32]) {
        match self {
            Self::Fma => packed.copy_from_slice(numbers),
            Self::Amx(amx) => amx::pack_placed(amx, numbers, packed),
            Self::Bf16(units) => bf16::pack(units, numbers, width, packed),
            Self::Int8(_) => int8::pack(numbers, width, packed),
        }
    }

    /// Readies this thread for products.
    #[inline]
    pub(super) fn multiplier(self) -> Multiplier {
        match self {
            Self::Fma => Multiplier::Fma,
            Self::Amx(amx) => Multiplier::Amx(amx.tiles()),
            Self::Bf16(units) => Multiplier::Bf16(units),
            Self::Int8(units) => Multiplier::Int8(units),
        }
    }
}

/// An arithmetic that this thread is ready to multiply in.
#[derive(Debug)]
pub(super) enum Multiplier {
    Fma,
    Amx(Tiles),
    Bf16(Bf16),
    Int8(Int8),
}

impl Multiplier {
    /// `sums (rows, width) = lines * weights`, or `sums += …` where `add` says so. The depth is that of the packed weights.
    ///
    /// `soon` is memory that is read next; its cache lines are fetched meanwhile, where that helps.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "three matrices and their shapes")]
    pub(super) fn multiply<S: Simd>(
        &self,
        simd: S,
        lines: Lines,
        rows: usize,
        (weights, soon): (&[f32], &[u8]),
        width: usize,
        sums: &mut [f32],
        add: bool,
    ) {
        match self {
            Self::Fma => fma::multiply_then(simd, lines.words, (lines.pitch, 1), rows, (weights, soon), width, sums, add),
            Self::Amx(tiles) => tiles.multiply(lines, rows, weights, sums, add),
            Self::Bf16(units) => units.multiply::<false>((lines.words, &[]), lines.pitch, rows, (weights, soon), width, sums, add),
            Self::Int8(units) => units.multiply(lines, rows, (weights, soon), width, sums, add),
        }
    }
}

#[cfg(test)]
impl Products {
    /// All arithmetics that can be tested here, next to vectors of `lanes` numbers.
    pub(super) fn all(lanes: usize) -> Vec<Self> {
        let amx =
            [Halves::Both, Halves::High].into_iter().flat_map(|halves| Amx::try_new(halves).into_iter().chain([Amx::emulated(halves)]));
        // A panel is two vectors.
        let amx = amx.filter(|_| 2 * lanes == amx::BLOCK);
        let bf16 = Bf16::try_new(lanes).into_iter().chain(Some(Bf16::emulated()));
        let int8 = Int8::try_new(lanes).into_iter().chain(Some(Int8::emulated()));
        std::iter::once(Self::Fma).chain(amx.map(Self::Amx)).chain(bf16.map(Self::Bf16)).chain(int8.map(Self::Int8)).collect()
    }

    /// The binary digits that products keep. Those of f32 have every digit, of subnormal numbers too.
    pub(in crate::ops) fn digits(self) -> u32 {
        match self {
            Self::Fma => f32::MANTISSA_DIGITS,
            Self::Amx(amx) => 8 * amx.halves() as u32,
            Self::Bf16(_) => 8,
            Self::Int8(_) => 7,
        }
    }
}

#[cfg(test)]
mod tests;
