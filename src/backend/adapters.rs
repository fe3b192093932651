//! Adapters: small files that change the weights of a model. `LoRA` and its relatives, as kohya, `LyCORIS`, diffusers, PEFT and `ComfyUI` write
//! them.
//!
//! [`AdapterFolder`] finds a file by its name, [`AdapterFile`] reads it as [`Module`]s, [`AdapterFile::fit`] finds the layers that they
//! change, and [`Module::weight`] is the changed weight.

mod distilled;
mod dora;
mod file;
mod fit;
mod folder;
mod hash;
mod info;
mod key;
mod library;
mod merge;
mod merged_weights;
mod module;
mod parts;
mod peft_config;
mod tag_counts;

use super::{AdaptedNetwork, AdapterError};
pub use distilled::FewSteps;
pub use file::AdapterFile;
use fit::Effect;
pub use fit::{Fit, Layer};
pub use folder::{AdapterEntry, AdapterFolder};
pub use info::AdapterInfo;
pub use library::{AdaptableNetwork, AdapterLibrary, AppliedAdapters, ChosenAdapter};
pub use merge::LowRank;
pub use merged_weights::MergedAdapters;
pub use module::{Module, ModuleKind};

#[cfg(test)]
mod tests;
