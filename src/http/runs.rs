//! Runs that somebody may come back to: jobs, and requests that a client may send again.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{
    api_error::ApiError,
    run::{Follower, Run, Status},
};

/// Where runs are found again. What has ended is kept for a time, and only so many.
#[derive(Debug, Clone)]
pub struct Runs {
    runs: Arc<Mutex<HashMap<Key, Kept>>>,
    limits: RunLimits,
}

/// How long, how many, and how much.
#[derive(Debug, Clone, Copy)]
pub struct RunLimits {
    /// How long results are kept.
    pub keep: Duration,
    /// How many results are kept; the oldest go first.
    pub most: usize,
    /// How many bytes they have together; the oldest go first, the newest never.
    pub bytes: usize,
}

/// What a run is found by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Job(String),
    /// The client's own key, with which it sends a request again.
    Retry(String),
}

#[derive(Debug)]
struct Kept {
    run: Arc<Run>,
    /// Of the route and the body, so that a key is not taken for another request's.
    fingerprint: u64,
}

impl Runs {
    /// A place for as many as `limits` says.
    #[must_use]
    pub fn new(limits: RunLimits) -> Self {
        Self { runs: Arc::default(), limits }
    }

    /// Follows the run of this key, or starts it. One that went wrong is started again, and so is one without a key.
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

    /// Keeps a job.
    pub(super) fn insert_job(&self, run: Arc<Run>) {
        self.lock().insert(Key::Job(run.job_id.clone()), Kept { run, fingerprint: 0 });
    }

    /// The run of a job.
    pub(super) fn job(&self, id: &str) -> Result<Arc<Run>, ApiError> {
        self.lock().get(&Key::Job(id.to_owned())).map(|kept| Arc::clone(&kept.run)).ok_or_else(|| ApiError::no_such_job(id))
    }

    /// Lets go of what ended too long ago, and of the oldest where there are too many.
    pub fn forget_old(&self) {
        drop(self.lock());
    }

    /// Nobody ever sees more than the limits allow.
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Kept>> {
        // What is behind the lock is whole after every line.
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        runs.retain(|_, kept| kept.run.ended().is_none_or(|ago| ago < self.limits.keep));
        let ended = |kept: &Kept| Some((kept.run.ended()?, Arc::clone(&kept.run)));
        let mut ended: Vec<(Duration, Arc<Run>)> = runs.values().filter_map(ended).collect();
        ended.sort_by_key(|(ago, _)| *ago);
        // A job that may be sent again has two keys.
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
