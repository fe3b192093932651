//! The network that reads a text's tokens, whatever its architecture. Each architecture is one variant of the enums here.

use candle_core::{Result, Tensor};

use super::{ClipTextConfig, ClipTextModel};
use crate::ops::{LayerNames, Weights};

/// The configuration of a text network.
#[derive(Debug, Clone)]
pub enum TextNetworkConfig {
    /// `config.json` of a `CLIPTextModel`.
    Clip(ClipTextConfig),
}

/// A network from token ids to text embeddings.
#[derive(Debug, Clone)]
pub enum TextNetwork {
    /// CLIP's text encoder, or `OpenCLIP`'s.
    Clip(ClipTextModel),
}

/// The state of a text network that a denoiser looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HiddenState {
    /// The last one, after the final norm.
    Last,
    /// The input of the last layer: SDXL.
    Penultimate,
}

impl HiddenState {
    /// How many of `layers` layers lead to this state.
    #[must_use]
    pub fn depth(self, layers: usize) -> usize {
        match self {
            Self::Last => layers,
            Self::Penultimate => layers.saturating_sub(1),
        }
    }
}

impl TextNetworkConfig {
    /// Number of tokens in the vocabulary.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Clip(config) => config.vocab_size,
        }
    }

    /// Width of the embeddings.
    #[must_use]
    pub fn hidden_size(&self) -> usize {
        match self {
            Self::Clip(config) => config.hidden_size,
        }
    }

    /// Width of the pooled text, if it is used.
    #[must_use]
    pub fn pooled_dim(&self) -> Option<usize> {
        match self {
            Self::Clip(config) => config.projection_dim,
        }
    }

    /// Number of layers.
    #[must_use]
    pub fn depth(&self) -> usize {
        match self {
            Self::Clip(config) => config.num_hidden_layers,
        }
    }
}

impl TextNetwork {
    /// Reads the weights.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(config: &TextNetworkConfig, vb: &Weights) -> Result<Self> {
        match config {
            TextNetworkConfig::Clip(config) => ClipTextModel::new(config, vb).map(Self::Clip),
        }
    }

    /// Number of layers.
    #[must_use]
    pub fn depth(&self) -> usize {
        match self {
            Self::Clip(model) => model.depth(),
        }
    }

    /// The numbers of the network's layers, by their names in the checkpoint.
    #[must_use]
    pub fn layer_names(&self) -> &LayerNames {
        match self {
            Self::Clip(model) => model.layer_names(),
        }
    }

    /// Adds tokens to the vocabulary, with these embeddings, `(new, hidden_size)`, and returns the id of the first one.
    ///
    /// # Errors
    /// When they have another width, or the device fails.
    pub fn add_tokens(&mut self, embeddings: &Tensor) -> Result<u32> {
        match self {
            Self::Clip(model) => model.add_tokens(embeddings),
        }
    }
}
