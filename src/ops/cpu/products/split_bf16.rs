//! f32 products on units that multiply bf16, by splitting each number in two.
//!
//! A bf16 number has 8 binary digits. `x = high + low` with two of them has 16, and a product becomes three: `high * high + high * low +
//! low * high`. What is left out is at most 2^-16 of the product and of either sign, so that sums of hundreds of products are as exact as
//! those of Winograd's algorithm. At the ends of f32 they are less exact: an infinity gives NaN, and a subnormal number counts as zero.
//!
//! Layouts, in halves of a word:
//!
//! - a prepared line of `n` numbers, padded to whole blocks, holds the `n` high halves, then the `n` low ones;
//! - packed weights are blocks of 32 rows by 32 columns: the 1024 high halves, then the low ones, each as two tiles side by side. Row `r` of
//!   a tile holds rows `2 r` and `2 r + 1` of the block in turns, which is the order that `TDPBF16PS` multiplies in.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(test)]
mod emulated;

use std::{marker::PhantomData, ops::Range};

use bytemuck::{cast_slice, cast_slice_mut};

use super::{Blocking, Lines};
use crate::ops::cpu::blocks::GROUP;

/// Rows, columns and depth of a block: two tiles by two tiles.
pub(super) const BLOCK: usize = 32;
/// Rows of a tile, and pairs of halves in a row of it.
const TILE: usize = 16;
/// Halves of a block of weights.
const BLOCK_HALVES: usize = 2 * BLOCK * BLOCK;
/// Blocks of the depth that are multiplied before the sums of other rows: their weights, 16 KiB, stay in the first-level cache.
const RUN: usize = 4;

/// A row of a block in the order of [`place`] holds pairs of the depth, so that 16 rows hold all 32 of a column.
pub(super) const GROUP_ROWS: usize = GROUP / 2;

pub(super) const BLOCKING: Blocking = Blocking { depth: BLOCK, rows: TILE, task_rows: 192, task_row_step: BLOCK };

/// The proof that there are tile units for bf16 and that this process may use them.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Amx(Units);

#[derive(Debug, Clone, Copy)]
enum Units {
    /// Those of the processor: [Intel AMX](https://www.intel.com/content/www/us/en/docs/intrinsics-guide/index.html#techs=AMX).
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Hardware(amx::Instructions),
    /// The same layouts and sums in plain Rust, so that a machine without the units can test what is around them.
    #[cfg(test)]
    Emulated,
}

impl Amx {
    /// The processor's units, if it has any. The first call asks Linux for leave to use them.
    pub(super) fn try_new() -> Option<Self> {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        return amx::Instructions::try_new().map(|instructions| Self(Units::Hardware(instructions)));
        #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
        None
    }

    #[cfg(test)]
    pub(super) fn emulated() -> Self {
        Self(Units::Emulated)
    }

    /// Configures this thread's tiles.
    #[inline]
    pub(super) fn tiles(self) -> Tiles {
        Tiles::new(self)
    }

    /// Splits numbers, a multiple of 16, into as many high and low halves.
    #[inline(always)]
    fn split(self, numbers: &[f32], high: &mut [u16], low: &mut [u16]) {
        assert!(numbers.len().is_multiple_of(TILE) && high.len() == numbers.len() && low.len() == numbers.len());
        match self.0 {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Units::Hardware(instructions) => instructions.split(numbers, high, low),
            #[cfg(test)]
            Units::Emulated => emulated::split(numbers, high, low),
        }
    }
}

/// Prepares a line. See the top of this file.
#[inline(always)]
pub(super) fn prepare(amx: Amx, numbers: &[f32], line: &mut [f32]) {
    let padded = line.len();
    assert!(padded == numbers.len().next_multiple_of(BLOCK));
    let (high, low) = cast_slice_mut::<_, u16>(line).split_at_mut(padded);
    let whole = numbers.len() / TILE * TILE;
    amx.split(&numbers[..whole], &mut high[..whole], &mut low[..whole]);
    let mut done = whole;
    if whole < numbers.len() {
        let mut rest = [0.0; TILE];
        rest[..numbers.len() - whole].copy_from_slice(&numbers[whole..]);
        done += TILE;
        amx.split(&rest, &mut high[whole..done], &mut low[whole..done]);
    }
    high[done..].fill(0);
    low[done..].fill(0);
}

/// See [`super::Products::copy`].
#[inline(always)]
pub(super) fn copy(from: Option<(&[f32], usize)>, line: &mut [f32], to: Range<usize>) {
    let padded = line.len();
    let (high, low) = cast_slice_mut::<_, u16>(line).split_at_mut(padded);
    let (high, low) = (&mut high[to.clone()], &mut low[to]);
    let Some((other, first)) = from else {
        high.fill(0);
        return low.fill(0);
    };
    let (other_high, other_low) = cast_slice::<_, u16>(other).split_at(other.len());
    high.copy_from_slice(&other_high[first..][..high.len()]);
    low.copy_from_slice(&other_low[first..][..low.len()]);
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
    assert!(numbers.len().is_multiple_of(BLOCK * BLOCK) && packed.len() == numbers.len());
    let halves = cast_slice_mut::<_, u16>(packed);
    match amx.0 {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        Units::Hardware(instructions) => instructions.pack(numbers, halves),
        #[cfg(test)]
        Units::Emulated => emulated::pack(numbers, halves),
    }
}

/// Packs whole blocks whose numbers are in the order of [`place`].
#[inline(always)]
pub(super) fn pack_placed(amx: Amx, numbers: &[f32], packed: &mut [f32]) {
    assert!(numbers.len().is_multiple_of(BLOCK * BLOCK) && packed.len() == numbers.len());
    let blocks = cast_slice_mut::<_, u16>(packed).chunks_exact_mut(BLOCK_HALVES);
    for (numbers, halves) in numbers.chunks_exact(BLOCK * BLOCK).zip(blocks) {
        let (high, low) = halves.split_at_mut(BLOCK * BLOCK);
        amx.split(numbers, high, low);
    }
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
        match amx.0 {
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
        let Lines { words, pitch, numbers } = lines;
        let (halves, weights) = (cast_slice::<_, u16>(words), cast_slice::<_, u16>(weights));
        match self.amx.0 {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            // SAFETY: `self` proves that the tiles are configured.
            Units::Hardware(instructions) => unsafe { instructions.multiply((halves, numbers, 2 * pitch), rows, weights, sums, add) },
            #[cfg(test)]
            Units::Emulated => emulated::multiply((halves, numbers, 2 * pitch), rows, weights, sums, add),
        }
    }
}

impl Drop for Tiles {
    #[inline]
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        match self.amx.0 {
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
