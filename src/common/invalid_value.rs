//! Values that are refused, with what would be right.

use std::fmt;

/// How much of a wrong value is said again: whoever sent it knows the rest.
const SHOWN: usize = 100;

/// A value outside its range, with what would be right. Its message leaves the name to whoever knows how the user wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be {allowed}, not {value}")]
pub struct InvalidValue {
    /// What the value is for, in the words of the API.
    pub name: &'static str,
    /// The value as given, or its beginning.
    pub value: String,
    /// The values that are allowed, to be read after "must be".
    pub allowed: String,
}

impl InvalidValue {
    /// Says that `value` is none of the `allowed` values of `name`.
    pub fn new(name: &'static str, value: impl fmt::Display, allowed: impl Into<String>) -> Self {
        let mut value = value.to_string();
        if let Some((end, _)) = value.char_indices().nth(SHOWN) {
            value.truncate(end);
            value.push('…');
        }
        Self { name, value, allowed: allowed.into() }
    }
}

/// What is allowed where there are names to choose from.
pub(super) fn one_of<T: fmt::Display>(all: &[T]) -> String {
    let names: Vec<String> = all.iter().map(ToString::to_string).collect();
    match names.as_slice() {
        [only] => only.clone(),
        _ => format!("one of {}", names.join(", ")),
    }
}
