//! A prompt, read once.

use std::sync::Arc;

use super::syntax::{self, Network, PromptPart};
use crate::common::{InvalidValue, NamedLora};

/// The most parts of a prompt: each is one more sample in every step.
const MAX_PARTS: usize = 16;

/// A prompt as the text encoders take it. It is parsed when its request is checked, and travels with the request from there. Clones share
/// the text.
#[derive(Debug, Clone, PartialEq)]
pub struct ParsedPrompt(Arc<Parsed>);

#[derive(Debug, Default, PartialEq)]
struct Parsed {
    text: String,
    is_negative: bool,
    parts: Vec<PromptPart>,
    loras: Vec<NamedLora>,
    /// What is to be said of networks that the text names and that are left out.
    left_out: Vec<String>,
    has_words: bool,
}

impl ParsedPrompt {
    /// What the picture shows. The parts between `AND`s guide the picture side by side.
    ///
    /// # Errors
    /// When there are more than 16 parts, or a LoRA's scale is no number or out of range.
    pub fn positive(text: &str) -> Result<Self, InvalidValue> {
        let (words, networks) = syntax::without_networks(text);
        let (mut loras, mut left_out) = (Vec::new(), Vec::new());
        for network in networks {
            match network {
                Network::Lora(inside) => {
                    loras.push(NamedLora::from_tag(&inside).map_err(|error| InvalidValue { name: "prompt", ..error })?);
                }
                Network::Hypernetwork(name) => left_out.push(hypernetwork(&name)),
            }
        }
        let prompt = Self::new(text, &words, syntax::parse(&words), Parsed { loras, left_out, ..Parsed::default() });
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
        let (words, networks) = syntax::without_networks(text);
        let left_out = networks.into_iter().map(|network| match network {
            Network::Lora(inside) => {
                let name = inside.split(':').next().unwrap_or_default();
                format!("LoRA \"{name}\" was left out of the negative prompt: LoRAs change the model for both prompts, and belong into the other one")
            }
            Network::Hypernetwork(name) => hypernetwork(&name),
        });
        let rest = Parsed { is_negative: true, left_out: left_out.collect(), ..Parsed::default() };
        Self::new(text, &words, syntax::parse_negative(&words), rest)
    }

    fn new(text: &str, words: &str, parts: Vec<PromptPart>, rest: Parsed) -> Self {
        Self(Arc::new(Parsed { text: text.to_owned(), parts, has_words: !words.trim().is_empty(), ..rest }))
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
        let loras: usize = self.loras().iter().map(|lora| size_of_val(lora) + lora.name.len()).sum();
        let left_out: usize = self.left_out().iter().map(String::len).sum();
        self.as_str().len() + loras + left_out + spans.map(|span| size_of_val(span) + span.text.len()).sum::<usize>()
    }

    /// Whether both become the same embeddings: a negative prompt is read in another way.
    pub(super) fn reads_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || (self.0.is_negative == other.0.is_negative && self.0.text == other.0.text)
    }

    pub(super) fn parts(&self) -> &[PromptPart] {
        &self.0.parts
    }

    /// The LoRAs that the text names.
    #[must_use]
    pub fn loras(&self) -> &[NamedLora] {
        &self.0.loras
    }

    /// What is to be said of networks that the text names and that are left out.
    pub(super) fn left_out(&self) -> &[String] {
        &self.0.left_out
    }

    /// A negative prompt of spaces, or of names of networks alone.
    pub(super) fn is_empty_negative(&self) -> bool {
        self.0.is_negative && !self.0.has_words
    }
}

fn hypernetwork(name: &str) -> String {
    format!("hypernetwork \"{name}\" was left out: not supported by this worker")
}
