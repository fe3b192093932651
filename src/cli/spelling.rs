//! Suggestions for a misspelled name.

/// How many letters may differ: a third of them, and at most two.
const MOST_WRONG: usize = 2;

/// From this length on, a name's beginning stands for it.
const LEAST_BEGUN: usize = 3;

/// The nearest name, if it is near enough to be meant; otherwise the first name that begins with what was written.
pub(super) fn nearest<'a>(written: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let most = MOST_WRONG.min(written.len() / 3);
    // The first letter is seldom wrong.
    let names: Vec<&str> = names.into_iter().filter(|name| name.chars().next() == written.chars().next()).collect();
    let near = names.iter().map(|name| (distance(written, name), *name)).filter(|(wrong, _)| *wrong <= most).min();
    let begun = || names.iter().copied().find(|name| written.len() >= LEAST_BEGUN && name.starts_with(written));
    near.map(|(_, name)| name).or_else(begun)
}

/// The number of letters to change, insert or delete ([Levenshtein](https://en.wikipedia.org/wiki/Levenshtein_distance)).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_near_was_meant() {
        let names = ["output", "steps", "seed", "guidance-scale", "port"];
        for (written, meant) in [
            ("step", Some("steps")),
            ("sede", None),
            ("outptu", Some("output")),
            ("guidence-scale", Some("guidance-scale")),
            ("count", None),
            ("keps", None),
            ("guidance", Some("guidance-scale")),
            ("gu", None),
            ("input", None),
            ("prot", None),
            ("", None),
        ] {
            assert_eq!(nearest(written, names), meant, "{written}");
        }
        assert_eq!((distance("", "abc"), distance("kitten", "sitting"), distance("é", "e")), (3, 3, 1));
    }
}
