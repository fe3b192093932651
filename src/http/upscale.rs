//! `POST /v1/images/upscale`: a picture of the client's, enlarged.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{DefaultBodyLimit, State},
    response::Response,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouterExt},
    routes,
};

use super::{
    answer::{self, Base64, WireTimings},
    api_error::{self, ApiError},
    app_state::AppState,
    body_bytes::{MAX_UPLOAD_BYTES, ParsedBody},
    client_headers::{ClientHeaders, WaitHeaders},
    extract::FromFields,
    fields::{self, Fields},
    form::{FormField, FormOrJson, FromForm, Settings, list_name},
    openapi::{Forbidden, IMAGES, KeyMissing, NotReady, Refused, TooLate, WentWrong},
    order::{AnswerForm, ImagesOrder, OnDisconnect},
    run::Run,
    start::start,
    uploads,
    wire::{Bounded, ResponseFormat},
};
use crate::{
    backend::{ChosenUpscale, Complete, ImageFile, ModelInfo, Order, Timings},
    common::{ImageFormat, OutputConfig, RequestId, UpscaleScale},
};

/// The route.
pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(upscale).layer(DefaultBodyLimit::max(MAX_UPLOAD_BYTES)))
}

/// The fields beside the picture.
#[derive(Debug, Deserialize)]
#[serde(expecting = "a JSON object")]
struct UpscaleFields {
    upscaler: Option<String>,
    scale: Option<UpscaleScale>,
    response_format: Option<ResponseFormat>,
    output_format: Option<ImageFormat>,
    output_compression: Option<Bounded<0, 100>>,
    /// The names of all other fields with a value.
    #[serde(skip)]
    others: Vec<String>,
}

/// A picture to enlarge.
#[derive(ToSchema)]
#[allow(dead_code, reason = "a description")]
pub(super) struct UpscaleRequest {
    /// The picture: a file in a form; in JSON, base64 or a `data:` URL.
    #[schema(value_type = String, format = Binary)]
    image: Vec<u8>,
    /// One of `upscalers` in the capabilities; where it is left out, the first of `--upscaler`, or without one Lanczos.
    upscaler: Option<String>,
    /// How much larger each side is; the network's own scale where it is left out, or 2. Of another scale than its own, the network's picture
    /// is scaled by Lanczos.
    #[schema(value_type = Option<f64>, minimum = 1, maximum = 8)]
    scale: Option<UpscaleScale>,
    /// Has no effect: the answer has the file.
    response_format: Option<ResponseFormat>,
    /// `png` where it is left out.
    output_format: Option<ImageFormat>,
    /// Quality of a JPEG or a WebP; 90 where it is left out.
    #[schema(value_type = Option<i64>, minimum = 0, maximum = 100)]
    output_compression: Option<Bounded<0, 100>>,
}

/// A body whose picture's header has been checked.
pub(super) struct UpscaleBody {
    fields: UpscaleFields,
    image: ImageFile,
}

/// The enlarged picture.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct UpscaleResponse {
    /// Seconds since 1970.
    created: u64,
    data: Vec<UpscaledImage>,
    background: &'static str,
    output_format: ImageFormat,
    size: String,
    parameters: Option<UpscaleParameters>,
    timings: WireTimings,
    /// Fields that were given and have no effect.
    ignored: Vec<String>,
    warnings: Vec<String>,
}

/// The file.
#[derive(Debug, Serialize, ToSchema)]
struct UpscaledImage {
    #[schema(value_type = String, content_encoding = "base64")]
    b64_json: Base64,
}

/// What enlarged it.
#[derive(Debug, Serialize, ToSchema)]
struct UpscaleParameters {
    upscaler: String,
    scale: f64,
}

impl From<&ChosenUpscale> for UpscaleParameters {
    fn from(upscale: &ChosenUpscale) -> Self {
        Self { upscaler: upscale.upscaler.name().to_owned(), scale: upscale.scale.get() }
    }
}

/// A picture of the client's, enlarged. It waits in the queue with those that are drawn.
#[utoipa::path(
    post,
    path = "/v1/images/upscale",
    tag = IMAGES,
    params(WaitHeaders),
    request_body(content(
        (UpscaleRequest = "multipart/form-data"),
        (UpscaleRequest = "application/json", example = json!({
            "image": "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFElEQVR42mOwidqSErUFk2QYWhIAEEZXgauZLxMAAAAASUVORK5CYII=",
            "upscaler": "Lanczos", "scale": 2
        }))
    )),
    responses(
        (status = 200, description = "The enlarged picture", body = UpscaleResponse),
        KeyMissing, Forbidden, Refused, NotReady, WentWrong, TooLate
    )
)]
async fn upscale(
    State(state): State<AppState>,
    Extension(id): Extension<RequestId>,
    client: ClientHeaders,
    body: Result<FormOrJson<UpscaleBody>, ApiError>,
) -> Result<Response, ApiError> {
    let accepted = async {
        let FormOrJson(ParsedBody { value: body, fingerprint, budget }) = body?;
        let info = state.model()?;
        let order = body.into_order(&info).await?;
        drop(budget);
        start(&state, &id, client, order, fingerprint, &info)
    };
    let mut follower = accepted.await.inspect_err(ApiError::count_rejection)?;
    let pictures = follower.pictures().await?;
    answer::respond(&follower.run, pictures, UpscaleResponse::new).await
}

