//! How far answers are with their clients: what is under way on a connection, and which streams of HTTP/2 nobody takes.
//!
//! That a client of HTTP/1 does not read is found out by the system, whose buffers fill. A client of HTTP/2 says for each stream how much
//! it takes, and may take nothing of one and still answer pings.

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

/// A stream is offered so many bytes at a time: what it is offered stays in memory until its client takes it.
const OFFER: usize = 16 << 10;

task_local! {
    static OFFERED: Offered;
}

/// What is under way on a connection.
#[derive(Debug, Clone)]
pub(super) struct Activity(Arc<Mutex<Requests>>);

#[derive(Debug)]
struct Requests {
    under_way: usize,
    /// When that number last changed.
    changed: Instant,
    has_begun: bool,
}

/// A request under way, until its answer is.
#[derive(Debug)]
pub(super) struct UnderWay(Activity);

impl Default for Activity {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Requests { under_way: 0, changed: Instant::now(), has_begun: false })))
    }
}

impl Activity {
    /// A request has come.
    pub(super) fn begin(&self) -> UnderWay {
        self.change(1);
        UnderWay(self.clone())
    }

    /// Whether the connection has had a request.
    pub(super) fn has_begun(&self) -> bool {
        self.requests().has_begun
    }

    /// For how long nothing has been under way.
    pub(super) fn idle(&self) -> Duration {
        let requests = self.requests();
        if requests.under_way == 0 { requests.changed.elapsed() } else { Duration::ZERO }
    }

    fn change(&self, by: isize) {
        let mut requests = self.requests();
        *requests = Requests { under_way: requests.under_way.saturating_add_signed(by), changed: Instant::now(), has_begun: true };
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        // It is whole after every line.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.change(-1);
    }
}

/// Since when a stream has been offered what its client has not taken.
#[derive(Debug, Clone, Default)]
struct Offered(Arc<Mutex<Option<Instant>>>);

impl Offered {
    fn set(&self, since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    /// Comes back when it has been for as long as that.
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

/// Runs the streams of HTTP/2, each for as long as its client takes what it is offered.
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
                // Without its stream, it is reset, and what it waits for is cancelled.
                () = offered.for_too_long(patience) => debug!("a client left a stream unread for too long"),
            }
        });
    }
}

/// A body on its way to a client.
pub(super) struct Delivered {
    body: Body,
    /// Of a stream of HTTP/2.
    offered: Option<Offered>,
    /// What is left of a frame.
    rest: Bytes,
    _under_way: UnderWay,
}

impl Delivered {
    pub(super) fn new(body: Body, under_way: UnderWay) -> Self {
        let offered = OFFERED.try_with(Offered::clone).ok();
        // The answer's head is an offer, too.
        if let Some(offered) = &offered {
            offered.set(Some(Instant::now()));
        }
        Self { body, offered, rest: Bytes::new(), _under_way: under_way }
    }
}

impl http_body::Body for Delivered {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(offered) = self.offered.clone() else { return Pin::new(&mut self.body).poll_frame(context) };
        // It is asked for more only when all that it gave was taken.
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
