//! What enlarges finished pictures: networks, and filters that are always there.

mod enlarge;
mod library;

pub use library::{ChosenUpscale, ChosenUpscaler, UpscalerEntry, UpscalerLibrary};
