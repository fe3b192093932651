//! The signals that stop a worker.

use std::io::Read;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Failure;

/// SIGTERM, SIGINT, `POST /v1/shutdown` and, if asked for, the end of stdin. All of them mean the same.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    asked: CancellationToken,
    heard: bool,
}

impl StopSignals {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the system refuses that.
    pub fn new() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).context("no signals").map_err(Failure::Internal);
        let asked = CancellationToken::new();
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())?, asked, heard: false })
    }

    /// A token; cancelling it asks the worker to stop, once.
    #[must_use]
    pub fn asked(&self) -> CancellationToken {
        self.asked.clone()
    }

    /// Asks the worker to stop when the other end of stdin is closed.
    pub fn watch_stdin(&self) {
        let asked = self.asked();
        std::thread::spawn(move || {
            let mut stdin = std::io::stdin().lock();
            while stdin.read(&mut [0; 256]).is_ok_and(|count| count > 0) {}
            asked.cancel();
        });
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            () = self.asked.cancelled(), if !self.heard => self.heard = true,
        }
    }
}
