//! Who may ask: whoever has the key, if there is one.

use axum::{
    extract::{Request, State},
    http::header,
    middleware::Next,
    response::Response,
};
use subtle::ConstantTimeEq;

use super::{ApiError, AppState};

/// What is answered to anybody: it says nothing but that there is a worker, and what all workers can be asked.
const OPEN_PATHS: [&str; 6] = ["/", "/livez", "/readyz", "/health", "/openapi.json", "/docs"];

/// A key that is never shown.
#[derive(Clone)]
pub struct ApiKey(String);

impl ApiKey {
    /// A key as its owner wrote it; blanks around it do not count. `None` if nothing is left.
    #[must_use]
    pub fn new(key: &str) -> Option<Self> {
        let key = key.trim();
        (!key.is_empty()).then(|| Self(key.to_owned()))
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

/// Lets those pass who have the key.
pub(super) async fn check(State(state): State<AppState>, request: Request, next: Next) -> Result<Response, ApiError> {
    if let Some(key) = state.api_key.as_ref().filter(|_| !OPEN_PATHS.contains(&request.uri().path())) {
        let given = request.headers().get(header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
        if !given.is_some_and(|given| key.is(given)) {
            let error = ApiError::unauthorized(given.is_some());
            error.count_rejection();
            return Err(error);
        }
    }
    Ok(next.run(request).await)
}

/// The key in a header, which may have other bytes than text has.
fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = authorization.split_at(authorization.iter().position(|byte| *byte == b' ')?);
    scheme.eq_ignore_ascii_case(b"bearer").then_some(key.trim_ascii())
}
