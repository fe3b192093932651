//! `traceparent` of [W3C Trace Context](https://www.w3.org/TR/trace-context/): logs show a request under its caller's trace id.

use axum::http::HeaderMap;
use tracing::Span;

/// The caller's trace, and the span in it that waits for this request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TraceContext<'a> {
    trace_id: &'a str,
    parent_id: &'a str,
    /// Whether the caller records its spans.
    #[cfg_attr(not(feature = "otlp"), allow(dead_code, reason = "logs are written in any case"))]
    is_sampled: bool,
}

impl<'a> TraceContext<'a> {
    /// Parses a valid `traceparent`.
    pub(super) fn from_headers(headers: &'a HeaderMap) -> Option<Self> {
        Self::parse(headers.get("traceparent")?.to_str().ok()?)
    }

    /// Makes a new span a child of the caller's.
    pub(super) fn adopt(&self, span: &Span) {
        span.record("trace_id", self.trace_id).record("parent_id", self.parent_id);
        #[cfg(feature = "otlp")]
        self.adopt_exported(span);
    }

    #[cfg(feature = "otlp")]
    fn adopt_exported(&self, span: &Span) {
        use opentelemetry::{
            Context,
            trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
        };
        use tracing_opentelemetry::OpenTelemetrySpanExt;

        let (Ok(trace_id), Ok(parent_id)) = (TraceId::from_hex(self.trace_id), SpanId::from_hex(self.parent_id)) else { return };
        let flags = if self.is_sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
        let caller = SpanContext::new(trace_id, parent_id, flags, true, TraceState::default());
        // Without an exporter there is no trace to join.
        let _ = span.set_parent(Context::new().with_remote_span_context(caller));
    }

    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split('-');
        let mut part = |length: usize| {
            let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
            parts.next().filter(|part| part.len() == length && part.chars().all(hex))
        };
        let (version, trace_id, parent_id, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        let is_sampled = u8::from_str_radix(flags, 16).is_ok_and(|flags| flags & 1 == 1);
        let is_zero = |id: &str| id.chars().all(|c| c == '0');
        // Version 0 ends here; later versions may add fields, which this parser ignores.
        let ends = version != "00" || parts.next().is_none();
        (version != "ff" && ends && !is_zero(trace_id) && !is_zero(parent_id)).then_some(Self { trace_id, parent_id, is_sampled })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_valid_header_is_taken_over() {
        let valid = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = TraceContext::parse(valid).unwrap();
        let expected = TraceContext { trace_id: "4bf92f3577b34da6a3ce929d0e0e4736", parent_id: "00f067aa0ba902b7", is_sampled: true };
        assert_eq!(context, expected);
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
