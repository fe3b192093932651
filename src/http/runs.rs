//! Runs that a client may come back to: jobs, and requests with an idempotency key.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{
    api_error::ApiError,
    run::{Follower, Run, Status},
};

/// A registry of runs. Finished ones are kept for a limited time, in limited number and size.
#[derive(Debug, Clone)]
pub struct Runs {
    runs: Arc<Mutex<HashMap<Key, Kept>>>,
    limits: RunLimits,
}

/// Limits of finished runs.
#[derive(Debug, Clone, Copy)]
pub struct RunLimits {
    /// How long a finished run is kept.
    pub keep: Duration,
    /// How many finished runs are kept; the oldest go first.
    pub most: usize,
    /// How many bytes they may have together. The oldest go first; the newest always stays.
    pub bytes: usize,
}

/// What a run is found by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Job(String),
    /// The idempotency key of a client.
    Retry(String),
}

#[derive(Debug)]
struct Kept {
    run: Arc<Run>,
    /// A hash of the route and the body, which detects a key that is used for another request.
    fingerprint: u64,
}

impl Runs {
    /// An empty registry.
    #[must_use]
    pub fn new(limits: RunLimits) -> Self {
        Self { runs: Arc::default(), limits }
    }

    /// Whether finished runs are kept at all.
    pub(super) fn keeps_any(&self) -> bool {
        !self.limits.keep.is_zero() && self.limits.most > 0
    }

    /// Follows the run of this key, or starts it. A failed run is started again; without a key, every request starts one.
    pub(super) fn join_or_start(
        &self,
        key: Option<Key>,
        fingerprint: u64,
        start: impl FnOnce() -> Result<Arc<Run>, ApiError>,
    ) -> Result<Follower, ApiError> {
        let Some(key) = key else { return Ok(start()?.follow(0)) };
        let mut runs = self.lock();
        if let Some(kept) = runs.get(&key) {
            if kept.fingerprint != fingerprint {
                return Err(ApiError::key_reused());
            }
            let follower = kept.run.follow(0);
            if !matches!(kept.run.status(), Status::Failed(_) | Status::Cancelled) {
                return Ok(follower);
            }
        }
        let run = start()?;
        let follower = run.follow(0);
        runs.insert(key, Kept { run, fingerprint });
        Ok(follower)
    }

    /// Registers a job.
    pub(super) fn insert_job(&self, run: Arc<Run>) {
        self.lock().insert(Key::Job(run.job_id.clone()), Kept { run, fingerprint: 0 });
    }

    /// The run of a job.
    pub(super) fn job(&self, id: &str) -> Result<Arc<Run>, ApiError> {
        self.lock().get(&Key::Job(id.to_owned())).map(|kept| Arc::clone(&kept.run)).ok_or_else(|| ApiError::no_such_job(id))
    }

    /// Removes finished runs beyond the limits.
    pub fn forget_old(&self) {
        drop(self.lock());
    }

    /// Removes finished runs beyond the limits first, so that no caller sees them.
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Kept>> {
        // The map is consistent after every line.
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        runs.retain(|_, kept| kept.run.ended().is_none_or(|ago| ago < self.limits.keep));
        let ended = |kept: &Kept| Some((kept.run.ended()?, Arc::clone(&kept.run)));
        let mut ended: Vec<(Duration, Arc<Run>)> = runs.values().filter_map(ended).collect();
        ended.sort_by_key(|(ago, _)| *ago);
        // A job with an idempotency key is registered twice.
        let mut seen = HashSet::new();
        ended.retain(|(_, run)| seen.insert(Arc::as_ptr(run)));
        let mut total = 0;
        for (i, (_, run)) in ended.iter().enumerate() {
            total += run.bytes();
            if i >= self.limits.most || (i > 0 && total > self.limits.bytes) {
                runs.retain(|_, kept| !Arc::ptr_eq(&kept.run, run));
            }
        }
        runs
    }
}
