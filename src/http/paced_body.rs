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

/// The lowest rate of a body, in bytes a second: 50 MiB may take 53 minutes.
const LEAST_RATE: f64 = 16384.0;

/// The client was silent, or too slow.
#[derive(Debug, thiserror::Error)]
#[error("the body did not arrive in time")]
pub(super) struct BodyTimedOut;

/// A layer under which a body may be waited for as long as `patience` at a time, and as long as that and [`LEAST_RATE`] allow in all.
pub(super) async fn pace(State(patience): State<Duration>, request: Request, next: Next) -> Response {
    let paced = |body| Body::new(PacedBody { body, patience, received: 0, waited: Duration::ZERO, wait: None, rests: false });
    next.run(request.map(paced)).await
}

struct PacedBody {
    body: Body,
    patience: Duration,
    received: usize,
    /// How long it was waited for in all. The time in which nobody wants more of it is not counted.
    waited: Duration,
    /// Since when it is waited for, and until when.
    wait: Option<(Instant, Pin<Box<Sleep>>)>,
    /// Whether the next poll gives way: a reader that takes all there is before it does anything else would gather a whole body.
    rests: bool,
}

impl PacedBody {
    fn time_left(&self) -> Duration {
        let allowed = self.patience + Duration::from_secs_f64(self.received as f64 / LEAST_RATE);
        allowed.saturating_sub(self.waited).min(self.patience)
    }
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
                self.waited += since.elapsed();
            }
            if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
                self.received += data.len();
                self.rests = true;
            }
            return Poll::Ready(frame);
        }
        let time_left = self.time_left();
        let (_, until) = self.wait.get_or_insert_with(|| (Instant::now(), Box::pin(sleep(time_left))));
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
