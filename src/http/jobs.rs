//! `/v1/jobs`: submit a job, follow it, leave it, fetch its pictures, or cancel it.

mod job_stream;
mod job_wire;

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::{DefaultBodyLimit, Path, State, rejection::PathRejection},
    http::HeaderMap,
    response::Response,
};
use job_wire::{Cancelled, JobBody, JobRequest, JobState, Submitted};
pub(super) use job_wire::{JobEvent, JobItem};
use tracing::info;
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouterExt},
    routes,
};

use super::{
    api_error::ApiError,
    app_state::AppState,
    body_bytes::{MAX_UPLOAD_BYTES, ParsedBody},
    client_headers::{ClientHeaders, WaitHeaders},
    extract::JsonBody,
    images_body::ImagesBody,
    openai::ImagesResponse,
    openapi::{Gone, JOBS, KeyMissing, NotDone, NotFound, NotReady, Refused, TooLate, Unreadable, WentWrong},
    run::{Patience, Run, Status},
    start::start_run,
};
use crate::common::RequestId;

type JobId = Result<Path<String>, PathRejection>;

/// The routes of this API.
pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(submit).layer(DefaultBodyLimit::max(MAX_UPLOAD_BYTES)))
        .routes(routes!(show, cancel))
        .routes(routes!(stream))
        .routes(routes!(result))
}

/// Queues a job, and says where to follow it. The job goes on whether or not a client follows it.
#[utoipa::path(
    post,
    path = "/v1/jobs",
    operation_id = "submit_job",
    tag = JOBS,
    params(WaitHeaders),
    request_body(
        content = JobRequest,
        example = json!({ "operation": "image_generation", "prompt": "a fox", "steps": 15, "width": 128, "height": 128 })
    ),
    responses(
        (
            status = 200,
            description = "It waits for its turn",
            body = Submitted,
            links(
                ("show" = (operation_id = "show_job", parameters(("id" = "$response.body#/job_id")))),
                ("stream" = (operation_id = "stream_job", parameters(("id" = "$response.body#/job_id")))),
                ("result" = (operation_id = "job_result", parameters(("id" = "$response.body#/job_id")))),
                ("cancel" = (operation_id = "cancel_job", parameters(("id" = "$response.body#/job_id"))))
            )
        ),
        KeyMissing, Refused, NotReady
    )
)]
async fn submit(
    State(state): State<AppState>,
    Extension(id): Extension<RequestId>,
    client: ClientHeaders,
    body: Result<JsonBody<JobBody, MAX_UPLOAD_BYTES>, ApiError>,
) -> Result<Json<Submitted>, ApiError> {
    let accepted = async {
        let JsonBody(ParsedBody { value: JobBody { request, files }, fingerprint, budget }) = body?;
        let info = state.model()?;
        let order = ImagesBody { request: request.into_images_request()?, files }.into_order(&info).await?;
        drop(budget);
        let start = || start_run(&state, &id, order, info.id.clone(), client.request_timeout, Patience::Forever);
        state.runs.join_or_start(client.retry_key, fingerprint, start)
    };
    let run = Arc::clone(&accepted.await.inspect_err(ApiError::count_rejection)?.run);
    let job_id = run.job_id.clone();
    info!(job_id, "job accepted");
    state.runs.insert_job(run);
    Ok(Json(Submitted::new(job_id)))
}

/// How far a job is.
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}",
    operation_id = "show_job",
    tag = JOBS,
    params(("id" = String, Path, description = "The job's `job_id`")),
    responses((status = 200, description = "Where it stands", body = JobState), Unreadable, KeyMissing, NotFound)
)]
async fn show(State(state): State<AppState>, id: JobId) -> Result<Json<JobState>, ApiError> {
    let (id, run) = find(&state, id)?;
    Ok(Json(JobState::new(id, &run)))
}

/// Follows a job: its past events, then its new ones.
///
/// The last line of data is `[DONE]`, `[ERROR] why` or `[CANCELLED]`.
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}/stream",
    operation_id = "stream_job",
    tag = JOBS,
    params(
        ("id" = String, Path, description = "The job's `job_id`"),
        ("last-event-id" = Option<String>, Header, description = "Only what came after the event of this number")
    ),
    responses(
        (status = 200, description = "Its events", content(("text/event-stream", item_schema = JobItem))),
        Unreadable, KeyMissing, NotFound
    )
)]
async fn stream(State(state): State<AppState>, headers: HeaderMap, id: JobId) -> Result<Response, ApiError> {
    let (_, run) = find(&state, id)?;
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.trim().parse::<u64>().ok());
    Ok(job_stream::respond(run.follow(last.map_or(0, |last| last.saturating_add(1)))))
}

/// The answer that `/v1/images/generations` would have given.
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}/result",
    operation_id = "job_result",
    tag = JOBS,
    params(("id" = String, Path, description = "The job's `job_id`")),
    responses((status = 200, description = "What `/v1/images/generations` would have answered", body = ImagesResponse), Unreadable, KeyMissing, NotFound, NotDone, Gone, NotReady, WentWrong, TooLate)
)]
async fn result(State(state): State<AppState>, id: JobId) -> Result<Response, ApiError> {
    let (_, run) = find(&state, id)?;
    match run.status() {
        status @ (Status::Queued | Status::Running) => Err(ApiError::job_not_done(status.name())),
        Status::Completed | Status::Failed(_) | Status::Cancelled => {
            let pictures = run.follow(0).pictures().await?;
            ImagesResponse::respond(&run, pictures).await
        }
    }
}

/// Cancels a job that waits or runs.
#[utoipa::path(
    delete,
    path = "/v1/jobs/{id}",
    operation_id = "cancel_job",
    tag = JOBS,
    params(("id" = String, Path, description = "The job's `job_id`")),
    responses((status = 200, description = "It stops", body = Cancelled), Unreadable, KeyMissing, NotFound)
)]
async fn cancel(State(state): State<AppState>, id: JobId) -> Result<Json<Cancelled>, ApiError> {
    let (job_id, run) = find(&state, id)?;
    if !run.cancel() {
        return Err(ApiError::job_over(run.status().name()));
    }
    info!(job_id, "job cancelled");
    Ok(Json(Cancelled::new(job_id)))
}

fn find(state: &AppState, id: JobId) -> Result<(String, Arc<Run>), ApiError> {
    let Path(id) = id.map_err(|rejection| ApiError::unreadable_path(&rejection.body_text()))?;
    let run = state.runs.job(&id)?;
    Ok((id, run))
}
