//! The delivery of answers: which requests of a connection are in progress, and which HTTP/2 streams their clients do not read.
//!
//! For HTTP/1, the system notices a client that does not read: its buffers fill. An HTTP/2 client grants each stream its own window; it may
//! grant one stream nothing and still answer pings.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use axum::body::{Body, Bytes};
use http_body::{Frame, SizeHint};
use hyper::rt::Executor;
use tokio::{task_local, time::sleep};
use tracing::debug;

/// How many bytes a stream is offered at a time. Offered bytes stay in memory until the client takes them.
const OFFER: usize = 16 << 10;

task_local! {
    static OFFERED: Offered;
}

/// The requests of a connection that are in progress.
#[derive(Debug, Clone)]
pub(super) struct Activity(Arc<Mutex<Requests>>);

#[derive(Debug)]
struct Requests {
    in_progress: usize,
    /// When the number of requests in progress last changed.
    changed: Instant,
    has_begun: bool,
}

/// A request in progress; dropped when its answer has been delivered.
#[derive(Debug)]
pub(super) struct InProgress(Activity);

impl Default for Activity {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Requests { in_progress: 0, changed: Instant::now(), has_begun: false })))
    }
}

impl Activity {
    /// Counts a request that has arrived.
    pub(super) fn begin(&self) -> InProgress {
        self.change(1);
        InProgress(self.clone())
    }

    /// Whether the connection has had a request.
    pub(super) fn has_begun(&self) -> bool {
        self.requests().has_begun
    }

    /// How long no request has been in progress.
    pub(super) fn idle(&self) -> Duration {
        let requests = self.requests();
        if requests.in_progress == 0 { requests.changed.elapsed() } else { Duration::ZERO }
    }

    fn change(&self, by: isize) {
        let mut requests = self.requests();
        *requests = Requests { in_progress: requests.in_progress.saturating_add_signed(by), changed: Instant::now(), has_begun: true };
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        // The value is consistent after every line.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.change(-1);
    }
}

/// Since when a stream has had bytes that its client has not taken.
#[derive(Debug, Clone, Default)]
struct Offered(Arc<Mutex<Option<Instant>>>);

impl Offered {
    fn set(&self, since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    /// Completes when that has lasted for `patience`.
    async fn for_too_long(&self, patience: Duration) {
        loop {
            let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let left = patience.saturating_sub(since.map_or(Duration::ZERO, |since| since.elapsed()));
            if left.is_zero() {
                return;
            }
            sleep(left).await;
        }
    }
}

/// Runs HTTP/2 streams. A stream ends when its client leaves it unread for too long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Streams {
    pub(super) patience: Duration,
}

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let (offered, patience) = (Offered::default(), self.patience);
        tokio::spawn(async move {
            let stream = OFFERED.scope(offered.clone(), stream);
            tokio::select! {
                _ = stream => {}
                // Dropping the stream's task resets the stream and cancels its request.
                () = offered.for_too_long(patience) => debug!("a client left a stream unread for too long"),
            }
        });
    }
}

/// The body of an answer being delivered.
pub(super) struct Delivered {
    body: Body,
    /// Present on an HTTP/2 stream.
    offered: Option<Offered>,
    /// The part of a frame that has not been offered yet.
    rest: Bytes,
    _in_progress: InProgress,
}

impl Delivered {
    pub(super) fn new(body: Body, in_progress: InProgress) -> Self {
        let offered = OFFERED.try_with(Offered::clone).ok();
        // The answer's head counts as an offer, too.
        if let Some(offered) = &offered {
            offered.set(Some(Instant::now()));
        }
        Self { body, offered, rest: Bytes::new(), _in_progress: in_progress }
    }
}

impl http_body::Body for Delivered {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(offered) = self.offered.clone() else { return Pin::new(&mut self.body).poll_frame(context) };
        // hyper asks for more only after the client has taken everything.
        offered.set(None);
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)).map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => self.rest = data,
                Some(Ok(Err(other))) => return Poll::Ready(Some(Ok(other))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        offered.set(Some(Instant::now()));
        let length = self.rest.len().min(OFFER);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, of_body) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        if let Some(upper) = of_body.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(of_body.lower() + rest);
        hint
    }
}
