//! The state that every handler shares.

use std::{sync::Arc, time::Duration};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{access::Access, admission::Admission, api_error::ApiError, lifecycle::Lifecycle, runs::Runs};
use crate::backend::{ModelInfo, Pulse, RequestQueue};

/// The state that every handler shares.
#[derive(Clone, Debug)]
pub struct AppState {
    /// The queue of the engine.
    pub queue: RequestQueue,
    /// Whether the model is loaded, and whether the worker still takes requests.
    pub lifecycle: watch::Receiver<Lifecycle>,
    /// Decides which requests enter the queue.
    pub admission: Admission,
    /// Runs that clients may come back to: jobs, and requests with an idempotency key.
    pub runs: Runs,
    /// Which requests are answered at all.
    pub access: Access,
    /// How long a client may be silent in the middle of a body.
    pub client_timeout: Duration,
    /// The most pictures of one size in a batch.
    pub max_batch: u32,
    /// When the engine last moved.
    pub pulse: Pulse,
    /// How long the engine may stand still before `/livez` fails; `None` is no limit.
    pub watchdog: Option<Duration>,
    /// Renders `/metrics`.
    pub metrics: PrometheusHandle,
    /// Asks the worker to finish its runs and to stop.
    pub shutdown: CancellationToken,
    /// Cancels every run, once the time to finish is over.
    pub stop: CancellationToken,
}

impl AppState {
    /// The loaded model.
    pub(super) fn model(&self) -> Result<Arc<ModelInfo>, ApiError> {
        match &*self.lifecycle.borrow() {
            Lifecycle::Loading => Err(ApiError::loading()),
            Lifecycle::Ready(info) => Ok(Arc::clone(info)),
            Lifecycle::Draining => Err(ApiError::draining()),
        }
    }
}
