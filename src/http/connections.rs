//! Connections, each served by a task of its own, and none kept open for a client that is silent where it should speak.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::Request};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto::Builder,
        graceful::{GracefulShutdown, Watcher},
    },
    service::TowerToHyperService,
};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::{debug, warn};

/// How long there is no try to take a connection after the system refused one, as when the process has too many files open.
const RECOVERY: Duration = Duration::from_secs(1);

/// Serves connections: new ones until `closed`, open ones to the end of what was asked on them.
///
/// `patience` is how long a client may be silent while it sends a request, or before the next, and how long it may leave unread what was
/// sent to it.
pub async fn serve(listener: TcpListener, router: Router, patience: Duration, closed: CancellationToken) {
    let open = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closed.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                watch_peer(&stream, patience);
                tokio::spawn(serve_one(stream, router.clone(), patience, open.watcher()));
            }
            Err(error) if is_of_peer(&error) => debug!(%error, "a client left before it was heard"),
            Err(error) => {
                warn!(%error, "no connection can be taken");
                sleep(RECOVERY).await;
            }
        }
    }
    drop((listener, router));
    open.shutdown().await;
}

async fn serve_one(stream: TcpStream, router: Router, patience: Duration, watcher: Watcher) {
    let heard = Arc::new(AtomicBool::new(false));
    let note = Arc::clone(&heard);
    let service = router.map_request(move |request: Request<_>| {
        note.store(true, Ordering::Relaxed);
        request
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(patience);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(patience).keep_alive_timeout(patience);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)).into_owned();
    tokio::select! {
        ended = watcher.watch(connection) => if let Err(error) = ended {
            debug!(error, "a connection broke");
        },
        () = still_unheard(&heard, patience) => debug!("a client sent no request in time"),
    }
}

/// Comes back if there is no request by then. Before the first one is read it is not known which version of HTTP it is, and hyper's
/// limits are those of a version.
async fn still_unheard(heard: &AtomicBool, patience: Duration) {
    sleep(patience).await;
    if heard.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
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
