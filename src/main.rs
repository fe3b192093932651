//! The `sd-worker` binary: reads the arguments and, to serve, wires queue, engine and server together.

use std::{
    io::{IsTerminal, Write},
    net::SocketAddr,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use clap::Parser;
use metrics_exporter_prometheus::PrometheusHandle;
use sd_worker::{
    backend::{self, GenerationEngine, InferencePipeline, LoadError, LoadOptions, ModelFiles, RequestQueue},
    cli::{self, Cli, Command, Failure, LogArgs, LogFormat, ServeArgs},
    common::{Lifecycle, error_chain},
    http::{self, Admission, AppState, RunLimits, Runs},
    ops::ReusingAllocator,
};
use serde_json::json;
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::{interval, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

#[global_allocator]
static ALLOCATOR: ReusingAllocator = ReusingAllocator::new();

/// How long cancelled requests may take to notice.
const CANCEL_GRACE: Duration = Duration::from_secs(2);

/// How often what nobody asks for is cleared away, so that it does not pile up.
const UPKEEP: Duration = Duration::from_secs(5);

/// Runs what the arguments say, prints what went wrong as the last line of stderr, and says how it ended.
fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(cli::with_command(std::env::args_os())) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            say(&cli::reason_last(&error.render().to_string()));
            return ExitCode::from(Failure::USAGE);
        }
        Err(help) => {
            // Help, or the version. If stdout is closed, nobody reads it anyway.
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    init_logs(&cli.logs);
    let outcome = match cli.command {
        Command::Serve(args) => run_server(&args, cli.logs.log_format),
        Command::Generate(args) => cli::generate(&args),
        Command::Models { command } => cli::models(&command),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say(&format!("error: {}", error_chain(&failure)));
            ExitCode::from(failure.exit_code())
        }
    }
}

/// A line on stderr, for whoever is there to read it: a closed stderr must not end a worker.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Logs go to stderr; stdout is for the lines that an orchestrator reads.
fn init_logs(args: &LogArgs) {
    let subscriber = tracing_subscriber::fmt().with_env_filter(args.log_level.as_str()).with_writer(std::io::stderr);
    // Otherwise a log line that cannot be written panics.
    let subscriber = subscriber.log_internal_errors(false);
    match args.log_format {
        LogFormat::Text => subscriber.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => subscriber.json().init(),
    }
}

/// Serves until SIGTERM or SIGINT.
fn run_server(args: &ServeArgs, log_format: LogFormat) -> Result<(), Failure> {
    if !args.host.is_loopback() && !args.insecure {
        return Err(Failure::Configuration(format!(
            "{} can be reached by others, and nothing would keep them out; say --insecure if that is what you want",
            args.host
        )));
    }
    args.model.start_threads()?;
    let runtime = Runtime::new().context("no runtime").map_err(Failure::Internal)?;
    let outcome = runtime.block_on(serve(args, log_format));
    // A step that is still running is not waited for: it could take minutes, and its client is gone.
    runtime.shutdown_background();
    outcome
}

