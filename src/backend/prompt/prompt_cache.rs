//! The embeddings of the latest prompts.

use std::collections::VecDeque;

use candle_core::Tensor;

use super::{AdapterId, ParsedPrompt};

/// Prompts that are kept. In Stable Diffusion 1.5, a short one takes 231 KiB.
const CAPACITY: usize = 64;
/// Bytes of all of them. In SDXL, each chunk of each part takes 616 KiB.
const CAPACITY_BYTES: usize = 64 << 20;

/// What an [`EncodedPrompt`] follows from.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) prompt: ParsedPrompt,
    pub(super) skipped_layers: usize,
    /// What tells the text encoders' adapters from others.
    pub(super) adapters: Vec<AdapterId>,
}

impl Key {
    fn is(&self, other: &Self) -> bool {
        (self.skipped_layers, &self.adapters) == (other.skipped_layers, &other.adapters) && self.prompt.reads_as(&other.prompt)
    }
}

/// The embeddings of a prompt, and what is to be said of it.
#[derive(Debug, Clone, Default)]
pub(super) struct EncodedPrompt {
    pub(super) parts: Vec<EncodedPart>,
    /// The end of each part that did not fit.
    pub(super) cuts: Vec<String>,
    /// Words that the model was not taught.
    pub(super) unknown: Vec<String>,
    /// Learned words that the prompt names and that this worker does not have.
    pub(super) embeddings: Vec<String>,
    /// What is to be said of networks that the prompt names and that are left out.
    pub(super) left_out: Vec<String>,
}

/// The embeddings of a part of a prompt.
#[derive(Debug, Clone)]
pub(super) struct EncodedPart {
    /// `(chunks, tokens, hidden)`.
    pub(super) chunks: Tensor,
    /// `(1, pooled_dim)`.
    pub(super) pooled: Option<Tensor>,
    /// Whether zeros take the place of both.
    pub(super) is_zero: bool,
}

impl EncodedPrompt {
    fn bytes(&self) -> usize {
        let tensors = self.parts.iter().flat_map(|part| [Some(&part.chunks), part.pooled.as_ref()]).flatten();
        tensors.map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes()).sum()
    }
}

/// The latest prompts by their exact text, the last used first. A search through so few costs nothing next to encoding one.
#[derive(Debug, Default)]
pub(super) struct PromptCache(VecDeque<(Key, EncodedPrompt)>);

impl PromptCache {
    pub(super) fn get(&mut self, wanted: &Key) -> Option<EncodedPrompt> {
        let index = self.0.iter().position(|(key, _)| key.is(wanted))?;
        let entry = self.0.remove(index)?;
        let encoded = entry.1.clone();
        self.0.push_front(entry);
        Some(encoded)
    }

    /// Keeps a prompt, unless it alone exceeds the capacity.
    pub(super) fn put(&mut self, new: &Key, encoded: EncodedPrompt) {
        self.0.retain(|(key, _)| !key.is(new));
        if new.prompt.bytes() + encoded.bytes() > CAPACITY_BYTES {
            return;
        }
        self.0.push_front((new.clone(), encoded));
        let mut bytes = 0;
        let fit = self.0.iter().take(CAPACITY).take_while(|(key, encoded)| {
            bytes += key.prompt.bytes() + encoded.bytes();
            bytes <= CAPACITY_BYTES
        });
        let count = fit.count();
        self.0.truncate(count);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    /// One whose tensors take this many bytes.
    fn prompt_of(bytes: usize) -> EncodedPrompt {
        let tensor = |shape: &[usize]| Tensor::zeros(shape, DType::U8, &Device::Cpu).unwrap();
        let pooled = bytes.min(1);
        let part = EncodedPart { chunks: tensor(&[1, 1, bytes - pooled]), pooled: Some(tensor(&[1, pooled])), is_zero: false };
        EncodedPrompt { parts: vec![part], ..EncodedPrompt::default() }
    }

    #[test]
    fn large_prompts_leave_room_for_few() {
        let key = |text: &str| Key { prompt: ParsedPrompt::positive(text).unwrap(), skipped_layers: 0, adapters: Vec::new() };
        let mut cache = PromptCache::default();
        let texts = |cache: &PromptCache| cache.0.iter().map(|(key, _)| key.prompt.as_str().to_owned()).collect::<Vec<_>>();
        // Prompts of one letter, which count as well.
        let room = CAPACITY_BYTES - key("a").prompt.bytes();
        let third = CAPACITY_BYTES / 3 - key("a").prompt.bytes();
        for text in ["a", "b", "c"] {
            cache.put(&key(text), prompt_of(third));
        }
        assert_eq!(texts(&cache), ["c", "b", "a"]);
        cache.put(&key("d"), prompt_of(third + 2));
        assert_eq!(texts(&cache), ["d", "c"], "what was used longest ago goes, until the rest fits");
        cache.put(&key("e"), prompt_of(room + 1));
        assert_eq!(texts(&cache), ["d", "c"], "what would take all of it and more is not kept");
        cache.put(&key("e"), prompt_of(room));
        assert_eq!(texts(&cache), ["e"]);
    }

    #[test]
    fn the_prompt_that_was_not_used_for_longest_goes_first() {
        let key = |text: &str| Key { prompt: ParsedPrompt::positive(text).unwrap(), skipped_layers: 0, adapters: Vec::new() };
        let encoded = prompt_of(0);
        let mut cache = PromptCache::default();
        cache.put(&key(""), encoded.clone());
        cache.put(&key("never again"), encoded.clone());
        for i in 0..CAPACITY - 1 {
            assert!(cache.get(&key("")).is_some(), "used every time");
            cache.put(&key(&i.to_string()), encoded.clone());
        }
        assert!(cache.get(&key("never again")).is_none());
        assert!(cache.get(&key("0")).is_some() && cache.get(&key("")).is_some());
        assert!(cache.get(&Key { prompt: ParsedPrompt::negative("0"), ..key("0") }).is_none());
        assert!(cache.get(&Key { skipped_layers: 1, ..key("0") }).is_none());
        assert!(cache.get(&Key { adapters: vec![AdapterId { file: 1, strength: 1.0 }], ..key("0") }).is_none());
        cache.put(&key("0"), encoded);
        assert_eq!(cache.0.len(), CAPACITY, "and each is kept once");
    }
}
