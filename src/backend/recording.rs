//! The tensors of a generation, for comparing it with other implementations step by step.

use std::{collections::HashMap, io};

use candle_core::Tensor;

use super::Diffusion;

/// What a generation has worked out so far: `text_embeddings`, `latents.0` before the first step, `latents.1` after it, ….
#[derive(Debug, Default)]
pub struct Recording(HashMap<String, Tensor>);

impl Recording {
    /// Keeps the state of a generation after `step` steps.
    pub fn add(&mut self, step: usize, generation: &Diffusion) {
        if step == 0 {
            self.0.insert("text_embeddings".to_owned(), generation.text_embeddings().clone());
        }
        self.0.insert(format!("latents.{step}"), generation.latents().clone());
    }

    /// All tensors as the bytes of a `.safetensors` file.
    ///
    /// # Errors
    /// When a tensor cannot be read from its device.
    pub fn to_safetensors(&self) -> io::Result<Vec<u8>> {
        safetensors::serialize(&self.0, None).map_err(io::Error::other)
    }
}
