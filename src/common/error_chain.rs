//! Errors with their causes.

use std::error::Error;

/// An error with all its causes, in one line.
#[must_use]
pub fn error_chain(error: &dyn Error) -> String {
    // candle appends a backtrace to its message.
    let first_line = |error: &dyn Error| error.to_string().lines().next().unwrap_or_default().to_owned();
    let mut text = first_line(error);
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {}", first_line(error));
        cause = error.source();
    }
    text
}
