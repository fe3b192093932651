//! `POST /v1/images/edits`: pictures from a picture, of which a mask may mark a part.
//!
//! `OpenAI`'s clients send a form with files; JSON with base64 in the same fields is taken as well. Nothing that a request names is
//! opened, no URL and no file.

use std::hash::{DefaultHasher, Hash, Hasher};

use axum::{
    Extension,
    body::Bytes,
    extract::{FromRequest, Multipart, Request, State, multipart::MultipartError},
    http::{StatusCode, header},
    response::Response,
};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    ApiError, AppState, MAX_UPLOAD_BYTES,
    client_wishes::{ClientWishes, WaitHeaders},
    extract::{self, JsonBody},
    hosts, images,
    openapi::{Forbidden, IMAGES, ImageItem, KeyMissing, NotReady, Refused, TooLate, WentWrong},
    uploads::{self, Room},
    wire::{ImagesRequest, ImagesResponse},
};
use crate::{
    backend::{ImageFile, InputFiles},
    common::{Prompt, RequestId, Strength},
};

/// Forms have fewer fields than this.
const MAX_FIELDS: usize = 64;

/// Fields that are text even where it reads as something else.
const TEXTS: [&str; 5] = ["prompt", "negative_prompt", "model", "user", "safety_identifier"];

/// The request, whichever way it came.
pub(super) struct EditsBody {
    request: ImagesRequest,
    files: InputFiles,
    /// As that of a JSON body.
    fingerprint: u64,
}

/// What there was in a form or in an object.
#[derive(Default)]
struct Parts {
    fields: Map<String, Value>,
    images: Vec<Vec<u8>>,
    masks: Vec<Vec<u8>>,
}

/// What [`EditsBody`] is read from. Everything that `/v1/images/generations` takes may stand beside it.
#[derive(ToSchema)]
#[allow(dead_code, reason = "a description")]
pub(super) struct EditsRequest {
    /// The picture to begin with: a file in a form; in JSON, base64 or a `data:` URL. It is scaled and cropped to `size`.
    #[schema(value_type = String, format = Binary)]
    image: Vec<u8>,
    /// What is painted anew: where it is transparent, or, if it is opaque everywhere, white.
    #[schema(value_type = Option<String>, format = Binary)]
    mask: Option<Vec<u8>>,
    /// What the picture shows.
    prompt: Prompt,
    /// How much of the picture is changed; 0.8 where it is left out, with a mask 1.
    strength: Option<Strength>,
}

/// Pictures from a picture, as one JSON answer or as a stream of events.
#[utoipa::path(
    post,
    path = "/v1/images/edits",
    tag = IMAGES,
    params(WaitHeaders),
    request_body(content(
        (EditsRequest = "multipart/form-data"),
        (EditsRequest = "application/json", example = json!({
            "image": "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFElEQVR42mOwidqSErUFk2QYWhIAEEZXgauZLxMAAAAASUVORK5CYII=",
            "prompt": "an owl on a blue background", "strength": 0.7, "size": "128x128"
        }))
    )),
    responses(
        (status = 200, description = "The pictures, or with `stream` the events that lead to them", content((ImagesResponse = "application/json"), ("text/event-stream", item_schema = ImageItem))),
        KeyMissing, Forbidden, Refused, NotReady, WentWrong, TooLate
    )
)]
pub(super) async fn edits(
    State(state): State<AppState>,
    Extension(id): Extension<RequestId>,
    wishes: ClientWishes,
    room: Option<Extension<Room>>,
    body: Result<EditsBody, ApiError>,
) -> Result<Response, ApiError> {
    let accepted = async {
        let _until_decoded = room;
        let EditsBody { request, files, fingerprint } = body?;
        let info = state.model()?;
        let mut order = request.into_order(&info, Some(&files))?;
        order.input = Some(uploads::decode(files, order.config.size).await?);
        images::start(&state, &id, wishes, order, fingerprint, &info)
    };
    images::answer(accepted.await.inspect_err(ApiError::count_rejection)?).await
}

impl FromRequest<AppState> for EditsBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let (parts, fingerprint) = match extract::media_type(request.headers())?.as_str() {
            "multipart/form-data" => {
                check_page(&request, state)?;
                extract::check_length(request.headers(), MAX_UPLOAD_BYTES)?;
                let hasher = extract::route_hasher(&request);
                let form = Multipart::from_request(request, state).await;
                Parts::from_form(form.map_err(|error| ApiError::unreadable_body(&error.body_text()))?, hasher).await?
            }
            "application/json" => {
                let body = JsonBody::<Map<String, Value>, MAX_UPLOAD_BYTES>::from_request(request, state).await?;
                (Parts::from_object(body.value)?, body.fingerprint)
            }
            _ => return Err(ApiError::no_form()),
        };
        let (request, files) = parts.into_request()?;
        Ok(Self { request, files, fingerprint })
    }
}