async fn serve(args: &ServeArgs, log_format: LogFormat) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let metrics = http::install_recorder().context("no metrics").map_err(Failure::Internal)?;
    let runs = Runs::new(RunLimits { keep: Duration::from_secs(args.keep_results), most: args.max_results });
    tokio::spawn(keep_up(metrics.clone(), runs.clone()));
    let address = SocketAddr::new(args.host, args.port);
    let listener = TcpListener::bind(address).await.map_err(|source| Failure::Port { address, source })?;
    let address = listener.local_addr().map_err(|source| Failure::Port { address, source })?;
    announce(&json!({ "event": "listening", "host": address.ip(), "port": address.port() }));

    // The socket answers from here on; until there is a model, it says so.
    let (queue, requests) = RequestQueue::new();
    let (lifecycle, lifecycle_rx) = watch::channel(Lifecycle::Loading);
    let admission = Admission::new(args.queue_capacity);
    let stop = CancellationToken::new();
    let state = AppState { queue, lifecycle: lifecycle_rx, admission: admission.clone(), runs, metrics, stop: stop.clone() };
    let closed = CancellationToken::new();
    let server = axum::serve(listener, http::router(state)).with_graceful_shutdown(closed.clone().cancelled_owned());
    let server = tokio::spawn(server.into_future());

    let started = Instant::now();
    let pipeline = tokio::select! {
        loaded = load(args) => loaded?,
        () = signals.next() => return Ok(()),
    };
    let info = Arc::clone(pipeline.info());
    let mut engine = GenerationEngine::new(pipeline, requests).start();
    metrics::gauge!("sdw_model_loaded").set(1);
    // First in fact, then in words: whoever reads the line may send a request at once.
    lifecycle.send_replace(Lifecycle::Ready(Arc::clone(&info)));
    announce(&json!({ "event": "ready", "model": info.id, "device": info.device, "port": address.port() }));
    let (load_ms, threads) = (started.elapsed().as_millis(), rayon::current_num_threads());
    info!(model = info.id, device = info.device, threads, load_ms, "ready");
    if log_format == LogFormat::Text {
        say(&format!("Try:\n{}", example(address)));
    }

    tokio::select! {
        () = signals.next() => {}
        _ = &mut engine => return Err(Failure::Internal(anyhow!("the engine stopped"))),
    }
    info!("stopping: requests that run have {} s to finish", args.drain_timeout);
    lifecycle.send_replace(Lifecycle::Draining);
    let deadline = Instant::now() + Duration::from_secs(args.drain_timeout);
    tokio::select! {
        () = admission.idle() => {}
        () = sleep_until(deadline.into()) => warn!("requests that did not finish in time are cancelled"),
        () = signals.next() => warn!("asked twice: requests that run are cancelled"),
    }
    stop.cancel();
    // The server's state holds the last queue; without it the engine's loop ends. Answers get what is left of the time to be read.
    closed.cancel();
    let rest = deadline.saturating_duration_since(Instant::now()).max(CANCEL_GRACE);
    let _ = timeout(rest, async { (server.await, timeout(CANCEL_GRACE, engine).await) }).await;
    Ok(())
}

/// Puts together what the metrics have gathered, and forgets results that were kept long enough.
async fn keep_up(metrics: PrometheusHandle, runs: Runs) {
    let mut ticks = interval(UPKEEP);
    loop {
        ticks.tick().await;
        metrics.run_upkeep();
        runs.forget_old();
    }
}

/// Loads the model and makes a first small picture with it, off the runtime's threads.
async fn load(args: &ServeArgs) -> Result<Arc<InferencePipeline>, Failure> {
    let (model, device) = (args.model.model.clone(), args.model.device);
    let (storage, max_pixels) = (args.model.dtype, args.model.max_pixels);
    let work = move || -> Result<_, LoadError> {
        let files = ModelFiles::open(&model)?;
        let pipeline = Arc::new(backend::load(&files, &LoadOptions { device: device.open()?, storage, max_pixels })?);
        pipeline.self_test().map_err(LoadError::SelfTest)?;
        Ok(pipeline)
    };
    let loaded = tokio::task::spawn_blocking(work).await.context("loading the model").map_err(Failure::Internal)?;
    Ok(loaded?)
}

/// SIGTERM and SIGINT, which mean the same here.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).context("no signals").map_err(Failure::Internal);
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// One line of JSON for whoever started this process. If nobody reads them, the worker works all the same.
fn announce(event: &serde_json::Value) {
    let _ = writeln!(std::io::stdout().lock(), "{event}");
}

fn example(address: SocketAddr) -> String {
    format!(
        "  curl http://{address}/v1/images/generations -H 'content-type: application/json' \\\n    \
         -d '{{\"prompt\": \"a fox on a blue background\"}}' | jq -r .data[0].b64_json | base64 -d > fox.png"
    )
}
