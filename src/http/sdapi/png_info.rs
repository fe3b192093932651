//! `POST /sdapi/v1/png-info`: how a picture was made, by what its file says.

use std::collections::BTreeMap;

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    backend::{GenerationError, ImageFile, read_infotext},
    http::{
        api_error::ApiError,
        body_bytes::{MAX_UPLOAD_BYTES, ParsedBody},
        extract::{FromFields, JsonBody},
        fields::Fields,
        off_thread,
        openapi::{A1111, KeyMissing, Refused},
        uploads,
    },
};

/// A picture.
#[derive(ToSchema)]
#[allow(dead_code, reason = "a description")]
pub(super) struct PictureToRead {
    /// A PNG, JPEG or WebP file in base64, or a `data:` URL with one.
    image: String,
}

/// The file of a request.
pub(super) struct FileToRead(ImageFile);

/// How a picture was made.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PictureInfo {
    /// The text in the file; empty if there is none.
    info: String,
    items: BTreeMap<&'static str, String>,
    /// The same by names.
    parameters: BTreeMap<String, String>,
}

impl FromFields for FileToRead {
    fn from_fields(mut fields: Fields) -> Result<Self, ApiError> {
        let image = fields.take_one(|name| name == "image")?.ok_or_else(|| ApiError::missing_param("image"))?;
        Ok(Self(ImageFile::open("image", uploads::from_json("image", image)?)?))
    }
}

/// How a picture was made, by what its file says.
#[utoipa::path(
    post,
    path = "/sdapi/v1/png-info",
    operation_id = "sdapi_png_info",
    tag = A1111,
    request_body(content = PictureToRead, example = json!({
        "image": "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFElEQVR42mOwidqSErUFk2QYWhIAEEZXgauZLxMAAAAASUVORK5CYII="
    })),
    responses((status = 200, description = "What there is", body = PictureInfo), KeyMissing, Refused)
)]
pub(super) async fn png_info(body: Result<JsonBody<FileToRead, MAX_UPLOAD_BYTES>, ApiError>) -> Result<Json<PictureInfo>, ApiError> {
    let JsonBody(ParsedBody { value: FileToRead(file), .. }) = body?;
    let read = move || {
        let text = file.parameters();
        let parameters = text.as_deref().map(read_infotext).unwrap_or_default();
        let items = text.iter().map(|text| ("parameters", text.clone())).collect();
        PictureInfo { info: text.unwrap_or_default(), items, parameters }
    };
    Ok(Json(off_thread::offload(usize::MAX, read).await.map_err(|error| GenerationError::Panicked(error.to_string()))?))
}
