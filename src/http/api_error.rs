//! Errors as the API sends them, in the form that `OpenAI`'s clients turn into typed errors.

use std::{borrow::Cow, time::Duration};

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::admission::{MEGAPIXEL, Refusal, retry_after};
use crate::{backend::GenerationError, common::InvalidValue};

/// Tells `OpenAI`'s clients whether to try again, where the status alone would mislead them.
pub(super) const X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// How many bytes of a name that a client chose are repeated in an error.
const MAX_NAME_BYTES: usize = 64;

/// The metric label of every invalid field.
const INVALID_PARAM: &str = "invalid_param";
/// The metric label of errors that have no series of their own.
const OTHER: &str = "other";

/// An error with its HTTP status.
#[derive(Debug, Clone)]
pub(super) struct ApiError {
    status: StatusCode,
    body: ErrorBody,
    retry_after: Option<Duration>,
    should_retry: Option<bool>,
    /// Whether the connection is closed, so that the client's next try may reach another worker.
    closes: bool,
}

/// The body of every error.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ErrorAnswer {
    error: ErrorBody,
}

/// What went wrong. All four keys are always present.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct ErrorBody {
    /// A message for people.
    pub(super) message: String,
    /// `invalid_request_error`, `rate_limit_error` or `server_error`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The field at fault, if there is one.
    #[schema(required)]
    param: Option<String>,
    /// A code for programs.
    #[schema(value_type = String)]
    pub(super) code: Cow<'static, str>,
}

impl ApiError {
    /// The reasons of refusals as metrics label them.
    pub(super) const REJECTIONS: [&str; 20] = [
        "body_timed_out",
        "body_too_large",
        "forbidden",
        "host_not_allowed",
        "idempotency_key_reused",
        INVALID_PARAM,
        "invalid_api_key",
        "invalid_body",
        "invalid_json",
        "missing_required_parameter",
        "model_loading",
        OTHER,
        "out_of_memory",
        "queue_full",
        "shutting_down",
        "too_many_uploads",
        "too_much_work",
        "unsupported_content_encoding",
        "unsupported_media_type",
        "would_time_out",
    ];

    fn new(status: StatusCode, code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        let kind = if status.is_client_error() { "invalid_request_error" } else { "server_error" };
        let body = ErrorBody { message: message.into(), kind, param: None, code: code.into() };
        Self { status, body, retry_after: None, should_retry: None, closes: false }
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

    /// A client sets a checkpoint that is not the loaded one.
    pub(super) fn other_checkpoint(asked: &str, loaded: &str) -> Self {
        let message = format!("sd_model_checkpoint: this worker has \"{loaded}\" and loads no other, such as \"{}\"", clip(asked));
        let mut error = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "model_not_found", message);
        error.body.param = Some("sd_model_checkpoint".to_owned());
        error
    }

    pub(super) fn encoded_body(encoding: &str) -> Self {
        let encoding = clip(encoding);
        let message = format!("the body must be sent as it is, without the header content-encoding, not in the encoding \"{encoding}\"");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_content_encoding", message)
    }

    pub(super) fn no_form() -> Self {
        let message = "the body must be a form with files (multipart/form-data), or JSON with the header content-type: application/json";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
    }

    pub(super) fn body_too_large(limit: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", format!("the body must be at most {limit} bytes"))
    }

