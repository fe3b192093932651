//! Products on tile units that multiply bf16.
//!
//! A bf16 number has 8 binary digits. Either each f32 is rounded to one, or it is split in two, `x = high + low` with 16 digits, and a
//! product becomes three: `high * high + high * low + low * high`. What is left out is then at most 2^-16 of the product and of either sign,
//! so that sums of hundreds of products are as exact as those of Winograd's algorithm. At the ends of f32 they are less exact: an infinity
//! gives NaN, and a subnormal number counts as zero.
//!
//! Layouts, in halves of a word, with low halves where numbers are split:
//!
//! - a prepared line of `n` numbers, padded to whole blocks, holds the `n` high halves, then the `n` low ones;
//! - packed weights are blocks of 32 rows by 32 columns: the 1024 high halves, then the low ones, each as two tiles side by side. Row `r` of
//!   a tile holds rows `2 r` and `2 r + 1` of the block in turns, which is the order that `TDPBF16PS` multiplies in.

#[cfg(test)]
mod emulated;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod hardware;

use std::{marker::PhantomData, ops::Range};

use bytemuck::{cast_slice, cast_slice_mut};

use super::{Blocking, Lines};
use crate::ops::cpu::blocks::GROUP;

/// Rows, columns and depth of a block: two tiles by two tiles.
pub(super) const BLOCK: usize = 32;
/// Rows of a tile, and pairs of halves in a row of it.
const TILE: usize = 16;
/// Numbers of a block.
const BLOCK_NUMBERS: usize = BLOCK * BLOCK;
/// Blocks of the depth that are multiplied before the sums of other rows: their weights, 16 KiB, stay in the first-level cache.
const RUN: usize = 4;

/// A row of a block in the order of [`place`] holds pairs of the depth, so that 16 rows hold all 32 of a column.
pub(super) const GROUP_ROWS: usize = GROUP / 2;

pub(super) const BLOCKING: Blocking = Blocking { depth: BLOCK, rows: TILE, task_rows: 192, task_row_step: BLOCK };

/// The proof that there are tile units for bf16 and that this process may use them.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Amx {
    units: Units,
    halves: Halves,
}

/// What is kept of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Halves {
    /// The nearest bf16 number.
    High,
    /// That, and the bf16 number that is nearest to the rest.
    Both,
}

