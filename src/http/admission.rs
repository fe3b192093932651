//! Admission to the queue. The queue itself is unbounded: a request enters it only with a permit, so a refusal costs nothing.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::backend::{Demand, Progress};

/// The longest `Retry-After` that a refusal names.
const MAX_RETRY_AFTER: Duration = Duration::from_mins(2);
/// The pixels of 1024 x 1024.
pub const MEGAPIXEL: u64 = 1 << 20;
/// The cost of a pixel in a step, in picoseconds, until a step has been measured: half a second for 512 x 512 with guidance.
const FIRST_GUESS: u64 = 1_000_000;

/// Counts the pictures that wait or run, and the work that is left for them.
#[derive(Debug, Clone)]
pub struct Admission {
    permits: Arc<Semaphore>,
    capacity: u32,
    /// The most work of one request, in pixels times evaluations of the network.
    max_work: u64,
    backlog: Arc<Backlog>,
}

#[derive(Debug, Default)]
struct Backlog {
    /// The work of each permit that is alive, by the number of its request.
    left: Mutex<BTreeMap<u64, WorkLeft>>,
    /// The number of requests admitted so far.
    requests: AtomicU64,
    /// The number of permits that are alive.
    permits: watch::Sender<usize>,
    /// A moving average of the cost of a pixel in a step, in picoseconds; 0 until a step is measured.
    picos_per_pixel: AtomicU64,
}

/// Work that is admitted and not done, in pixels times evaluations.
#[derive(Debug, Clone, Copy)]
struct WorkLeft {
    /// Of all pictures of the request.
    all: u64,
    /// Of a whole picture.
    picture: u64,
}

/// The right to have some pictures made. Dropping it removes its remaining steps from the backlog.
#[derive(Debug)]
pub struct Permit {
    /// One semaphore permit for each picture that has not been handed to a [`GenerationRequest`](crate::backend::GenerationRequest).
    places: OwnedSemaphorePermit,
    backlog: Arc<Backlog>,
    demand: Arc<Demand>,
    /// The number of the request in the backlog.
    number: u64,
}

/// Why a request gets no permit.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The queue is full at present.
    Full {
        /// When to try again: the steps that wait, times the measured time of a step.
        retry_after: Duration,
    },
    /// The request's work is beyond the limit.
    TooMuch {
        /// The request's work, in pixels times evaluations.
        work: u64,
        /// The limit.
        max_work: u64,
    },
    /// The request has more pictures than the queue can ever hold.
    TooMany {
        /// The most pictures that wait or run.
        capacity: u32,
    },
    /// The client's deadline would pass before its pictures are made.
    TooLate {
        /// How long the pictures before its last one take.
        others: Duration,
        /// How long its own pictures take.
        own: Duration,
        /// How long the client waits.
        deadline: Duration,
    },
}

impl Admission {
    /// Admits up to `capacity` pictures at a time, counting those that wait and those that run.
    #[must_use]
    pub fn new(capacity: u32) -> Self {
        metrics::gauge!("sdw_queue_capacity").set(capacity);
        Self { permits: Arc::new(Semaphore::new(capacity as usize)), capacity, max_work: u64::MAX, backlog: Arc::default() }
    }

    /// The same with a limit for the work of one request, in [megapixels](MEGAPIXEL): pictures x evaluations of the network x pixels of all
    /// samples.
    #[must_use]
    pub fn with_max_work(self, megapixels: u64) -> Self {
        Self { max_work: megapixels.saturating_mul(MEGAPIXEL), ..self }
    }

    /// A permit for `pictures` pictures of `demand` each. `deadline` is how long the client waits for all of them, if it says so.
    ///
    /// # Errors
    /// When the queue is full, the request is too large, or its deadline is too soon.
    pub fn admit(&self, demand: &Arc<Demand>, pictures: u32, deadline: Option<Duration>) -> Result<Permit, Refusal> {
        if pictures > self.capacity {
            return Err(Refusal::TooMany { capacity: self.capacity });
        }
        let picture = demand.work();
        let work = u64::from(pictures).saturating_mul(picture);
        if work > self.max_work {
            return Err(Refusal::TooMuch { work, max_work: self.max_work });
        }
        if let (Some(deadline), true) = (deadline, self.backlog.is_measured()) {
            let others = self.backlog.time(self.backlog.work_before(pictures));
            let own = self.backlog.time(work);
            if others + own > deadline {
                return Err(Refusal::TooLate { others, own, deadline });
            }
        }
        let Ok(places) = Arc::clone(&self.permits).try_acquire_many_owned(pictures) else {
            let everything = self.backlog.work_before(u32::MAX);
            return Err(Refusal::Full { retry_after: retry_after(self.backlog.time(everything)) });
        };
        let number = self.backlog.requests.fetch_add(1, Ordering::Relaxed);
        self.backlog.with_left(|left| left.insert(number, WorkLeft { all: work, picture }));
        self.backlog.permits.send_modify(|permits| *permits += 1);
        Ok(Permit { places, backlog: Arc::clone(&self.backlog), demand: Arc::clone(demand), number })
    }

