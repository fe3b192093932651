//! Connections, each served by a task of its own, and none kept open for a client that is silent where it should speak, or does not
//! listen.

use std::{convert::Infallible, io, pin::pin, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::Request, response::Response};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tower::{ServiceExt, service_fn};
use tracing::{debug, warn};

use super::delivery::{Activity, Delivered, Streams};

/// How long there is no try to take a connection after the system refused one, as when the process has too many files open.
const RECOVERY: Duration = Duration::from_secs(1);
/// How long a connection may be idle when all places for connections are taken.
const CROWDED_IDLE: Duration = Duration::from_secs(1);
/// Requests that one connection has under way, in HTTP/2.
const MAX_STREAMS: u32 = 100;

/// How connections are served.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// How long a client may be silent while it sends a request, or before the next, and how long it may leave unread what was sent to it.
    pub patience: Duration,
    /// How many there are at a time. When there are as many, those that are idle are closed for those that wait.
    pub most: usize,
}

/// Serves connections: new ones until `closed`, open ones to the end of what was asked on them.
pub async fn serve(listener: TcpListener, router: Router, limits: ConnectionLimits, closed: CancellationToken) {
    let (places, crowd) = (Arc::new(Semaphore::new(limits.most)), watch::Sender::new(false));
    // Open until the last connection is.
    let (open, mut all_closed) = mpsc::channel::<()>(1);
    let serve_one = |stream, place| {
        let connection = Connection { router: router.clone(), patience: limits.patience, crowd: crowd.subscribe(), closed: closed.clone() };
        let open = open.clone();
        tokio::spawn(async move { (connection.serve(stream).await, place, open) });
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closed.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                watch_peer(&stream, limits.patience);
                crowd.send_replace(places.available_permits() == 0);
                // It is never closed.
                let place = tokio::select! {
                    place = Arc::clone(&places).acquire_owned() => place,
                    () = closed.cancelled() => break,
                };
                crowd.send_replace(false);
                serve_one(stream, place);
            }
            Err(error) if is_of_peer(&error) => debug!(%error, "a client left before it was heard"),
            Err(error) => {
                warn!(%error, "no connection can be taken");
                crowd.send_replace(true);
                sleep(RECOVERY).await;
                crowd.send_replace(false);
            }
        }
    }
    drop((listener, router, open));
    all_closed.recv().await;
}

/// What one connection needs to know.
struct Connection {
    router: Router,
    patience: Duration,
    /// Whether others wait for a place.
    crowd: watch::Receiver<bool>,
    closed: CancellationToken,
}

impl Connection {
    async fn serve(self, stream: TcpStream) {
        let Self { router, patience, crowd, closed } = self;
        let activity = Activity::default();
        let noted = activity.clone();
        let service = service_fn(move |request: Request<_>| {
            let (router, under_way) = (router.clone(), noted.begin());
            async move {
                let response: Response = router.oneshot(request.map(Body::new)).await?;
                Ok::<_, Infallible>(response.map(|body| Delivered::new(body, under_way)))
            }
        });
        let mut builder = Builder::new(Streams { patience });
        builder.http1().timer(TokioTimer::new()).header_read_timeout(patience);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(patience)
            .keep_alive_timeout(patience)
            .max_concurrent_streams(MAX_STREAMS);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)).into_owned());
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = still_unheard(&activity, patience) => return debug!("a client sent no request in time"),
            () = until_asked_to_end(&activity, crowd, closed) => {
                // What is under way, or still on its way to the client, comes to its end.
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            debug!(error, "a connection broke");
        }
    }
}

async fn until_asked_to_end(activity: &Activity, crowd: watch::Receiver<bool>, closed: CancellationToken) {
    tokio::select! {
        () = gives_way(activity, crowd) => debug!("an idle connection makes room"),
        () = closed.cancelled() => {}
    }
}

/// Comes back if there is no request by then. Before the first one is read it is not known which version of HTTP it is, and hyper's
/// limits are those of a version.
async fn still_unheard(activity: &Activity, patience: Duration) {
    sleep(patience).await;
    if activity.has_begun() {
        std::future::pending::<()>().await;
    }
}

/// Comes back when others wait for a place, and nothing is done here.
async fn gives_way(activity: &Activity, mut crowd: watch::Receiver<bool>) {
    while crowd.wait_for(|is_crowded| *is_crowded).await.is_ok() {
        let idle = activity.idle();
        if idle >= CROWDED_IDLE {
            return;
        }
        sleep(CROWDED_IDLE.saturating_sub(idle)).await;
    }
    std::future::pending::<()>().await;
}

/// Has the system find out about a client that is gone without a word, or that does not read: the connection then breaks, and what it
/// waits for is cancelled.
fn watch_peer(stream: &TcpStream, patience: Duration) {
    let socket = SockRef::from(stream);
    let probes = TcpKeepalive::new().with_time(patience).with_interval(patience);
    // Where a system does not know one of these, a connection lasts longer and works all the same.
    let _ = (socket.set_tcp_keepalive(&probes), socket.set_tcp_nodelay(true));
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_user_timeout(Some(patience));
}

/// Whether it is about the connection that was to be taken, and not about this process.
fn is_of_peer(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
}
