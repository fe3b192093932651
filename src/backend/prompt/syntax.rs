//! The syntax of prompts, after A1111's `prompt_parser.py`: `(more)`, `[less]`, `(word:1.3)`, `BREAK`, `AND`, `<lora:name:1>`. The time to
//! parse a prompt is proportional to its length, whatever is in it.

/// Separates the sections of a prompt.
pub(super) const BREAK: &str = "BREAK";
/// A1111 tells a separator from the word BREAK by this weight, so that one whose weight is changed by brackets is the word.
const BREAK_WEIGHT: f64 = -1.0;
/// The factor of a pair of parentheses; that of square brackets is its inverse.
const STRESS: f64 = 1.1;
/// Brackets nested deeper than this have no effect: applying each one costs time for all the text in it. A1111 has no such limit.
const MAX_DEPTH: usize = 100;
/// The networks that A1111 takes out of a prompt.
const NETWORKS: [&str; 3] = ["lora", LYCORIS, HYPERNETWORK];
/// A1111's old name for what it calls a LoRA, too.
const LYCORIS: &str = "lyco";
const HYPERNETWORK: &str = "hypernet";
/// No weight is further from 0.
const MAX_WEIGHT: f64 = 100.0;

/// One of the prompts between `AND`s, which guide the picture side by side.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PromptPart {
    /// How strongly this part guides.
    pub(super) weight: f64,
    /// The text between `BREAK`s. Each section begins with a chunk of tokens of its own.
    pub(super) sections: Vec<Vec<Span>>,
}

/// Text of one weight.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Span {
    pub(super) text: String,
    pub(super) weight: f64,
}

/// A network that a prompt names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Network {
    /// `<lora:name:1>` or `<lyco:name:1>`: what is behind the first colon.
    Lora(String),
    /// `<hypernet:name:1>`: its name.
    Hypernetwork(String),
}

/// A prompt without its `<lora:name:1>` and the like, and the networks that these name.
pub(super) fn without_networks(prompt: &str) -> (String, Vec<Network>) {
    let (mut text, mut networks) = (String::with_capacity(prompt.len()), Vec::new());
    let mut rest = prompt;
    let last_end = prompt.rfind('>').map(|at| prompt.len() - at);
    while let Some((before, inside)) = rest.split_once('<') {
        text.push_str(before);
        // Nothing is looked for behind the last `>`: a prompt may begin a thousand networks and end none.
        rest = if last_end.is_some_and(|end| inside.len() >= end)
            && let Some((network, after)) = network(inside)
        {
            networks.push(network);
            after
        } else {
            text.push('<');
            inside
        };
    }
    text.push_str(rest);
    (text, networks)
}

/// The network of `lora:name:1>`, and what follows it.
fn network(text: &str) -> Option<(Network, &str)> {
    let (kind, inside) = NETWORKS.iter().find_map(|word| {
        let (start, rest) = text.split_at_checked(word.len())?;
        Some((*word, rest.strip_prefix(':').filter(|_| start.eq_ignore_ascii_case(word))?))
    })?;
    let (inside, after) = inside.split_once('>').filter(|(inside, _)| !inside.is_empty())?;
    let name = inside.split(':').next().unwrap_or_default();
    let network = if kind == HYPERNETWORK { Network::Hypernetwork(name.to_owned()) } else { Network::Lora(inside.to_owned()) };
    Some((network, after))
}

/// Parses a prompt. Every text is valid: what is no syntax is words.
pub(super) fn parse(prompt: &str) -> Vec<PromptPart> {
    let texts = split_at_word(prompt, "AND");
    // Without an `AND`, a number at the end is no weight: it is a time or a ratio.
    if texts.len() == 1 { parse_negative(prompt) } else { texts.into_iter().map(part).collect() }
}

/// Parses a negative prompt, in which `AND` is a word like others.
pub(super) fn parse_negative(prompt: &str) -> Vec<PromptPart> {
    vec![PromptPart { weight: 1.0, sections: sections(prompt) }]
}