    /// The most work of one request, in megapixels.
    #[must_use]
    pub fn max_work(&self) -> u64 {
        self.max_work / MEGAPIXEL
    }

    /// How many pictures may wait or run at a time.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// How many requests have been admitted so far.
    #[must_use]
    pub fn admitted(&self) -> u64 {
        self.backlog.requests.load(Ordering::Relaxed)
    }

    /// Whether any picture waits or runs.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.permits.available_permits() < self.capacity as usize
    }

    /// Waits until no picture waits or runs and every response is recorded. A picture's semaphore permit is returned just before its
    /// response is.
    pub async fn idle(&self) {
        // Neither the semaphore nor the channel is ever closed.
        let _all = self.permits.acquire_many(self.capacity).await;
        let _ = self.backlog.permits.subscribe().wait_for(|permits| *permits == 0).await;
    }
}

/// A wait as a `Retry-After` header may state it: whole seconds, at least one.
pub(super) fn retry_after(wait: Duration) -> Duration {
    wait.clamp(Duration::from_secs(1), MAX_RETRY_AFTER)
}

impl Backlog {
    fn is_measured(&self) -> bool {
        self.picos_per_pixel.load(Ordering::Relaxed) > 0
    }

    fn with_left<T>(&self, f: impl FnOnce(&mut BTreeMap<u64, WorkLeft>) -> T) -> T {
        f(&mut self.left.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The work before the last of a new request's `pictures` pictures. Requests take turns, a picture each: what another one has begun is
    /// ended, and for each new picture it makes at most one. Requests that come later take turns too, and are not foreseen.
    fn work_before(&self, pictures: u32) -> u64 {
        self.with_left(|left| left.values().map(|other| other.within(pictures)).fold(0, u64::saturating_add))
    }

    /// How long the steps of so many pixels take. Decoding is left out: it is short beside them.
    fn time(&self, pixels: u64) -> Duration {
        let measured = self.picos_per_pixel.load(Ordering::Relaxed);
        let picos = u128::from(pixels) * u128::from(if measured > 0 { measured } else { FIRST_GUESS });
        Duration::from_nanos((picos / 1000).try_into().unwrap_or(u64::MAX))
    }
}

impl WorkLeft {
    /// The work until `turns` further pictures are made.
    fn within(self, turns: u32) -> u64 {
        let begun = self.all % self.picture.max(1);
        (self.all - begun).min(self.picture.saturating_mul(turns.into())) + begun
    }
}

impl Permit {
    /// The semaphore permit of one picture. The engine holds it until it is done with the request, whether or not a client still waits.
    pub(super) fn place(&mut self) -> Option<OwnedSemaphorePermit> {
        self.places.split(1)
    }

    /// Records a finished step.
    pub fn note(&mut self, progress: &Progress) {
        let step = self.demand.kind(progress.step.saturating_sub(1)).work();
        self.backlog.with_left(|left| {
            if let Some(own) = left.get_mut(&self.number) {
                own.all = own.all.saturating_sub(step);
            }
        });
        // Work is counted in full steps.
        if progress.is_shallow {
            return;
        }
        // Two requests that write at once lose one measurement; the next one makes up for it.
        let before = self.backlog.picos_per_pixel.load(Ordering::Relaxed);
        let pixels = u128::from(step.max(1)) * progress.batch_size.max(1) as u128;
        let measured = (progress.step_time.as_nanos() * 1000 / pixels).max(1) as u64;
        let mean = if before == 0 { measured } else { (before / 4).saturating_mul(3).saturating_add(measured / 4).max(1) };
        self.backlog.picos_per_pixel.store(mean, Ordering::Relaxed);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.backlog.with_left(|left| left.remove(&self.number));
        self.backlog.permits.send_modify(|permits| *permits -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::ImageSize;

    /// A picture of 512 x 512 with guidance.
    fn demand(steps: i64) -> Arc<Demand> {
        sized(512, steps)
    }

    fn sized(side: u32, steps: i64) -> Arc<Demand> {
        Arc::new(Demand::plain(ImageSize::new(side, side).unwrap(), steps, true))
    }

    fn when_full(admission: &Admission) -> Duration {
        match admission.admit(&demand(1), 1, None) {
            Err(Refusal::Full { retry_after }) => retry_after,
            other => panic!("{other:?}"),
        }
    }

    fn step(millis: u64) -> Progress {
        Progress {
            step: 1,
            total: 10,
            step_time: Duration::from_millis(millis),
            batch_size: 1,
            is_shallow: false,
            remaining: Duration::ZERO,
        }
    }

    #[test]
    fn a_full_queue_says_when_to_come_back() {
        let admission = Admission::new(2);
        let mut permit = admission.admit(&demand(10), 2, None).unwrap();
        assert_eq!(when_full(&admission).as_secs(), 10, "20 steps of a guessed half second");
        for _ in 0..10 {
            permit.note(&step(2000));
        }
        let wait = when_full(&admission);
        assert!((Duration::from_secs(19)..=Duration::from_secs(20)).contains(&wait), "10 steps of 2 s, not {wait:?}");
        for _ in 0..10 {
            permit.note(&step(600_000));
        }
        drop(permit);
        let _room = admission.admit(&demand(1000), 2, None).unwrap();
        assert_eq!(when_full(&admission), MAX_RETRY_AFTER);
    }

    #[test]
    fn a_small_picture_is_not_expected_to_take_as_long_as_a_large_one() {
        let admission = Admission::new(2);
        let mut permit = admission.admit(&demand(1), 1, None).unwrap();
        permit.note(&step(1600));
        // What reuses features says nothing of how long others take.
        permit.note(&Progress { is_shallow: true, ..step(1) });
        let _waiting = admission.admit(&sized(128, 100), 2, None).unwrap_err();
        drop(permit);
        let _waiting = admission.admit(&sized(128, 100), 2, None).unwrap();
        let wait = when_full(&admission);
        assert!((19_900..=20_000).contains(&wait.as_millis()), "200 steps of 0.1 s, not {wait:?}");
    }

    #[test]
    fn a_step_that_several_pictures_take_together_is_counted_once() {
        let admission = Admission::new(2);
        let mut permit = admission.admit(&demand(5), 2, None).unwrap();
        permit.note(&Progress { batch_size: 4, ..step(2000) });
        let wait = when_full(&admission);
        assert!((4490..=4500).contains(&wait.as_millis()), "9 steps of 2 s, four at a time, not {wait:?}");
    }

    #[test]
    fn a_request_that_cannot_meet_its_deadline_is_refused() {
        let admission = Admission::new(3);
        let hurried = |deadline| admission.admit(&demand(10), 1, Some(Duration::from_secs(deadline)));
        // Nothing is measured yet, and a guess is no reason.
        let mut first = hurried(0).unwrap();
        for _ in 0..10 {
            first.note(&step(400));
        }
        let _second = hurried(5).unwrap();
        let Err(Refusal::TooLate { others, own, .. }) = hurried(5) else { panic!("8 s is more than 5") };
        assert_eq!((others.as_secs_f64().round(), own.as_secs_f64().round()), (4.0, 4.0));
        assert!(admission.admit(&demand(10), 1, None).is_ok(), "who does not say waits");
    }

    /// The engine serves requests in turns, a picture each.
    #[test]
    fn a_request_for_ten_does_not_keep_a_hurried_one_away() {
        let admission = Admission::new(20);
        let mut ten = admission.admit(&demand(10), 10, None).unwrap();
        for _ in 0..4 {
            ten.note(&step(100));
        }
        let others = |pictures| match admission.admit(&demand(10), pictures, Some(Duration::ZERO)) {
            Err(Refusal::TooLate { others, .. }) => (others.as_secs_f64() * 10.0).round() as u64,
            other => panic!("{other:?}"),
        };
        assert_eq!([others(1), others(2), others(9), others(10)], [16, 26, 96, 96], "tenths: the begun one's 6 steps, and 10 for each");
        let one = admission.admit(&demand(10), 1, None).unwrap();
        assert_eq!([others(1), others(2)], [26, 36]);
        drop((one, ten));
        assert_eq!(others(1), 0);
    }

    #[test]
    fn more_than_there_is_room_for_at_all_is_not_asked_to_come_back() {
        assert_eq!(Admission::new(2).admit(&demand(1), 3, None).unwrap_err(), Refusal::TooMany { capacity: 2 });
    }

    #[test]
    fn one_request_has_so_much_work_and_no_more() {
        let admission = Admission::new(4).with_max_work(20);
        assert!(admission.admit(&demand(10), 4, None).is_ok(), "half a megapixel each time");
        for (demand, pictures) in [(demand(11), 4), (demand(41), 1), (sized(2048, 3), 1), (sized(4096, 1000), 4)] {
            assert!(
                matches!(admission.admit(&demand, pictures, None).unwrap_err(), Refusal::TooMuch { max_work, .. } if max_work == 20 * MEGAPIXEL)
            );
        }
    }

    #[test]
    fn a_place_is_taken_for_as_long_as_its_request_lives() {
        let admission = Admission::new(1);
        let place = admission.admit(&demand(1), 1, None).unwrap().place().unwrap();
        assert!(admission.admit(&demand(1), 1, None).is_err(), "the client is gone, the request is not");
        drop(place);
        assert!(admission.admit(&demand(1), 1, None).is_ok());
    }

    /// Who stops when nothing is left to do would else cancel a request whose answer is about to be sent.
    #[tokio::test]
    async fn a_request_without_a_place_is_not_over_before_its_answer() {
        let admission = Admission::new(1);
        let mut permit = admission.admit(&demand(1), 1, None).unwrap();
        drop(permit.place());
        assert!(!admission.is_busy() && tokio::time::timeout(Duration::ZERO, admission.idle()).await.is_err());
        drop(permit);
        admission.idle().await;
    }

    #[tokio::test]
    async fn dropped_permits_leave_nothing_behind() {
        let admission = Admission::new(3);
        let permit = admission.admit(&demand(50), 3, None).unwrap();
        drop(permit);
        admission.idle().await;
        assert_eq!(admission.backlog.work_before(u32::MAX), 0);
    }
}
