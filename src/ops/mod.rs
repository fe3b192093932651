//! The operations that the networks are made of, behind one function or layer each: fast kernels on a CPU, candle's own elsewhere.
//!
//! Image tensors are `(batch, channels, height, width)`, sequences `(batch, tokens, channels)`, as in diffusers. On a CPU the channels
//! of an image are last in memory, which only this room knows: see `cpu/mod.rs`.

use candle_core::DType;

mod activation;
mod allocator;
mod attention;
mod concat;
mod conv;
#[allow(clippy::inline_always, reason = "kernels are compiled once for each set of instructions, into functions that enable them")]
mod cpu;
mod linear;
mod norm;

pub use activation::Activation;
pub use allocator::ReusingAllocator;
pub use attention::attention;
pub use concat::concat_channels;
pub use conv::{Added, Conv2d, Conv2dConfig};
pub use linear::{Geglu, Linear};
pub use norm::{GroupNorm, LayerNorm};

/// How weights are kept on a CPU, where everything is worked out in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Storage {
    F32,
    F16,
    Bf16,
}

impl Storage {
    /// Of weights that come as such a type, if they come as one.
    fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Self::F32),
            DType::F16 => Some(Self::F16),
            DType::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }
}