impl FromFields for UpscaleBody {
    fn from_fields(mut fields: Fields) -> Result<Self, ApiError> {
        let images = fields.take(is_image);
        let images = images.into_iter().map(|(_, value)| fields::entries(value)).collect::<Result<Vec<_>, _>>()?;
        let images = images.into_iter().flatten().map(|value| uploads::from_json("image", value)).collect::<Result<_, _>>()?;
        Self::new(fields, images)
    }
}

impl FromForm for UpscaleBody {
    fn from_form(fields: Vec<FormField>) -> Result<Self, ApiError> {
        let (mut images, mut settings) = (Vec::new(), Settings::default());
        for field in fields {
            if is_image(&field.name) { images.push(field.picture("image")?) } else { settings.add(field)? }
        }
        Self::new(settings.fields(), images)
    }
}

/// `image`, `image[]`, `image[0]`.
fn is_image(name: &str) -> bool {
    list_name(name) == "image"
}

impl UpscaleBody {
    /// The body with these fields alone; `others` are names of fields that have no effect.
    pub(super) fn of(image: ImageFile, upscaler: Option<String>, scale: Option<UpscaleScale>, others: Vec<String>) -> Self {
        let (response_format, output_format, output_compression) = (None, None, None);
        Self { fields: UpscaleFields { upscaler, scale, response_format, output_format, output_compression, others }, image }
    }

    fn new(fields: Fields, images: Vec<Vec<u8>>) -> Result<Self, ApiError> {
        let (fields, others): (UpscaleFields, _) = fields.read()?;
        let several = images.len();
        let Ok([image]) = <[Vec<u8>; 1]>::try_from(images) else {
            return Err(match several {
                0 => ApiError::missing_param("image"),
                several => ApiError::invalid_param("image", &format!("must be one picture, not {several}")),
            });
        };
        Ok(Self { fields: UpscaleFields { others, ..fields }, image: ImageFile::open("image", image)? })
    }

    /// Validates the request, then decodes the picture.
    pub(super) async fn into_order(self, info: &ModelInfo) -> Result<ImagesOrder, ApiError> {
        let UpscaleFields { upscaler, scale, response_format, output_format, output_compression, others } = self.fields;
        let upscaler = info.upscalers.find("upscaler", upscaler.as_deref())?;
        let upscale = info.upscalers.choose("scale", upscaler, scale, self.image.size())?;
        let default = OutputConfig::default();
        let format = output_format.unwrap_or_default();
        let quality = output_compression.map_or(default.quality, |quality| quality.get() as u8);
        let without_effect = [
            ("output_compression", output_compression.is_some() && format == ImageFormat::Png),
            ("response_format", response_format == Some(ResponseFormat::Url)),
        ];
        let without_effect = without_effect.into_iter().filter(|(_, is_without)| *is_without).map(|(name, _)| name);
        let mut ignored: Vec<String> = others.iter().map(|name| api_error::clip(name)).chain(without_effect).map(str::to_owned).collect();
        ignored.sort();
        let picture = uploads::decode_whole(self.image).await?;
        Ok(ImagesOrder {
            picture: Order::upscaling(picture, upscale, OutputConfig { format, quality, ..default }, info),
            is_edit: true,
            mask: None,
            count: 1,
            answer: AnswerForm::Files,
            progress: false,
            on_disconnect: OnDisconnect::Cancel,
            ignored,
        })
    }
}

impl UpscaleResponse {
    fn new(run: &Run, pictures: &[Arc<Complete>]) -> Self {
        let timings: Vec<Timings> = pictures.iter().map(|picture| picture.timings).collect();
        let order = &run.order;
        Self {
            created: run.created,
            data: pictures.iter().map(|picture| UpscaledImage { b64_json: Base64::of(Arc::clone(picture)) }).collect(),
            background: "opaque",
            output_format: order.picture.output.format,
            size: order.size(),
            parameters: order.picture.upscale.as_ref().map(UpscaleParameters::from),
            timings: WireTimings::of(&timings),
            ignored: order.ignored.clone(),
            warnings: pictures.iter().flat_map(|picture| picture.warnings.clone()).collect(),
        }
    }
}
