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
    // For bash, clap_complete 4.6.12 writes the name of a program with a hyphen in two ways, so that nothing is completed after a command
    // (clap's issue 6421).
    let script = String::from_utf8_lossy(&script).replace("sd__subcmd__worker", "sd__worker");
    super::stdout().line(script.trim_end());
    super::printed()
}
