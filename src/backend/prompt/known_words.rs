//! The vocabulary of a model that was trained on few words.

use std::collections::HashSet;

use crate::backend::{LoadError, ModelFiles};

const FILE: &str = "known_words.json";

/// `known_words.json`, which such a model may carry: a list of all words, in lower case. A model without the file counts as knowing every
/// word.
#[derive(Debug)]
pub struct KnownWords(Option<HashSet<String>>);

impl KnownWords {
    /// Reads the file, if there is one.
    ///
    /// # Errors
    /// When it is no list of words.
    pub fn load(files: &ModelFiles) -> Result<Self, LoadError> {
        Ok(Self(if files.exists(FILE) { Some(files.json(FILE)?) } else { None }))
    }

    /// The words of a text that the model does not know, in lower case.
    pub(super) fn missing_in(&self, text: &str) -> Vec<String> {
        let Some(known) = &self.0 else { return Vec::new() };
        let words = text.split(is_between_words).filter(|word| !word.is_empty()).map(str::to_lowercase);
        words.filter(|word| !known.contains(word)).collect()
    }
}

/// Spaces and punctuation, in ASCII and beyond. Words and emoji remain.
fn is_between_words(c: char) -> bool {
    const LATIN_1: std::ops::RangeInclusive<char> = '\u{a0}'..='\u{bf}';
    const GENERAL: std::ops::RangeInclusive<char> = '\u{2000}'..='\u{206f}';
    const CJK: std::ops::RangeInclusive<char> = '\u{3000}'..='\u{303f}';
    c.is_whitespace() || c.is_control() || c.is_ascii_punctuation() || [LATIN_1, GENERAL, CJK].iter().any(|block| block.contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_told_from_what_stands_between_them() {
        let known = KnownWords(Some(["t", "rex", "a", "woman", "s", "hat", "piñata", "8"].map(str::to_owned).into()));
        assert!(known.missing_in("A T-Rex, a woman’s hat; (Piñata) — 8?\n").is_empty());
        assert_eq!(known.missing_in("a rexes «hats»\u{200b} 🍓 a_b 狐、88"), ["rexes", "hats", "🍓", "b", "狐", "88"]);
        assert!(known.missing_in(" ,.! ").is_empty() && known.missing_in("").is_empty());
        assert!(KnownWords(None).missing_in("whatever").is_empty());
    }
}
