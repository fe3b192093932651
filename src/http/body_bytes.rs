//! Bodies in memory. All bodies together have a budget; a single allocation may still fail, and that is an error like any other.

use std::{
    error::Error,
    hash::{DefaultHasher, Hasher},
    iter,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::body::Body;
use futures_util::StreamExt;
use tokio::{
    sync::{Mutex, Semaphore, SemaphorePermit},
    time::timeout,
};

use super::{api_error::ApiError, off_thread, paced_body::BodyTimedOut};

/// The largest body of a route without pictures. The longest prompt and negative prompt fit, with every character escaped.
pub(super) const MAX_BODY_BYTES: usize = 1 << 20;

/// The largest body with pictures: the largest file that `OpenAI`'s API takes, or 37 MB in base64.
pub(super) const MAX_UPLOAD_BYTES: usize = 50 << 20;

const KIB: usize = 1 << 10;
/// The part of a body that is outside the budget: enough for prompts, and less than a connection's own buffers.
const SMALL: usize = off_thread::SMALL;

/// The budget of all bodies, in KiB: eight of the largest.
static BUDGET: Semaphore = Semaphore::const_new(8 * MAX_UPLOAD_BYTES / KIB);
/// One body at a time may exceed the budget: bodies that share all of it would otherwise wait for each other for ever.
static BEYOND: Semaphore = Semaphore::const_new(1);

/// The part of the budget that one body holds. Dropping it returns that.
#[derive(Debug)]
pub(super) struct BodyBudget {
    /// How long the body waits for more of the budget.
    patience: Duration,
    arrived: usize,
    permit: Option<SemaphorePermit<'static>>,
    beyond: Option<SemaphorePermit<'static>>,
}

impl BodyBudget {
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, arrived: 0, permit: None, beyond: None }
    }

    /// Waits until the budget has room for so many more bytes.
    ///
    /// # Errors
    /// When that takes longer than the body may wait.
    pub(super) async fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        self.arrived += bytes;
        let held = self.permit.as_ref().map_or(0, SemaphorePermit::num_permits);
        let missing = self.arrived.saturating_sub(SMALL).div_ceil(KIB).saturating_sub(held) as u32;
        if missing == 0 || self.beyond.is_some() {
            return Ok(());
        }
        // Neither semaphore is ever closed.
        let more = async {
            tokio::select! {
                biased;
                permit = BUDGET.acquire_many(missing) => (permit.ok(), None),
                permit = BEYOND.acquire() => (None, permit.ok()),
            }
        };
        let Ok((permit, beyond)) = timeout(self.patience, more).await else { return Err(ApiError::too_many_uploads()) };
        self.beyond = beyond;
        match (&mut self.permit, permit) {
            (Some(held), Some(permit)) => held.merge(permit),
            (held, permit) => *held = held.take().or(permit),
        }
        Ok(())
    }
}

/// A body that has been read to its end and parsed.
pub(super) struct ParsedBody<T> {
    pub(super) value: T,
    /// A hash of the route and the body, by which a repeated request is recognised.
    pub(super) fingerprint: u64,
    /// Held until the parsed value has become smaller, too.
    pub(super) budget: Arc<Mutex<BodyBudget>>,
}

/// A body that takes a share of the budget for each piece before it passes the piece on. It passes on at most `allowance` bytes, since a reader buffers
/// everything until it finds the end of a form's field.
pub(super) fn metered(body: Body, budget: Arc<Mutex<BodyBudget>>, allowance: Arc<AtomicUsize>) -> Body {
    let pieces = body.into_data_stream().then(move |piece| {
        let (budget, allowance) = (Arc::clone(&budget), Arc::clone(&allowance));
        async move {
            let piece = piece?;
            budget.lock().await.grow(piece.len()).await.map_err(|refused| axum::Error::new(Refused(refused)))?;
            let enough = |left: usize| left.checked_sub(piece.len());
            match allowance.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enough) {
                Ok(_) => Ok(piece),
                Err(_) => Err(axum::Error::new(Refused(ApiError::unreadable_body("a part of the form has a head that does not end")))),
            }
        }
    });
    Body::from_stream(pieces)
}

