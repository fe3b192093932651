//! From prompts to text embeddings, which are kept for requests to come.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use candle_core::{DType, Device, Tensor};

use super::{
    GenerationError, KnownWords, PromptTokenizer,
    prompt_syntax::{self, PromptPart},
    prompt_tokenizer::Chunk,
};
use crate::{
    common::{ClipSkip, InvalidValue},
    models::ClipTextModel,
};

/// Prompts that are kept: in Stable Diffusion 1.5, 231 KiB each.
const CAPACITY: usize = 64;
/// The smallest mean of embeddings, next to that of their absolute values, which is told from rounding errors.
const MIN_MEAN: f32 = 1e-4;

/// Tokenizer, text encoder, and what they made of the latest prompts. Many requests share a prompt, nearly all the empty negative one.
#[derive(Debug)]
pub struct PromptEncoder {
    tokenizer: PromptTokenizer,
    known_words: KnownWords,
    text_encoder: ClipTextModel,
    device: Device,
    latest: Mutex<Latest>,
}

/// A prompt, and what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptText<'a> {
    /// What the picture shows. Its parts between `AND`s guide side by side.
    Positive(&'a str),
    /// What it does not show.
    Negative(&'a str),
}

impl PromptText<'_> {
    /// Whether it has several parts that guide side by side.
    #[must_use]
    pub fn has_parts(self) -> bool {
        Key::new(self, 0).parts().len() > 1
    }
}

/// What the prompts of a request became.
#[derive(Debug)]
pub struct EncodedPrompts {
    /// `(parts, tokens, hidden)`: those of the first prompt, then those of the next.
    pub embeddings: Tensor,
    /// How strongly each part guides.
    pub weights: Vec<f64>,
    /// What was not read, and what is not known.
    pub warnings: Vec<String>,
}

/// What a prompt became.
#[derive(Debug, Clone)]
struct EncodedPrompt {
    /// Each part's weight, and its chunks, `(chunks, tokens, hidden)`. They do not depend on what else was in the batch.
    parts: Vec<(f64, Tensor)>,
    /// The end of the prompt that did not fit.
    cut: Option<String>,
    /// Words that the model was not taught.
    unknown: Vec<String>,
}

/// All that an [`EncodedPrompt`] follows from.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    text: String,
    is_negative: bool,
    skipped_layers: usize,
}

impl Key {
    fn new(prompt: PromptText, skipped_layers: usize) -> Self {
        let (text, is_negative) = match prompt {
            PromptText::Positive(text) => (text, false),
            PromptText::Negative(text) => (text, true),
        };
        Self { text: text.to_owned(), is_negative, skipped_layers }
    }

    fn parts(&self) -> Vec<PromptPart> {
        if self.is_negative { prompt_syntax::parse_negative(&self.text) } else { prompt_syntax::parse(&self.text) }
    }
}

impl PromptEncoder {
    /// Puts them together.
    #[must_use]
    pub fn new(tokenizer: PromptTokenizer, known_words: KnownWords, text_encoder: ClipTextModel, device: Device) -> Self {
        Self { tokenizer, known_words, text_encoder, device, latest: Mutex::default() }
    }

    /// The network, for benches that time it.
    #[must_use]
    pub fn text_encoder(&self) -> &ClipTextModel {
        &self.text_encoder
    }

