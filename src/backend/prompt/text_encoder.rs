//! A tokenizer with the network that reads its tokens.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use super::{PromptTokenizer, syntax::PromptPart, tokenizer::Chunk};
use crate::{
    backend::GenerationError,
    models::{HiddenState, Interrupt, TextNetwork},
    ops::Adapters,
};

/// A mean of embeddings that is smaller than this share of the mean of their absolute values is a rounding error.
const MIN_MEAN: f32 = 1e-4;

/// A tokenizer with the network that reads its tokens.
#[derive(Debug)]
pub struct TextEncoder {
    tokenizer: PromptTokenizer,
    network: TextNetwork,
    state: HiddenState,
}

/// The embeddings of a part of a prompt.
#[derive(Debug)]
pub(super) struct ReadPart {
    /// `(chunks, tokens, hidden)`. They do not depend on the rest of the batch.
    pub(super) chunks: Tensor,
    /// The pooled text of the first chunk, `(1, pooled_dim)`, if the network has a projection to it.
    pub(super) pooled: Option<Tensor>,
    /// The end of the part that did not fit.
    pub(super) cut: Option<String>,
}

impl TextEncoder {
    /// Puts the two together.
    #[must_use]
    pub fn new(tokenizer: PromptTokenizer, network: TextNetwork, state: HiddenState) -> Self {
        Self { tokenizer, network, state }
    }

    /// Adds learned words, each with its names and its vectors, `(vectors, hidden_size)`.
    ///
    /// # Errors
    /// When they have another width, or the device fails.
    pub(in crate::backend) fn learn(&mut self, words: &[(&[String], &Tensor)]) -> candle_core::Result<()> {
        if words.is_empty() {
            return Ok(());
        }
        let vectors: Vec<&Tensor> = words.iter().map(|(_, vectors)| *vectors).collect();
        let mut id = self.network.add_tokens(&Tensor::cat(&vectors, 0)?)?;
        for (names, vectors) in words {
            let end = id + vectors.dim(0)? as u32;
            self.tokenizer.learn(names, &(id..end));
            id = end;
        }
        Ok(())
    }

    /// The network.
    #[must_use]
    pub fn network(&self) -> &TextNetwork {
        &self.network
    }

    /// The names in a text that are called learned words and are none.
    pub(super) fn unknown_embeddings(&self, text: &str) -> Vec<String> {
        self.tokenizer.unknown_embeddings(text)
    }

    /// Number of layers up to the state that the denoiser looks at.
    pub(super) fn depth(&self) -> usize {
        self.state.depth(self.network.depth())
    }

    /// Encodes parts of prompts in one batch. `skipped_layers` counts where the last state is looked at, and nowhere else.
    ///
    /// # Errors
    /// When the tokenizer or the device fails.
    pub(super) fn read(
        &self,
        parts: &[&PromptPart],
        skipped_layers: usize,
        device: &Device,
        adapters: &Adapters,
        interrupt: Interrupt,
    ) -> Result<Vec<ReadPart>, GenerationError> {
        let mut all: Vec<Chunk> = Vec::new();
        let mut found: Vec<(Range<usize>, Option<String>)> = Vec::with_capacity(parts.len());
        for part in parts {
            let (chunks, cut) = self.tokenizer.chunks(&part.sections)?;
            found.push((all.len()..all.len() + chunks.len(), cut));
            all.extend(chunks);
        }
        let ids = all.iter().map(|chunk| Tensor::new(chunk.ids.as_slice(), device)).collect::<Result<Vec<_>, _>>()?;
        let ids = Tensor::stack(&ids, 0)?;
        let TextNetwork::Clip(model) = &self.network;
        let (embeddings, pooled) = match self.state {
            HiddenState::Last => (model.forward(&ids, skipped_layers, adapters, interrupt)?, None),
            HiddenState::Penultimate => {
                let ends: Vec<usize> = all.iter().map(|chunk| self.tokenizer.end_of(chunk)).collect();
                model.forward_penultimate(&ids, &ends, adapters, interrupt)?
            }
        };
        let stressed: Vec<Tensor> =
            all.iter().enumerate().map(|(i, chunk)| stress(&embeddings.narrow(0, i, 1)?, chunk)).collect::<Result<_, _>>()?;
        let read = found.into_iter().map(|(range, cut)| {
            let pooled = pooled.as_ref().map(|pooled| pooled.narrow(0, range.start, 1)?.force_contiguous()).transpose()?;
            Ok(ReadPart { chunks: Tensor::cat(&stressed[range], 0)?, pooled, cut })
        });
        read.collect()
    }
}

/// Multiplies the embeddings `(1, tokens, hidden)` of a chunk by the weights of its tokens, and restores their mean, as A1111 does.
fn stress(embeddings: &Tensor, chunk: &Chunk) -> candle_core::Result<Tensor> {
    if chunk.weights.iter().all(|weight| weight.to_bits() == 1f32.to_bits()) {
        // A copy: a view would keep the whole batch in memory.
        return embeddings.force_contiguous();
    }
    let weights = Tensor::new(chunk.weights.as_slice(), embeddings.device())?.reshape((1, (), 1))?;
    let before = embeddings.to_dtype(DType::F32)?;
    let after = before.broadcast_mul(&weights)?;
    let mean = |x: &Tensor| x.mean_all()?.to_scalar::<f32>();
    let (had, has) = (mean(&before)?, mean(&after)?);
    // A mean of next to nothing cannot be given back.
    let factor = if has.abs() > MIN_MEAN * mean(&after.abs()?)? { had / has } else { 1.0 };
    (after * f64::from(factor))?.to_dtype(embeddings.dtype())
}
