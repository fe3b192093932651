//! Who may ask: whoever has the key, if there is one; else whoever knows the worker by a name of its own.

use axum::{
    extract::{Request, State},
    http::{HeaderValue, Method, header},
    middleware::Next,
    response::Response,
};
use subtle::ConstantTimeEq;

use super::{api_error::ApiError, hosts::AllowedHosts};

/// What is answered to anybody: it says nothing but that there is a worker, and what all workers can be asked.
const OPEN_PATHS: [&str; 6] = ["/", "/livez", "/readyz", "/health", "/openapi.json", "/docs"];

/// A key that is never shown.
#[derive(Clone)]
pub struct ApiKey(String);

impl ApiKey {
    /// A key as its owner wrote it; blanks around it do not count.
    ///
    /// # Errors
    /// When no client could send it, with the reason, to be read on after "the API key".
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

    /// Takes as long for a key that is nearly right as for one that is all wrong.
    fn is(&self, given: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(given).into()
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// Whom the worker answers.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// What clients must know, if anything.
    pub api_key: Option<ApiKey>,
    /// Pages that browsers may ask from.
    pub cors_origins: Vec<HeaderValue>,
    /// The only names under which the worker may be asked, if it is for this machine alone.
    pub allowed_hosts: Option<AllowedHosts>,
}

/// Lets those pass who may ask.
pub(super) async fn check(State(access): State<Access>, request: Request, next: Next) -> Result<Response, ApiError> {
    may_ask(&access, &request).inspect_err(ApiError::count_rejection)?;
    Ok(next.run(request).await)
}

fn may_ask(access: &Access, request: &Request) -> Result<(), ApiError> {
    if let Some(host) = access.allowed_hosts.as_ref().and_then(|hosts| hosts.stranger(request)) {
        return Err(ApiError::unknown_host(host));
    }
    // Browsers ask what may be asked without a key.
    let is_open = OPEN_PATHS.contains(&request.uri().path()) || request.method() == Method::OPTIONS;
    if let Some(key) = access.api_key.as_ref().filter(|_| !is_open) {
        let given = request.headers().get(header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
        if !given.is_some_and(|given| key.is(given)) {
            return Err(ApiError::unauthorized(given.is_some()));
        }
    }
    Ok(())
}

/// The key in a header, which may have other bytes than text has.
fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = authorization.split_at(authorization.iter().position(|byte| *byte == b' ')?);
    scheme.eq_ignore_ascii_case(b"bearer").then_some(key.trim_ascii())
}