    /// Embeddings of prompts; those that are not kept are encoded in one batch. What does not fit is cut, with a warning.
    ///
    /// # Errors
    /// When there are no layers left to skip, or the tokenizer or the device fails.
    pub fn encode(&self, prompts: &[PromptText], clip_skip: Option<ClipSkip>) -> Result<EncodedPrompts, GenerationError> {
        let skipped_layers = clip_skip.map_or(0, ClipSkip::layers);
        let depth = self.text_encoder.depth();
        if let Some(skip) = clip_skip.filter(|skip| skip.layers() >= depth.max(1)) {
            return Err(InvalidValue::new("clip_skip", skip, format!("a whole number from 1 to {depth} for this model")).into());
        }
        let keys: Vec<Key> = prompts.iter().map(|prompt| Key::new(*prompt, skipped_layers)).collect();
        let kept: Vec<Option<EncodedPrompt>> = keys.iter().map(|key| self.latest().get(key)).collect();
        let missing: Vec<&Key> = keys.iter().zip(&kept).filter(|(_, kept)| kept.is_none()).map(|(key, _)| key).collect();
        metrics::counter!("sdw_prompt_cache_total", "outcome" => "hit").increment((prompts.len() - missing.len()) as u64);
        metrics::counter!("sdw_prompt_cache_total", "outcome" => "miss").increment(missing.len() as u64);

        let new = self.run(&missing, skipped_layers)?;
        missing.iter().zip(&new).for_each(|(key, new)| self.latest().put(key, new.clone()));
        let mut new = new.into_iter();
        let encoded: Vec<EncodedPrompt> = kept.into_iter().filter_map(|kept| kept.or_else(|| new.next())).collect();
        let warnings = warnings(&encoded);
        let parts: Vec<(f64, Tensor)> = encoded.into_iter().flat_map(|prompt| prompt.parts).collect();
        let weights = parts.iter().map(|(weight, _)| *weight).collect();
        Ok(EncodedPrompts { embeddings: self.side_by_side(parts, skipped_layers)?, weights, warnings })
    }

    /// Parts as a batch: each as long as the longest, filled up with chunks without words.
    fn side_by_side(&self, parts: Vec<(f64, Tensor)>, skipped_layers: usize) -> Result<Tensor, GenerationError> {
        let longest = parts.iter().map(|(_, chunks)| chunks.dim(0)).try_fold(0, |most, n| n.map(|n| n.max(most)))?;
        let mut rows = Vec::with_capacity(parts.len());
        for (_, mut chunks) in parts {
            let missing = longest - chunks.dim(0)?;
            if missing > 0 {
                let empty = self.run(&[&Key::new(PromptText::Negative(""), skipped_layers)], skipped_layers)?;
                let empty = empty.iter().flat_map(|prompt| &prompt.parts).map(|(_, chunk)| chunk);
                let filling: Vec<&Tensor> = empty.cycle().take(missing).collect();
                chunks = Tensor::cat(&[&[&chunks][..], &filling].concat(), 0)?;
            }
            let (count, tokens, hidden) = chunks.dims3()?;
            rows.push(chunks.reshape((1, count * tokens, hidden))?);
        }
        Ok(Tensor::cat(&rows, 0)?)
    }

    fn run(&self, prompts: &[&Key], skipped_layers: usize) -> Result<Vec<EncodedPrompt>, GenerationError> {
        if prompts.is_empty() {
            return Ok(Vec::new());
        }
        let mut all: Vec<Chunk> = Vec::new();
        let mut found = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let (mut parts, mut cuts, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
            for part in prompt.parts() {
                unknown.extend(part.sections.iter().flatten().flat_map(|span| self.known_words.missing_in(&span.text)));
                let (chunks, cut) = self.tokenizer.chunks(&part.sections)?;
                parts.push((part.weight, all.len()..all.len() + chunks.len()));
                all.extend(chunks);
                cuts.extend(cut);
            }
            found.push((parts, (!cuts.is_empty()).then(|| cuts.join(" ")), unknown));
        }
        let ids = all.iter().map(|chunk| Tensor::new(chunk.ids.as_slice(), &self.device)).collect::<Result<Vec<_>, _>>()?;
        let embeddings = self.text_encoder.forward(&Tensor::stack(&ids, 0)?, skipped_layers)?;
        let stressed: Vec<Tensor> =
            all.iter().enumerate().map(|(i, chunk)| stress(&embeddings.narrow(0, i, 1)?, chunk)).collect::<Result<_, _>>()?;
        let encoded = found.into_iter().map(|(parts, cut, unknown)| {
            let parts = parts.into_iter().map(|(weight, range)| Ok((weight, Tensor::cat(&stressed[range], 0)?)));
            Ok(EncodedPrompt { parts: parts.collect::<candle_core::Result<_>>()?, cut, unknown })
        });
        encoded.collect()
    }