/// `text` or `text :weight`.
fn part(text: &str) -> PromptPart {
    let weighted = text.rsplit_once(':').and_then(|(text, weight)| Some((text, number(weight)?)));
    // The number of a `(word:1.2)` has a parenthesis behind it and is not matched.
    let (text, weight) = weighted.unwrap_or((text, 1.0));
    PromptPart { weight, sections: sections(text) }
}

/// The text read so far, with its weights.
#[derive(Default)]
struct Reader {
    pieces: Vec<Piece>,
    /// For each open parenthesis, the number of pieces before it.
    round: Vec<usize>,
    /// The same for square brackets.
    square: Vec<usize>,
    /// Text that is no piece yet.
    text: String,
}

/// Text between brackets and `BREAK`s, or a `BREAK`.
struct Piece {
    span: Span,
    is_break: bool,
}

fn sections(prompt: &str) -> Vec<Vec<Span>> {
    let mut reader = Reader::default();
    let mut rest = prompt;
    while let Some(c) = rest.chars().next() {
        let mut after = &rest[c.len_utf8()..];
        match c {
            '\\' => match after.chars().next().filter(|next| "()[]\\".contains(*next)) {
                Some(next) => {
                    reader.text.push(next);
                    after = &after[next.len_utf8()..];
                }
                // A lone backslash is left out, and separates words where `BREAK` is looked for.
                None => reader.flush(),
            },
            '(' => reader.open(true),
            '[' => reader.open(false),
            ')' if !reader.round.is_empty() => reader.close(true, STRESS),
            ']' if !reader.square.is_empty() => reader.close(false, 1.0 / STRESS),
            ':' if !reader.round.is_empty() => match weight_and_end(after) {
                Some((weight, end)) => {
                    reader.close(true, weight);
                    after = end;
                }
                None => reader.text.push(c),
            },
            _ => reader.text.push(c),
        }
        rest = after;
    }
    reader.finish()
}

impl Reader {
    fn open(&mut self, is_round: bool) {
        self.flush();
        let stack = if is_round { &mut self.round } else { &mut self.square };
        stack.push(self.pieces.len());
    }

    fn close(&mut self, is_round: bool, weight: f64) {
        self.flush();
        let stack = if is_round { &mut self.round } else { &mut self.square };
        let depth = stack.len();
        let start = stack.pop().filter(|_| depth <= MAX_DEPTH).unwrap_or(self.pieces.len());
        for Piece { span, .. } in &mut self.pieces[start..] {
            span.weight = (span.weight * weight).clamp(-MAX_WEIGHT, MAX_WEIGHT);
        }
    }

    fn flush(&mut self) {
        for (i, text) in split_at_word(&std::mem::take(&mut self.text), BREAK).into_iter().enumerate() {
            if i > 0 {
                self.pieces.push(Piece { span: Span { text: BREAK.to_owned(), weight: BREAK_WEIGHT }, is_break: true });
            }
            if !text.is_empty() {
                self.pieces.push(Piece { span: Span { text: text.to_owned(), weight: 1.0 }, is_break: false });
            }
        }
    }

    /// Closes at the end of the prompt what is still open. A `BREAK` with another weight than its own is a word.
    fn finish(mut self) -> Vec<Vec<Span>> {
        while !self.round.is_empty() {
            self.close(true, STRESS);
        }
        while !self.square.is_empty() {
            self.close(false, 1.0 / STRESS);
        }
        self.flush();
        let mut sections = vec![Vec::new()];
        for Piece { span, is_break } in self.pieces {
            if is_break && span.weight.to_bits() == BREAK_WEIGHT.to_bits() {
                sections.push(Vec::new());
            } else {
                push(sections.last_mut(), span);
            }
        }
        sections
    }
}

/// Appends a span, to the last one if both have the same weight, so that an escaped parenthesis does not cut a word.
fn push(section: Option<&mut Vec<Span>>, span: Span) {
    let Some(section) = section else { return };
    match section.last_mut() {
        Some(last) if last.weight.to_bits() == span.weight.to_bits() => last.text.push_str(&span.text),
        _ if span.text.is_empty() => {}
        _ => section.push(span),
    }
}

