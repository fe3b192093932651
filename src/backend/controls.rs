//! Networks that look at a picture and add to what the denoiser makes of its latents: ControlNets and T2I-Adapters.

mod active;
mod library;
mod preprocess;

pub(super) use active::{ActiveControl, Sides};
pub use library::{ChosenControl, ControlEntry, ControlLibrary, ControlNetwork, MAX_CONTROLS};
