//! From prompts to text embeddings, which are kept for requests to come.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use candle_core::{Device, Tensor};

use super::{GenerationError, PromptTokenizer};
use crate::models::ClipTextModel;

/// Prompts that are kept: in Stable Diffusion 1.5, 231 KiB each.
const CAPACITY: usize = 64;

/// Tokenizer, text encoder, and what they made of the latest prompts. Many requests share a prompt, nearly all the empty negative one.
#[derive(Debug)]
pub struct PromptEncoder {
    tokenizer: PromptTokenizer,
    text_encoder: ClipTextModel,
    device: Device,
    latest: Mutex<Latest>,
}

/// What the prompts of a request became.
#[derive(Debug)]
pub struct EncodedPrompts {
    /// `(prompts, tokens, hidden)`.
    pub embeddings: Tensor,
    /// What was not read.
    pub warnings: Vec<String>,
}

/// What a prompt became.
#[derive(Debug, Clone)]
struct EncodedPrompt {
    /// `(1, tokens, hidden)`. It does not depend on what else was in the batch.
    embedding: Tensor,
    /// The end of the prompt that did not fit.
    cut: Option<String>,
}

impl PromptEncoder {
    /// Puts the two together.
    #[must_use]
    pub fn new(tokenizer: PromptTokenizer, text_encoder: ClipTextModel, device: Device) -> Self {
        Self { tokenizer, text_encoder, device, latest: Mutex::default() }
    }

    /// The network, for benches that time it.
    #[must_use]
    pub fn text_encoder(&self) -> &ClipTextModel {
        &self.text_encoder
    }

    /// Embeddings of prompts; those that are not kept are encoded in one batch. What does not fit is cut, with a warning.
    ///
    /// # Errors
    /// When the tokenizer or the device fails.
    pub fn encode(&self, prompts: &[&str]) -> Result<EncodedPrompts, GenerationError> {
        let kept: Vec<Option<EncodedPrompt>> = prompts.iter().map(|prompt| self.latest().get(prompt)).collect();
        let missing: Vec<&str> = prompts.iter().zip(&kept).filter(|(_, kept)| kept.is_none()).map(|(prompt, _)| *prompt).collect();
        metrics::counter!("sdw_prompt_cache_total", "outcome" => "hit").increment((prompts.len() - missing.len()) as u64);
        metrics::counter!("sdw_prompt_cache_total", "outcome" => "miss").increment(missing.len() as u64);

        let new = self.run(&missing)?;
        missing.iter().zip(&new).for_each(|(prompt, new)| self.latest().put(prompt, new.clone()));
        let mut new = new.into_iter();
        let encoded: Vec<EncodedPrompt> = kept.into_iter().filter_map(|kept| kept.or_else(|| new.next())).collect();

        let embeddings: Vec<&Tensor> = encoded.iter().map(|prompt| &prompt.embedding).collect();
        let cuts = encoded.iter().filter_map(|prompt| prompt.cut.as_ref());
        let warnings = cuts.map(|cut| format!("a prompt is too long for the model; this part of it was not read: \"{cut}\"")).collect();
        Ok(EncodedPrompts { embeddings: Tensor::cat(&embeddings, 0)?, warnings })
    }

    fn run(&self, prompts: &[&str]) -> Result<Vec<EncodedPrompt>, GenerationError> {
        if prompts.is_empty() {
            return Ok(Vec::new());
        }
        let tokens = prompts.iter().map(|prompt| self.tokenizer.encode(prompt)).collect::<Result<Vec<_>, _>>()?;
        let ids = tokens.iter().map(|tokens| Tensor::new(tokens.ids.as_slice(), &self.device)).collect::<Result<Vec<_>, _>>()?;
        let embeddings = self.text_encoder.forward(&Tensor::stack(&ids, 0)?)?;
        let encoded = tokens.into_iter().enumerate().map(|(i, tokens)| {
            // A copy: a part of the batch would keep all of it.
            Ok(EncodedPrompt { embedding: embeddings.narrow(0, i, 1)?.force_contiguous()?, cut: tokens.cut })
        });
        encoded.collect()
    }

    fn latest(&self) -> MutexGuard<'_, Latest> {
        // It is whole between any two calls, whatever panics elsewhere.
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The latest prompts, by their exact text, the last used first. They are few: looking through them is nothing next to encoding one.
#[derive(Debug, Default)]
struct Latest(VecDeque<(String, EncodedPrompt)>);

impl Latest {
    fn get(&mut self, prompt: &str) -> Option<EncodedPrompt> {
        let place = self.0.iter().position(|(key, _)| key == prompt)?;
        let entry = self.0.remove(place)?;
        let encoded = entry.1.clone();
        self.0.push_front(entry);
        Some(encoded)
    }

    fn put(&mut self, prompt: &str, encoded: EncodedPrompt) {
        self.0.retain(|(key, _)| key != prompt);
        self.0.push_front((prompt.to_owned(), encoded));
        self.0.truncate(CAPACITY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_that_was_not_used_for_longest_goes_first() {
        let encoded = EncodedPrompt { embedding: Tensor::zeros((1, 1, 1), candle_core::DType::F32, &Device::Cpu).unwrap(), cut: None };
        let mut latest = Latest::default();
        latest.put("", encoded.clone());
        latest.put("never again", encoded.clone());
        for i in 0..CAPACITY - 1 {
            assert!(latest.get("").is_some(), "used every time");
            latest.put(&i.to_string(), encoded.clone());
        }
        assert!(latest.get("never again").is_none());
        assert!(latest.get("0").is_some() && latest.get("").is_some());
        latest.put("0", encoded);
        assert_eq!(latest.0.len(), CAPACITY, "and each is kept once");
    }
}
