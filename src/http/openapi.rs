//! Parts of the API's description that several routes share: tags, and errors with their statuses.

use utoipa::IntoResponses;

use super::api_error::ErrorAnswer;

pub(super) const IMAGES: &str = "Images";
pub(super) const JOBS: &str = "Jobs";
pub(super) const A1111: &str = "A1111";
pub(super) const DISCOVERY: &str = "Discovery";
pub(super) const PROBES: &str = "Probes";
pub(super) const PROCESS: &str = "Process";

/// Defines kinds of errors, each with its statuses. All errors have the same body.
macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $status:literal),+ $(,)? })+) => {$(
        $(#[$doc])*
        #[derive(IntoResponses)]
        #[allow(dead_code, reason = "a description")]
        pub(super) enum $name {$(
            $(#[$variant_doc])*
            #[response(status = $status)]
            $variant(ErrorAnswer),
        )+}
    )+};
}

errors! {
    Unreadable {
        /// Something in the request is wrong; `param` says what
        Invalid = 400
    }
    KeyMissing {
        /// The worker has a key, and the request does not
        Unauthorized = 401,
        /// The worker does not go by the host that the request names
        Stranger = 403,
    }
    Forbidden {
        /// Not for web pages, or the worker does not go by the host that the request names
        Forbidden = 403
    }
    NotFound {
        /// There is none of this name, or not any more
        NotFound = 404
    }
    NotDone {
        /// The job waits or runs; `retry-after` says when to come back
        NotDone = 409
    }
    Gone {
        /// It was cancelled
        Cancelled = 410
    }
    /// The refusals of a request for pictures.
    Refused {
        /// Something in the request is wrong; `param` says what
        Invalid = 400,
        /// The body stopped in the middle
        Stopped = 408,
        /// The body is too large
        TooLarge = 413,
        /// The body is not what its headers should say that it is
        NotJson = 415,
        /// The idempotency key was sent with another request
        KeyReused = 422,
        /// There is no room, or not enough time; `retry-after` says when to come back
        Busy = 429,
    }
    WentWrong {
        /// No picture came of it
        Failed = 500
    }
    NotReady {
        /// The worker loads (`retry-after` says when to come back) or stops (`x-should-retry: true`: another worker may take it)
        NotReady = 503
    }
    TooLate {
        /// Its turn did not come in the time that the client waits
        TooLate = 504
    }
}
