//! Logs for people, spans for a collector.

use std::io::{IsTerminal, stderr};

use tracing::warn;
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::{EnvFilter, Layer, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use super::{Failure, LogArgs, LogFormat, otlp};

/// Writes the remaining log lines when it is dropped.
#[derive(Debug)]
#[must_use = "without it, nothing is written"]
pub struct Logs {
    _spans: Option<otlp::Export>,
    _lines: WorkerGuard,
}

/// Sets up logging to stderr; stdout is for an orchestrator. A thread of its own writes the lines, since a pipe that nobody reads would
/// block the engine; lines that do not fit into its queue are lost.
///
/// # Errors
/// When spans cannot be sent to the given endpoint.
pub fn init_logs(args: &LogArgs) -> Result<Logs, Failure> {
    let (writer, lines) = tracing_appender::non_blocking(stderr());
    // By default, tracing panics when a line cannot be written.
    let layer = fmt::layer().with_writer(writer).log_internal_errors(false);
    let layer = match args.log_format {
        LogFormat::Text => layer.with_ansi(stderr().is_terminal()).boxed(),
        LogFormat::Json => layer.json().boxed(),
    };
    // At DEBUG, ureq logs whole URLs, which may contain passwords.
    let filter = EnvFilter::new(format!("{},ureq=info", args.log_level));
    let (spans, export) = args.otlp_endpoint.as_deref().map(otlp::layer).transpose()?.unzip();
    tracing_subscriber::registry().with(layer.with_filter(filter)).with(spans).init();
    if args.otlp_endpoint.is_some() && !otlp::IS_BUILT_IN {
        warn!("spans are not exported: this binary was built without --features otlp");
    }
    Ok(Logs { _spans: export, _lines: lines })
}