impl Halves {
    fn count(self) -> usize {
        match self {
            Self::High => 1,
            Self::Both => 2,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Units {
    /// Those of the processor: [Intel AMX](https://www.intel.com/content/www/us/en/docs/intrinsics-guide/index.html#techs=AMX).
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Hardware(hardware::Instructions),
    /// The same layouts and sums in plain Rust, so that a machine without the units can test what is around them.
    #[cfg(test)]
    Emulated,
}

impl Amx {
    /// The processor's units, if it has any. The first call asks Linux for leave to use them.
    pub(super) fn try_new(halves: Halves) -> Option<Self> {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        return hardware::Instructions::try_new().map(|instructions| Self { units: Units::Hardware(instructions), halves });
        #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
        None
    }

    #[cfg(test)]
    pub(super) fn emulated(halves: Halves) -> Self {
        Self { units: Units::Emulated, halves }
    }

    /// Halves that are kept of a number.
    pub(super) fn halves(self) -> usize {
        self.halves.count()
    }

    /// Configures this thread's tiles.
    #[inline]
    pub(super) fn tiles(self) -> Tiles {
        Tiles::new(self)
    }

    /// Splits numbers, a multiple of 16, into as many high halves, and as many low ones or none.
    #[inline(always)]
    fn split(self, numbers: &[f32], (high, low): (&mut [u16], &mut [u16])) {
        assert!(numbers.len().is_multiple_of(TILE) && high.len() == numbers.len() && (low.is_empty() || low.len() == numbers.len()));
        match self.units {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Units::Hardware(instructions) => instructions.split(numbers, high, low),
            #[cfg(test)]
            Units::Emulated => emulated::split(numbers, high, low),
        }
    }
}

/// The high halves `at` of a line, and the low ones, if it has any.
fn halves_mut(line: &mut [u16], numbers: usize, at: Range<usize>) -> (&mut [u16], &mut [u16]) {
    let (high, low) = line.split_at_mut(numbers);
    let of_low = if low.is_empty() { 0..0 } else { at.clone() };
    (&mut high[at], &mut low[of_low])
}

/// Prepares a line. See the top of this file.
#[inline(always)]
pub(super) fn prepare(amx: Amx, numbers: &[f32], line: &mut [f32]) {
    let (line, padded) = (cast_slice_mut::<_, u16>(line), numbers.len().next_multiple_of(BLOCK));
    assert!(line.len() == amx.halves() * padded);
    let whole = numbers.len() / TILE * TILE;
    amx.split(&numbers[..whole], halves_mut(line, padded, 0..whole));
    let mut done = whole;
    if whole < numbers.len() {
        let mut rest = [0.0; TILE];
        rest[..numbers.len() - whole].copy_from_slice(&numbers[whole..]);
        done += TILE;
        amx.split(&rest, halves_mut(line, padded, whole..done));
    }
    let (high, low) = halves_mut(line, padded, done..padded);
    high.fill(0);
    low.fill(0);
}

/// See [`super::Products::copy`].
#[inline(always)]
pub(super) fn copy(amx: Amx, from: Option<(&[f32], usize)>, line: &mut [f32], to: Range<usize>) {
    let line = cast_slice_mut::<_, u16>(line);
    let (high, low) = halves_mut(line, line.len() / amx.halves(), to);
    let Some((other, first)) = from else {
        high.fill(0);
        return low.fill(0);
    };
    let other = cast_slice::<_, u16>(other);
    let (other_high, other_low) = other.split_at(other.len() / amx.halves());
    high.copy_from_slice(&other_high[first..][..high.len()]);
    if !low.is_empty() {
        low.copy_from_slice(&other_low[first..][..low.len()]);
    }
}

/// See [`super::Products::place`].
pub(super) fn place(row: usize, column: usize) -> (usize, usize) {
    let (first_row, first_column) = (row / BLOCK * BLOCK, column / BLOCK * BLOCK);
    let (row, column) = (row % BLOCK, column % BLOCK);
    (first_row + row % TILE * 2 + column % 2, first_column + row / TILE * TILE + column / 2)
}

/// Packs whole blocks of `(32, 32)` numbers.
#[inline(always)]
pub(super) fn pack(amx: Amx, numbers: &[f32], packed: &mut [f32]) {
    for (numbers, block) in blocks(amx, numbers, packed) {
        let (high, low) = block.split_at_mut(BLOCK_NUMBERS);
        match amx.units {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Units::Hardware(instructions) => instructions.pack(numbers, high, low),
            #[cfg(test)]
            Units::Emulated => emulated::pack(numbers, high, low),
        }
    }
}

/// Packs whole blocks whose numbers are in the order of [`place`].
#[inline(always)]
pub(super) fn pack_placed(amx: Amx, numbers: &[f32], packed: &mut [f32]) {
    for (numbers, block) in blocks(amx, numbers, packed) {
        amx.split(numbers, block.split_at_mut(BLOCK_NUMBERS));
    }
}

/// Blocks of numbers, and the halves that they are packed into.
#[inline(always)]
fn blocks<'a>(amx: Amx, numbers: &'a [f32], packed: &'a mut [f32]) -> impl Iterator<Item = (&'a [f32; BLOCK_NUMBERS], &'a mut [u16])> {
    let (halves, (numbers, rest)) = (cast_slice_mut::<_, u16>(packed), numbers.as_chunks());
    assert!(rest.is_empty() && halves.len() == amx.halves() * BLOCK_NUMBERS * numbers.len());
    numbers.iter().zip(halves.chunks_exact_mut(amx.halves() * BLOCK_NUMBERS))
}

/// The proof that this thread's tiles are configured. They are released with the thread's last proof.
#[derive(Debug)]
pub(in super::super) struct Tiles {
    amx: Amx,
    /// Tiles belong to a thread, and so does their proof.
    thread: PhantomData<*mut ()>,
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
thread_local! {
    /// How many proofs this thread has.
    static PROOFS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

impl Tiles {
    #[inline]
    fn new(amx: Amx) -> Self {
        match amx.units {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Units::Hardware(instructions) => {
                if PROOFS.replace(PROOFS.get() + 1) == 0 {
                    instructions.configure_tiles();
                }
            }
            #[cfg(test)]
            Units::Emulated => {}
        }
        Self { amx, thread: PhantomData }
    }

    /// See [`super::Multiplier::multiply`]. Rows are a multiple of 16, and a panel has 32 columns.
    #[inline]
    #[allow(unsafe_code)]
    pub(super) fn multiply(&self, lines: Lines, rows: usize, weights: &[f32], sums: &mut [f32], add: bool) {
        let (weights, low) = (cast_slice::<_, u16>(weights), (self.amx.halves == Halves::Both).then_some(lines.numbers));
        let lines = (cast_slice::<_, u16>(lines.words), low, 2 * lines.pitch);
        match self.amx.units {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            // SAFETY: `self` proves that the tiles are configured.
            Units::Hardware(instructions) => unsafe { instructions.multiply(lines, rows, weights, sums, add) },
            #[cfg(test)]
            Units::Emulated => emulated::multiply(lines, rows, weights, sums, add),
        }
    }
}

impl Drop for Tiles {
    #[inline]
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        match self.amx.units {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Units::Hardware(instructions) => {
                PROOFS.set(PROOFS.get() - 1);
                if PROOFS.get() == 0 {
                    // SAFETY: this was the last proof.
                    unsafe { instructions.release_tiles() };
                }
            }
            #[cfg(test)]
            Units::Emulated => {}
        }
    }
}
