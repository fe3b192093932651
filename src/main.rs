//! The `sd-worker` binary: reads the arguments and, to serve, wires queue, engine and server together.

use std::{
    future::Future,
    io::{IsTerminal, Write},
    net::SocketAddr,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Parser;
use sd_worker::{
    backend::{self, GenerationEngine, InferencePipeline, LoadError, LoadOptions, ModelFiles, RequestQueue},
    cli::{self, Cli, Command, Failure, LogArgs, LogFormat, ServeArgs},
    common::Lifecycle,
    http::{self, Admission, AppState},
};
use serde_json::json;
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How long cancelled requests may take to notice.
const CANCEL_GRACE: Duration = Duration::from_secs(2);

/// Runs what the arguments say, prints what went wrong as the last line of stderr, and says how it ended.
fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too; if stdout or stderr is closed, nobody reads them anyway.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(Failure::USAGE) } else { ExitCode::SUCCESS };
        }
    };
    init_logs(&cli.logs);
    let outcome = match cli.command.unwrap_or(Command::Serve(cli.serve)) {
        Command::Serve(args) => run_server(&args),
        Command::Generate(args) => cli::generate(&args),
        Command::Models { command } => cli::models(&command),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {}", failure.chain());
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Logs go to stderr; stdout is for the lines that an orchestrator reads.
fn init_logs(args: &LogArgs) {
    let subscriber = tracing_subscriber::fmt().with_env_filter(args.log_level.as_str()).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => subscriber.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => subscriber.json().init(),
    }
}

/// Serves until SIGTERM or SIGINT.
fn run_server(args: &ServeArgs) -> Result<(), Failure> {
    if !args.host.is_loopback() && !args.insecure {
        return Err(Failure::Configuration(format!(
            "{} can be reached by others, and nothing would keep them out; say --insecure if that is what you want",
            args.host
        )));
    }
    let runtime = Runtime::new().map_err(|error| Failure::Internal(format!("no runtime: {error}")))?;
    let outcome = runtime.block_on(serve(args));
    // A step that is still running is not waited for: it could take minutes, and its client is gone.
    runtime.shutdown_background();
    outcome
}

async fn serve(args: &ServeArgs) -> Result<(), Failure> {
    let mut stop_signal = Box::pin(stop_signal()?);
    let metrics = http::install_recorder().map_err(|error| Failure::Internal(format!("no metrics: {error}")))?;
    let address = SocketAddr::new(args.host, args.port);
    let listener = TcpListener::bind(address).await.map_err(|source| Failure::Port { address, source })?;
    let address = listener.local_addr().map_err(|source| Failure::Port { address, source })?;
    announce(&json!({ "event": "listening", "host": address.ip(), "port": address.port() }));

    // The socket answers from here on; until there is a model, it says so.
    let (queue, requests) = RequestQueue::new();
    let (lifecycle, lifecycle_rx) = watch::channel(Lifecycle::Loading);
    let admission = Admission::new(args.queue_capacity);
    let stop = CancellationToken::new();
    let state = AppState { queue, lifecycle: lifecycle_rx, admission: admission.clone(), metrics, stop: stop.clone() };
    let closed = CancellationToken::new();
    let server = axum::serve(listener, http::router(state)).with_graceful_shutdown(closed.clone().cancelled_owned());
    let server = tokio::spawn(server.into_future());

    let started = Instant::now();
    let pipeline = tokio::select! {
        loaded = load(args) => loaded?,
        () = &mut stop_signal => return Ok(()),
    };
    let info = Arc::clone(pipeline.info());
    let engine = GenerationEngine::new(pipeline, requests).start();
    metrics::gauge!("sdw_model_loaded").set(1);
    // First in fact, then in words: whoever reads the line may send a request at once.
    lifecycle.send_replace(Lifecycle::Ready(Arc::clone(&info)));
    announce(&json!({ "event": "ready", "model": info.id, "device": info.device, "port": address.port() }));
    info!(model = info.id, device = info.device, load_ms = started.elapsed().as_millis(), "ready");
    eprintln!("Try:\n{}", example(address));

    stop_signal.await;
    info!("stopping: requests that run have {} s to finish", args.drain_timeout);
    lifecycle.send_replace(Lifecycle::Draining);
    if timeout(Duration::from_secs(args.drain_timeout), admission.idle()).await.is_err() {
        warn!("requests that did not finish in time are cancelled");
        stop.cancel();
        let _ = timeout(CANCEL_GRACE, admission.idle()).await;
    }
    closed.cancel();
    // The server's state holds the last queue; without it the engine's loop ends.
    let _ = timeout(CANCEL_GRACE, async { (server.await, engine.await) }).await;
    Ok(())
}

/// Loads the model and makes a first small picture with it, off the runtime's threads.
async fn load(args: &ServeArgs) -> Result<Arc<InferencePipeline>, Failure> {
    let (model, device, max_pixels) = (args.model.model.clone(), args.model.device, args.model.max_pixels);
    let work = move || -> Result<_, LoadError> {
        let files = ModelFiles::open(&model)?;
        let pipeline = Arc::new(backend::load(&files, &LoadOptions { device: device.open()?, max_pixels })?);
        pipeline.self_test().map_err(LoadError::SelfTest)?;
        Ok(pipeline)
    };
    let loaded = tokio::task::spawn_blocking(work).await.map_err(|error| Failure::Internal(format!("loading the model: {error}")))?;
    Ok(loaded?)
}

/// Ends at the first SIGTERM or SIGINT.
fn stop_signal() -> Result<impl Future<Output = ()>, Failure> {
    let listen = |kind| signal(kind).map_err(|error| Failure::Internal(format!("no signals: {error}")));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
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
