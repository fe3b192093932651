//! Words that are no words of the vocabulary, but have vectors of their own.

use std::ops::Range;

/// What `ComfyUI`'s users write in front of such words.
const PREFIX: &str = "embedding:";

/// Learned words, by name.
#[derive(Debug, Default)]
pub(super) struct LearnedWords(Vec<LearnedWord>);

#[derive(Debug)]
struct LearnedWord {
    name: String,
    /// The token ids of its vectors.
    ids: Range<u32>,
}

/// A part of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// Words of the vocabulary, from this place of the text on.
    Plain(usize, &'a str),
    /// A learned word, at this place of the text.
    Learned(usize, Range<u32>),
}

impl LearnedWords {
    pub(super) fn add(&mut self, name: &str, ids: Range<u32>) {
        self.0.push(LearnedWord { name: name.to_owned(), ids });
        // Of two that begin in the same place, the longer one is meant.
        self.0.sort_by_key(|word| std::cmp::Reverse(word.name.len()));
    }

    /// The text in pieces, in order. Names are found whether they are written in capitals or not, where they stand by themselves.
    pub(super) fn pieces<'a>(&self, text: &'a str) -> Vec<Piece<'a>> {
        let mut pieces = Vec::new();
        let mut start = 0;
        for (at, _) in text.char_indices() {
            if at < start {
                continue;
            }
            if let Some((length, ids)) = self.0.iter().find_map(|word| Some((word.length_at(text, at)?, word.ids.clone()))) {
                let before = &text[start..at];
                pieces.push(Piece::Plain(start, before.strip_suffix(PREFIX).unwrap_or(before)));
                pieces.push(Piece::Learned(at, ids));
                start = at + length;
            }
        }
        pieces.push(Piece::Plain(start, &text[start..]));
        pieces.retain(|piece| !matches!(piece, Piece::Plain(_, "")));
        pieces
    }
}

impl LearnedWord {
    /// How many bytes of the text the word takes, if it stands there.
    fn length_at(&self, text: &str, at: usize) -> Option<usize> {
        let mut rest = text[at..].chars();
        if !self.name.chars().all(|c| rest.next().is_some_and(|other| c.to_lowercase().eq(other.to_lowercase()))) {
            return None;
        }
        let end = text.len() - rest.as_str().len();
        let is_letter = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let goes_on = |outside: Option<char>, inside: Option<char>| is_letter(outside) && is_letter(inside);
        let cut_before = goes_on(text[..at].chars().next_back(), self.name.chars().next());
        let cut_after = goes_on(rest.next(), self.name.chars().next_back());
        (!cut_before && !cut_after).then_some(end - at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words() -> LearnedWords {
        let mut words = LearnedWords::default();
        for (name, ids) in [("bad", 0..1), ("bad-hands-5", 1..6), ("<cat-toy>", 6..7), ("Straße", 7..8)] {
            words.add(name, ids);
        }
        words
    }

    #[test]
    fn names_are_found_where_they_stand_by_themselves() {
        use Piece::{Learned, Plain};
        for (text, pieces) in [
            ("a fox", vec![Plain(0, "a fox")]),
            ("", vec![]),
            ("bad", vec![Learned(0, 0..1)]),
            ("a BAD-hands-5, fox", vec![Plain(0, "a "), Learned(2, 1..6), Plain(13, ", fox")]),
            ("badly _bad bad_ bad2", vec![Plain(0, "badly _bad bad_ bad2")]),
            ("a<cat-toy>b", vec![Plain(0, "a"), Learned(1, 6..7), Plain(10, "b")]),
            ("bad bad", vec![Learned(0, 0..1), Plain(3, " "), Learned(4, 0..1)]),
            ("a embedding:bad", vec![Plain(0, "a "), Learned(12, 0..1)]),
            ("STRAßE", vec![Learned(0, 7..8)]),
            ("bad-hands-55", vec![Learned(0, 0..1), Plain(3, "-hands-55")]),
        ] {
            assert_eq!(words().pieces(text), pieces, "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn nothing_is_lost_but_names(text in r"(bad|-hands-5|<cat-toy>| |embedding:|ß|\PC){0,20}") {
            let mut end = 0;
            for piece in words().pieces(&text) {
                let (Piece::Plain(at, _) | Piece::Learned(at, _)) = piece;
                prop_assert!(at >= end && text.is_char_boundary(at));
                if let Piece::Plain(at, plain) = piece {
                    prop_assert_eq!(&text[at..at + plain.len()], plain);
                    end = at + plain.len();
                }
            }
        }
    }
}
