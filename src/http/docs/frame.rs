//! The parts of the API's description that concern it as a whole. Everything else comes from the handlers and their types: `routes!` adds a
//! route to the router and to the description at once.

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
    openapi::{A1111, DISCOVERY, IMAGES, JOBS, PROBES, PROCESS},
};

/// The description without its routes.
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
        (name = A1111, description = "The API of A1111's web UI. The key may also be the password of Basic authentication"),
        (name = DISCOVERY, description = "What this worker is and what it can do"),
        (name = PROBES, description = "Answered without a key"),
        (name = PROCESS, description = "For operators")
    )
)]
pub(in crate::http) struct Frame;

/// The security scheme: a bearer token.
struct Key;

impl Modify for Key {
    fn modify(&self, api: &mut openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("The worker's `--api-key`, if it has one"));
        api.components.get_or_insert_default().add_security_scheme("key", SecurityScheme::Http(scheme.build()));
    }
}
