//! `GET /` for browsers: a page that draws with this worker. It is a client like any other, loads nothing from elsewhere, and can send to
//! this worker only.

use std::sync::LazyLock;

use axum::{
    http::{HeaderName, header},
    response::{Html, IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};

const MARKUP: &str = include_str!("web_page/page.html");
const STYLE: &str = concat!(include_str!("web_page/page.css"), include_str!("web_page/parts.css"));
/// One script, in whose order a name stands before the code that runs with it.
const SCRIPT: &str = concat!(
    include_str!("web_page/elements.js"),
    include_str!("web_page/worker.js"),
    include_str!("web_page/problems.js"),
    include_str!("web_page/picture_input.js"),
    include_str!("web_page/mask.js"),
    include_str!("web_page/begin.js"),
    include_str!("web_page/extras.js"),
    include_str!("web_page/settings.js"),
    include_str!("web_page/snippets.js"),
    include_str!("web_page/stage.js"),
    include_str!("web_page/gallery.js"),
    include_str!("web_page/generate.js"),
    include_str!("web_page/start.js"),
);

/// The page with what browsers let it do.
static PAGE: LazyLock<(String, String)> = LazyLock::new(|| {
    let page = MARKUP.replace("/* style */", STYLE).replace("/* script */", SCRIPT);
    let hash = |text: &str| BASE64_STANDARD.encode(Sha256::digest(text));
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src blob: data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        hash(SCRIPT),
        hash(STYLE)
    );
    (page, policy)
});

/// Answers with the page.
pub(super) fn respond() -> Response {
    const POLICY: HeaderName = header::CONTENT_SECURITY_POLICY;
    let (page, policy) = &*PAGE;
    let headers = [
        (POLICY, policy.as_str()),
        (header::CACHE_CONTROL, "no-cache"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, Html(page.as_str())).into_response()
}
