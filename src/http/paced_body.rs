//! Bodies that arrive fast enough: neither a client that is silent nor one that sends a byte now and then is waited for as long as it
//! likes.

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

/// The lowest rate of a body, in bytes a second: 50 MiB may take an hour.
const LEAST_RATE: f64 = 16384.0;

/// The client was silent, or too slow.
#[derive(Debug, thiserror::Error)]
#[error("the body did not arrive in time")]
pub(super) struct BodyTimedOut;

/// A layer under which a body has as long as `patience` to wait for, and earns what it has used up again by arriving at [`LEAST_RATE`].
pub(super) async fn pace(State(patience): State<Duration>, request: Request, next: Next) -> Response {
    let paced = |body| Body::new(PacedBody { body, patience, credit: patience, wait: None, rests: false });
    next.run(request.map(paced)).await
}

struct PacedBody {
    body: Body,
    patience: Duration,
    /// How long it may still be waited for. The time in which nobody wants more of it is not counted.
    credit: Duration,
    /// Since when it is waited for, and until when.
    wait: Option<(Instant, Pin<Box<Sleep>>)>,
    /// Whether the next poll gives way: a reader that takes all there is before it does anything else would gather a whole body.
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
                // What arrives fast at first does not pay for silence later.
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
