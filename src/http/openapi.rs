//! What there is to say of the API as a whole. The rest is said where the handlers are, and their types: a route that is added to the
//! router with `routes!` is in the description by that.

use utoipa::{
    IntoResponses, Modify, OpenApi, ToSchema,
    openapi::{
        self,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use super::{api_error::ErrorAnswer, image_events::ImageEvent, jobs::JobEvent};

pub(super) const IMAGES: &str = "Images";
pub(super) const JOBS: &str = "Jobs";
pub(super) const DISCOVERY: &str = "Discovery";
pub(super) const PROBES: &str = "Probes";
pub(super) const PROCESS: &str = "Process";

/// The frame that the routes go into.
#[derive(OpenApi)]
#[openapi(
    version = "3.2.0",
    info(title = "sd-worker"),
    security((), ("key" = [])),
    modifiers(&Key),
    components(schemas(ErrorAnswer, ImageItem, ImageEvent, JobItem, JobEvent)),
    tags(
        (name = IMAGES, description = "Pictures, as in the OpenAI Images API"),
        (name = JOBS, description = "Submit now, look later"),
        (name = DISCOVERY, description = "What this worker is and what it can do"),
        (name = PROBES, description = "Answered without a key"),
        (name = PROCESS, description = "For who runs the worker")
    )
)]
pub(super) struct Frame;

/// Where one is asked for, it is a bearer token.
struct Key;

impl Modify for Key {
    fn modify(&self, api: &mut openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("The worker's `--api-key`, if it has one"));
        api.components.get_or_insert_default().add_security_scheme("key", SecurityScheme::Http(scheme.build()));
    }
}

/// One event of a stream of pictures.
#[derive(ToSchema)]
#[allow(dead_code, reason = "a description")]
pub(super) struct ImageItem {
    /// What `type` in the data says.
    event: String,
    /// An `ImageEvent` as JSON.
    #[schema(content_media_type = "application/json")]
    data: String,
}

/// One event of a job's stream.
#[derive(ToSchema)]
#[allow(dead_code, reason = "a description")]
pub(super) struct JobItem {
    /// Its number, for `Last-Event-ID`; the last line has none.
    id: Option<String>,
    /// What `type` in the data says; the last line has none.
    event: Option<String>,
    /// A `JobEvent` as JSON, or the marker at the end.
    data: String,
}

/// Kinds of errors, each with the statuses that it has. All have the same body.
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
    /// What a request for pictures is refused with.
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
