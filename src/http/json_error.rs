//! What the parser of JSON says, in the words of the API.

use serde_json::error::Category;
use serde_path_to_error::{Path, Segment};

use super::api_error::{ApiError, clip};

/// The same without its middle, where it repeats a long value: what was expected stands at the end.
fn shortened(reason: &str) -> String {
    const ENDS: (usize, usize) = (100, 400);
    if reason.len() <= 2 * (ENDS.0 + ENDS.1) {
        return reason.to_owned();
    }
    let (start, end) = (reason.floor_char_boundary(ENDS.0), reason.ceil_char_boundary(reason.len() - ENDS.1));
    format!("{}…{}", &reason[..start], &reason[end..])
}

/// An error of the parser, or of a type. `path` leads to the value that is to blame.
pub(super) fn explain(error: &serde_json::Error, path: Option<&Path>) -> ApiError {
    let text = error.to_string();
    // The field is known; where it stands in the text helps nobody.
    let place = format!(" at line {} column {}", error.line(), error.column());
    let reason = text.strip_suffix(place.as_str()).unwrap_or(&text);
    // JSON knows numbers of any size.
    if error.classify() != Category::Data && reason != "number out of range" {
        return ApiError::broken_json(&text);
    }
    // serde speaks of Rust's types.
    let reason = &shortened(reason)
        .replace("expected i64", "expected a whole number")
        .replace("expected u32", "expected a whole number from 0")
        .replace("expected f64", "expected a number");
    let named = |what: &str| reason.strip_prefix(what)?.strip_suffix('`');
    match (named("missing field `"), named("duplicate field `"), path.and_then(|path| path.iter().next())) {
        (Some(field), ..) => ApiError::missing_param(field),
        (_, Some(field), _) => ApiError::invalid_param(field, "must be given once"),
        // The field alone, whatever part of its value is to blame.
        (.., Some(Segment::Map { key })) => ApiError::invalid_param(clip(key), reason),
        _ => ApiError::unreadable_body(reason),
    }
}
