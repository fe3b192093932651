//! From prompts to text embeddings, which are kept for requests to come.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use candle_core::{Device, Tensor};

use super::{
    KnownWords, TextEncoder,
    syntax::{self, PromptPart},
    text_encoder::ReadPart,
};
use crate::{
    backend::GenerationError,
    common::{ClipSkip, InvalidValue},
    models::Interrupt,
};

/// Parts of a prompt: each is one more sample in every step.
const MAX_PARTS: usize = 16;
/// Prompts that are kept: in Stable Diffusion 1.5, 231 KiB for a short one.
const CAPACITY: usize = 64;
/// How much of them is kept: in SDXL, 616 KiB for each chunk of each part.
const CAPACITY_BYTES: usize = 64 << 20;

/// Text encoders, one or in SDXL two, and what they made of the latest prompts. Many requests share a prompt, nearly all the empty
/// negative one.
#[derive(Debug)]
pub struct PromptEncoder {
    encoders: Vec<TextEncoder>,
    known_words: KnownWords,
    /// Whether an empty negative prompt becomes nothing but zeros.
    force_zeros_for_empty_prompt: bool,
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
    /// How many parts it has, which guide side by side.
    #[must_use]
    pub fn parts(self) -> usize {
        Key::new(self, 0).parts().len()
    }

    /// Makes sure that it has no more parts than a picture can be made of.
    ///
    /// # Errors
    /// When it has.
    pub fn check(self) -> Result<(), InvalidValue> {
        let (parts, allowed) = (self.parts(), format!("a prompt of at most {MAX_PARTS} parts between ANDs"));
        if parts <= MAX_PARTS { Ok(()) } else { Err(InvalidValue::new("prompt", format_args!("one of {parts}"), allowed)) }
    }
}

/// What the prompts of a request became.
#[derive(Debug)]
pub struct EncodedPrompts {
    /// `(parts, tokens, hidden)`: those of the first prompt, then those of the next; those of several encoders side by side.
    pub embeddings: Tensor,
    /// The pooled text, `(parts, pooled_dim)`, if an encoder has a projection to it.
    pub pooled: Option<Tensor>,
    /// How strongly each part guides.
    pub weights: Vec<f64>,
    /// What was not read, and what is not known.
    pub warnings: Vec<String>,
}

/// What a prompt became.
#[derive(Debug, Clone)]
struct EncodedPrompt {
    parts: Vec<EncodedPart>,
    /// The end of the prompt that did not fit.
    cut: Option<String>,
    /// Words that the model was not taught.
    unknown: Vec<String>,
    /// Learned words that it calls, and that nobody gave to this worker.
    embeddings: Vec<String>,
    /// Networks that it names, which this worker does not apply.
    networks: Vec<String>,
}

impl EncodedPrompt {
    /// What its tensors take.
    fn bytes(&self) -> usize {
        let tensors = self.parts.iter().flat_map(|part| [Some(&part.chunks), part.pooled.as_ref()]).flatten();
        tensors.map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes()).sum()
    }
}

/// What a part of a prompt became.
#[derive(Debug, Clone)]
struct EncodedPart {
    weight: f64,
    /// `(chunks, tokens, hidden)`.
    chunks: Tensor,
    /// `(1, pooled_dim)`.
    pooled: Option<Tensor>,
    /// Whether zeros take the place of all that.
    is_zero: bool,
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
        let (text, _) = syntax::without_networks(&self.text);
        if self.is_negative { syntax::parse_negative(&text) } else { syntax::parse(&text) }
    }
}

impl PromptEncoder {
    /// `encoders` are one or more, of the same tokens.
    #[must_use]
    pub fn new(encoders: Vec<TextEncoder>, known_words: KnownWords, force_zeros_for_empty_prompt: bool, device: Device) -> Self {
        Self { encoders, known_words, force_zeros_for_empty_prompt, device, latest: Mutex::default() }
    }

    /// The encoders, for benches that time them.
    #[must_use]
    pub fn encoders(&self) -> &[TextEncoder] {
        &self.encoders
    }

