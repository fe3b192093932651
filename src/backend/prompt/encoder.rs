//! From prompts to text embeddings, which are cached for requests to come.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use candle_core::{Device, Tensor};

use super::{
    KnownWords, ParsedPrompt, TextEncoder,
    prompt_cache::{EncodedPart, EncodedPrompt, Key, PromptCache},
    text_encoder::ReadPart,
};
use crate::{
    backend::GenerationError,
    common::{ClipSkip, InvalidValue},
    models::Interrupt,
    ops::{AdaptedLayers, Adapters},
};

/// The text encoders, one or in SDXL two, and the embeddings of the latest prompts. Many requests share a prompt, nearly all the empty
/// negative one.
#[derive(Debug)]
pub struct PromptEncoder {
    encoders: Vec<TextEncoder>,
    known_words: KnownWords,
    /// Whether the embeddings of an empty negative prompt are zeros.
    force_zeros_for_empty_prompt: bool,
    device: Device,
    cache: Mutex<PromptCache>,
}

/// What the adapters of a request make of the text encoders.
#[derive(Debug, Clone, Default)]
pub struct TextAdapters {
    /// One for each adapter that is on for the text encoders, or none where none of them changes one: embeddings with other ids are other
    /// embeddings.
    pub ids: Vec<AdapterId>,
    /// One for each encoder, or none at all.
    pub layers: Vec<Option<Arc<AdaptedLayers>>>,
}

/// What tells an adapter from others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdapterId {
    /// A number that no other content of a file has.
    pub file: u64,
    /// The factor of all that it changes.
    pub strength: f64,
}

/// The embeddings of the prompts of a request.
#[derive(Debug)]
pub struct EncodedPrompts {
    /// `(parts, tokens, hidden)`: the parts of the first prompt, then those of the next. Several encoders stand side by side in `hidden`.
    pub embeddings: Tensor,
    /// The pooled text, `(parts, pooled_dim)`, if an encoder has a projection to it.
    pub pooled: Option<Tensor>,
    /// What was cut or left out, and what the model does not know.
    pub warnings: Vec<String>,
}

impl EncodedPrompts {
    /// Embeddings and pooled text without those of the first `parts`.
    ///
    /// # Errors
    /// When there are not as many.
    pub(in crate::backend) fn without_first(&self, parts: usize) -> candle_core::Result<(Tensor, Option<Tensor>)> {
        let rest = |x: &Tensor| x.narrow(0, parts, x.dim(0)? - parts);
        Ok((rest(&self.embeddings)?, self.pooled.as_ref().map(rest).transpose()?))
    }
}

impl PromptEncoder {
    /// `encoders` are one or more, with one vocabulary.
    #[must_use]
    pub fn new(encoders: Vec<TextEncoder>, known_words: KnownWords, force_zeros_for_empty_prompt: bool, device: Device) -> Self {
        Self { encoders, known_words, force_zeros_for_empty_prompt, device, cache: Mutex::default() }
    }

    /// The encoders, for benches that time them.
    #[must_use]
    pub fn encoders(&self) -> &[TextEncoder] {
        &self.encoders
    }

    /// Encodes in one batch the prompts that are not in the cache. What does not fit into the model is cut, with a warning.
    ///
    /// # Errors
    /// When `clip_skip` leaves no layer, the tokenizer or the device fails, or the pass is interrupted.
    pub fn encode(
        &self,
        prompts: &[&ParsedPrompt],
        clip_skip: Option<ClipSkip>,
        adapters: &TextAdapters,
        interrupt: Interrupt,
    ) -> Result<EncodedPrompts, GenerationError> {
        let skipped_layers = clip_skip.map_or(0, ClipSkip::layers);
        let depth = self.encoders.iter().map(TextEncoder::depth).min().unwrap_or_default();
        if let Some(skip) = clip_skip.filter(|skip| skip.layers() >= depth.max(1)) {
            return Err(InvalidValue::new("clip_skip", skip, format!("a whole number from 1 to {depth} for this model")).into());
        }
        let key = |prompt: &ParsedPrompt| Key { prompt: prompt.clone(), skipped_layers, adapters: adapters.ids.clone() };
        let keys: Vec<Key> = prompts.iter().map(|prompt| key(prompt)).collect();
        let cached: Vec<Option<EncodedPrompt>> = keys.iter().map(|key| self.cache().get(key)).collect();
        let missing: Vec<&Key> = keys.iter().zip(&cached).filter(|(_, cached)| cached.is_none()).map(|(key, _)| key).collect();
        metrics::counter!("sdw_prompt_cache_total", "outcome" => "hit").increment((prompts.len() - missing.len()) as u64);
        metrics::counter!("sdw_prompt_cache_total", "outcome" => "miss").increment(missing.len() as u64);

        let new = self.run(&missing, adapters, interrupt)?;
        missing.iter().zip(&new).for_each(|(key, new)| self.cache().put(key, new.clone()));
        let mut new = new.into_iter();
        let encoded: Vec<EncodedPrompt> = cached.into_iter().filter_map(|cached| cached.or_else(|| new.next())).collect();
        let warnings = warnings(&encoded);
        let parts: Vec<EncodedPart> = encoded.into_iter().flat_map(|prompt| prompt.parts).collect();
        let pooled = parts.iter().filter_map(|part| Some(zeros_if(part.is_zero, part.pooled.as_ref()?))).collect::<Result<Vec<_>, _>>()?;
        let pooled = if pooled.is_empty() { None } else { Some(Tensor::cat(&pooled, 0)?) };
        Ok(EncodedPrompts { embeddings: self.batch(parts, &key(&ParsedPrompt::negative("")), adapters, interrupt)?, pooled, warnings })
    }

