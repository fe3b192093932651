//! The hot operations on a CPU, in f32.
//!
//! Images are kept with their channels last: a tensor of shape `(batch, channels, height, width)` whose memory is ordered
//! `(batch, height, width, channels)`, which is what candle calls a permuted view and torch `channels_last`. Pixels are then rows of
//! a matrix, so that convolutions, linear layers and attention all come down to one kernel in [`matmul`], and going from an image
//! to a sequence of pixels costs nothing.
//!
//! However work is cut into tasks, each number is summed in one order, so results do not depend on how many cores there are or
//! on what else is in the batch.

mod amx;
mod attention;
mod band;
mod concat;
mod conv;
mod epilogue;
mod linear;
mod machine;
mod math;
mod matmul;
mod memory;
mod norm;
mod padded;
mod panels;
mod tensor;
mod winograd;

pub(super) use attention::{Sequences, attention};
pub(super) use concat::concat;
pub(super) use conv::{PackedConv, Shape};
pub(super) use epilogue::Epilogue;
pub(super) use linear::PackedLinear;
pub(super) use machine::Machine;
pub use memory::zeroed;
pub(super) use memory::{check_free, check_room, fallible};
pub use norm::GroupStatistics;
pub(super) use norm::{GroupNormConfig, Normalization, group_norm, layer_norm};
pub(super) use tensor::{Image, Rows, is_fast};

#[cfg(test)]
mod tests;
