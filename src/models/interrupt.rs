//! Gives up a pass through a network between two of its layers, where a whole pass takes long.

use std::{cell::RefCell, sync::Arc};

use candle_core::{Error, Result};

/// Says whether nobody waits for the result any more. Asked between layers, so it must be cheap.
pub type Interrupt = Arc<dyn Fn() -> bool + Send + Sync>;

thread_local! {
    /// A pass runs on one thread from its first layer to its last; only what is inside an operation is spread over others. So what
    /// may interrupt it need not be handed down through every layer.
    static INTERRUPT: RefCell<Option<Interrupt>> = const { RefCell::new(None) };
}

/// Does `work` on this thread. Networks in it fail between two layers once `interrupt` says so.
pub fn interruptible<T>(interrupt: Interrupt, work: impl FnOnce() -> T) -> T {
    /// Puts back what was there before, even when the work panics.
    struct Restore(Option<Interrupt>);
    impl Drop for Restore {
        fn drop(&mut self) {
            INTERRUPT.set(self.0.take());
        }
    }
    let _restore = Restore(INTERRUPT.replace(Some(interrupt)));
    work()
}

/// Between two layers.
///
/// # Errors
/// When nobody waits for the result any more.
pub(super) fn check() -> Result<()> {
    let interrupted = INTERRUPT.with_borrow(|interrupt| interrupt.as_ref().is_some_and(|interrupt| interrupt()));
    if interrupted { Err(Error::msg("interrupted")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_work_inside_is_interrupted() {
        assert!(check().is_ok());
        interruptible(Arc::new(|| true), || {
            assert!(check().is_err());
            interruptible(Arc::new(|| false), || assert!(check().is_ok()));
            assert!(check().is_err());
        });
        assert!(check().is_ok());
        let panicked = std::panic::catch_unwind(|| interruptible(Arc::new(|| true), || panic!("a bug")));
        assert!(panicked.is_err() && check().is_ok());
    }
}
