//! The environment's `SD_WORKER_…` variables before they are parsed.

use std::{
    collections::BTreeSet,
    env,
    ffi::{self, OsString},
};

use clap::{
    Arg, Command,
    builder::{OsStr, Resettable},
};

use super::spelling::nearest;

const PREFIX: &str = "SD_WORKER_";

/// Unsets variables that are empty, or that Kubernetes sets for a service.
pub(super) fn without_empty(command: Command) -> Command {
    let is_unset = |arg: &Arg| {
        let name = arg.get_env().unwrap_or_default();
        env::var_os(name).is_some_and(|value| value.is_empty() || is_of_kubernetes(&name.to_string_lossy(), &value))
    };
    command.mut_args(|arg| if is_unset(&arg) { arg.env(Resettable::<OsStr>::Reset) } else { arg }).mut_subcommands(without_empty)
}

/// Warnings about variables that have this worker's prefix and no meaning.
pub(super) fn unknown(command: &Command) -> Vec<String> {
    let mut known = BTreeSet::new();
    collect(command, &mut known);
    let said = |(name, value): (OsString, OsString)| {
        let name = name.into_string().ok()?;
        let is_meant = name.starts_with(PREFIX) && !known.contains(&name) && !value.is_empty() && !is_of_kubernetes(&name, &value);
        // The common prefix says nothing about the distance of two names.
        let letters = name.strip_prefix(PREFIX).filter(|_| is_meant)?;
        let meant = nearest(letters, known.iter().filter_map(|known| known.strip_prefix(PREFIX)));
        let hint = meant
            .map_or("`sd-worker serve --help` lists those that there are".to_owned(), |meant| format!("did you mean {PREFIX}{meant}?"));
        Some(format!("the variable {name} sets nothing: {hint}"))
    };
    let mut all: Vec<String> = env::vars_os().filter_map(said).collect();
    all.sort();
    all
}

fn collect(command: &Command, names: &mut BTreeSet<String>) {
    names.extend(command.get_arguments().filter_map(|arg| Some(arg.get_env()?.to_string_lossy().into_owned())));
    command.get_subcommands().for_each(|command| collect(command, names));
}

/// Whether [Kubernetes](https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables) sets the variable in the
/// pods of a service named `sd-worker`. One of these variables, with an address for its value, has the name of `--port`'s own.
fn is_of_kubernetes(name: &str, value: &ffi::OsStr) -> bool {
    let Some(name) = name.strip_prefix(PREFIX) else { return false };
    let is_address = ["tcp://", "udp://", "sctp://"].iter().any(|start| value.to_string_lossy().starts_with(start));
    name.starts_with("SERVICE_") || name.starts_with("PORT_") || (name == "PORT" && is_address)
}
