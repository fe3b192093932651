//! `GET /docs` and `GET /openapi.json`: the description of the API, for people and for programs. The page has no scripts and loads nothing.

mod frame;
mod page;

use std::sync::Arc;

use axum::{
    Extension,
    http::{HeaderName, header},
    response::{Html, IntoResponse},
};
pub(super) use frame::Frame;
use utoipa::openapi::OpenApi;

use super::openapi::DISCOVERY;

/// The page runs nothing, loads nothing and sends nothing.
const CONTENT_SECURITY_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The description in both forms.
#[derive(Debug)]
pub(super) struct Description {
    json: String,
    page: String,
}

impl Description {
    pub(super) fn new(mut api: OpenApi) -> Self {
        // axum marks a path parameter that may contain slashes; `OpenAPI` has no such mark.
        api.paths.paths = std::mem::take(&mut api.paths.paths).into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
        // A JSON value does not keep the router's order of the paths.
        let paths: Vec<&str> = api.paths.paths.keys().map(String::as_str).collect();
        Self {
            json: serde_json::to_string(&api).unwrap_or_default(),
            page: page::render(&serde_json::to_value(&api).unwrap_or_default(), &paths),
        }
    }
}

/// This description, for programs.
#[utoipa::path(get, path = "/openapi.json", tag = DISCOVERY, responses((status = 200, description = "OpenAPI", body = serde_json::Value)))]
pub(super) async fn openapi(Extension(description): Extension<Arc<Description>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], description.json.clone())
}

/// This description, for people.
#[utoipa::path(get, path = "/docs", tag = DISCOVERY, responses((status = 200, description = "A page", body = String, content_type = "text/html")))]
pub(super) async fn docs(Extension(description): Extension<Arc<Description>>) -> impl IntoResponse {
    const POLICY: HeaderName = header::CONTENT_SECURITY_POLICY;
    ([(POLICY, CONTENT_SECURITY_POLICY)], Html(description.page.clone()))
}
