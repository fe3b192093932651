//! `sd-worker man`.

use std::{fs, path::Path};

use clap::CommandFactory;
use clap_mangen::Man;

use super::{Cli, Failure};

/// Prints this program's manual page, or writes it and those of its commands to a directory.
///
/// # Errors
/// When stdout or a file cannot be written.
pub fn manual(directory: Option<&Path>) -> Result<(), Failure> {
    let command = Cli::command().disable_help_subcommand(true);
    let Some(directory) = directory else {
        let mut page = Vec::new();
        Man::new(command).render(&mut page).map_err(failed(Path::new("stdout")))?;
        super::stdout().line(String::from_utf8_lossy(&page).trim_end());
        return super::printed();
    };
    fs::create_dir_all(directory).and_then(|()| clap_mangen::generate_to(command, directory)).map_err(failed(directory))
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> Failure {
    let path = path.to_owned();
    move |source| Failure::Output { path, source }
}
