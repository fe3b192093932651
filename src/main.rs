//! The `sd-worker` binary: parses the arguments and, for `serve`, wires queue, engine and server together.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    net::SocketAddr,
    panic,
    process::ExitCode,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use metrics_exporter_prometheus::PrometheusHandle;
use sd_notify::NotifyState;
use sd_worker::{
    backend::{
        self, GenerationEngine, GenerationRequest, InferencePipeline, LoadError, LoadOptions, ModelInfo, Pulse, RequestQueue, Studio,
    },
    cli::{self, Cli, Command, Failure, Heartbeat, LogFormat, ServeArgs, StopSignals},
    common::error_chain,
    http::{self, Access, Admission, AppState, ConnectionLimits, Lifecycle, RunLimits, Runs},
    ops::{ReusingAllocator, free_scratch},
};
use serde_json::json;
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    sync::{mpsc::UnboundedReceiver, watch},
    task::JoinHandle,
    time::{interval, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

#[global_allocator]
static ALLOCATOR: ReusingAllocator = ReusingAllocator::new();

/// How long cancelled requests may take to stop.
const CANCEL_GRACE: Duration = Duration::from_secs(2);

/// The interval of the upkeep.
const UPKEEP: Duration = Duration::from_secs(5);

/// The upkeep returns memory after so many intervals without a request.
const TICKS_TO_IDLE: u32 = 3;

/// Runs the command, prints an error as the last line of stderr, and returns the exit code.
fn main() -> ExitCode {
    ALLOCATOR.serve_process(Failure::OUT_OF_MEMORY);
    report_panics();
    let work = || match cli::parse(std::env::args_os()) {
        Ok(cli) => run(cli),
        Err(error) => cli::explain(&error),
    };
    let code = panic::catch_unwind(work).unwrap_or_else(|panic| {
        let (reason, code) = Failure::of_panic(panic.as_ref());
        cli::stderr().line(format!("error: {reason}"));
        ExitCode::from(code)
    });
    // A reader has had its time; the process does not wait for it again.
    let _ = (cli::stdout().flush(), cli::stderr().flush());
    code
}

fn run(cli: Cli) -> ExitCode {
    // Dropping the logs writes their remaining lines before the last line.
    let outcome = cli::init_logs(&cli.logs).and_then(|_logs| {
        for warning in cli::warnings() {
            warn!("{warning}");
        }
        match cli.command {
            Command::Serve(args) => run_server(&args, cli.logs.log_format),
            Command::Generate(args) => cli::generate(&args),
            Command::Models { command } => cli::models(&command),
            Command::Selfcheck(args) => cli::selfcheck(&args),
            Command::Completions { shell } => cli::completions(shell),
            Command::Man { directory } => cli::manual(directory.as_deref()),
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            cli::stderr().line(format!("error: {}", error_chain(&failure)));
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Prints panics without blocking. A panic fails one request; the engine goes on.
fn report_panics() {
    panic::set_hook(Box::new(|panic| {
        let thread = thread::current();
        cli::stderr().line(format!("thread '{}' {panic}", thread.name().unwrap_or("unnamed")));
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            cli::stderr().line(backtrace.to_string());
        }
        // The process may end at once.
        let _ = cli::stderr().flush();
    }));
}

/// Serves until SIGTERM or SIGINT.
fn run_server(args: &ServeArgs, log_format: LogFormat) -> Result<(), Failure> {
    if args.build_info {
        cli::stdout().line(if cfg!(debug_assertions) { "debug" } else { "release" });
        return cli::printed();
    }
    let access = args.access()?;
    args.model.start_threads()?;
    let runtime = Runtime::new().context("no runtime").map_err(Failure::Internal)?;
    let outcome = runtime.block_on(serve(args, access, log_format));
    // A step may take minutes, and its client is gone: the process does not wait for it.
    runtime.shutdown_background();
    outcome
}

async fn serve(args: &ServeArgs, access: Access, log_format: LogFormat) -> Result<(), Failure> {
    let signals = StopSignals::new()?;
    if args.exit_on_stdin_eof {
        signals.watch_stdin();
    }
    let metrics = http::install_recorder().context("no metrics").map_err(Failure::Internal)?;
    let runs = Runs::new(RunLimits { keep: Duration::from_secs(args.keep_results), most: args.max_results, bytes: args.max_result_bytes });
    let address = SocketAddr::new(args.host, args.port);
    let listener = TcpListener::bind(address).await.map_err(|source| Failure::Port { address, source })?;
    let address = listener.local_addr().map_err(|source| Failure::Port { address, source })?;
    announce(&json!({ "event": "listening", "host": address.ip(), "port": address.port() }));

    // From here on the socket answers; until the model is loaded, it says so.
    let (queue, requests) = RequestQueue::new();
    let (lifecycle, lifecycle_rx) = watch::channel(Lifecycle::Loading);
    let (admission, pulse, stop) =
        (Admission::new(args.queue_capacity).with_max_work(args.max_work), Pulse::default(), CancellationToken::new());
    let watchdog = (args.watchdog > 0).then(|| Duration::from_secs(args.watchdog));
    let client_timeout = Duration::from_secs(args.client_timeout);
    let state = AppState {
        queue,
        lifecycle: lifecycle_rx.clone(),
        admission: admission.clone(),
        runs,
        access,
        client_timeout,
        max_batch: args.max_batch,
        pulse: pulse.clone(),
        watchdog,
        metrics,
        shutdown: signals.asked(),
        stop: stop.clone(),
    };
    tokio::spawn(keep_up(state.metrics.clone(), state.runs.clone(), admission.clone()));
    let closed = CancellationToken::new();
    let limits = ConnectionLimits { patience: client_timeout, most: args.max_connections };
    let server = tokio::spawn(http::serve(listener, http::router(state), limits, closed.clone()));
    tokio::spawn(cli::pet_watchdog(pulse.clone(), watchdog));
    let heartbeat = Heartbeat::start(&args.orchestrator, args.model.model.clone(), address.port(), lifecycle_rx, admission.clone());

    let worker = Worker { args, address, log_format, signals, lifecycle, admission, pulse, stop, closed, server };
    let outcome = worker.run(requests).await;
    if let Some(heartbeat) = heartbeat {
        heartbeat.stop().await;
    }
    outcome
}

/// A worker that listens, with what it needs to load a model and to stop.
struct Worker<'a> {
    args: &'a ServeArgs,
    address: SocketAddr,
    log_format: LogFormat,
    signals: StopSignals,
    lifecycle: watch::Sender<Lifecycle>,
    admission: Admission,
    pulse: Pulse,
    /// Cancels every run.
    stop: CancellationToken,
    /// Closes the socket to new connections.
    closed: CancellationToken,
    server: JoinHandle<()>,
}

impl Worker<'_> {
    /// Loads the model, serves, and drains.
    async fn run(mut self, requests: UnboundedReceiver<GenerationRequest>) -> Result<(), Failure> {
        let started = Instant::now();
        let pipeline = tokio::select! {
            loaded = load(self.args) => loaded?,
            () = self.signals.next() => return Ok(()),
        };
        let info = Arc::clone(pipeline.info());
        let engine = GenerationEngine::new(Arc::new(Studio::new(pipeline)), requests).with_pulse(self.pulse.clone());
        let mut engine = engine.with_max_batch(self.args.max_batch as usize).start();
        self.ready(&info, started.elapsed());
        tokio::select! {
            () = self.signals.next() => {}
            _ = &mut engine => return Err(Failure::Internal(anyhow!("the engine stopped"))),
        }
        self.drain(engine).await;
        Ok(())
    }

    /// The worker takes requests before it says so: a reader of the line may send one at once.
    fn ready(&self, info: &Arc<ModelInfo>, load_time: Duration) {
        metrics::gauge!("sdw_model_loaded").set(1);
        self.lifecycle.send_replace(Lifecycle::Ready(Arc::clone(info)));
        announce(&json!({ "event": "ready", "model": info.id, "device": info.device, "port": self.address.port() }));
        cli::notify_systemd(&NotifyState::Ready);
        let ServeArgs { orchestrator, model, .. } = self.args;
        tokio::spawn(cli::report_ready(orchestrator.clone(), Arc::clone(info), model.model.clone(), self.address));
        let (load_ms, threads) = (load_time.as_millis(), rayon::current_num_threads());
        info!(model = info.id, device = info.device, compute = info.compute, threads, load_ms, "ready");
        if self.log_format == LogFormat::Text {
            cli::stderr().line(format!("Try:\n{}", example(self.address)));
        }
    }

    /// Refuses new requests, lets the runs finish in time, and cancels the rest.
    async fn drain(mut self, engine: JoinHandle<()>) {
        info!("stopping: running requests have {} s to finish", self.args.drain_timeout);
        self.lifecycle.send_replace(Lifecycle::Draining);
        cli::notify_systemd(&NotifyState::Stopping);
        let deadline = Instant::now() + Duration::from_secs(self.args.drain_timeout);
        tokio::select! {
            () = self.admission.idle() => {}
            () = sleep_until(deadline.into()) => warn!("the drain timeout is over: running requests are cancelled"),
            () = self.signals.next() => warn!("second signal: running requests are cancelled"),
        }
        self.stop.cancel();
        // The server's state holds the last sender of the queue; without it the engine ends. Clients may read their answers in the
        // remaining time.
        self.closed.cancel();
        let rest = deadline.saturating_duration_since(Instant::now()).max(CANCEL_GRACE);
        let _ = timeout(rest, async { (self.server.await, timeout(CANCEL_GRACE, engine).await) }).await;
    }
}

/// The upkeep: renders pending metrics, removes expired results, and returns the memory of an idle worker.
async fn keep_up(metrics: PrometheusHandle, runs: Runs, admission: Admission) {
    let (mut ticks, mut admitted, mut idle) = (interval(UPKEEP), 0, 0);
    loop {
        ticks.tick().await;
        metrics.run_upkeep();
        runs.forget_old();
        let is_idle = !admission.is_busy() && admission.admitted() == admitted;
        (admitted, idle) = (admission.admitted(), if is_idle { idle + 1 } else { 0_u32 });
        // Repeated while the worker is idle, since refused requests leave memory behind as well.
        if idle > 0 && idle.is_multiple_of(TICKS_TO_IDLE) {
            let give_back = || {
                free_scratch();
                ALLOCATOR.give_back();
            };
            let _ = tokio::task::spawn_blocking(give_back).await;
        }
    }
}

/// Loads the model and makes a small picture with it, on another thread.
async fn load(args: &ServeArgs) -> Result<Arc<InferencePipeline>, Failure> {
    let (model, merged, requests) = (args.model.clone(), args.lora.clone(), args.defaults.clone().into());
    let work = move || -> Result<_, LoadError> {
        let options = LoadOptions { merged, requests, ..model.options()? };
        let pipeline = Arc::new(backend::load(&model.files()?, &options)?);
        pipeline.self_test().map_err(LoadError::SelfTest)?;
        Ok(pipeline)
    };
    let loaded = tokio::task::spawn_blocking(work).await.context("loading the model").map_err(Failure::Internal)?;
    Ok(loaded?)
}

/// Prints one line of JSON for the parent process. A parent that does not read it does not stop the worker.
fn announce(event: &serde_json::Value) {
    cli::stdout().line(event.to_string());
}

fn example(address: SocketAddr) -> String {
    format!(
        "  curl http://{address}/v1/images/generations -H 'content-type: application/json' \\\n    \
         -d '{{\"prompt\": \"a fox on a blue background\"}}' | jq -r .data[0].b64_json | base64 -d > fox.png"
    )
}
