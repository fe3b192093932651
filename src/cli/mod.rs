//! The command line: arguments, the commands that need no server, and exit codes.

mod args;
mod failure;
mod generate;
mod logs;
mod models;
mod orchestrator;
#[cfg(feature = "otlp")]
mod otlp;
#[cfg(not(feature = "otlp"))]
#[path = "no_otlp.rs"]
mod otlp;
mod selfcheck;
mod stop_signals;

pub use args::{
    Cli, Command, GenerateArgs, LogArgs, LogFormat, ModelArgs, ModelsCommand, OrchestratorArgs, SelfcheckArgs, ServeArgs, reason_last,
    with_command,
};
pub use failure::Failure;
pub use generate::generate;
pub use logs::{Logs, init_logs};
pub use models::models;
pub use orchestrator::{Heartbeat, notify_systemd, pet_watchdog, report_ready};
pub use selfcheck::selfcheck;
pub use stop_signals::StopSignals;
