//! `POST /v1/images/edits`: pictures that begin with a picture, of which a mask may mark a part.
//!
//! `OpenAI`'s clients send a form with files; JSON with base64 in the same fields works as well. A URL or a file that a request names is
//! never opened.

use std::borrow::Cow;

use axum::{Extension, extract::State, response::Response};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{
    content::{self, Address},
    image_events::ImageItem,
    images_response::{self, ImagesResponse},
};
use crate::{
    backend::{ImageFile, InitFiles},
    common::{Prompt, RequestId, Strength},
    http::{
        api_error::ApiError,
        app_state::AppState,
        body_bytes::ParsedBody,
        client_headers::{ClientHeaders, WaitHeaders},
        extract::FromFields,
        fields::{self, Fields},
        form::{FormField, FormOrJson, FromForm, Settings, list_name},
        images_body::{FormPictures, ImagesBody},
        openapi::{Forbidden, IMAGES, KeyMissing, NotReady, Refused, TooLate, WentWrong},
        start::start,
        uploads,
        wire::ImagesRequest,
        wire_controls::WireControls,
        wire_references::WireReferences,
    },
};

/// What is done with several pictures to begin with: `first` takes the first of them.
const SEVERAL: &str = "several_images";

/// A body with a picture to begin with.
pub(super) struct Edit(ImagesBody);

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
    body: Result<FormOrJson<Edit>, ApiError>,
) -> Result<Response, ApiError> {
    draw((state, id, address, client), body, |_| {}).await
}

/// What a request brings along beside its body.
pub(super) type Client = (State<AppState>, Extension<RequestId>, Address, ClientHeaders);

/// Pictures from a picture. `adapt` fits the request to its route.
pub(super) async fn draw(
    (State(state), Extension(id), address, client): Client,
    body: Result<FormOrJson<Edit>, ApiError>,
    adapt: impl FnOnce(&mut ImagesRequest),
) -> Result<Response, ApiError> {
    let accepted = async {
        let FormOrJson(ParsedBody { value: Edit(mut body), fingerprint, budget }) = body?;
        adapt(&mut body.request);
        let info = state.model()?;
        let order = body.into_order(&info).await?;
        content::check(&order, &state)?;
        drop(budget);
        start(&state, &id, client, order, fingerprint, &info)
    };
    images_response::answer(&state, &address, accepted.await.inspect_err(ApiError::count_rejection)?).await
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

impl FromForm for Edit {
    fn from_form(fields: Vec<FormField>) -> Result<Self, ApiError> {
        let (mut images, mut masks, mut pictures) = (Vec::new(), Vec::new(), FormPictures::default());
        let mut settings = Settings::default();
        for field in fields {
            match &*field.name {
                name if is_image(name) => images.push(field.picture("image")?),
                name if is_mask(name) => masks.push(field.picture("mask")?),
                name if is_control_image(name) => pictures.controls.push(field.picture("control_image")?),
                name if is_reference_image(name) => pictures.references.push(field.picture("reference_image")?),
                _ => settings.add(field)?,
            }
        }
        Self::new(settings.fields(), pictures, || Ok((images, masks)))
    }
}

impl Edit {
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
