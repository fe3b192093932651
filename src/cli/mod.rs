//! The command line: arguments, the commands that need no server, and exit codes.

mod args;
mod failure;
mod generate;
mod models;
mod orchestrator;
mod stop_signals;

pub use args::{
    Cli, Command, GenerateArgs, LogArgs, LogFormat, ModelArgs, ModelsCommand, OrchestratorArgs, ServeArgs, reason_last, with_command,
};
pub use failure::Failure;
pub use generate::generate;
pub use models::models;
pub use orchestrator::{Heartbeat, notify_systemd, pet_watchdog, report_ready};
pub use stop_signals::StopSignals;
