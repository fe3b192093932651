//! `sd-worker completions`.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Failure};

/// Prints a script with which a shell completes this program's commands and options.
///
/// # Errors
/// When stdout cannot be written.
pub fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "sd-worker", &mut script);
    super::stdout().line(String::from_utf8_lossy(&script).trim_end());
    super::printed()
}