    /// Embeddings of prompts; those that are not kept are encoded in one batch. What does not fit is cut, with a warning.
    ///
    /// # Errors
    /// When a prompt has too many parts, when there are no layers left to skip, or when the tokenizer or the device fails.
    pub fn encode(
        &self,
        prompts: &[PromptText],
        clip_skip: Option<ClipSkip>,
        interrupt: Interrupt,
    ) -> Result<EncodedPrompts, GenerationError> {
        prompts.iter().try_for_each(|prompt| prompt.check())?;
        let skipped_layers = clip_skip.map_or(0, ClipSkip::layers);
        let depth = self.encoders.iter().map(TextEncoder::depth).min().unwrap_or_default();
        if let Some(skip) = clip_skip.filter(|skip| skip.layers() >= depth.max(1)) {
            return Err(InvalidValue::new("clip_skip", skip, format!("a whole number from 1 to {depth} for this model")).into());
        }
        let keys: Vec<Key> = prompts.iter().map(|prompt| Key::new(*prompt, skipped_layers)).collect();
        let kept: Vec<Option<EncodedPrompt>> = keys.iter().map(|key| self.latest().get(key)).collect();
        let missing: Vec<&Key> = keys.iter().zip(&kept).filter(|(_, kept)| kept.is_none()).map(|(key, _)| key).collect();
        metrics::counter!("sdw_prompt_cache_total", "outcome" => "hit").increment((prompts.len() - missing.len()) as u64);
        metrics::counter!("sdw_prompt_cache_total", "outcome" => "miss").increment(missing.len() as u64);

        let new = self.run(&missing, skipped_layers, interrupt)?;
        missing.iter().zip(&new).for_each(|(key, new)| self.latest().put(key, new.clone()));
        let mut new = new.into_iter();
        let encoded: Vec<EncodedPrompt> = kept.into_iter().filter_map(|kept| kept.or_else(|| new.next())).collect();
        let warnings = warnings(&encoded);
        let parts: Vec<EncodedPart> = encoded.into_iter().flat_map(|prompt| prompt.parts).collect();
        let weights = parts.iter().map(|part| part.weight).collect();
        let pooled = parts.iter().filter_map(|part| Some(zeros_if(part.is_zero, part.pooled.as_ref()?))).collect::<Result<Vec<_>, _>>()?;
        let pooled = if pooled.is_empty() { None } else { Some(Tensor::cat(&pooled, 0)?) };
        Ok(EncodedPrompts { embeddings: self.side_by_side(parts, skipped_layers, interrupt)?, pooled, weights, warnings })
    }

    /// Parts as a batch: each as long as the longest, filled up with chunks without words.
    fn side_by_side(&self, parts: Vec<EncodedPart>, skipped_layers: usize, interrupt: Interrupt) -> Result<Tensor, GenerationError> {
        let lengths = parts.iter().map(|part| part.chunks.dim(0)).collect::<Result<Vec<_>, _>>()?;
        let longest = lengths.iter().copied().max().unwrap_or_default();
        let nothing = Key::new(PromptText::Negative(""), skipped_layers);
        let empty =
            if lengths.iter().all(|length| *length == longest) { Vec::new() } else { self.run(&[&nothing], skipped_layers, interrupt)? };
        let empty: Vec<&Tensor> = empty.iter().flat_map(|prompt| &prompt.parts).map(|part| &part.chunks).collect();
        let mut rows = Vec::with_capacity(parts.len());
        for (EncodedPart { mut chunks, is_zero, .. }, length) in parts.into_iter().zip(lengths) {
            let filling: Vec<&Tensor> = empty.iter().copied().cycle().take(longest - length).collect();
            if !filling.is_empty() {
                chunks = Tensor::cat(&[&[&chunks][..], &filling].concat(), 0)?;
            }
            let (count, tokens, hidden) = chunks.dims3()?;
            rows.push(zeros_if(is_zero, &chunks.reshape((1, count * tokens, hidden))?)?);
        }
        Ok(Tensor::cat(&rows, 0)?)
    }

