//! The division of a prompt's words into chunks: token by token, as in `tokenize_line` of A1111's `modules/sd_hijack_clip.py`.

use std::ops::Range;

/// A full chunk ends after its last comma if that is among this many of its last tokens: A1111's `comma_padding_backtrack`.
const COMMA_REACH: usize = 20;

/// A token of a prompt, or a learned word of several tokens, which stay together.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Word {
    /// Token ids, one or more.
    pub(super) ids: Range<u32>,
    /// The weight of each.
    pub(super) weight: f32,
    /// Offset in the text, in bytes.
    pub(super) at: usize,
}

/// Divides the words between two `BREAK`s into chunks of at most `room` tokens, preferably after a comma. There is at least one chunk, which
/// is empty if there are no words.
pub(super) fn spread(words: &[Word], room: usize, comma: Option<u32>) -> Vec<&[Word]> {
    let mut chunks = Vec::new();
    // The first word of the current chunk, and the number of tokens in it.
    let (mut start, mut length) = (0, 0);
    // The first word after its last comma, and the number of tokens before that word.
    let mut after_comma: Option<(usize, usize)> = None;
    for (i, word) in words.iter().enumerate() {
        if comma.is_some_and(|comma| word.ids == (comma..comma + 1)) {
            after_comma = Some((i + 1, length + 1));
        } else if length == room
            && let Some((next, before)) = after_comma.filter(|(_, before)| length - before < COMMA_REACH)
        {
            chunks.push(&words[start..next]);
            (start, length, after_comma) = (next, length - before, None);
        }
        if length + word.ids.len() > room {
            chunks.push(&words[start..i]);
            (start, length, after_comma) = (i, 0, None);
        }
        length += word.ids.len();
    }
    chunks.push(&words[start..]);
    chunks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROOM: usize = 75;
    const COMMA: u32 = 7;

    /// `x`: a word of one token, `,`: a comma, a digit: a learned word of so many tens of tokens and one.
    fn words(text: &str) -> Vec<Word> {
        let word = |(at, c): (usize, char)| {
            let ids = match c {
                ',' => COMMA..COMMA + 1,
                'x' => 100..101,
                tens => 1000..1001 + 10 * tens.to_digit(10).unwrap(),
            };
            Word { ids, weight: 1.0, at }
        };
        text.char_indices().map(word).collect()
    }

    /// How many words are in each chunk.
    fn lengths(text: &str, comma: Option<u32>) -> Vec<usize> {
        spread(&words(text), ROOM, comma).into_iter().map(<[Word]>::len).collect()
    }

    #[test]
    fn a_full_chunk_ends_after_a_comma_among_its_last_twenty_tokens() {
        let x = |count: usize| "x".repeat(count);
        for (text, right) in [
            (String::new(), vec![0]),
            (x(75), vec![75]),
            (x(76), vec![75, 1]),
            // Nothing is moved before the chunk is full and another word comes.
            (x(60) + "," + &x(14), vec![75]),
            (x(60) + "," + &x(15), vec![61, 15]),
            // The nearest comma, and only as far as the twentieth token from the end.
            (x(20) + "," + &x(39) + "," + &x(30), vec![61, 30]),
            (x(55) + "," + &x(20), vec![56, 20]),
            (x(54) + "," + &x(21), vec![75, 1]),
            // One at the end or behind it moves nothing, and neither does that of the chunk before.
            (x(74) + "," + &x(5), vec![75, 5]),
            (x(75) + "," + &x(5), vec![75, 6]),
            (x(60) + "," + &x(14) + ",x", vec![75, 2]),
            (x(70) + "," + &x(76), vec![71, 75, 1]),
            // What was moved counts.
            (x(60) + "," + &x(14) + &x(70), vec![61, 75, 9]),
            // A learned word moves as a whole; where it does not fit into a chunk that is not full, it begins the next one.
            (x(60) + ",1" + &x(4), vec![61, 5]),
            (x(60) + ",1x" + &x(10), vec![61, 12]),
            (x(60) + "," + &x(14) + "1", vec![61, 15]),
            (x(60) + "," + &x(13) + "1", vec![74, 1]),
            (x(60) + "," + &x(14) + "7", vec![61, 14, 1]),
        ] {
            assert_eq!(lengths(&text, Some(COMMA)), right, "{text}");
        }
        assert_eq!(lengths(&(x(60) + "," + &x(15)), None), [75, 1], "a vocabulary without a comma");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn nothing_is_lost_and_nothing_is_there_twice(text in "(x{0,30}|,|[0-7]){0,20}") {
            let words = words(&text);
            let chunks = spread(&words, ROOM, Some(COMMA));
            prop_assert_eq!(chunks.concat(), &words[..]);
            for chunk in &chunks {
                prop_assert!(chunk.iter().map(|word| word.ids.len()).sum::<usize>() <= ROOM);
                prop_assert!(!chunk.is_empty() || text.is_empty());
            }
        }
    }
}
