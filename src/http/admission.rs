//! Who may queue. The queue itself is unbounded; a request comes to it only with a permit, so a refusal costs nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::backend::Progress;

/// The longest `Retry-After`.
const MAX_RETRY_AFTER: Duration = Duration::from_mins(2);
/// What a step is taken to cost until one has been measured.
const FIRST_GUESS: Duration = Duration::from_millis(500);

/// Counts the pictures that wait or run, and the steps that are still to be done for them.
#[derive(Debug, Clone)]
pub struct Admission {
    permits: Arc<Semaphore>,
    capacity: u32,
    backlog: Arc<Backlog>,
}

#[derive(Debug)]
struct Backlog {
    /// Steps admitted and not yet done.
    steps: AtomicU64,
    /// Moving average of a step's time.
    step_nanos: AtomicU64,
}

/// The right to have some pictures made. What is left of its steps leaves the backlog when it is dropped.
#[derive(Debug)]
pub struct Permit {
    /// Places that no request has taken along yet.
    places: OwnedSemaphorePermit,
    backlog: Arc<Backlog>,
    steps_left: u64,
}

/// Why there is no permit.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no room at present.
    Full {
        /// When to try again, from the measured time of a step and the steps that wait.
        retry_after: Duration,
    },
    /// There never is room for so many.
    TooMany {
        /// How many there is room for.
        capacity: u32,
    },
}

impl Admission {
    /// Room for `capacity` pictures, those being made included.
    #[must_use]
    pub fn new(capacity: u32) -> Self {
        metrics::gauge!("sdw_queue_capacity").set(capacity);
        let backlog = Backlog { steps: AtomicU64::new(0), step_nanos: AtomicU64::new(FIRST_GUESS.as_nanos() as u64) };
        Self { permits: Arc::new(Semaphore::new(capacity as usize)), capacity, backlog: Arc::new(backlog) }
    }

    /// A permit for `pictures` of `steps` steps each.
    ///
    /// # Errors
    /// When there is no room for all of them.
    pub fn admit(&self, pictures: u32, steps: usize) -> Result<Permit, Refusal> {
        if pictures > self.capacity {
            return Err(Refusal::TooMany { capacity: self.capacity });
        }
        let Ok(places) = Arc::clone(&self.permits).try_acquire_many_owned(pictures) else {
            return Err(Refusal::Full { retry_after: self.backlog.time().clamp(Duration::from_secs(1), MAX_RETRY_AFTER) });
        };
        let steps_left = u64::from(pictures) * steps as u64;
        self.backlog.steps.fetch_add(steps_left, Ordering::Relaxed);
        Ok(Permit { places, backlog: Arc::clone(&self.backlog), steps_left })
    }

    /// Waits until nothing waits or runs.
    pub async fn idle(&self) {
        // The semaphore is never closed.
        let _all = self.permits.acquire_many(self.capacity).await;
    }
}

impl Backlog {
    fn time(&self) -> Duration {
        let nanos = self.steps.load(Ordering::Relaxed).saturating_mul(self.step_nanos.load(Ordering::Relaxed));
        Duration::from_nanos(nanos)
    }
}

impl Permit {
    /// A place for one picture. It is taken until the engine is done with the request that carries it, whether or not anybody still
    /// waits for the answer.
    pub(super) fn place(&mut self) -> Option<OwnedSemaphorePermit> {
        self.places.split(1)
    }

    /// Takes note of a step that is done.
    pub fn note(&mut self, progress: &Progress) {
        let done = 1.min(self.steps_left);
        self.steps_left -= done;
        self.backlog.steps.fetch_sub(done, Ordering::Relaxed);
        // Races between requests cost one measurement, which the next makes good.
        let before = self.backlog.step_nanos.load(Ordering::Relaxed);
        let measured = progress.step_time.as_nanos() as u64;
        self.backlog.step_nanos.store((before / 4).saturating_mul(3).saturating_add(measured / 4), Ordering::Relaxed);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.backlog.steps.fetch_sub(self.steps_left, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry_after(admission: &Admission) -> Duration {
        match admission.admit(1, 1) {
            Err(Refusal::Full { retry_after }) => retry_after,
            other => panic!("{other:?}"),
        }
    }

    fn step(millis: u64) -> Progress {
        Progress { step: 1, total: 10, step_time: Duration::from_millis(millis) }
    }

    #[test]
    fn a_full_queue_says_when_to_come_back() {
        let admission = Admission::new(2);
        let mut permit = admission.admit(2, 10).unwrap();
        assert_eq!(retry_after(&admission), FIRST_GUESS * 20);
        for _ in 0..10 {
            permit.note(&step(2000));
        }
        let wait = retry_after(&admission);
        assert!((Duration::from_secs(18)..Duration::from_secs(20)).contains(&wait), "10 steps of nearly 2 s, not {wait:?}");
        for _ in 0..10 {
            permit.note(&step(600_000));
        }
        drop(permit);
        let _room = admission.admit(2, 1000).unwrap();
        assert_eq!(retry_after(&admission), MAX_RETRY_AFTER);
    }

    #[test]
    fn more_than_there_is_room_for_at_all_is_not_asked_to_come_back() {
        assert_eq!(Admission::new(2).admit(3, 1).unwrap_err(), Refusal::TooMany { capacity: 2 });
    }

    #[test]
    fn a_place_is_taken_for_as_long_as_its_request_lives() {
        let admission = Admission::new(1);
        let place = admission.admit(1, 1).unwrap().place().unwrap();
        assert!(admission.admit(1, 1).is_err(), "the client is gone, the request is not");
        drop(place);
        assert!(admission.admit(1, 1).is_ok());
    }

    #[tokio::test]
    async fn dropped_permits_leave_nothing_behind() {
        let admission = Admission::new(3);
        let permit = admission.admit(3, 50).unwrap();
        drop(permit);
        admission.idle().await;
        assert_eq!(admission.backlog.steps.load(Ordering::Relaxed), 0);
    }
}
