//! A lower bound on the rate of a body: neither a silent client nor one that sends a byte now and then keeps a request open for ever.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use http_body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};

/// The lowest rate of a body, in bytes per second: 50 MiB may take an hour.
const LEAST_RATE: f64 = 16384.0;

/// The client was silent for too long, or sent too slowly.
#[derive(Debug, thiserror::Error)]
#[error("the body did not arrive in time")]
pub(super) struct BodyTimedOut;

/// Middleware that gives a body a credit of `patience`. Waiting for the client uses the credit up; bytes that arrive at [`LEAST_RATE`] or
/// faster restore it.
pub(super) async fn pace(State(patience): State<Duration>, request: Request, next: Next) -> Response {
    let paced = |body| Body::new(PacedBody { body, patience, credit: patience, wait: None, rests: false });
    next.run(request.map(paced)).await
}

struct PacedBody {
    body: Body,
    patience: Duration,
    /// How much longer the body may be waited for. Time in which its reader does not ask for more is not counted.
    credit: Duration,
    /// Since when the body has been waited for, and the timer of the credit.
    wait: Option<(Instant, Pin<Box<Sleep>>)>,
    /// Whether the next poll yields: a reader that takes everything available before it does anything else would buffer the whole body.
    rests: bool,
}

impl http_body::Body for PacedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if std::mem::take(&mut self.rests) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            if let Some((since, _)) = self.wait.take() {
                self.credit = self.credit.saturating_sub(since.elapsed());
            }
            if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
                let earned = Duration::from_secs_f64(data.len() as f64 / LEAST_RATE);
                // A fast start earns no credit for later silence.
                self.credit = (self.credit + earned).min(self.patience);
                self.rests = true;
            }
            return Poll::Ready(frame);
        }
        let credit = self.credit;
        let (_, until) = self.wait.get_or_insert_with(|| (Instant::now(), Box::pin(sleep(credit))));
        ready!(until.as_mut().poll(context));
        Poll::Ready(Some(Err(axum::Error::new(BodyTimedOut))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
