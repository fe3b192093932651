//! Words beyond the vocabulary, with vectors of their own: textual inversion.

use std::ops::Range;

/// `ComfyUI`'s prefix of such words.
const PREFIX: &str = "embedding:";
/// The extension of their files, which people may write behind a word.
const ENDING: &str = ".safetensors";

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
    /// Text, with its offset in bytes.
    Plain(usize, &'a str),
    /// A learned word, with its offset and its token ids.
    Learned(usize, Range<u32>),
    /// A name behind [`PREFIX`] that is no learned word.
    Unknown(&'a str),
}

impl LearnedWords {
    /// Adds a word under a name. A word may have several names.
    pub(super) fn add(&mut self, name: &str, ids: Range<u32>) {
        self.0.push(LearnedWord { name: name.to_owned(), ids });
        // The longest name that fits wins.
        self.0.sort_by_key(|word| std::cmp::Reverse(word.name.len()));
    }

    /// The text in pieces, in order. A name is found in upper or lower case, where it is not part of a longer word.
    pub(super) fn pieces<'a>(&self, text: &'a str) -> Vec<Piece<'a>> {
        let mut pieces = Vec::new();
        let mut start = 0;
        for (at, _) in text.char_indices() {
            if at < start {
                continue;
            }
            if let Some((piece, end)) = self.called(text, at).or_else(|| self.word(text, at, 0)) {
                pieces.extend([Piece::Plain(start, &text[start..at]), piece]);
                start = end;
            }
        }
        pieces.push(Piece::Plain(start, &text[start..]));
        pieces.retain(|piece| !matches!(piece, Piece::Plain(_, "")));
        pieces
    }

    /// The word at offset `at` and its end, if it reaches to offset `least`.
    fn word<'a>(&self, text: &str, at: usize, least: usize) -> Option<(Piece<'a>, usize)> {
        let ends = self.0.iter().filter_map(|word| Some((word.end_at(text, at)?, &word.ids)));
        ends.into_iter().find(|(end, _)| *end >= least).map(|(end, ids)| (Piece::Learned(at, ids.clone()), end))
    }

    /// The learned word named behind a [`PREFIX`] at offset `at`, and its end. A name that is none is unknown as a whole.
    fn called<'a>(&self, text: &'a str, at: usize) -> Option<(Piece<'a>, usize)> {
        let name = text[at..].strip_prefix(PREFIX)?;
        if is_letter(text[..at].chars().next_back()) {
            return None;
        }
        let begin = at + PREFIX.len();
        let is_end = |c: char| c.is_whitespace() || ",;:()[]{}<>|\"".contains(c);
        let name = name.split(is_end).next().unwrap_or_default().trim_end_matches(['.', '!', '?']);
        let end = begin + name.len();
        self.word(text, begin, end).or_else(|| (!name.is_empty()).then_some((Piece::Unknown(name), end)))
    }
}

impl LearnedWord {
    /// The end of this word, if it is at offset `at`.
    fn end_at(&self, text: &str, at: usize) -> Option<usize> {
        let mut rest = text[at..].chars();
        let is_same = |c: char, other: char| c.to_lowercase().eq(other.to_lowercase()) || (c == '/' && other == '\\');
        if !self.name.chars().all(|c| rest.next().is_some_and(|other| is_same(c, other))) {
            return None;
        }
        let goes_on = |outside: Option<char>, inside: Option<char>| is_letter(outside) && is_letter(inside);
        let cut_before = goes_on(text[..at].chars().next_back(), self.name.chars().next());
        let after = rest.as_str();
        let ending = after.split_at_checked(ENDING.len()).filter(|(end, _)| end.eq_ignore_ascii_case(ENDING));
        if let Some((_, after)) = ending.filter(|(_, after)| !cut_before && !is_letter(after.chars().next())) {
            return Some(text.len() - after.len());
        }
        let cut_after = goes_on(after.chars().next(), self.name.chars().next_back());
        (!cut_before && !cut_after).then_some(text.len() - after.len())
    }
}

fn is_letter(c: Option<char>) -> bool {
    c.is_some_and(|c| c.is_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words() -> LearnedWords {
        let mut words = LearnedWords::default();
        for (name, ids) in [("bad", 0..1), ("bad-hands-5", 1..6), ("<cat-toy>", 6..7), ("Straße", 7..8), ("x", 8..9), ("people/x", 8..9)] {
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
            ("bad.safetensors, fox", vec![Learned(0, 0..1), Plain(15, ", fox")]),
            ("bad.safetensorsy", vec![Learned(0, 0..1), Plain(3, ".safetensorsy")]),
            ("a people/x", vec![Plain(0, "a "), Learned(2, 8..9)]),
        ] {
            assert_eq!(words().pieces(text), pieces, "{text}");
        }
    }

    /// One name, one meaning: the vectors, or a warning, and never a part of the name as words.
    #[test]
    fn what_is_called_a_learned_word_is_one_or_unknown() {
        use Piece::{Learned, Plain, Unknown};
        let whole = |call: &str| vec![Plain(0, "a "), Learned(12, 8..9), Plain(12 + call.len(), ", b")];
        for call in ["x", "X", "x.safetensors", "people/x", "people\\x", "people/x.safetensors", "PEOPLE/X.SAFETENSORS"] {
            let text = format!("a embedding:{call}, b");
            let pieces = words().pieces(&text).into_iter().map(|piece| format!("{piece:?}")).collect::<Vec<_>>();
            assert_eq!(pieces, whole(call).into_iter().map(|piece| format!("{piece:?}")).collect::<Vec<_>>(), "{call}");
        }
        for call in ["y", "animals/x", "x/y", "x-y", "x.pt", "bad-hands-4", "people", "people/"] {
            let text = format!("a embedding:{call}, b");
            assert_eq!(words().pieces(&text), [Plain(0, "a "), Unknown(call), Plain(12 + call.len(), ", b")], "{call}");
        }
        assert_eq!(words().pieces("embedding:<cat-toy>!"), [Learned(10, 6..7), Plain(19, "!")]);
        assert_eq!(words().pieces("embedding:x."), [Learned(10, 8..9), Plain(11, ".")]);
        assert_eq!(words().pieces("an embedding: x"), [Plain(0, "an embedding: "), Learned(14, 8..9)]);
        assert_eq!(LearnedWords::default().pieces("embedding:y fox"), [Unknown("y"), Plain(11, " fox")]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn nothing_is_lost_but_names(text in r"(bad|-hands-5|<cat-toy>| |embedding:|ß|\PC){0,20}") {
            let mut end = 0;
            for piece in words().pieces(&text) {
                let (Piece::Plain(at, _) | Piece::Learned(at, _)) = piece else { continue };
                prop_assert!(at >= end && text.is_char_boundary(at));
                if let Piece::Plain(at, plain) = piece {
                    prop_assert_eq!(&text[at..at + plain.len()], plain);
                    end = at + plain.len();
                }
            }
        }
    }
}
