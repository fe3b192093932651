//! Everything that is not an answer, in the form that `OpenAI`'s clients turn into typed errors.

use std::{borrow::Cow, time::Duration};

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::admission::Refusal;
use crate::{backend::GenerationError, common::InvalidValue};

/// Tells `OpenAI`'s clients not to retry by themselves.
const X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// An error with its status.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    body: ErrorBody,
    retry_after: Option<Duration>,
    never_retry: bool,
}

/// `error` of an error body; all four keys are always there.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ErrorBody {
    message: String,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<String>,
    code: Cow<'static, str>,
}

impl ApiError {
    fn new(status: StatusCode, code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        let kind = if status.is_client_error() { "invalid_request_error" } else { "server_error" };
        let body = ErrorBody { message: message.into(), kind, param: None, code: code.into() };
        Self { status, body, retry_after: None, never_retry: false }
    }

    pub(super) fn no_such_route(path: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is nothing at {path}; POST /v1/images/generations makes pictures"))
    }

    pub(super) fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this route does not take this method")
    }

    pub(super) fn unreadable_path(reason: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_path", format!("the path could not be read: {reason}"))
    }

    pub(super) fn no_such_model(id: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "model_not_found", format!("this worker has no model \"{id}\""))
    }

    pub(super) fn not_json() -> Self {
        let message = "the body must be JSON, with the header content-type: application/json";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
    }

    pub(super) fn body_too_large(limit: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", format!("the body must be at most {limit} bytes"))
    }

    pub(super) fn unreadable_body(reason: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_body", format!("the body could not be read: {reason}"))
    }

    pub(super) fn broken_json(reason: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_json", format!("the body is not valid JSON: {reason}"))
    }

    /// A field of the request with a value that it cannot have; `reason` reads on after its name.
    pub(super) fn invalid_param(param: &str, reason: &str) -> Self {
        let separator = if reason.starts_with("must be ") { " " } else { ": " };
        let mut error = Self::new(StatusCode::BAD_REQUEST, format!("invalid_{param}"), format!("{param}{separator}{reason}"));
        error.body.param = Some(param.to_owned());
        error
    }

    pub(super) fn missing_param(param: &str) -> Self {
        let mut error = Self::new(StatusCode::BAD_REQUEST, "missing_required_parameter", format!("{param} is missing"));
        error.body.param = Some(param.to_owned());
        error
    }

    pub(super) fn loading() -> Self {
        let retry_after = Some(Duration::from_secs(1));
        Self { retry_after, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "model_loading", "the model is still loading") }
    }

    pub(super) fn draining() -> Self {
        let never_retry = true;
        Self { never_retry, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", "this worker is shutting down") }
    }

    /// For logs and metrics.
    pub(super) fn code(&self) -> &str {
        &self.body.code
    }

    /// For streams, where there is no status any more.
    pub(super) fn into_body(self) -> ErrorBody {
        self.body
    }
}

impl From<InvalidValue> for ApiError {
    fn from(error: InvalidValue) -> Self {
        Self::invalid_param(error.name, &error.to_string())
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Full { retry_after } => {
                let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", "the queue is full");
                error.retry_after = Some(retry_after);
                error.body.kind = "rate_limit_error";
                error
            }
            Refusal::TooMany { capacity } => Self::invalid_param("n", &format!("must be at most {capacity} on this worker")),
        }
    }
}

impl From<GenerationError> for ApiError {
    fn from(error: GenerationError) -> Self {
        let message = error.to_string();
        let internal = |code: &'static str| Self::new(StatusCode::INTERNAL_SERVER_ERROR, code, message.clone());
        // Doing the same again would end the same.
        let hopeless = |code: &'static str| Self { never_retry: true, ..internal(code) };
        match error {
            GenerationError::Unsupported(invalid) => invalid.into(),
            // Nobody who asked for it is left to read it, unless it is the worker that cancels.
            GenerationError::Cancelled => Self::draining(),
            GenerationError::NotANumber => hopeless("not_a_number"),
            GenerationError::AllBlack => hopeless("black_image"),
            GenerationError::OneColor(_) => hopeless("constant_image"),
            GenerationError::Tokenizer(_) => hopeless("tokenizer_failed"),
            GenerationError::Model(_) => internal("model_failed"),
            GenerationError::Encoding(_) => hopeless("encoding_failed"),
            GenerationError::Panicked(_) => internal("internal_error"),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Envelope {
            error: ErrorBody,
        }
        let mut response = (self.status, Json(Envelope { error: self.body })).into_response();
        let headers = response.headers_mut();
        if let Some(wait) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs_f64().ceil() as u64));
        }
        if self.never_retry {
            headers.insert(X_SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        response
    }
}
