//! `traceparent` as in [W3C Trace Context](https://www.w3.org/TR/trace-context/), so that a request is found in the logs by the name
//! that its caller's trace has.

use axum::http::HeaderMap;

/// The caller's trace and the part of it that waits for us.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TraceContext<'a> {
    pub(super) trace_id: &'a str,
    pub(super) parent_id: &'a str,
}

impl<'a> TraceContext<'a> {
    /// What a valid header says.
    pub(super) fn from_headers(headers: &'a HeaderMap) -> Option<Self> {
        Self::parse(headers.get("traceparent")?.to_str().ok()?)
    }

    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split('-');
        let mut part = |length: usize| {
            let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
            parts.next().filter(|part| part.len() == length && part.chars().all(hex))
        };
        let (version, trace_id, parent_id, _flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        let is_zero = |id: &str| id.chars().all(|c| c == '0');
        // Version 0 ends here; what later ones add is not ours to read.
        let ends = version != "00" || parts.next().is_none();
        (version != "ff" && ends && !is_zero(trace_id) && !is_zero(parent_id)).then_some(Self { trace_id, parent_id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_valid_header_is_taken_over() {
        let valid = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = TraceContext::parse(valid).unwrap();
        assert_eq!((context.trace_id, context.parent_id), ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"));
        assert!(TraceContext::parse("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more").is_some());
        for invalid in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ] {
            assert_eq!(TraceContext::parse(invalid), None, "{invalid}");
        }
    }
}
