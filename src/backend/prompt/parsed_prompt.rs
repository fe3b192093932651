//! A prompt, read once.

use std::sync::Arc;

use super::syntax::{self, PromptPart};
use crate::common::InvalidValue;

/// The most parts of a prompt: each is one more sample in every step.
const MAX_PARTS: usize = 16;

/// A prompt as the text encoders take it. It is parsed when its request is checked, and travels with the request from there. Clones share
/// the text.
#[derive(Debug, Clone, PartialEq)]
pub struct ParsedPrompt(Arc<Parsed>);

#[derive(Debug, PartialEq)]
struct Parsed {
    text: String,
    is_negative: bool,
    parts: Vec<PromptPart>,
    networks: Vec<String>,
    has_words: bool,
}

impl ParsedPrompt {
    /// What the picture shows. The parts between `AND`s guide the picture side by side.
    ///
    /// # Errors
    /// When there are more than 16 parts.
    pub fn positive(text: &str) -> Result<Self, InvalidValue> {
        let prompt = Self::new(text, false, syntax::parse);
        match prompt.part_weights().len() {
            ..=MAX_PARTS => Ok(prompt),
            parts => {
                let allowed = format!("a prompt of at most {MAX_PARTS} parts between ANDs");
                Err(InvalidValue::new("prompt", format_args!("one of {parts}"), allowed))
            }
        }
    }

    /// What the picture does not show. It has one part: `AND` is a word like others.
    #[must_use]
    pub fn negative(text: &str) -> Self {
        Self::new(text, true, syntax::parse_negative)
    }

    fn new(text: &str, is_negative: bool, parse: fn(&str) -> Vec<PromptPart>) -> Self {
        let (words, networks) = syntax::without_networks(text);
        let has_words = !words.trim().is_empty();
        Self(Arc::new(Parsed { text: text.to_owned(), is_negative, parts: parse(&words), networks, has_words }))
    }

    /// The text as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    /// How strongly each part guides, at least one.
    #[must_use]
    pub fn part_weights(&self) -> Vec<f64> {
        self.parts().iter().map(|part| part.weight).collect()
    }

    /// The memory that it takes, in bytes: the text, and the text once more in pieces.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let spans = self.parts().iter().flat_map(|part| part.sections.iter().flatten());
        let networks: usize = self.networks().iter().map(String::len).sum();
        self.as_str().len() + networks + spans.map(|span| size_of_val(span) + span.text.len()).sum::<usize>()
    }

    /// Whether both become the same embeddings: a negative prompt is read in another way.
    pub(super) fn reads_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || (self.0.is_negative == other.0.is_negative && self.0.text == other.0.text)
    }

    pub(super) fn parts(&self) -> &[PromptPart] {
        &self.0.parts
    }

    /// The networks that the prompt names, such as `LoRA "name"`.
    pub(super) fn networks(&self) -> &[String] {
        &self.0.networks
    }

    /// A negative prompt of spaces, or of names of networks alone.
    pub(super) fn is_empty_negative(&self) -> bool {
        self.0.is_negative && !self.0.has_words
    }
}
