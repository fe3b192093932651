//! `GET /metrics`, for Prometheus.

use axum::{extract::State, http::header, response::IntoResponse};
use metrics::Unit;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use super::{
    api_error::ApiError,
    app_state::AppState,
    openapi::{KeyMissing, PROCESS},
};

/// Buckets from a step of the built-in model to an hour.
const SECONDS: [f64; 18] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1., 2.5, 5., 10., 30., 60., 300., 900., 3600.];

/// Buckets from one picture to the largest batch.
const BATCH_SIZES: [f64; 13] = [1., 2., 3., 4., 6., 8., 12., 16., 24., 32., 64., 128., 256.];

/// Installs the process's recorder, which feeds the returned handle.
///
/// # Errors
/// When the process has a recorder already.
pub fn install_recorder() -> Result<PrometheusHandle, BuildError> {
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Full("sdw_batch_size".to_owned()), &BATCH_SIZES)?;
    let handle = builder.install_recorder()?;
    describe();
    begin();
    Ok(handle)
}

/// Creates every series at zero before the first scrape: Prometheus sees no increase in a series that appears with the value 1.
fn begin() {
    for (name, label, values) in [
        ("sdw_requests_total", "outcome", &["ok", "cancelled", "error"][..]),
        ("sdw_rejected_total", "reason", &ApiError::REJECTIONS),
        ("sdw_cancelled_total", "reason", &["deadline", "cancelled", "disconnect"]),
        ("sdw_prompt_cache_total", "outcome", &["hit", "miss"]),
    ] {
        for value in values {
            metrics::counter!(name, label => *value).increment(0);
        }
    }
    metrics::counter!("sdw_images_total").increment(0);
    for name in ["sdw_requests_waiting", "sdw_requests_running", "sdw_queue_capacity", "sdw_model_loaded"] {
        metrics::gauge!(name).set(0);
    }
    // Fetching a histogram creates it.
    for name in ["sdw_queue_seconds", "sdw_step_seconds", "sdw_batch_size", "sdw_generation_seconds"] {
        drop(metrics::histogram!(name));
    }
    for phase in ["text", "denoise", "decode", "encode"] {
        drop(metrics::histogram!("sdw_phase_seconds", "phase" => phase));
    }
}

fn describe() {
    metrics::describe_gauge!("sdw_requests_waiting", "Pictures that wait for their turn");
    metrics::describe_gauge!("sdw_requests_running", "Pictures being made");
    metrics::describe_gauge!("sdw_queue_capacity", "Pictures that may wait or run");
    metrics::describe_gauge!("sdw_model_loaded", "1 when the model is loaded and works");
    metrics::describe_histogram!("sdw_queue_seconds", Unit::Seconds, "Time from acceptance to the request's turn");
    metrics::describe_histogram!("sdw_phase_seconds", Unit::Seconds, "Time of one phase of a generation");
    metrics::describe_histogram!("sdw_step_seconds", Unit::Seconds, "Time of one denoising step, of all pictures that take it together");
    metrics::describe_histogram!("sdw_batch_size", "Pictures that take a denoising step together");
    metrics::describe_histogram!("sdw_generation_seconds", Unit::Seconds, "Time of a generation, without waiting");
    metrics::describe_counter!("sdw_requests_total", "Pictures asked for, by outcome");
    metrics::describe_counter!("sdw_rejected_total", "HTTP requests refused before they were queued, by reason");
    metrics::describe_counter!("sdw_cancelled_total", "Pictures given up, by reason");
    metrics::describe_counter!("sdw_prompt_cache_total", "Prompts to encode, by outcome: hit where the embedding was kept, or miss");
    metrics::describe_counter!("sdw_images_total", "Pictures finished");
}

/// Figures for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = PROCESS, responses((status = 200, description = "As text", body = String, content_type = "text/plain"), KeyMissing))]
pub(super) async fn render(State(state): State<AppState>) -> impl IntoResponse {
    state.metrics.run_upkeep();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], state.metrics.render())
}