/// Why the rest of a body is not read.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.body().message)]
struct Refused(ApiError);

/// Appends bytes.
///
/// # Errors
/// When there is no memory for them.
pub(super) fn append(all: &mut Vec<u8>, more: &[u8]) -> Result<(), ApiError> {
    all.try_reserve(more.len()).map_err(|_| ApiError::no_memory_for_body())?;
    all.extend_from_slice(more);
    Ok(())
}

/// Reads a body of at most `limit` bytes.
///
/// # Errors
/// When it is longer, stops early, comes too slowly, or finds no room in the budget.
pub(super) async fn collect(body: Body, limit: usize, budget: &mut BodyBudget) -> Result<Vec<u8>, ApiError> {
    let (mut stream, mut all) = (body.into_data_stream(), Vec::new());
    while let Some(bytes) = stream.next().await {
        let bytes = bytes.map_err(|error| unreadable(&error, &error.to_string()))?;
        if all.len() + bytes.len() > limit {
            return Err(ApiError::body_too_large(limit));
        }
        budget.grow(bytes.len()).await?;
        append(&mut all, &bytes)?;
    }
    Ok(all)
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| (**error).source())
}

/// Why a body did not come to its end. `otherwise` is the reader's own reason.
pub(super) fn unreadable(error: &(dyn Error + 'static), otherwise: &str) -> ApiError {
    if let Some(Refused(refused)) = causes(error).find_map(|cause| cause.downcast_ref()) {
        return refused.clone();
    }
    if causes(error).any(<dyn Error>::is::<BodyTimedOut>) { ApiError::body_timed_out() } else { ApiError::unreadable_body(otherwise) }
}

/// Parses a body of `length` bytes, on another thread if that takes long. `work` feeds all of it to the hasher.
///
/// # Errors
/// Those of `work`.
pub(super) async fn parse<T: Send + 'static>(
    length: usize,
    budget: Arc<Mutex<BodyBudget>>,
    mut hasher: DefaultHasher,
    work: impl FnOnce(&mut DefaultHasher) -> Result<T, ApiError> + Send + 'static,
) -> Result<ParsedBody<T>, ApiError> {
    let work = move || {
        let value = work(&mut hasher)?;
        Ok(ParsedBody { value, fingerprint: hasher.finish(), budget })
    };
    off_thread::offload(length, work).await.unwrap_or_else(|_| Err(ApiError::unreadable_body("it cannot be taken apart")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All in one test: the budget is that of the process.
    #[tokio::test]
    async fn bodies_have_room_for_so_many_bytes_and_one_may_go_beyond() {
        let budget = || BodyBudget::new(Duration::from_millis(50));
        let mut budgets = Vec::new();
        for _ in 0..8 {
            let mut budget = budget();
            for _ in 0..MAX_UPLOAD_BYTES / (1 << 20) {
                budget.grow(1 << 20).await.unwrap();
            }
            budgets.push(budget);
        }
        let mut ninth = budget();
        for _ in 0..MAX_UPLOAD_BYTES / (1 << 20) {
            ninth.grow(1 << 20).await.unwrap();
        }
        let mut small = budget();
        small.grow(SMALL).await.unwrap();
        let refused = budget().grow(1 << 20).await.unwrap_err();
        assert_eq!(refused.body().code, "too_many_uploads");
        assert!(small.grow(1 << 20).await.is_err(), "it is small no more");
        budgets.pop();
        small.grow(0).await.unwrap();
        drop((budgets, ninth, small));
        assert_eq!((BUDGET.available_permits(), BEYOND.available_permits()), (8 * MAX_UPLOAD_BYTES / KIB, 1));
    }
}
