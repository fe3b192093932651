//! What the process says of itself: logs for those who read them, spans for those who collect them.

use std::io::{IsTerminal, stderr};

use tracing::warn;
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::{EnvFilter, Layer, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use super::{Failure, LogArgs, LogFormat, otlp};

/// Writes what is still to be written when it is dropped.
#[derive(Debug)]
#[must_use = "without it, nothing is written"]
pub struct Logs {
    _spans: Option<otlp::Export>,
    _lines: WorkerGuard,
}

/// Logs go to stderr; stdout is for the lines that an orchestrator reads. A thread of their own writes them: a parent that holds
/// stderr and does not read it would otherwise stop the engine at a line that finds no room. Such lines are lost.
///
/// # Errors
/// When spans cannot be sent to where they are to be sent.
pub fn init_logs(args: &LogArgs) -> Result<Logs, Failure> {
    let (writer, lines) = tracing_appender::non_blocking(stderr());
    // Otherwise a log line that cannot be written panics.
    let layer = fmt::layer().with_writer(writer).log_internal_errors(false);
    let layer = match args.log_format {
        LogFormat::Text => layer.with_ansi(stderr().is_terminal()).boxed(),
        LogFormat::Json => layer.json().boxed(),
    };
    // What the HTTP client says of its requests has their URLs, which may let somebody in.
    let filter = EnvFilter::new(format!("{},ureq=info", args.log_level));
    let (spans, export) = args.otlp_endpoint.as_deref().map(otlp::layer).transpose()?.unzip();
    tracing_subscriber::registry().with(layer.with_filter(filter)).with(spans).init();
    if args.otlp_endpoint.is_some() && !otlp::IS_BUILT_IN {
        warn!("spans are not sent anywhere: this binary is built without that; build with --features otlp");
    }
    Ok(Logs { _spans: export, _lines: lines })
}
