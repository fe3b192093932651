//! Long work on other threads, so that the runtime's threads can answer probes meanwhile.

use tokio::{
    sync::Semaphore,
    task::{JoinError, spawn_blocking},
};

/// Work on this many bytes is short.
pub(super) const SMALL: usize = 64 << 10;

/// At most two threads do long work, which leaves CPUs to the runtime.
static WORKERS: Semaphore = Semaphore::const_new(2);

/// Runs work that takes as long as so many bytes do: here if that is short, on another thread if it is long.
///
/// # Errors
/// When the work panics.
pub(super) async fn offload<T: Send + 'static>(length: usize, work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    if length <= SMALL { Ok(work()) } else { in_turn(&WORKERS, work).await }
}

/// Runs work on another thread with a semaphore permit. The work holds the permit to its end, even if its caller is gone.
///
/// # Errors
/// When the work panics.
pub(super) async fn in_turn<T: Send + 'static>(
    permits: &'static Semaphore,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    // The semaphore is never closed.
    let permit = permits.acquire().await;
    spawn_blocking(move || (work(), permit)).await.map(|(done, _)| done)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn work_that_nobody_waits_for_keeps_its_permit_to_its_end() {
        static PERMITS: Semaphore = Semaphore::const_new(1);
        let (started, has_started) = oneshot::channel();
        let (end, may_end) = mpsc::channel::<()>();
        let waiting = tokio::spawn(in_turn(&PERMITS, move || {
            started.send(()).unwrap();
            may_end.recv()
        }));
        has_started.await.unwrap();
        waiting.abort();
        assert!(waiting.await.unwrap_err().is_cancelled());
        assert_eq!(PERMITS.available_permits(), 0);
        end.send(()).unwrap();
        assert!(PERMITS.acquire().await.is_ok());
    }
}
