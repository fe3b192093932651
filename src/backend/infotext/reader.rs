//! Reads A1111's text, by the rules of its
//! [`parse_generation_parameters`](https://github.com/AUTOMATIC1111/stable-diffusion-webui/blob/master/modules/infotext_utils.py).

use std::collections::BTreeMap;

const NEGATIVE: &str = "Negative prompt:";
/// The last line has parameters if it has as many.
const LEAST: usize = 3;

/// Names and values. The prompts are `Prompt` and `Negative prompt`; a size is also given as `Size-1`, its width, and `Size-2`.
#[must_use]
pub fn read_infotext(text: &str) -> BTreeMap<String, String> {
    let lines: Vec<&str> = text.trim().lines().collect();
    let (last, before) = lines.split_last().map_or(("", &[][..]), |(last, before)| (*last, before));
    let found = pairs(last);
    let (pairs, lines) = if found.len() < LEAST { (Vec::new(), &lines[..]) } else { (found, before) };
    let (mut prompts, mut is_negative) = ([Vec::new(), Vec::new()], false);
    for line in lines.iter().map(|line| line.trim()) {
        let rest = line.strip_prefix(NEGATIVE).map(str::trim);
        is_negative |= rest.is_some();
        prompts[usize::from(is_negative)].push(rest.unwrap_or(line));
    }
    let mut read: BTreeMap<String, String> = pairs.iter().flat_map(|(name, value)| sides(name, value)).collect();
    read.extend(pairs);
    let [positive, negative] = prompts.map(|lines| lines.join("\n"));
    read.extend([("Prompt".to_owned(), positive), ("Negative prompt".to_owned(), negative)]);
    read
}

/// The pairs of a line: `Name: value, Name: "value in JSON, where it has commas"`.
fn pairs(mut line: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    while let Some((name, rest)) = line.split_once(':') {
        let rest = rest.trim_start();
        let end = if rest.starts_with('"') { end_of_string(rest) } else { rest.find(',').unwrap_or(rest.len()) };
        let (value, after) = rest.split_at(end);
        let unquoted = serde_json::from_str(value).ok().filter(|_: &String| value.starts_with('"'));
        // Text between two pairs belongs to neither.
        let name = name.rsplit(',').next().unwrap_or(name).trim();
        let is_name = |c: char| c.is_alphanumeric() || "_ -/".contains(c);
        if name.chars().count() > 1 && name.chars().all(is_name) {
            pairs.push((name.to_owned(), unquoted.unwrap_or_else(|| value.to_owned())));
        }
        line = after.trim_start_matches(',');
    }
    pairs
}

/// Where text in quotes ends.
fn end_of_string(text: &str) -> usize {
    let mut is_escaped = false;
    let end = text.char_indices().skip(1).find(|(_, c)| {
        let is_end = *c == '"' && !is_escaped;
        is_escaped = *c == '\\' && !is_escaped;
        is_end
    });
    end.map_or(text.len(), |(end, _)| end + 1)
}

/// The sides of a size.
fn sides(name: &str, value: &str) -> Vec<(String, String)> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match value.split_once('x') {
        Some((width, height)) if is_number(width) && is_number(height) => {
            vec![(format!("{name}-1"), width.to_owned()), (format!("{name}-2"), height.to_owned())]
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_of_a1111_is_read() {
        let text =
            "a fox,\nold\nNegative prompt: dogs\ncats\nSteps: 20, Sampler: DPM++ 2M, Size: 512x768, Lora hashes: \"a: 1, b: 2\", Model: x";
        let read = read_infotext(text);
        let expected = [
            ("Prompt", "a fox,\nold"),
            ("Negative prompt", "dogs\ncats"),
            ("Steps", "20"),
            ("Sampler", "DPM++ 2M"),
            ("Size", "512x768"),
            ("Size-1", "512"),
            ("Size-2", "768"),
            ("Lora hashes", "a: 1, b: 2"),
            ("Model", "x"),
        ];
        assert_eq!(read, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        assert_eq!(read_infotext("a fox: red, old")["Prompt"], "a fox: red, old", "no parameters");
        assert_eq!(read_infotext("")["Prompt"], "");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_text_panics(text in "(?s).{0,60}|[:,\"\\\\ x0-9a\n]{0,40}") {
            let _ = read_infotext(&text);
        }
    }
}
