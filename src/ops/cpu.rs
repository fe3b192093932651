//! The hot operations on a CPU, in f32.
//!
//! Images are kept with their channels last: a tensor of shape `(batch, channels, height, width)` whose memory is ordered
//! `(batch, height, width, channels)`. candle calls that a permuted view, torch `channels_last`. Pixels are then rows of a matrix:
//! convolutions and linear layers become one matrix product, [`matmul`], and the step from an image to a sequence of pixels costs nothing.
//!
//! Who does what: [`panels`] keeps weights, [`products`] multiplies in the arithmetic that is fastest on this [`machine`], [`epilogue`]
//! finishes sums, [`output`] and [`memory`] own the memory.
//!
//! The work is cut into tasks in ways that depend on the number of threads, but each number is always summed in one order. So results
//! depend neither on that number nor on the rest of the batch.

mod attention;
mod band;
mod blocks;
mod concat;
mod conv;
mod epilogue;
mod linear;
mod machine;
mod math;
mod matmul;
mod memory;
mod norm;
mod output;
mod padded;
mod panels;
mod products;
mod tensor;
mod winograd;

pub(super) use attention::{Sequences, attention};
pub(super) use blocks::Blocks;
pub(super) use concat::concat;
pub(super) use conv::{PackedConv, Shape};
pub(super) use epilogue::Epilogue;
pub(super) use linear::{LinearWeight, PackedLinear, PackedLowRank};
pub(super) use machine::Machine;
pub(super) use memory::{check_free, check_room, fallible};
pub use memory::{free_scratch, zeroed};
pub use norm::GroupStatistics;
pub(super) use norm::{GroupNormConfig, Normalization, group_norm, layer_norm};
pub(super) use tensor::{Image, Rows, is_fast};

#[cfg(test)]
mod tests;
