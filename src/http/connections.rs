//! Connections. Each is served by its own task; a client that is silent when it should send, or that does not read, is disconnected.

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

/// The pause after the system refuses to accept a connection, as when the process has too many open files.
const RECOVERY: Duration = Duration::from_secs(1);
/// How long a connection may be idle while others wait for a place.
const CROWDED_IDLE: Duration = Duration::from_secs(1);
/// The most concurrent requests of one HTTP/2 connection.
const MAX_STREAMS: u32 = 100;

/// Limits of connections.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// How long a client may be silent while it sends a request or before its next one, and how long it may leave an answer unread.
    pub patience: Duration,
    /// The most open connections. Beyond it, idle ones are closed for those that wait.
    pub most: usize,
}

/// Accepts connections until `closed`, and serves open ones until their requests are answered.
pub async fn serve(listener: TcpListener, router: Router, limits: ConnectionLimits, closed: CancellationToken) {
    let (places, crowd) = (Arc::new(Semaphore::new(limits.most)), watch::Sender::new(false));
    // The channel is open until the last connection has ended.
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
                // The semaphore is never closed.
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

/// What each connection's task needs.
struct Connection {
    router: Router,
    patience: Duration,
    /// Whether connections wait for a place.
    crowd: watch::Receiver<bool>,
    closed: CancellationToken,
}

impl Connection {
    async fn serve(self, stream: TcpStream) {
        let Self { router, patience, crowd, closed } = self;
        let activity = Activity::default();
        let noted = activity.clone();
        let service = service_fn(move |request: Request<_>| {
            let (router, in_progress) = (router.clone(), noted.begin());
            async move {
                let response: Response = router.oneshot(request.map(Body::new)).await?;
                Ok::<_, Infallible>(response.map(|body| Delivered::new(body, in_progress)))
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
                // Requests that run, and answers on their way to the client, come to their end.
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

/// Completes if no request has come within `patience`. Until the first one, HTTP's version is unknown, and hyper's own timeouts belong to a
/// version.
async fn still_unheard(activity: &Activity, patience: Duration) {
    sleep(patience).await;
    if activity.has_begun() {
        std::future::pending::<()>().await;
    }
}

/// Completes when others wait for a place and this connection is idle.
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

/// Asks the system to break a connection whose client has vanished or does not read, which cancels the client's requests.
fn watch_peer(stream: &TcpStream, patience: Duration) {
    let socket = SockRef::from(stream);
    let probes = TcpKeepalive::new().with_time(patience).with_interval(patience);
    // On a system without one of these options, a dead connection merely lasts longer.
    let _ = (socket.set_tcp_keepalive(&probes), socket.set_tcp_nodelay(true));
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_user_timeout(Some(patience));
}

/// Whether an error concerns the connection being accepted, and not this process.
fn is_of_peer(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
}
