//! How many requests are being served.

use std::sync::{Arc, Mutex, PoisonError};

use crate::backend::Pulse;

/// Requests that were begun and have no last answer yet. The engine counts up, its writer counts down.
#[derive(Debug, Clone, Default)]
pub(super) struct Running {
    count: Arc<Mutex<usize>>,
    pulse: Pulse,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Begun(Running);

impl Running {
    /// None so far. `pulse` rests whenever there is none.
    pub(super) fn new(pulse: Pulse) -> Self {
        Self { pulse, ..Self::default() }
    }

    /// Counts one more.
    pub(super) fn begin(&self) -> Begun {
        self.change(|count| count + 1);
        Begun(self.clone())
    }

    fn change(&self, change: impl FnOnce(usize) -> usize) {
        // Held to the end: the gauge and the pulse follow the count in the order of its changes.
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count = change(*count);
        metrics::gauge!("sdw_requests_running").set(*count as f64);
        if *count == 0 {
            self.pulse.rest();
        } else {
            self.pulse.beat();
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.change(|count| count - 1);
    }
}
