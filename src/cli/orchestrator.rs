//! Reports to systemd and to an orchestrator over HTTP. A receiver that does not answer never stops the worker.

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

/// Seconds before each attempt of the callback.
const CALLBACK_WAITS: [u64; 5] = [0, 2, 4, 8, 16];
/// The longest time that a report may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long the process waits for its last heartbeat to be sent.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Notifies systemd, if it runs the worker.
pub fn notify_systemd(state: &NotifyState) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        warn!(%error, "systemd cannot be notified");
    }
}

/// Notifies systemd's watchdog at half its interval while the engine moves.
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

/// Posts to `--callback-url` that the worker is ready. Tries again for half a minute.
pub async fn report_ready(args: OrchestratorArgs, info: std::sync::Arc<ModelInfo>, model: String, address: SocketAddr) {
    let Some(callback) = &args.callback_url else { return };
    let ip = route_to(callback, address.ip()).await.unwrap_or(address.ip());
    let url = format!("http://{}", SocketAddr::new(ip, address.port()));
    let backend = info.device.split(':').next().unwrap_or_default();
    let report = json!({ "worker_id": args.worker_id(), "url": url, "model_ref": model, "backend": backend, "device": info.device });
    for wait in CALLBACK_WAITS {
        sleep(Duration::from_secs(wait)).await;
        // A failure is logged once as a warning, and then at DEBUG.
        match post(callback.clone(), report.clone()).await {
            Ok(()) => return,
            Err(error) if wait == 0 => warn!(error, "the callback cannot be delivered"),
            Err(error) => debug!(error, "the callback still cannot be delivered"),
        }
    }
}

/// The local address from which the system would send to `url`. It takes the place of `listening`, which may be all addresses: the host of
/// `url` can reach the worker there.
async fn route_to(url: &str, listening: IpAddr) -> Option<IpAddr> {
    let url: Uri = url.parse().ok()?;
    let socket = UdpSocket::bind((listening, 0)).await.ok()?;
    // Connecting a UDP socket sends nothing, whatever the port.
    socket.connect((url.host()?.trim_matches(['[', ']']), 80)).await.ok()?;
    Some(socket.local_addr().ok()?.ip().to_canonical())
}

/// Heartbeats: the worker's state, at an interval and at every change.
#[derive(Debug)]
pub struct Heartbeat {
    stopped: watch::Sender<bool>,
    beating: JoinHandle<()>,
}

impl Heartbeat {
    /// Starts the heartbeats, if there is a receiver.
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

    /// Sends the last heartbeat.
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
            // Read before the report is sent: if the worker stops meanwhile, the loop sends one more report.
            let last = *self.stopped.borrow();
            let sent = post(self.url.clone(), self.report(last)).await;
            // A failure is logged once as a warning, and then at DEBUG.
            match sent {
                Ok(()) => silent = false,
                Err(error) if silent => debug!(error, "the heartbeat still cannot be delivered"),
                Err(error) => {
                    warn!(error, "the heartbeat cannot be delivered");
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

/// The time in UTC as in [RFC 3339](https://www.rfc-editor.org/rfc/rfc3339), with milliseconds.
fn timestamp() -> String {
    let mut time = String::new();
    // Writing to a `String` cannot fail.
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
