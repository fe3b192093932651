//! Work that takes long, off the runtime's threads: those answer probes meanwhile.

use tokio::{
    sync::Semaphore,
    task::{JoinError, spawn_blocking},
};

/// What so many bytes take is short.
pub(super) const SMALL: usize = 64 << 10;

/// Long work is done by so many threads at a time, so that the runtime's own have their turn.
static WORKERS: Semaphore = Semaphore::const_new(2);

/// Does work that takes as long as so many bytes, off the runtime's threads if that is long.
///
/// # Errors
/// When the work panics.
pub(super) async fn offload<T: Send + 'static>(length: usize, work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    if length <= SMALL { Ok(work()) } else { in_turn(&WORKERS, work).await }
}

/// Does work under a permit. The work itself holds it: it goes on to its end, whether or not somebody still waits for that.
///
/// # Errors
/// When the work panics.
pub(super) async fn in_turn<T: Send + 'static>(
    permits: &'static Semaphore,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    // It is never closed.
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
