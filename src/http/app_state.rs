//! What every handler shares.

use std::{sync::Arc, time::Duration};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{access::Access, admission::Admission, api_error::ApiError, lifecycle::Lifecycle, runs::Runs};
use crate::backend::{ModelInfo, Pulse, RequestQueue};

/// What every handler shares.
#[derive(Clone, Debug)]
pub struct AppState {
    /// The way to the engine.
    pub queue: RequestQueue,
    /// Whether there is a model yet, and whether the worker still takes work.
    pub lifecycle: watch::Receiver<Lifecycle>,
    /// Who may use the queue.
    pub admission: Admission,
    /// What clients may come back to.
    pub runs: Runs,
    /// Who may ask.
    pub access: Access,
    /// How long a client may be silent in the middle of a body.
    pub client_timeout: Duration,
    /// How many pictures of one size the engine works on together.
    pub max_batch: u32,
    /// Whether the engine moves, and how long it may not.
    pub pulse: Pulse,
    /// `None`: for ever.
    pub watchdog: Option<Duration>,
    /// Renders `/metrics`.
    pub metrics: PrometheusHandle,
    /// Asks the worker to finish what runs and to end.
    pub shutdown: CancellationToken,
    /// Cancels everything that runs, when the worker has waited long enough.
    pub stop: CancellationToken,
}

impl AppState {
    /// The model, if the worker takes requests.
    pub(super) fn model(&self) -> Result<Arc<ModelInfo>, ApiError> {
        match &*self.lifecycle.borrow() {
            Lifecycle::Loading => Err(ApiError::loading()),
            Lifecycle::Ready(info) => Ok(Arc::clone(info)),
            Lifecycle::Draining => Err(ApiError::draining()),
        }
    }
}
