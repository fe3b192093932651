//! `POST /v1/images/edits`: pictures that begin with a picture, of which a mask may mark a part.
//!
//! `OpenAI`'s clients send a form with files; JSON with base64 in the same fields works as well. A URL or a file that a request names is
//! never opened.

use std::{
    borrow::Cow,
    hash::{DefaultHasher, Hash},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Extension,
    extract::{
        FromRequest, Multipart, Request, State,
        multipart::{Field, MultipartError},
    },
    http::StatusCode,
    response::Response,
};
use serde_json::{
    Map, Value,
    value::{RawValue, to_raw_value},
};
use tokio::sync::Mutex;
use utoipa::ToSchema;

use super::{
    content::Address,
    image_events::ImageItem,
    images_response::{self, ImagesResponse},
};
use crate::{
    backend::{ImageFile, InitFiles},
    common::{Prompt, RequestId, Strength},
    http::{
        api_error::{self, ApiError},
        app_state::AppState,
        body_bytes::{self, BodyBudget, MAX_BODY_BYTES, MAX_UPLOAD_BYTES, ParsedBody},
        client_headers::{ClientHeaders, WaitHeaders},
        extract::{self, FromFields, JsonBody},
        fields::{self, Fields},
        hosts,
        images_body::{FormPictures, ImagesBody},
        openapi::{Forbidden, IMAGES, KeyMissing, NotReady, Refused, TooLate, WentWrong},
        page,
        start::start,
        uploads,
        wire::ImagesRequest,
        wire_controls::WireControls,
        wire_references::WireReferences,
    },
};

/// What is done with several pictures to begin with: `first` takes the first of them.
const SEVERAL: &str = "several_images";

/// The most fields of a form.
const MAX_FIELDS: usize = 64;

/// The most bytes of a field's head, and of what precedes the first field.
const MAX_HEAD_BYTES: usize = 1 << 20;

/// Fields that stay text even where their value looks like a number, a list or a boolean.
const TEXTS: [&str; 5] = ["prompt", "negative_prompt", "model", "user", "safety_identifier"];

/// An edit from a form or from JSON.
pub(super) struct EditsBody(ParsedBody<Edit>);

/// A body with a picture to begin with.
struct Edit(ImagesBody);

/// A field of a form.
#[derive(Hash)]
struct FormField {
    name: String,
    is_file: bool,
    bytes: Vec<u8>,
}

/// The fields that an edit has beside those of `/v1/images/generations`.
#[derive(ToSchema)]
#[allow(dead_code, reason = "a description")]
pub(super) struct EditsRequest {
    /// The picture to begin with: a file in a form; in JSON, base64 or a `data:` URL. It is scaled and cropped to `size`.
    #[schema(value_type = String, format = Binary)]
    image: Vec<u8>,
    /// What is painted anew: where it is transparent, or, if it is opaque everywhere, white.
    #[schema(value_type = Option<String>, format = Binary)]
    mask: Option<Vec<u8>>,
    /// `first` takes the first of several pictures; the others are named in `ignored`. Without it, several are refused.
    #[schema(pattern = "^first$")]
    several_images: Option<String>,
    /// What the picture shows.
    prompt: Prompt,
    /// How much of the picture is changed; 0.8 where it is left out, with a mask 1.
    strength: Option<Strength>,
    /// ControlNets and T2I-Adapters; in a form as text, with their pictures as files in `control_image[]`.
    #[schema(inline)]
    control: Option<WireControls>,
    /// Pictures that the model looks at beside the prompt; in a form as files in `reference_image[]`.
    #[schema(inline)]
    reference: Option<WireReferences>,
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
    state: State<AppState>,
    id: Extension<RequestId>,
    address: Address,
    client: ClientHeaders,
    body: Result<EditsBody, ApiError>,
) -> Result<Response, ApiError> {
    draw((state, id, address, client), body, |_| {}).await
}

/// What a request brings along beside its body.
pub(super) type Client = (State<AppState>, Extension<RequestId>, Address, ClientHeaders);

/// Pictures from a picture. `adapt` fits the request to its route.
pub(super) async fn draw(
    (State(state), Extension(id), address, client): Client,
    body: Result<EditsBody, ApiError>,
    adapt: impl FnOnce(&mut ImagesRequest),
) -> Result<Response, ApiError> {
    let accepted = async {
        let EditsBody(ParsedBody { value: Edit(mut body), fingerprint, budget }) = body?;
        adapt(&mut body.request);
        let info = state.model()?;
        let order = body.into_order(&info).await?;
        drop(budget);
        start(&state, &id, client, order, fingerprint, &info)
    };
    images_response::answer(&state, &address, accepted.await.inspect_err(ApiError::count_rejection)?).await
}

impl FromRequest<AppState> for EditsBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        match extract::media_type(request.headers())?.as_str() {
            "multipart/form-data" => {
                page::check(request.headers(), hosts::authority(&request), state)?;
                extract::check_length(request.headers(), MAX_UPLOAD_BYTES)?;
                Ok(Self(from_form(request, state).await?))
            }
            "application/json" => {
                let JsonBody(edit) = JsonBody::<Edit, MAX_UPLOAD_BYTES>::from_request(request, state).await?;
                Ok(Self(edit))
            }
            _ => Err(ApiError::no_form()),
        }
    }
}

