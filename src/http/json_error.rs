//! Errors of the JSON parser in the words of the API.

use serde_json::error::Category;
use serde_path_to_error::{Path, Segment};

use super::api_error::{ApiError, clip};

/// Cuts the middle out of a reason that repeats a long value; the expected value stands at its end.
fn shortened(reason: &str) -> String {
    const ENDS: (usize, usize) = (100, 400);
    if reason.len() <= 2 * (ENDS.0 + ENDS.1) {
        return reason.to_owned();
    }
    let (start, end) = (reason.floor_char_boundary(ENDS.0), reason.ceil_char_boundary(reason.len() - ENDS.1));
    format!("{}…{}", &reason[..start], &reason[end..])
}

/// An error of the parser or of a type. `path` leads to the value at fault.
pub(super) fn explain(error: &serde_json::Error, path: Option<&Path>) -> ApiError {
    let text = error.to_string();
    // The error names the field; its line and column help no one.
    let place = format!(" at line {} column {}", error.line(), error.column());
    let reason = text.strip_suffix(place.as_str()).unwrap_or(&text);
    // The parser rejects a number that is too large for f64 as a syntax error; to a client it is a wrong value.
    if error.classify() != Category::Data && reason != "number out of range" {
        return ApiError::broken_json(&text);
    }
    // serde names Rust's types.
    let reason = &shortened(reason)
        .replace("expected i64", "expected a whole number")
        .replace("expected u32", "expected a whole number from 0")
        .replace("expected f64", "expected a number");
    let named = |what: &str| reason.strip_prefix(what)?.strip_suffix('`');
    match (named("missing field `"), named("duplicate field `"), path.and_then(|path| path.iter().next())) {
        (Some(field), ..) => ApiError::missing_param(field),
        (_, Some(field), _) => ApiError::invalid_param(field, "must be given once"),
        // The error names the field alone, whichever part of its value is at fault.
        (.., Some(Segment::Map { key })) => ApiError::invalid_param(clip(key), reason),
        _ => ApiError::unreadable_body(reason),
    }
}
