//! The operations that the networks are made of, behind one function or layer each.
//!
//! Image tensors are `(batch, channels, height, width)`, sequences `(batch, tokens, channels)`, as in diffusers.

mod activation;
mod attention;
mod conv;
mod linear;
mod norm;
mod upsample;

pub use activation::{Activation, geglu};
pub use attention::attention;
pub use conv::{Conv2d, Conv2dConfig};
pub use linear::Linear;
pub use norm::{GroupNorm, LayerNorm};
pub use upsample::upsample_nearest;
