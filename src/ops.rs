//! The operations of the networks, one function or layer each: fast kernels on a CPU (`cpu.rs`), candle's operations on other devices, with a
//! few kernels of our own on an NVIDIA GPU (`cuda.rs`).
//!
//! Image tensors are `(batch, channels, height, width)`, sequences `(batch, tokens, channels)`, as in diffusers. On a CPU the channels of an
//! image are last in memory; no other room has to know.

mod activation;
mod adapters;
mod allocator;
mod attention;
mod compute_type;
mod concat;
mod conv;
mod conv2d_config;
#[allow(clippy::inline_always, reason = "kernels are compiled once for each set of instructions, into functions that enable them")]
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
mod embedding;
mod images;
mod layer_names;
mod linear;
mod low_rank;
mod norm;
mod on_demand;
mod pixels;
mod prelu;
mod samples;
mod weight_type;
mod weights;

pub use activation::Activation;
pub use adapters::{Adapted, AdaptedLayers, Adapters, LayerAdapter, MergedLayer};
pub use allocator::{ReusingAllocator, with_room};
pub use attention::attention;
pub use compute_type::ComputeType;
pub use concat::{concat_channels, concat_rows};
pub use conv::{Added, Conv2d};
pub use conv2d_config::Conv2dConfig;
pub use cpu::{GroupStatistics, free_scratch, zeroed};
pub use device::{computes_in, fastest_compute_type, prepare};
pub use embedding::Embedding;
pub use images::{add_images, affine_image, half_image, join_images, relu_image, scale_image, separate_samples, silu_image};
pub use layer_names::{LayerIndex, LayerKind, LayerNames, WeightLayer};
pub use linear::{Geglu, Linear};
pub use low_rank::LowRank;
pub use norm::{GroupNorm, LayerNorm};
pub use on_demand::OnDemand;
pub use pixels::{pixel_shuffle, pixel_unshuffle, repeat_channels, to_image, to_sequence};
pub use prelu::PRelu;
pub use samples::for_batch;
pub use weight_type::WeightType;
pub use weights::Weights;

/// Whether products of matrices have every digit of f32 on this processor.
#[cfg(test)]
pub(crate) fn has_exact_products() -> bool {
    cpu::Machine::best().has_exact_products()
}