/// The number of `1.2)`, and the text behind the parenthesis.
fn weight_and_end(text: &str) -> Option<(f64, &str)> {
    // A second colon ends the search: text of nothing but colons is read once, and not once for each.
    let (weight, end) = text.split_at(text.find([')', ':'])?);
    Some((number(weight)?, end.strip_prefix(')')?))
}

/// A number as people write it: no exponent, no infinity.
fn number(text: &str) -> Option<f64> {
    let text = text.trim();
    let is_number = text.starts_with(|c: char| "+-.".contains(c) || c.is_ascii_digit())
        && text.trim_start_matches(['+', '-']).chars().all(|c| c == '.' || c.is_ascii_digit());
    let number: f64 = if is_number { text.parse().ok()? } else { return None };
    Some(number.clamp(-MAX_WEIGHT, MAX_WEIGHT))
}

/// Splits where `word` stands by itself.
fn split_at_word<'a>(text: &'a str, word: &str) -> Vec<&'a str> {
    let is_letter = |c: char| c.is_alphanumeric() || c == '_';
    let mut pieces = Vec::new();
    let mut start = 0;
    for (at, _) in text.match_indices(word) {
        let end = at + word.len();
        if !text[..at].ends_with(is_letter) && !text[end..].starts_with(is_letter) {
            pieces.push(&text[start..at]);
            start = end;
        }
    }
    pieces.push(&text[start..]);
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spans(prompt: &str) -> Vec<(String, f64)> {
        let rounded = |span: Span| (span.text, (span.weight * 1e6).round() / 1e6);
        sections(prompt).into_iter().flatten().map(rounded).collect()
    }

    // The first ones are the doctests of A1111's parse_prompt_attention.
    #[test]
    fn stress_is_read_as_a1111_reads_it() {
        for (prompt, right) in [
            ("normal text", &[("normal text", 1.0)][..]),
            ("an (important) word", &[("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
            ("(unbalanced", &[("unbalanced", 1.1)]),
            (r"\(literal\]", &[("(literal]", 1.0)]),
            ("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]),
            (
                "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky)))",
                &[("a ", 1.0), ("house", 1.573), (" ", 1.1), ("on", 1.0), (" a ", 1.1), ("hill", 0.55), (", sun, ", 1.1), ("sky", 1.4641)],
            ),
            ("[less] and (much:1.5) ", &[("less", 0.909_091), (" and ", 1.0), ("much", 1.5), (" ", 1.0)]),
            ("time 12:30) (a:b) (c:1e9)", &[("time 12:30) ", 1.0), ("a:b", 1.1), (" ", 1.0), ("c:1e9", 1.1)]),
            ("]) \\ :", &[("])  :", 1.0)]),
            (r"a\b \\c \\\d (e\:1.5)\", &[(r"ab \c \d ", 1.0), ("e", 1.5)]),
            ("(none:0) (minus:-1)", &[("none", 0.0), (" ", 1.0), ("minus", -1.0)]),
            ("", &[]),
            ("()[]", &[]),
        ] {
            let right: Vec<_> = right.iter().map(|(text, weight)| ((*text).to_owned(), *weight)).collect();
            assert_eq!(spans(prompt), right, "{prompt}");
        }
    }

    #[test]
    fn break_and_and_are_words_of_their_own() {
        let texts = |prompt: &str| -> Vec<Vec<String>> {
            sections(prompt).into_iter().map(|section| section.into_iter().map(|span| span.text).collect()).collect()
        };
        assert_eq!(texts("a (red) BREAK fox BREAKFAST"), [vec!["a ", "red", " "], vec![" fox BREAKFAST"]]);
        assert_eq!(texts(r"a\BREAK\b").len(), 2);
        // The numbers are those of A1111's parse_prompt_attention, where one of -1 alone begins a chunk.
        for (prompt, right) in [
            ("a (red BREAK fox:1.2)", &[("a ", 1.0), ("red ", 1.2), ("BREAK", -1.2), (" fox", 1.2)][..]),
            ("(a BREAK b)", &[("a ", 1.1), ("BREAK", -1.1), (" b", 1.1)]),
            ("[a BREAK b]", &[("a ", 0.909_091), ("BREAK", -0.909_091), (" b", 0.909_091)]),
            ("(a BREAK b:-1)", &[("a ", -1.0), ("BREAK", 1.0), (" b", -1.0)]),
        ] {
            assert_eq!(spans(prompt), right.iter().map(|(text, weight)| ((*text).to_owned(), *weight)).collect::<Vec<_>>(), "{prompt}");
            assert_eq!(sections(prompt).len(), 1, "{prompt}");
        }
        for prompt in ["(a BREAK b:1)", "(a BREAK b:1.0)", "((a BREAK b:2):0.5)"] {
            assert_eq!(sections(prompt).len(), 2, "{prompt}");
        }

        let parts = parse("a fox AND an ANDROID :0.5 AND (owl:1.2)AND");
        assert_eq!(parts.iter().map(|part| part.weight).collect::<Vec<_>>(), [1.0, 0.5, 1.0, 1.0]);
        assert_eq!(parts[1].sections[0][0].text, " an ANDROID ");
        assert_eq!(parts[2].sections[0][1], Span { text: "owl".to_owned(), weight: 1.2 });
        assert!(parts[3].sections[0].is_empty());
        assert_eq!(parse_negative("a AND b").len(), 1);
        assert_eq!(parse("at 12:30"), parse_negative("at 12:30"));
    }

    #[test]
    fn networks_are_taken_out_of_a_prompt() {
        let (lora, hypernetwork) = (|inside: &str| Network::Lora(inside.to_owned()), |name: &str| Network::Hypernetwork(name.to_owned()));
        for (prompt, right, networks) in [
            ("a <lora:Film Grain:0.8> fox", "a  fox", &[lora("Film Grain:0.8")][..]),
            ("<lora:a:1><hypernet:b:2><LyCo:c:1:2=3>", "", &[lora("a:1"), hypernetwork("b"), lora("c:1:2=3")]),
            ("a<<lora:ä AND b:1>>", "a<>", &[lora("ä AND b:1")]),
            ("<lora::1>", "", &[lora(":1")]),
            (
                "<lora:>, <lora>, <lora :a>, <loras:a>, <cat-toy>, lora:a>, <3 <",
                "<lora:>, <lora>, <lora :a>, <loras:a>, <cat-toy>, lora:a>, <3 <",
                &[],
            ),
            ("<lora:a", "<lora:a", &[]),
            ("<ä🦊", "<ä🦊", &[]),
        ] {
            assert_eq!(without_networks(prompt), (right.to_owned(), networks.to_vec()), "{prompt}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_prompt_panics_and_every_stress_is_a_number(prompt in r"([()\[\]:\\ .+-]|AND|BREAK|1\.2|[a-z]|\PC){0,60}") {
            for part in parse(&prompt) {
                prop_assert!(part.weight.is_finite());
                prop_assert!(!part.sections.is_empty());
                prop_assert!(part.sections.iter().flatten().all(|span| span.weight.abs() <= MAX_WEIGHT && !span.text.is_empty()));
            }
        }

        #[test]
        fn words_alone_are_left_as_they_are(prompt in "[a-zäß🦊 ,.!'0-9-]{1,80}") {
            prop_assert_eq!(sections(&prompt), vec![vec![Span { text: prompt.clone(), weight: 1.0 }]]);
        }
    }

    #[test]
    fn brackets_deep_inside_others_change_nothing() {
        let weight = |prompt: &str| sections(prompt)[0][0].weight;
        let nested = |open: &str, depth: usize| weight(&format!("{}a", open.repeat(depth)));
        assert!(nested("[", MAX_DEPTH) < nested("[", MAX_DEPTH - 1));
        for depth in [MAX_DEPTH + 1, 31_999] {
            assert_eq!(nested("[", depth).to_bits(), nested("[", MAX_DEPTH).to_bits(), "{depth}");
            assert_eq!(nested("(", depth).to_bits(), MAX_WEIGHT.to_bits(), "{depth}");
        }
        let closed = format!("{}a{} b", "[".repeat(200), "]".repeat(200));
        assert_eq!(sections(&closed)[0].len(), 2, "those that change nothing are closed as well");
        assert_eq!(spans(&"(a".repeat(10_000)).len(), 49);
    }
}
