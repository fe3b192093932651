//! Bodies with pictures: a form with files, or JSON with base64 in the same fields.

use std::{
    hash::{DefaultHasher, Hash},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    extract::{
        FromRequest, Multipart, Request,
        multipart::{Field, MultipartError},
    },
    http::StatusCode,
};
use serde_json::{
    Map, Value,
    value::{RawValue, to_raw_value},
};
use tokio::sync::Mutex;

use super::{
    api_error::{self, ApiError},
    app_state::AppState,
    body_bytes::{self, BodyBudget, MAX_BODY_BYTES, MAX_UPLOAD_BYTES, ParsedBody},
    extract::{self, FromFields, JsonBody},
    fields::Fields,
    hosts, page, uploads,
};

/// The most fields of a form.
const MAX_FIELDS: usize = 64;

/// The most bytes of a field's head, and of what precedes the first field.
const MAX_HEAD_BYTES: usize = 1 << 20;

/// Fields that stay text even where their value looks like a number, a list or a boolean.
const TEXTS: [&str; 6] = ["prompt", "negative_prompt", "model", "upscaler", "user", "safety_identifier"];

/// A body from a form or from JSON.
pub(super) struct FormOrJson<T>(pub(super) ParsedBody<T>);

/// A value that is read from the fields of a form, too.
pub(super) trait FromForm: FromFields {
    /// Reads the value.
    ///
    /// # Errors
    /// Names the field whose value is wrong.
    fn from_form(fields: Vec<FormField>) -> Result<Self, ApiError>;
}

/// A field of a form.
#[derive(Hash)]
pub(super) struct FormField {
    pub(super) name: String,
    is_file: bool,
    bytes: Vec<u8>,
}

/// The fields of a form that are no pictures, as JSON.
#[derive(Default)]
pub(super) struct Settings {
    fields: Vec<(String, Box<RawValue>)>,
    length: usize,
}

impl Settings {
    /// Adds a field.
    ///
    /// # Errors
    /// When the fields are too long together, or this one is no text.
    pub(super) fn add(&mut self, field: FormField) -> Result<(), ApiError> {
        self.length += field.bytes.len();
        if self.length > MAX_BODY_BYTES {
            return Err(ApiError::invalid_param(api_error::clip(&field.name), "is too long for a field that is no picture"));
        }
        self.fields.push(field.setting()?);
        Ok(())
    }

    /// The fields.
    pub(super) fn fields(&self) -> Fields<'_> {
        self.fields.iter().map(|(name, value)| (name.as_str(), &**value)).collect()
    }
}

impl<T: FromForm> FromRequest<AppState> for FormOrJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        match extract::media_type(request.headers())?.as_str() {
            "multipart/form-data" => {
                page::check(request.headers(), hosts::authority(&request), state)?;
                extract::check_length(request.headers(), MAX_UPLOAD_BYTES)?;
                Ok(Self(read(request, state).await?))
            }
            "application/json" => {
                let JsonBody(body) = JsonBody::<T, MAX_UPLOAD_BYTES>::from_request(request, state).await?;
                Ok(Self(body))
            }
            _ => Err(ApiError::no_form()),
        }
    }
}

/// Reads a form to its end. Its fields are judged afterwards, so that a client that is still sending receives the answer.
async fn read<T: FromForm>(request: Request, state: &AppState) -> Result<ParsedBody<T>, ApiError> {
    let (hasher, budget) = (extract::route_hasher(&request), Arc::new(Mutex::new(BodyBudget::new(state.client_timeout))));
    // The reader buffers the whole head of a field before it parses it.
    let allowance = Arc::new(AtomicUsize::new(MAX_HEAD_BYTES));
    let metered = request.map(|body| body_bytes::metered(body, Arc::clone(&budget), Arc::clone(&allowance)));
    let form = Multipart::from_request(metered, state).await;
    let mut form = form.map_err(|error| ApiError::unreadable_body(&error.body_text()))?;
    let (mut fields, mut length) = (Vec::new(), 0);
    while let Some(field) = form.next_field().await.map_err(|error| unreadable(&error))? {
        allowance.store(usize::MAX, Ordering::Relaxed);
        // Browsers send an empty field where no file was chosen.
        let has_no_name = field.file_name() == Some("");
        let field = FormField::read(field).await?;
        allowance.store(MAX_HEAD_BYTES, Ordering::Relaxed);
        if has_no_name && field.bytes.is_empty() {
            continue;
        }
        length += field.bytes.len();
        fields.push(field);
        if fields.len() > MAX_FIELDS {
            return Err(ApiError::unreadable_body(&format!("a form has at most {MAX_FIELDS} fields")));
        }
    }
    let read = move |hasher: &mut DefaultHasher| {
        // The boundary differs on every try, so only the fields are hashed.
        fields.hash(hasher);
        T::from_form(fields)
    };
    body_bytes::parse(length, budget, hasher, read).await
}

impl FormField {
    async fn read(mut field: Field<'_>) -> Result<Self, ApiError> {
        let name = field.name().unwrap_or_default().to_owned();
        let is_file = field.file_name().is_some() || field.content_type().is_some_and(|kind| !kind.starts_with("text/"));
        let mut bytes = Vec::new();
        while let Some(more) = field.chunk().await.map_err(|error| unreadable(&error))? {
            body_bytes::append(&mut bytes, &more)?;
        }
        Ok(Self { name, is_file, bytes })
    }

    fn text(&self) -> Result<&str, ApiError> {
        str::from_utf8(&self.bytes).map_err(|_| ApiError::invalid_param(api_error::clip(&self.name), "must be text in UTF-8"))
    }

    /// The file, or base64 of one.
    pub(super) fn picture(self, param: &str) -> Result<Vec<u8>, ApiError> {
        if self.is_file { Ok(self.bytes) } else { uploads::from_text(param, self.text()?) }
    }

    /// The field as JSON.
    fn setting(self) -> Result<(String, Box<RawValue>), ApiError> {
        let value = match self.text() {
            Ok(text) => value(&self.name, text),
            // No field accepts an object: a known field refuses it, and an unknown one is reported as ignored.
            Err(_) if self.is_file && !TEXTS.contains(&&*self.name) => Value::Object(Map::new()),
            Err(error) => return Err(error),
        };
        let value = to_raw_value(&value).map_err(|error| ApiError::unreadable_body(&error.to_string()))?;
        Ok((self.name, value))
    }
}

/// A field's name without a final `[]` or `[0]`.
pub(super) fn list_name(name: &str) -> &str {
    let entry = |name: &str| Some(name.strip_suffix(']')?.trim_end_matches(|c: char| c.is_ascii_digit()).strip_suffix('[')?.len());
    &name[..entry(name).unwrap_or(name.len())]
}

/// Forms contain only text. Text that reads as a number, a list or a boolean is one, except in [`TEXTS`].
fn value(name: &str, text: &str) -> Value {
    match serde_json::from_str(text.trim()) {
        Ok(value @ (Value::Number(_) | Value::Bool(_) | Value::Null | Value::Array(_))) if !TEXTS.contains(&name) => value,
        _ => Value::String(text.to_owned()),
    }
}

fn unreadable(error: &MultipartError) -> ApiError {
    if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return ApiError::body_too_large(MAX_UPLOAD_BYTES);
    }
    body_bytes::unreadable(error, &error.body_text())
}
