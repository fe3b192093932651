//! Access control: a request needs the API key if the worker has one; without a key, a worker on loopback answers to its own host names
//! only.

use std::borrow::Cow;

use axum::{
    extract::{Request, State},
    http::{HeaderValue, Method, header},
    middleware::Next,
    response::Response,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use subtle::ConstantTimeEq;

use super::{api_error::ApiError, hosts::AllowedHosts};

/// Routes that need no key. Their answers are the same for every worker, or say only whether this one is up.
const OPEN_PATHS: [&str; 6] = ["/", "/livez", "/readyz", "/health", "/openapi.json", "/docs"];
/// Routes of A1111's API, whose clients send the key as the password of Basic authentication. No answer asks for that: a browser would
/// remember the password, and send it along with the requests of any page.
const BASIC_PATHS: [&str; 2] = ["/sdapi/", "/controlnet/"];

/// An API key. It is never printed.
#[derive(Clone)]
pub struct ApiKey(String);

impl ApiKey {
    /// Trims blanks around the key.
    ///
    /// # Errors
    /// The reason why no client could send the key; it reads on after "the API key".
    pub fn new(key: &str) -> Result<Self, &'static str> {
        let key = key.trim();
        if key.is_empty() {
            return Err("is empty; leave it out if there is to be none");
        }
        if key.contains('\u{feff}') {
            return Err("has a byte order mark inside, which no client sends; save it without one");
        }
        if HeaderValue::from_str(key).is_err() {
            return Err("has a line end inside, or another character that no client can send in a header; it must be one line");
        }
        Ok(Self(key.to_owned()))
    }

    /// Compares in constant time, so that the time does not tell how much of a key is right.
    fn is(&self, given: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(given).into()
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// What a request must bring to be answered.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// The key that clients must send, if there is one.
    pub api_key: Option<ApiKey>,
    /// Origins of web pages whose scripts may read answers.
    pub cors_origins: Vec<HeaderValue>,
    /// The only hosts that a request may name, if the worker listens on loopback without a key.
    pub allowed_hosts: Option<AllowedHosts>,
}

/// Middleware that refuses a request without access.
pub(super) async fn check(State(access): State<Access>, request: Request, next: Next) -> Result<Response, ApiError> {
    check_access(&access, &request).inspect_err(ApiError::count_rejection)?;
    Ok(next.run(request).await)
}

fn check_access(access: &Access, request: &Request) -> Result<(), ApiError> {
    if let Some(host) = access.allowed_hosts.as_ref().and_then(|hosts| hosts.disallowed(request)) {
        return Err(ApiError::unknown_host(host));
    }
    // A browser's preflight request (`OPTIONS`) carries no key.
    let path = request.uri().path();
    // The link itself is the secret.
    let is_link = path.starts_with("/v1/images/") && path.ends_with("/content");
    let is_open = OPEN_PATHS.contains(&path) || is_link || request.method() == Method::OPTIONS;
    if let Some(key) = access.api_key.as_ref().filter(|_| !is_open) {
        let takes_basic = BASIC_PATHS.iter().any(|start| path.starts_with(start));
        let authorization = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
        let password = || authorization.filter(|_| takes_basic).and_then(password);
        let given = authorization.and_then(bearer).map(Cow::Borrowed).or_else(|| password().map(Cow::Owned));
        if !given.as_ref().is_some_and(|given| key.is(given)) {
            return Err(ApiError::unauthorized(given.is_some()));
        }
    }
    Ok(())
}

/// The key in an `authorization` header. A header may hold bytes that are not UTF-8.
fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    after_scheme(authorization, b"bearer")
}

/// The password of Basic authentication. Any user name goes with it.
fn password(authorization: &[u8]) -> Option<Vec<u8>> {
    let pair = BASE64_STANDARD.decode(after_scheme(authorization, b"basic")?).ok()?;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    Some(pair[colon + 1..].to_vec())
}

fn after_scheme<'a>(authorization: &'a [u8], scheme: &[u8]) -> Option<&'a [u8]> {
    let (given, rest) = authorization.split_at(authorization.iter().position(|byte| *byte == b' ')?);
    given.eq_ignore_ascii_case(scheme).then_some(rest.trim_ascii())
}
