//! `POST /sdapi/v1/txt2img` and `img2img`.

use axum::{Extension, extract::State, response::Response};

use super::{
    picture_answer::{self, Pictures, Repeated},
    picture_request::{PictureBody, PictureEditRequest, PictureRequest},
    running::Running,
};
use crate::{
    common::RequestId,
    http::{
        api_error::ApiError,
        app_state::AppState,
        body_bytes::{MAX_UPLOAD_BYTES, ParsedBody},
        client_headers::{ClientHeaders, WaitHeaders},
        extract::JsonBody,
        openapi::{A1111, KeyMissing, NotReady, Refused, TooLate, WentWrong},
        start::start,
    },
};

/// Previews of a picture, for `progress`.
const PREVIEWS: u8 = 5;

type Body = Result<JsonBody<PictureBody, MAX_UPLOAD_BYTES>, ApiError>;

/// What a request brings along beside its body.
type Client = (State<AppState>, Extension<RequestId>, Extension<Running>, ClientHeaders);

/// Pictures from a prompt.
#[utoipa::path(
    post,
    path = "/sdapi/v1/txt2img",
    operation_id = "sdapi_txt2img",
    tag = A1111,
    params(WaitHeaders),
    request_body(content = PictureRequest, example = json!({ "prompt": "a fox", "steps": 12, "width": 128, "height": 128, "sampler_name": "Euler a" })),
    responses((status = 200, description = "The pictures", body = Pictures), KeyMissing, Refused, NotReady, WentWrong, TooLate)
)]
pub(super) async fn txt2img(
    state: State<AppState>,
    id: Extension<RequestId>,
    running: Extension<Running>,
    client: ClientHeaders,
    body: Body,
) -> Result<Response, ApiError> {
    draw((state, id, running, client), body, false).await
}

/// Pictures from a picture, of which a mask may mark a part.
#[utoipa::path(
    post,
    path = "/sdapi/v1/img2img",
    operation_id = "sdapi_img2img",
    tag = A1111,
    params(WaitHeaders),
    request_body(content = PictureEditRequest, example = json!({
        "init_images": ["data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFElEQVR42mOwidqSErUFk2QYWhIAEEZXgauZLxMAAAAASUVORK5CYII="],
        "prompt": "an owl on a blue background", "denoising_strength": 0.7, "width": 128, "height": 128
    })),
    responses((status = 200, description = "The pictures", body = Pictures), KeyMissing, Refused, NotReady, WentWrong, TooLate)
)]
pub(super) async fn img2img(
    state: State<AppState>,
    id: Extension<RequestId>,
    running: Extension<Running>,
    client: ClientHeaders,
    body: Body,
) -> Result<Response, ApiError> {
    draw((state, id, running, client), body, true).await
}

async fn draw(
    (State(state), Extension(id), Extension(running), client): Client,
    body: Body,
    begins_with_picture: bool,
) -> Result<Response, ApiError> {
    let accepted = async {
        let JsonBody(ParsedBody { value: mut body, fingerprint, budget }) = body?;
        let info = state.model()?;
        let repeated =
            Repeated { parameters: std::mem::take(&mut body.echo), batch_size: body.batch_size(), has_images: body.sends_images() };
        let mut order = body.into_images_body(begins_with_picture, &info)?.into_order(&info).await?;
        drop(budget);
        order.picture.output.previews = PREVIEWS;
        Ok((start(&state, &id, client, order, fingerprint, &info)?, repeated))
    };
    let (mut follower, repeated) = accepted.await.inspect_err(ApiError::count_rejection)?;
    running.add(&follower.run);
    let pictures = follower.pictures_so_far().await?;
    picture_answer::respond(&follower.run, pictures, repeated).await
}
