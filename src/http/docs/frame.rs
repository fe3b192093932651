//! What there is to say of the API as a whole. The rest is said where the handlers are, and their types: a route that is added to the
//! router with `routes!` is in the description by that.

use utoipa::{
    Modify, OpenApi,
    openapi::{
        self,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use crate::http::{
    api_error::ErrorAnswer,
    jobs::{JobEvent, JobItem},
    openai::{ImageEvent, ImageItem},
    openapi::{DISCOVERY, IMAGES, JOBS, PROBES, PROCESS},
};

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
pub(in crate::http) struct Frame;

/// Where one is asked for, it is a bearer token.
struct Key;

impl Modify for Key {
    fn modify(&self, api: &mut openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("The worker's `--api-key`, if it has one"));
        api.components.get_or_insert_default().add_security_scheme("key", SecurityScheme::Http(scheme.build()));
    }
}