    /// Encodes prompts in one batch.
    fn run(&self, prompts: &[&Key], skipped_layers: usize, interrupt: Interrupt) -> Result<Vec<EncodedPrompt>, GenerationError> {
        if prompts.is_empty() {
            return Ok(Vec::new());
        }
        let parts: Vec<Vec<PromptPart>> = prompts.iter().map(|prompt| prompt.parts()).collect();
        let all = parts.concat();
        let read = self.encoders.iter().map(|encoder| encoder.read(&all, skipped_layers, &self.device, interrupt));
        let mut read = read.collect::<Result<Vec<_>, _>>()?.into_iter().map(Vec::into_iter).collect::<Vec<_>>();
        let mut encoded = Vec::with_capacity(prompts.len());
        for (prompt, parts) in prompts.iter().zip(parts) {
            let (mut cuts, mut unknown, mut embeddings, mut joined) = (Vec::new(), Vec::new(), Vec::new(), Vec::with_capacity(parts.len()));
            let (text, networks) = syntax::without_networks(&prompt.text);
            let is_zero = self.force_zeros_for_empty_prompt && prompt.is_negative && text.trim().is_empty();
            for part in parts {
                for span in part.sections.iter().flatten() {
                    unknown.extend(self.known_words.missing_in(&span.text));
                    // The encoders have the same.
                    embeddings.extend(self.encoders.first().map(|encoder| encoder.unknown_embeddings(&span.text)).unwrap_or_default());
                }
                let readings: Vec<ReadPart> = read.iter_mut().filter_map(Iterator::next).collect();
                let chunks: Vec<&Tensor> = readings.iter().map(|reading| &reading.chunks).collect();
                let (chunks, weight) = (Tensor::cat(&chunks, 2)?, part.weight);
                // All cut what they read at the same place, and the pooled text is that of the last one that has it.
                cuts.extend(readings.first().and_then(|reading| reading.cut.clone()));
                let pooled = readings.into_iter().rev().find_map(|reading| reading.pooled);
                joined.push(EncodedPart { weight, chunks, pooled, is_zero });
            }
            encoded.push(EncodedPrompt { parts: joined, cut: (!cuts.is_empty()).then(|| cuts.join(" ")), unknown, embeddings, networks });
        }
        Ok(encoded)
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
    let unknown = each_once(prompts.iter().flat_map(|prompt| &prompt.unknown));
    if !unknown.is_empty() {
        warnings.push(format!("unknown words: {} (the model was not taught them: what they draw is chance)", unknown.join(", ")));
    }
    let embeddings = each_once(prompts.iter().flat_map(|prompt| &prompt.embeddings));
    let no_such = "was left out: there is no such file below the folder of --embeddings";
    warnings.extend(embeddings.into_iter().map(|name| format!("the embedding \"{name}\" {no_such}")));
    let networks = each_once(prompts.iter().flat_map(|prompt| &prompt.networks));
    warnings.extend(networks.into_iter().map(|name| format!("{name} was left out: not supported by this worker")));
    warnings
}

fn each_once<'a>(texts: impl Iterator<Item = &'a String>) -> Vec<&'a str> {
    let mut seen = HashSet::new();
    texts.map(String::as_str).filter(|text| seen.insert(*text)).collect()
}

/// The tensor, or one of its shape without anything in it.
fn zeros_if(is_zero: bool, tensor: &Tensor) -> candle_core::Result<Tensor> {
    if is_zero { tensor.zeros_like() } else { Ok(tensor.clone()) }
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

    /// Keeps a prompt, unless it alone is more than there is room for.
    fn put(&mut self, new: &Key, encoded: EncodedPrompt) {
        self.0.retain(|(key, _)| key != new);
        if encoded.bytes() > CAPACITY_BYTES {
            return;
        }
        self.0.push_front((new.clone(), encoded));
        let mut bytes = 0;
        let fit = self.0.iter().take(CAPACITY).take_while(|(_, encoded)| {
            bytes += encoded.bytes();
            bytes <= CAPACITY_BYTES
        });
        let count = fit.count();
        self.0.truncate(count);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;

    /// One whose tensors take so many bytes.
    fn prompt_of(bytes: usize) -> EncodedPrompt {
        let tensor = |shape: &[usize]| Tensor::zeros(shape, DType::U8, &Device::Cpu).unwrap();
        let pooled = bytes.min(1);
        let part = EncodedPart { weight: 1.0, chunks: tensor(&[1, 1, bytes - pooled]), pooled: Some(tensor(&[1, pooled])), is_zero: false };
        EncodedPrompt { parts: vec![part], cut: None, unknown: Vec::new(), embeddings: Vec::new(), networks: Vec::new() }
    }

    #[test]
    fn large_prompts_leave_room_for_few() {
        let key = |text: &str| Key::new(PromptText::Positive(text), 0);
        let mut latest = Latest::default();
        let texts = |latest: &Latest| latest.0.iter().map(|(key, _)| key.text.clone()).collect::<Vec<_>>();
        let third = CAPACITY_BYTES / 3;
        for text in ["a", "b", "c"] {
            latest.put(&key(text), prompt_of(third));
        }
        assert_eq!(texts(&latest), ["c", "b", "a"]);
        latest.put(&key("d"), prompt_of(third + 2));
        assert_eq!(texts(&latest), ["d", "c"], "what was used longest ago goes, until the rest fits");
        latest.put(&key("e"), prompt_of(CAPACITY_BYTES + 1));
        assert_eq!(texts(&latest), ["d", "c"], "what would take all of it and more is not kept");
        latest.put(&key("e"), prompt_of(CAPACITY_BYTES));
        assert_eq!(texts(&latest), ["e"]);
    }

    #[test]
    fn the_prompt_that_was_not_used_for_longest_goes_first() {
        let key = |text: &str| Key::new(PromptText::Positive(text), 0);
        let encoded = prompt_of(0);
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
