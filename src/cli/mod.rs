//! The command line: arguments, the commands that need no server, and exit codes.

mod args;
mod failure;
mod generate;
mod models;

pub use args::{Cli, Command, GenerateArgs, LogArgs, LogFormat, ModelArgs, ModelsCommand, ServeArgs, reason_last, with_command};
pub use failure::Failure;
pub use generate::generate;
pub use models::models;
