//! The networks of a model that adapters change.

use std::fmt;

/// A network that an adapter changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AdaptedNetwork {
    /// The network that removes noise: a UNet.
    Denoiser,
    /// A text encoder by its place in the model. 0 is CLIP-L, or the only one; 1 is bigG.
    TextEncoder(usize),
}

impl fmt::Display for AdaptedNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denoiser => f.write_str("denoiser"),
            Self::TextEncoder(0) => f.write_str("text encoder"),
            Self::TextEncoder(place) => write!(f, "text encoder {}", place + 1),
        }
    }
}
