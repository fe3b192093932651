//! A sign of life of the engine's loop.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The engine beats it between two layers of a network. A step that hangs beats no more; one that takes long does.
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
    /// The engine makes progress.
    pub fn beat(&self) {
        self.last.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// The engine is idle.
    pub fn rest(&self) {
        self.last.store(IDLE, Ordering::Relaxed);
    }

    /// How long the engine, if it has work, has made no progress.
    #[must_use]
    pub fn silence(&self) -> Duration {
        match self.last.load(Ordering::Relaxed) {
            IDLE => Duration::ZERO,
            last => self.start.elapsed().saturating_sub(Duration::from_millis(last)),
        }
    }
}
