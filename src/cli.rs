//! The command line: arguments, the commands that need no server, and exit codes.

mod args;
mod completions;
mod failure;
mod generate;
mod logs;
mod manual;
mod models;
mod orchestrator;
#[cfg(feature = "otlp")]
mod otlp;
#[cfg(not(feature = "otlp"))]
#[path = "cli/no_otlp.rs"]
mod otlp;
mod outlet;
mod output_file;
mod raw_args;
mod selfcheck;
mod spelling;
mod stop_signals;
mod variables;

pub use args::{
    Cli, Command, GenerateArgs, LogArgs, LogFormat, ModelArgs, ModelsCommand, OrchestratorArgs, RequestDefaultArgs, SelfcheckArgs,
    ServeArgs,
};
pub use completions::completions;
pub use failure::Failure;
pub use generate::generate;
pub use logs::{Logs, init_logs};
pub use manual::manual;
pub use models::models;
pub use orchestrator::{Heartbeat, notify_systemd, pet_watchdog, report_ready};
pub use outlet::{Outlet, printed, stderr, stdout};
pub use raw_args::{explain, parse, warnings};
pub use selfcheck::selfcheck;
pub use stop_signals::StopSignals;
