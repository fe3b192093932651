//! Bodies that no handler read, because their request was refused. They are read and discarded for a while after the answer: otherwise the
//! connection would close under a client that is still sending, and the client would never see the answer.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    http::header,
    middleware::Next,
    response::Response,
};
use futures_util::StreamExt;
use http_body::{Frame, SizeHint};
use tokio::{runtime::Handle, time::timeout};

/// How many bytes are discarded: more than any route takes.
const MOST: usize = 64 << 20;
/// How long a client may pause meanwhile.
const PAUSE: Duration = Duration::from_secs(1);

/// Middleware that discards the unread rest of a body.
pub(super) async fn discard(State(longest): State<Duration>, request: Request, next: Next) -> Response {
    // A client with `expect: 100-continue` has not begun to send the body.
    let asks = request.headers().contains_key(header::EXPECT);
    next.run(if asks { request } else { request.map(|body| Body::new(Discarded { body, longest })) }).await
}

/// A body whose rest is read in the background once it is dropped, for at most `longest`.
struct Discarded {
    body: Body,
    longest: Duration,
}

impl http_body::Body for Discarded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Discarded {
    fn drop(&mut self) {
        let body = std::mem::take(&mut self.body);
        if !http_body::Body::is_end_stream(&body)
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(timeout(self.longest, read_to_end(body)));
        }
    }
}

async fn read_to_end(body: Body) {
    let (mut data, mut read) = (body.into_data_stream(), 0);
    while read < MOST
        && let Ok(Some(Ok(bytes))) = timeout(PAUSE, data.next()).await
    {
        read += bytes.len();
    }
}
