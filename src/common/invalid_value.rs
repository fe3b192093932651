//! Errors for values outside their range.

use std::fmt;

/// How many characters of a wrong value are repeated in the error.
const SHOWN: usize = 100;

/// A value outside its range, with the range. The message omits the name, since users write it in several ways.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be {allowed}, not {value}")]
pub struct InvalidValue {
    /// The name of the setting in the API.
    pub name: &'static str,
    /// The value, or its beginning.
    pub value: String,
    /// The allowed values; reads on after "must be".
    pub allowed: String,
}

impl InvalidValue {
    /// An error for `value`, which is none of the `allowed` values of `name`.
    pub fn new(name: &'static str, value: impl fmt::Display, allowed: impl Into<String>) -> Self {
        let mut value = value.to_string();
        if let Some((end, _)) = value.char_indices().nth(SHOWN) {
            value.truncate(end);
            value.push('…');
        }
        Self { name, value, allowed: allowed.into() }
    }
}

/// The allowed values of a setting that takes a name.
pub(super) fn one_of<T: fmt::Display>(all: &[T]) -> String {
    let names: Vec<String> = all.iter().map(ToString::to_string).collect();
    match names.as_slice() {
        [only] => only.clone(),
        _ => format!("one of {}", names.join(", ")),
    }
}
