//! The identity of a request, from the client's header to the last log line.

use std::{fmt, sync::Arc};

/// The id of a request in logs, answers and headers. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// The longest id accepted from a client.
    pub const MAX_LENGTH: usize = 128;

    /// A new, unique id.
    #[must_use]
    pub fn random() -> Self {
        Self(format!("req-{}", uuid::Uuid::new_v4().simple()).into())
    }

    /// Accepts a client's id if it is short and plain: letters, digits, `-`, `_`, `.` and `:` cannot break a log line or a header.
    #[must_use]
    pub fn from_client(text: &str) -> Option<Self> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
        (!text.is_empty() && text.len() <= Self::MAX_LENGTH && text.chars().all(plain)).then(|| Self(text.into()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_name_is_taken_over_only_if_it_is_harmless() {
        assert_eq!(RequestId::from_client("job-7.a:b_C").unwrap().as_str(), "job-7.a:b_C");
        for bad in ["", "two words", "line\nbreak", "ünïcode", &"x".repeat(129)] {
            assert_eq!(RequestId::from_client(bad), None, "{bad:?}");
        }
        assert_ne!(RequestId::random(), RequestId::random());
    }
}