    pub(super) fn body_timed_out() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "body_timed_out", "the body stopped in the middle for too long, or came too slowly")
    }

    pub(super) fn too_many_uploads() -> Self {
        let message = "other bodies use all memory for uploads; try again";
        Self { retry_after: Some(Duration::from_secs(1)), ..Self::busy("too_many_uploads", message) }
    }

    pub(super) fn no_memory_for_body() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "out_of_memory", "there is no memory for a body of this size; send a smaller one")
    }

    pub(super) fn no_memory_for_answer() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "out_of_memory", "there is no memory for the answer; ask for fewer pictures at a time")
    }

    pub(super) fn unwritable(error: &dyn std::error::Error) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", format!("the answer could not be written: {error}"))
    }

    fn busy(code: &'static str, message: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, code, message);
        error.body.kind = "rate_limit_error";
        error
    }

    pub(super) fn unreadable_body(reason: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_body", format!("the body could not be read: {reason}"))
    }

    pub(super) fn broken_json(reason: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_json", format!("the body is not valid JSON: {reason}"))
    }

    /// The value of a field is invalid; `reason` reads on after the field's name.
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

    pub(super) fn unauthorized(given: bool) -> Self {
        let what = if given { "the API key is wrong" } else { "there is no API key" };
        Self::new(StatusCode::UNAUTHORIZED, "invalid_api_key", format!("{what}; send the header authorization: Bearer KEY"))
    }

    pub(super) fn not_for_browsers() -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "a web page may not do this")
    }

    pub(super) fn unknown_host(host: &str) -> Self {
        let host = clip(host);
        let message = format!(
            "this worker answers only to names of its own machine, and \"{host}\" is none: ask for localhost, or start it with --allowed-host {host}, or with a key"
        );
        Self::new(StatusCode::FORBIDDEN, "host_not_allowed", message)
    }

    pub(super) fn stalled(silence: Duration) -> Self {
        let message = format!("the engine has not moved for {} s", silence.as_secs());
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "engine_stalled", message)
    }

    pub(super) fn loading() -> Self {
        let retry_after = Some(Duration::from_secs(1));
        Self { retry_after, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "model_loading", "the model is still loading") }
    }

    /// Behind a load balancer, a new connection may lead the next try to another worker.
    pub(super) fn draining() -> Self {
        let (should_retry, closes) = (Some(true), true);
        Self { should_retry, closes, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", "this worker is shutting down") }
    }

    pub(super) fn cancelled() -> Self {
        let should_retry = Some(false);
        Self { should_retry, ..Self::new(StatusCode::GONE, "cancelled", "the request was cancelled") }
    }

    pub(super) fn key_reused() -> Self {
        let message = "this idempotency key was sent with another request; send a new key with a new request";
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused", message)
    }

    pub(super) fn no_such_job(id: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "job_not_found", format!("there is no job \"{id}\", or not any more"))
    }

    pub(super) fn no_such_picture(id: &str) -> Self {
        let message = format!("there is no picture \"{}\", or not any more: links last as long as --keep-results says", clip(id));
        Self::new(StatusCode::NOT_FOUND, "image_not_found", message)
    }

    pub(super) fn job_over(status: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "job_over", format!("there is nothing to cancel: the job is {status} already"))
    }

    pub(super) fn job_not_done(status: &str) -> Self {
        let retry_after = Some(Duration::from_secs(1));
        Self { retry_after, ..Self::new(StatusCode::CONFLICT, "job_not_done", format!("the job is {status}: it has no result yet")) }
    }

    /// Counts a refusal in the metrics. All invalid fields share a label: clients choose field names, and a metric never forgets a label.
    pub(super) fn count_rejection(&self) {
        let reason = match self.body.code {
            Cow::Borrowed(code) if Self::REJECTIONS.contains(&code) => code,
            Cow::Borrowed(_) => OTHER,
            Cow::Owned(_) => INVALID_PARAM,
        };
        metrics::counter!("sdw_rejected_total", "reason" => reason).increment(1);
    }

    pub(super) fn body(&self) -> &ErrorBody {
        &self.body
    }

    /// The body alone, for a stream whose status has been sent already.
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
                Self { retry_after: Some(retry_after), ..Self::busy("queue_full", "the queue is full".to_owned()) }
            }
            Refusal::TooLate { others, own, deadline } => {
                let [others_s, own_s, deadline_s] = [others, own, deadline].map(|time| time.as_secs_f64());
                let message = format!(
                    "the client waits {deadline_s:.1} s, but its turn comes in about {others_s:.1} s and the work takes {own_s:.1} s; a smaller size is the quickest cure, then fewer steps"
                );
                let mut error = Self::busy("would_time_out", message);
                // A deadline that is too short for the request alone is too short on every try.
                error.should_retry = (own > deadline).then_some(false);
                error.retry_after = (own <= deadline).then(|| retry_after((others + own).saturating_sub(deadline)));
                error
            }
            Refusal::TooMuch { work, max_work } => {
                let [work, max_work] = [work, max_work].map(|work| work as f64 / MEGAPIXEL as f64);
                let message = format!(
                    "this is {work:.1} megapixels of work (n x evaluations x samples x pixels), and this worker's --max-work is {max_work}; ask for fewer or smaller pictures, or fewer steps"
                );
                Self::new(StatusCode::BAD_REQUEST, "too_much_work", message)
            }
            Refusal::TooMany { capacity } => Self::invalid_param("n", &format!("must be at most {capacity} on this worker")),
        }
    }
}

impl From<GenerationError> for ApiError {
    fn from(error: GenerationError) -> Self {
        let message = error.to_string();
        let internal = |code: &'static str| Self::new(StatusCode::INTERNAL_SERVER_ERROR, code, message.clone());
        // Trying again would end in the same way.
        let hopeless = |code: &'static str| Self { should_retry: Some(false), ..internal(code) };
        match error {
            GenerationError::Unsupported(invalid) => invalid.into(),
            GenerationError::Adapter(_) => Self::invalid_param("loras", &message),
            GenerationError::Control(_) => hopeless("control_failed"),
            GenerationError::Upscaler(_) => hopeless("upscaler_failed"),
            // A client that cancels does not read the answer, so the worker itself must have cancelled.
            GenerationError::Cancelled => Self::draining(),
            GenerationError::TooLate => Self::new(StatusCode::GATEWAY_TIMEOUT, "timed_out", message),
            GenerationError::NotANumber => hopeless("not_a_number"),
            GenerationError::AllBlack => hopeless("black_image"),
            GenerationError::OneColor(_) => hopeless("constant_image"),
            GenerationError::Tokenizer(_) => hopeless("tokenizer_failed"),
            GenerationError::Model(_) => internal("model_failed"),
            GenerationError::OutOfMemory(_) => hopeless("out_of_memory"),
            GenerationError::Encoding(_) => hopeless("encoding_failed"),
            GenerationError::Panicked(_) => internal("internal_error"),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(ErrorAnswer { error: self.body })).into_response();
        let headers = response.headers_mut();
        if let Some(wait) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs_f64().ceil() as u64));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(should_retry) = self.should_retry {
            headers.insert(X_SHOULD_RETRY, HeaderValue::from_static(if should_retry { "true" } else { "false" }));
        }
        if self.closes {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// The beginning of a name that a client chose, as errors repeat it.
pub(super) fn clip(name: &str) -> &str {
    &name[..name.floor_char_boundary(MAX_NAME_BYTES)]
}