impl FromFields for Edit {
    fn from_fields(mut fields: Fields) -> Result<Self, ApiError> {
        let (images, masks) = (fields.take(is_image), fields.take(is_mask));
        let read = |param, values: Vec<(Cow<str>, &RawValue)>| -> Result<Vec<_>, ApiError> {
            let values = values.into_iter().map(|(_, value)| fields::entries(value)).collect::<Result<Vec<_>, _>>()?;
            values.into_iter().flatten().map(|value| uploads::from_json(param, value)).collect()
        };
        Self::new(fields, FormPictures::default(), || Ok((read("image", images)?, read("mask", masks)?)))
    }
}

/// Reads a form to its end. Its fields are judged afterwards, so that a client that is still sending receives the answer.
async fn from_form(request: Request, state: &AppState) -> Result<ParsedBody<Edit>, ApiError> {
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
        Edit::from_form(fields)
    };
    body_bytes::parse(length, budget, hasher, read).await
}

impl Edit {
    fn from_form(fields: Vec<FormField>) -> Result<Self, ApiError> {
        let (mut images, mut masks, mut pictures) = (Vec::new(), Vec::new(), FormPictures::default());
        let (mut settings, mut length) = (Vec::new(), 0);
        for field in fields {
            match &*field.name {
                name if is_image(name) => images.push(field.picture("image")?),
                name if is_mask(name) => masks.push(field.picture("mask")?),
                name if is_control_image(name) => pictures.controls.push(field.picture("control_image")?),
                name if is_reference_image(name) => pictures.references.push(field.picture("reference_image")?),
                _ => {
                    length += field.bytes.len();
                    if length > MAX_BODY_BYTES {
                        return Err(ApiError::invalid_param(api_error::clip(&field.name), "is too long for a field that is no picture"));
                    }
                    settings.push(field.setting()?);
                }
            }
        }
        let settings = settings.iter().map(|(name, value)| (name.as_str(), &**value)).collect();
        Self::new(settings, pictures, || Ok((images, masks)))
    }

    /// `files` are the pictures to begin with, and masks.
    fn new(
        mut fields: Fields,
        pictures: FormPictures,
        files: impl FnOnce() -> Result<(Vec<Vec<u8>>, Vec<Vec<u8>>), ApiError>,
    ) -> Result<Self, ApiError> {
        let takes_first = match fields.take_one(|name| name == SEVERAL)?.map(RawValue::get) {
            None => false,
            Some("\"first\"") => true,
            Some(_) => return Err(ApiError::invalid_param(SEVERAL, "must be \"first\", or left out")),
        };
        let mut left_out = 0;
        let mut body = ImagesBody::new(fields, pictures, || {
            let (mut images, masks) = files()?;
            if takes_first {
                left_out = images.drain(1.min(images.len())..).count();
            }
            init(images, masks)
        })?;
        body.request.others.extend((1..=left_out).map(|i| format!("image[{i}]")));
        Ok(Self(body))
    }
}

/// The files of the picture to begin with.
fn init(images: Vec<Vec<u8>>, masks: Vec<Vec<u8>>) -> Result<Option<InitFiles>, ApiError> {
    let image = one("image", images)?.ok_or_else(|| ApiError::missing_param("image"))?;
    let mask = one("mask", masks)?;
    let mask = mask.map(|bytes| ImageFile::open("mask", bytes)).transpose()?;
    Ok(Some(InitFiles::new(ImageFile::open("image", image)?, mask)))
}

/// `image`, `image[]`, `image[0]`, `images`, and so on.
fn is_image(name: &str) -> bool {
    matches!(list_name(name), "image" | "images")
}

/// `mask`, `mask[]`, `mask[0]`.
fn is_mask(name: &str) -> bool {
    list_name(name) == "mask"
}

/// `control_image`, `control_image[]`, `control_image[0]`: the pictures of a form for the entries of `control` that have none.
fn is_control_image(name: &str) -> bool {
    matches!(list_name(name), "control_image" | "control_images")
}

/// `reference_image`, `reference_image[]`, `reference_image[0]`: the same for those of `reference`, and further ones.
fn is_reference_image(name: &str) -> bool {
    matches!(list_name(name), "reference_image" | "reference_images")
}

/// A field's name without a final `[]` or `[0]`.
fn list_name(name: &str) -> &str {
    let entry = |name: &str| Some(name.strip_suffix(']')?.trim_end_matches(|c: char| c.is_ascii_digit()).strip_suffix('[')?.len());
    &name[..entry(name).unwrap_or(name.len())]
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

    fn picture(self, param: &str) -> Result<Vec<u8>, ApiError> {
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

/// `OpenAI`'s API allows several pictures; Stable Diffusion begins with one.
fn one(param: &str, mut files: Vec<Vec<u8>>) -> Result<Option<Vec<u8>>, ApiError> {
    match files.len() {
        0 | 1 => Ok(files.pop()),
        several => {
            let help = if param == "mask" { String::new() } else { format!("; {SEVERAL}: \"first\" takes the first of several") };
            let reason = format!("must be one picture, not {several}: this model begins with a single one{help}");
            Err(ApiError::invalid_param(param, &reason))
        }
    }
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
