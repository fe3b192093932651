//! Whether the engine's loop still moves.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Beaten by the engine between two layers of a network, so that a step that hangs can be told from one that takes long.
#[derive(Debug, Clone)]
pub struct Pulse {
    start: Instant,
    /// Milliseconds from `start` to the last beat, or [`IDLE`].
    last: Arc<AtomicU64>,
}

const IDLE: u64 = u64::MAX;

impl Default for Pulse {
    fn default() -> Self {
        Self { start: Instant::now(), last: Arc::new(AtomicU64::new(IDLE)) }
    }
}

impl Pulse {
    /// The engine moves.
    pub fn beat(&self) {
        self.last.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// The engine has nothing to do, for as long as that may be.
    pub fn rest(&self) {
        self.last.store(IDLE, Ordering::Relaxed);
    }

    /// How long the engine has not moved though it has something to do.
    #[must_use]
    pub fn silence(&self) -> Duration {
        match self.last.load(Ordering::Relaxed) {
            IDLE => Duration::ZERO,
            last => self.start.elapsed().saturating_sub(Duration::from_millis(last)),
        }
    }
}
