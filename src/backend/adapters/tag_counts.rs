//! The tags of the pictures that an adapter was trained on.

use std::collections::HashMap;

use serde_json::{Map, Value};

/// How many tags are kept.
const MOST: usize = 24;
/// The longest text that is read: thousands of pictures' tags have a few hundred kilobytes.
const MAX_BYTES: usize = 16 << 20;
/// The longest tag; captions in whole sentences are cut.
const MAX_CHARS: usize = 128;

/// The most frequent tags of kohya's `ss_tag_frequency`, `{"folder": {"tag": count}}`, with their counts over all folders. None where the
/// text is something else.
pub(super) fn most_frequent(text: &str) -> Vec<(String, u64)> {
    if text.len() > MAX_BYTES {
        return Vec::new();
    }
    let folders: Map<String, Value> = serde_json::from_str(text).unwrap_or_default();
    let mut counts: HashMap<&str, u64> = HashMap::new();
    for (tag, count) in folders.values().filter_map(Value::as_object).flatten() {
        let sum = counts.entry(tag.trim()).or_default();
        *sum = sum.saturating_add(count.as_u64().unwrap_or_default());
    }
    let mut tags: Vec<(&str, u64)> = counts.into_iter().filter(|(tag, count)| !tag.is_empty() && *count > 0).collect();
    tags.sort_by(|(a, of_a), (b, of_b)| of_b.cmp(of_a).then(a.cmp(b)));
    tags.into_iter().take(MOST).map(|(tag, count)| (tag.chars().take(MAX_CHARS).collect(), count)).collect()
}