/// Browsers send forms to wherever a page says without asking first, but name the page: it must be one that may ask, or our own.
fn check_page(request: &Request, state: &AppState) -> Result<(), ApiError> {
    let Some(origin) = request.headers().get(header::ORIGIN) else { return Ok(()) };
    let host = hosts::authority(request);
    let of_page = origin.to_str().ok().and_then(|origin| Some(origin.split_once("://")?.1));
    let is_own = host.is_some() && host == of_page;
    if is_own || state.access.cors_origins.contains(origin) { Ok(()) } else { Err(ApiError::not_for_browsers()) }
}

impl Parts {
    /// All of a form. What is read is judged afterwards, so that a client that still sends hears the answer.
    async fn from_form(mut form: Multipart, mut hasher: DefaultHasher) -> Result<(Self, u64), ApiError> {
        let mut all: Vec<(String, bool, Bytes)> = Vec::new();
        while let Some(field) = form.next_field().await.map_err(|error| unreadable(&error))? {
            let name = field.name().unwrap_or_default().to_owned();
            let is_file = field.file_name().is_some() || field.content_type().is_some_and(|kind| !kind.starts_with("text/"));
            let is_unnamed_file = field.file_name() == Some("");
            let bytes = field.bytes().await.map_err(|error| unreadable(&error))?;
            // As browsers send it where no file was chosen.
            if is_unnamed_file && bytes.is_empty() {
                continue;
            }
            all.push((name, is_file, bytes));
            if all.len() > MAX_FIELDS {
                return Err(ApiError::unreadable_body(&format!("a form has at most {MAX_FIELDS} fields")));
            }
        }
        // Boundaries change from try to try, so the form itself says nothing.
        all.hash(&mut hasher);
        let mut parts = Self::default();
        for (name, is_file, bytes) in all {
            parts.add_field(&name, is_file, &bytes)?;
        }
        Ok((parts, hasher.finish()))
    }

    fn add_field(&mut self, name: &str, is_file: bool, bytes: &[u8]) -> Result<(), ApiError> {
        let refused = |reason| ApiError::invalid_param(extract::clip(name), reason);
        let text = || String::from_utf8(bytes.to_vec()).map_err(|_| refused("must be text in UTF-8"));
        let file = |param| if is_file { Ok(bytes.to_vec()) } else { uploads::from_text(param, &text()?) };
        match name {
            "image" | "image[]" => self.images.push(file("image")?),
            "mask" => self.masks.push(file("mask")?),
            _ => {
                let value = match text() {
                    Ok(text) => value(name, text),
                    // No field takes an object: one with a meaning refuses it, and any other is named as ignored.
                    Err(_) if is_file && !TEXTS.contains(&name) => Value::Object(Map::new()),
                    Err(error) => return Err(error),
                };
                if self.fields.insert(name.to_owned(), value).is_some() {
                    return Err(refused("must be given once"));
                }
            }
        }
        Ok(())
    }

    /// All of a JSON object.
    fn from_object(mut fields: Map<String, Value>) -> Result<Self, ApiError> {
        let mut take = |name: &str| fields.remove(name).filter(|value| !value.is_null());
        let list = |value| match value {
            Some(Value::Array(values)) => values,
            other => other.into_iter().collect(),
        };
        let images = [take("image"), take("image[]"), take("images")].into_iter().flat_map(list).collect::<Vec<_>>();
        let masks = list(take("mask"));
        let read = |param, values: Vec<Value>| values.iter().map(|value| uploads::from_json(param, value)).collect::<Result<_, _>>();
        Ok(Self { images: read("image", images)?, masks: read("mask", masks)?, fields })
    }

    fn into_request(self) -> Result<(ImagesRequest, InputFiles), ApiError> {
        let request = extract::from_value(Value::Object(self.fields))?;
        let image = one("image", self.images)?.ok_or_else(|| ApiError::missing_param("image"))?;
        let mask = one("mask", self.masks)?;
        let mask = mask.map(|bytes| ImageFile::open("mask", bytes)).transpose()?;
        Ok((request, InputFiles { image: ImageFile::open("image", image)?, mask }))
    }
}

/// There may be several in `OpenAI`'s API; a Stable Diffusion begins with one.
fn one(param: &str, mut files: Vec<Vec<u8>>) -> Result<Option<Vec<u8>>, ApiError> {
    match files.len() {
        0 | 1 => Ok(files.pop()),
        several => Err(ApiError::invalid_param(param, &format!("must be one picture, not {several}: this model begins with a single one"))),
    }
}

/// Forms know nothing but text. What reads as a number, as a list or as true or false is one, but in [`TEXTS`].
fn value(name: &str, text: String) -> Value {
    match serde_json::from_str(text.trim()) {
        Ok(value @ (Value::Number(_) | Value::Bool(_) | Value::Null | Value::Array(_))) if !TEXTS.contains(&name) => value,
        _ => Value::String(text),
    }
}

fn unreadable(error: &MultipartError) -> ApiError {
    if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return ApiError::body_too_large(MAX_UPLOAD_BYTES);
    }
    if extract::is_timeout(error) {
        return ApiError::body_timed_out();
    }
    ApiError::unreadable_body(&error.body_text())
}