    /// The parts as one batch. Shorter parts are filled up with chunks without words, those of `nothing`.
    fn batch(
        &self,
        parts: Vec<EncodedPart>,
        nothing: &Key,
        adapters: &TextAdapters,
        interrupt: Interrupt,
    ) -> Result<Tensor, GenerationError> {
        let lengths = parts.iter().map(|part| part.chunks.dim(0)).collect::<Result<Vec<_>, _>>()?;
        let longest = lengths.iter().copied().max().unwrap_or_default();
        let empty = if lengths.iter().all(|length| *length == longest) { Vec::new() } else { self.run(&[nothing], adapters, interrupt)? };
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
    fn run(&self, prompts: &[&Key], adapters: &TextAdapters, interrupt: Interrupt) -> Result<Vec<EncodedPrompt>, GenerationError> {
        let Some(Key { skipped_layers, .. }) = prompts.first() else { return Ok(Vec::new()) };
        let all: Vec<_> = prompts.iter().flat_map(|key| key.prompt.parts()).collect();
        let read = self.encoders.iter().enumerate().map(|(i, encoder)| {
            let adapters = Adapters::new(adapters.layers.get(i).cloned().flatten());
            encoder.read(&all, *skipped_layers, &self.device, &adapters, interrupt)
        });
        let mut read = read.collect::<Result<Vec<_>, _>>()?.into_iter().map(Vec::into_iter).collect::<Vec<_>>();
        let mut encoded = Vec::with_capacity(prompts.len());
        for Key { prompt, .. } in prompts {
            let is_zero = self.force_zeros_for_empty_prompt && prompt.is_empty_negative();
            let mut new = EncodedPrompt { left_out: prompt.left_out().to_vec(), ..EncodedPrompt::default() };
            for part in prompt.parts() {
                for span in part.sections.iter().flatten() {
                    new.unknown.extend(self.known_words.missing_in(&span.text));
                    // All encoders have the same learned words.
                    new.embeddings.extend(self.encoders.first().map(|encoder| encoder.unknown_embeddings(&span.text)).unwrap_or_default());
                }
                let readings: Vec<ReadPart> = read.iter_mut().filter_map(Iterator::next).collect();
                let chunks: Vec<&Tensor> = readings.iter().map(|reading| &reading.chunks).collect();
                let chunks = Tensor::cat(&chunks, 2)?;
                // All encoders cut a text at the same place. The pooled text is that of the last one that has it.
                new.cuts.extend(readings.first().and_then(|reading| reading.cut.clone()));
                let pooled = readings.into_iter().rev().find_map(|reading| reading.pooled);
                new.parts.push(EncodedPart { chunks, pooled, is_zero });
            }
            encoded.push(new);
        }
        Ok(encoded)
    }

    fn cache(&self) -> MutexGuard<'_, PromptCache> {
        // The cache is whole between any two calls, whatever panics elsewhere.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the client should know of these prompts.
fn warnings(prompts: &[EncodedPrompt]) -> Vec<String> {
    let cuts = prompts.iter().filter(|prompt| !prompt.cuts.is_empty()).map(|prompt| prompt.cuts.join(" "));
    let mut warnings: Vec<String> =
        cuts.map(|cut| format!("a prompt is too long for the model; this part of it was not read: \"{cut}\"")).collect();
    let unknown = each_once(prompts.iter().flat_map(|prompt| &prompt.unknown));
    if !unknown.is_empty() {
        warnings.push(format!("unknown words: {} (the model was not taught them: what they draw is chance)", unknown.join(", ")));
    }
    let embeddings = each_once(prompts.iter().flat_map(|prompt| &prompt.embeddings));
    let no_such = "was left out: there is no such file below the folder of --embeddings";
    warnings.extend(embeddings.into_iter().map(|name| format!("the embedding \"{name}\" {no_such}")));
    let left_out = each_once(prompts.iter().flat_map(|prompt| &prompt.left_out));
    warnings.extend(left_out.into_iter().map(str::to_owned));
    warnings
}

fn each_once<'a>(texts: impl Iterator<Item = &'a String>) -> Vec<&'a str> {
    let mut seen = HashSet::new();
    texts.map(String::as_str).filter(|text| seen.insert(*text)).collect()
}

/// The tensor, or zeros of its shape.
fn zeros_if(is_zero: bool, tensor: &Tensor) -> candle_core::Result<Tensor> {
    if is_zero { tensor.zeros_like() } else { Ok(tensor.clone()) }
}
