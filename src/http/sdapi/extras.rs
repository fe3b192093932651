//! `POST /sdapi/v1/extra-single-image`: a picture of the client's, enlarged.

use std::sync::Arc;

use axum::{Extension, Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    backend::ImageFile,
    common::{RequestId, UpscaleScale},
    http::{
        answer::Base64,
        api_error::ApiError,
        app_state::AppState,
        body_bytes::{MAX_UPLOAD_BYTES, ParsedBody},
        client_headers::{ClientHeaders, WaitHeaders},
        extract::{FromFields, JsonBody},
        fields::Fields,
        openapi::{A1111, KeyMissing, NotReady, Refused, TooLate, WentWrong},
        start::start,
        uploads::{self, TakenPicture},
        upscale::UpscaleBody,
    },
};

/// A picture to enlarge.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(expecting = "a JSON object")]
pub(super) struct ExtrasRequest {
    /// A PNG, JPEG or WebP file in base64, or a `data:` URL with one.
    #[serde(rename = "image")]
    #[schema(value_type = String)]
    _image: Option<TakenPicture>,
    /// 0: `upscaling_resize` says how much larger each side is. Nothing else is known here.
    #[schema(minimum = 0, maximum = 0)]
    resize_mode: Option<i64>,
    /// How much larger each side is; 2 where it is left out.
    #[schema(value_type = Option<f64>, minimum = 1, maximum = 8)]
    upscaling_resize: Option<UpscaleScale>,
    /// One of the names in `upscalers`; where it is left out, the picture stays as it is.
    upscaler_1: Option<String>,
}

/// A body whose picture's header has been checked.
pub(super) struct ExtrasBody(UpscaleBody);

/// The picture.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Enlarged {
    /// The names of fields that have no effect, if there are any.
    html_info: String,
    /// The file.
    #[schema(value_type = String, content_encoding = "base64")]
    image: Base64,
}

impl FromFields for ExtrasBody {
    fn from_fields(mut fields: Fields) -> Result<Self, ApiError> {
        let image = fields.take_one(|name| name == "image")?.ok_or_else(|| ApiError::missing_param("image"))?;
        let asking = super::asking(&fields);
        let (ExtrasRequest { resize_mode, upscaling_resize, upscaler_1, .. }, mut others) = fields.read()?;
        others.retain(|name| asking.contains(name));
        if resize_mode.is_some_and(|mode| mode != 0) {
            return Err(ApiError::invalid_param("resize_mode", "must be 0: upscaling_resize says how much larger each side is"));
        }
        let image = ImageFile::open("image", uploads::from_json("image", image)?)?;
        let (upscaler, scale) = if let Some(name) = upscaler_1.filter(|name| name != super::NONE) {
            (name, upscaling_resize.map_or_else(|| 2.0.try_into(), Ok)?)
        } else {
            others.extend(upscaling_resize.map(|_| "upscaling_resize".to_owned()));
            ("Nearest".to_owned(), 1.0.try_into()?)
        };
        Ok(Self(UpscaleBody::of(image, Some(upscaler), Some(scale), others)))
    }
}

/// A picture of the client's, enlarged.
#[utoipa::path(
    post,
    path = "/sdapi/v1/extra-single-image",
    operation_id = "sdapi_extra_single_image",
    tag = A1111,
    params(WaitHeaders),
    request_body(content = ExtrasRequest, example = json!({
        "image": "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFElEQVR42mOwidqSErUFk2QYWhIAEEZXgauZLxMAAAAASUVORK5CYII=",
        "upscaler_1": "Lanczos", "upscaling_resize": 2
    })),
    responses((status = 200, description = "The picture", body = Enlarged), KeyMissing, Refused, NotReady, WentWrong, TooLate)
)]
pub(super) async fn extra_single_image(
    State(state): State<AppState>,
    Extension(id): Extension<RequestId>,
    client: ClientHeaders,
    body: Result<JsonBody<ExtrasBody, MAX_UPLOAD_BYTES>, ApiError>,
) -> Result<Json<Enlarged>, ApiError> {
    let accepted = async {
        let JsonBody(ParsedBody { value: ExtrasBody(body), fingerprint, budget }) = body?;
        let info = state.model()?;
        let order = body.into_order(&info).await?;
        drop(budget);
        start(&state, &id, client, order, fingerprint, &info)
    };
    let mut follower = accepted.await.inspect_err(ApiError::count_rejection)?;
    let picture = follower.pictures().await?.pop().ok_or_else(ApiError::cancelled)?;
    let ignored = follower.run.order.ignored.join(", ");
    let html_info = if ignored.is_empty() { ignored } else { format!("without effect: {ignored}") };
    Ok(Json(Enlarged { html_info, image: Base64::of(Arc::clone(&picture)) }))
}
