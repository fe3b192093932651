//! What a worker tells those who started it: systemd, and an orchestrator over HTTP. Nobody who does not listen stops it.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use sd_notify::NotifyState;
use serde_json::{Value, json};
use tokio::{
    net::UdpSocket,
    sync::watch,
    task::{JoinHandle, spawn_blocking},
    time::{interval, sleep, timeout},
};
use tracing::{debug, warn};
use tracing_subscriber::fmt::{
    format::Writer,
    time::{FormatTime, SystemTime},
};
use ureq::{Agent, http::Uri};

use super::OrchestratorArgs;
use crate::{
    backend::{ModelInfo, Pulse},
    common::{self, error_chain},
    http::{Admission, Lifecycle},
};

/// Between tries of the callback.
const CALLBACK_WAITS: [u64; 5] = [0, 2, 4, 8, 16];
/// An orchestrator that takes longer is as good as not there.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long the worker stays for its last word.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Says something to systemd, if it is there.
pub fn notify_systemd(state: &NotifyState) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        warn!(%error, "systemd cannot be told");
    }
}

/// Tells systemd that the worker lives, as often as its unit asks, for as long as the engine moves.
pub async fn pet_watchdog(pulse: Pulse, patience: Option<Duration>) {
    let Some(time) = sd_notify::watchdog_enabled().filter(|time| !time.is_zero()) else { return };
    let mut ticks = interval(time / 2);
    loop {
        ticks.tick().await;
        if patience.is_none_or(|patience| pulse.silence() < patience) {
            notify_systemd(&NotifyState::Watchdog);
        }
    }
}

/// Says `POST {callback-url}` that the worker is ready; tries again for half a minute.
pub async fn report_ready(args: OrchestratorArgs, info: std::sync::Arc<ModelInfo>, model: String, address: SocketAddr) {
    let Some(callback) = &args.callback_url else { return };
    let ip = route_to(callback, address.ip()).await.unwrap_or(address.ip());
    let url = format!("http://{}", SocketAddr::new(ip, address.port()));
    let backend = info.device.split(':').next().unwrap_or_default();
    let report = json!({ "worker_id": args.worker_id(), "url": url, "model_ref": model, "backend": backend, "device": info.device });
    for wait in CALLBACK_WAITS {
        sleep(Duration::from_secs(wait)).await;
        // Said once, however often it is tried.
        match post(callback.clone(), report.clone()).await {
            Ok(()) => return,
            Err(error) if wait == 0 => warn!(error, "the callback is not taken"),
            Err(error) => debug!(error, "the callback is still not taken"),
        }
    }
}

/// The address behind `listening`, which may stand for all, from which the system would send to `url`: there its host can reach us.
async fn route_to(url: &str, listening: IpAddr) -> Option<IpAddr> {
    let url: Uri = url.parse().ok()?;
    let socket = UdpSocket::bind((listening, 0)).await.ok()?;
    // Sends nothing, to whatever port.
    socket.connect((url.host()?.trim_matches(['[', ']']), 80)).await.ok()?;
    Some(socket.local_addr().ok()?.ip().to_canonical())
}

/// The worker's state as an orchestrator knows it, every so often and whenever it changes.
#[derive(Debug)]
pub struct Heartbeat {
    stopped: watch::Sender<bool>,
    beating: JoinHandle<()>,
}

impl Heartbeat {
    /// Begins to report, if there is anyone to report to.
    #[must_use]
    pub fn start(
        args: &OrchestratorArgs,
        model: String,
        port: u16,
        lifecycle: watch::Receiver<Lifecycle>,
        admission: Admission,
    ) -> Option<Self> {
        let url = format!("{}/v1/worker-heartbeat", args.queen_url.as_ref()?.trim_end_matches('/'));
        let (stopped, stopped_rx) = watch::channel(false);
        let heart = Heart { url, id: args.worker_id(), model, port, lifecycle, admission, stopped: stopped_rx };
        let beating = tokio::spawn(heart.beat(Duration::from_secs(args.heartbeat_interval)));
        Some(Self { stopped, beating })
    }

    /// Says the last word.
    pub async fn stop(self) {
        self.stopped.send_replace(true);
        let _ = timeout(LAST_WORD, self.beating).await;
    }
}

struct Heart {
    url: String,
    id: String,
    model: String,
    port: u16,
    lifecycle: watch::Receiver<Lifecycle>,
    admission: Admission,
    stopped: watch::Receiver<bool>,
}

impl Heart {
    async fn beat(mut self, every: Duration) {
        let mut ticks = interval(every);
        let mut silent = false;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = self.lifecycle.changed() => {}
                _ = self.stopped.changed() => {}
            }
            // Asked before the report is made: the end may come while one is on its way, and is reported, too.
            let last = *self.stopped.borrow();
            let sent = post(self.url.clone(), self.report(last)).await;
            // Said once, however long nobody listens.
            match sent {
                Ok(()) => silent = false,
                Err(error) if silent => debug!(error, "still nobody takes the heartbeat"),
                Err(error) => {
                    warn!(error, "nobody takes the heartbeat");
                    silent = true;
                }
            }
            if last {
                break;
            }
        }
    }

    fn report(&self, last: bool) -> Value {
        let (device, status) = match &*self.lifecycle.borrow() {
            _ if last => (None, "stopped"),
            Lifecycle::Loading => (None, "starting"),
            Lifecycle::Ready(info) => (Some(info.device.clone()), if self.admission.is_busy() { "busy" } else { "ready" }),
            Lifecycle::Draining => (None, "stopping"),
        };
        let worker = json!({
            "id": self.id, "model_id": self.model, "device": device, "port": self.port, "status": status,
            "implementation": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION"),
        });
        json!({ "worker": worker, "timestamp": timestamp() })
    }
}

/// The time in UTC as in [RFC 3339](https://www.rfc-editor.org/rfc/rfc3339), in milliseconds.
fn timestamp() -> String {
    let mut time = String::new();
    // A `String` takes everything.
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    time.truncate("2026-01-31T00:00:00.000".len());
    time + "Z"
}

async fn post(url: String, body: Value) -> Result<(), String> {
    let send = move || {
        let refused = |error: &dyn std::error::Error| format!("{}: {}", common::without_secrets(&url), error_chain(error));
        let address: Uri = url.parse().map_err(|error| refused(&error))?;
        let agent = common::agent(&address, Agent::config_builder().timeout_global(Some(TIMEOUT))).map_err(|error| refused(&error))?;
        agent.post(address).send_json(body).map(drop).map_err(|error| refused(&error))
    };
    spawn_blocking(send).await.unwrap_or_else(|error| Err(error.to_string()))
}
