//! Bodies that nobody read, because the request was refused before: they are read and forgotten after the answer, for a while. A client
//! that is still sending would else find its connection closed, and never see why.

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

/// How much is forgotten of a body: more than any that is taken.
const MOST: usize = 64 << 20;
/// How long a client may pause meanwhile.
const PAUSE: Duration = Duration::from_secs(1);

/// A layer that sees to it that the body is read to its end.
pub(super) async fn forget(State(longest): State<Duration>, request: Request, next: Next) -> Response {
    // Who asks first whether to send it has not begun.
    let asks = request.headers().contains_key(header::EXPECT);
    next.run(if asks { request } else { request.map(|body| Body::new(Forgotten { body, longest })) }).await
}

/// What is left of it when it is dropped is read in the background, for no longer than that.
struct Forgotten {
    body: Body,
    longest: Duration,
}

impl http_body::Body for Forgotten {
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

impl Drop for Forgotten {
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
