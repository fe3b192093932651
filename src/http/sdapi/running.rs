//! The runs that this API has started.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::http::run::{Run, Status};

/// The runs of this API that wait or run. Those of others are not among them.
#[derive(Debug, Clone, Default)]
pub(super) struct Running(Arc<Mutex<Vec<Weak<Run>>>>);

impl Running {
    /// Remembers a run until it ends.
    pub(super) fn add(&self, run: &Arc<Run>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(run));
    }

    /// The runs that have not ended, the oldest first.
    pub(super) fn list(&self) -> Vec<Arc<Run>> {
        let mut runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let live = |run: &Weak<Run>| run.upgrade().filter(|run| matches!(run.status(), Status::Queued | Status::Running));
        runs.retain(|run| live(run).is_some());
        runs.iter().filter_map(live).collect()
    }
}
