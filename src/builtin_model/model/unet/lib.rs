//! The UNet of the model inside `sd-worker`, in a crate of its own because a crate may have 10 MiB.

/// Its configuration.
pub const CONFIG: &[u8] = include_bytes!("config.json");

/// Its weights, as safetensors in 8 bits.
pub const WEIGHTS: &[u8] = include_bytes!("diffusion_pytorch_model.safetensors");