    fn latest(&self) -> MutexGuard<'_, Latest> {
        // It is whole between any two calls, whatever panics elsewhere.
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the client should know of these prompts.
fn warnings(prompts: &[EncodedPrompt]) -> Vec<String> {
    let cuts = prompts.iter().filter_map(|prompt| prompt.cut.as_ref());
    let mut warnings: Vec<String> =
        cuts.map(|cut| format!("a prompt is too long for the model; this part of it was not read: \"{cut}\"")).collect();
    let mut seen = HashSet::new();
    let unknown: Vec<&str> = prompts.iter().flat_map(|prompt| &prompt.unknown).map(String::as_str).filter(|word| seen.insert(*word)).collect();
    if !unknown.is_empty() {
        warnings.push(format!("unknown words: {} (the model was not taught them: what they draw is chance)", unknown.join(", ")));
    }
    warnings
}

/// Multiplies the embeddings `(1, tokens, hidden)` of a chunk with the stress of its tokens and gives them back the mean that they had,
/// as A1111 does.
fn stress(embeddings: &Tensor, chunk: &Chunk) -> candle_core::Result<Tensor> {
    if chunk.weights.iter().all(|weight| weight.to_bits() == 1f32.to_bits()) {
        // A copy: a part of the batch would keep all of it.
        return embeddings.force_contiguous();
    }
    let weights = Tensor::new(chunk.weights.as_slice(), embeddings.device())?.reshape((1, (), 1))?;
    let before = embeddings.to_dtype(DType::F32)?;
    let after = before.broadcast_mul(&weights)?;
    let mean = |x: &Tensor| x.mean_all()?.to_scalar::<f32>();
    let (had, has) = (mean(&before)?, mean(&after)?);
    // Where there is next to no mean, there is nothing to give back.
    let factor = if has.abs() > MIN_MEAN * mean(&after.abs()?)? { had / has } else { 1.0 };
    (after * f64::from(factor))?.to_dtype(embeddings.dtype())
}

/// The latest prompts, by their exact text, the last used first. They are few: looking through them is nothing next to encoding one.
#[derive(Debug, Default)]
struct Latest(VecDeque<(Key, EncodedPrompt)>);

impl Latest {
    fn get(&mut self, wanted: &Key) -> Option<EncodedPrompt> {
        let place = self.0.iter().position(|(key, _)| key == wanted)?;
        let entry = self.0.remove(place)?;
        let encoded = entry.1.clone();
        self.0.push_front(entry);
        Some(encoded)
    }

    fn put(&mut self, new: &Key, encoded: EncodedPrompt) {
        self.0.retain(|(key, _)| key != new);
        self.0.push_front((new.clone(), encoded));
        self.0.truncate(CAPACITY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_that_was_not_used_for_longest_goes_first() {
        let key = |text: &str| Key::new(PromptText::Positive(text), 0);
        let encoded = EncodedPrompt { parts: Vec::new(), cut: None, unknown: Vec::new() };
        let mut latest = Latest::default();
        latest.put(&key(""), encoded.clone());
        latest.put(&key("never again"), encoded.clone());
        for i in 0..CAPACITY - 1 {
            assert!(latest.get(&key("")).is_some(), "used every time");
            latest.put(&key(&i.to_string()), encoded.clone());
        }
        assert!(latest.get(&key("never again")).is_none());
        assert!(latest.get(&key("0")).is_some() && latest.get(&key("")).is_some());
        assert!(
            latest.get(&Key::new(PromptText::Negative("0"), 0)).is_none() && latest.get(&Key::new(PromptText::Positive("0"), 1)).is_none()
        );
        latest.put(&key("0"), encoded);
        assert_eq!(latest.0.len(), CAPACITY, "and each is kept once");
    }
}
