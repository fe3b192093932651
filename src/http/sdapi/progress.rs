//! `GET /sdapi/v1/progress`, and what stops the pictures of this API.

use axum::{
    Extension, Json,
    extract::{Query, rejection::QueryRejection},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::running::Running;
use crate::http::{
    answer::Base64,
    api_error::ApiError,
    openapi::{A1111, Forbidden, KeyMissing, Unreadable},
    page::OfNoStranger,
    run::{Run, Status},
};

/// The least progress of a run: a client takes 0 for an idle worker.
const BEGUN: f64 = 0.01;

/// How far the pictures of this API are.
#[derive(Debug, Serialize, ToSchema)]
#[allow(clippy::struct_field_names, reason = "the names are A1111's")]
pub(super) struct Progress {
    /// From 0 to 1; 0 when nothing is to be done.
    progress: f64,
    /// Seconds that the steps to come take.
    eta_relative: f64,
    state: State,
    /// The latest preview.
    #[schema(value_type = Option<String>, content_encoding = "base64", required)]
    current_image: Option<Base64>,
    #[schema(required)]
    textinfo: Option<String>,
}

#[derive(Debug, Default, Serialize, ToSchema)]
struct State {
    skipped: bool,
    interrupted: bool,
    job: String,
    /// Pictures that are not done, of all requests.
    job_count: usize,
    job_timestamp: String,
    /// Pictures of the current request that are done.
    job_no: usize,
    sampling_step: usize,
    sampling_steps: usize,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// Whether the preview is left out.
    skip_current_image: Option<bool>,
}

/// An empty object.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Done {}

/// How far the pictures of this API are: those of the oldest request that has begun.
#[utoipa::path(get, path = "/sdapi/v1/progress", operation_id = "sdapi_progress", tag = A1111, params(Wanted), responses((status = 200, description = "All zeros when nothing is to be done", body = Progress), Unreadable, KeyMissing))]
pub(super) async fn progress(
    Extension(running): Extension<Running>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<Progress>, ApiError> {
    let Query(wanted) = wanted.map_err(|_| ApiError::invalid_param("skip_current_image", "must be true or false"))?;
    let runs = running.list();
    let left = |run: &Run| run.order.count as usize - run.finished().min(run.order.count as usize);
    let job_count = runs.iter().map(|run| left(run)).sum();
    let idle = Progress { progress: 0.0, eta_relative: 0.0, state: State::default(), current_image: None, textinfo: None };
    let Some(run) = runs.iter().find(|run| matches!(run.status(), Status::Running)).or(runs.first()) else { return Ok(Json(idle)) };
    let (done, steps) = (run.finished(), run.progress());
    let (step, total) = steps.map_or((0, 0), |steps| (steps.step, steps.total));
    let share = if total == 0 || step == total { 0.0 } else { step as f64 / total as f64 };
    Ok(Json(Progress {
        progress: ((done as f64 + share) / f64::from(run.order.count)).clamp(BEGUN, 1.0),
        eta_relative: steps.map_or(0.0, |steps| steps.remaining.as_secs_f64()),
        state: State {
            job: run.job_id.clone(),
            job_count,
            job_timestamp: run.created.to_string(),
            job_no: done,
            sampling_step: step,
            sampling_steps: total,
            ..State::default()
        },
        current_image: run.latest_preview().filter(|_| wanted.skip_current_image != Some(true)).map(Base64::of),
        textinfo: None,
    }))
}

/// Stops the pictures of this API. Their requests are answered with what there is.
#[utoipa::path(post, path = "/sdapi/v1/interrupt", operation_id = "sdapi_interrupt", tag = A1111, responses((status = 200, description = "They stop", body = Done), KeyMissing, Forbidden))]
pub(super) async fn interrupt(_: OfNoStranger, Extension(running): Extension<Running>) -> Json<Done> {
    for run in running.list() {
        run.cancel();
    }
    Json(Done {})
}

/// The same as `interrupt`.
#[utoipa::path(post, path = "/sdapi/v1/skip", operation_id = "sdapi_skip", tag = A1111, responses((status = 200, description = "They stop", body = Done), KeyMissing, Forbidden))]
pub(super) async fn skip(stranger: OfNoStranger, running: Extension<Running>) -> Json<Done> {
    interrupt(stranger, running).await
}
