//! Arguments and environment variables before they are parsed.

use std::{
    borrow::Cow,
    ffi::OsString,
    io::{self, IsTerminal},
    process::ExitCode,
};

use clap::{
    Arg, CommandFactory, FromArgMatches,
    error::{ContextKind, ContextValue},
};

use super::{
    Cli, Failure,
    outlet::{printed, stderr, stdout},
    spelling::nearest,
    variables,
};

/// Parses the arguments and the environment.
///
/// # Errors
/// When they are invalid, or ask for help.
pub fn parse(args: impl Iterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let matches = variables::without_empty(Cli::command()).try_get_matches_from(with_command(args));
    matches.and_then(|matches| Cli::from_arg_matches(&matches)).map_err(without_wrong_tips)
}

/// Warnings about environment variables that have no effect.
#[must_use]
pub fn warnings() -> Vec<String> {
    variables::unknown(&Cli::command())
}

/// Removes clap's suggestions that have little in common with what was written.
fn without_wrong_tips(mut error: clap::Error) -> clap::Error {
    for (kind, suggested) in
        [(ContextKind::InvalidArg, ContextKind::SuggestedArg), (ContextKind::InvalidSubcommand, ContextKind::SuggestedSubcommand)]
    {
        let texts = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => vec![text.clone()],
            Some(ContextValue::Strings(texts)) => texts.clone(),
            _ => Vec::new(),
        };
        let (written, tips) = (texts(kind), texts(suggested));
        let is_near =
            |written: &String| nearest(written.trim_start_matches('-'), tips.iter().map(|tip| tip.trim_start_matches('-'))).is_some();
        if !written.iter().any(is_near) {
            error.remove(suggested);
        }
    }
    error
}

/// Inserts the default command, `serve`, so that an orchestrator can start a worker with options alone.
fn with_command(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.collect();
    if means_serve(&args) {
        args.insert(1.min(args.len()), "serve".into());
    }
    args
}

/// Whether the first word after the global options is an option, or missing.
fn means_serve(args: &[OsString]) -> bool {
    let cli = Cli::command();
    let is_of_all = |word: &Cow<'_, str>| {
        let name = word.strip_prefix("--").and_then(|word| word.split('=').next());
        cli.get_arguments().filter_map(Arg::get_long).any(|long| name == Some(long))
    };
    let mut words = args.iter().skip(1).map(|arg| arg.to_string_lossy()).peekable();
    while let Some(option) = words.next_if(is_of_all) {
        if !option.contains('=') {
            words.next();
        }
    }
    words.next().is_none_or(|word| word.starts_with('-') && !matches!(&*word, "-h" | "--help" | "-V" | "--version"))
}

/// Prints what is wrong with the arguments, or the help that they ask for.
#[must_use]
pub fn explain(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        stderr().line(reason_last(&error.render().to_string()));
        return ExitCode::from(Failure::USAGE);
    }
    let text = error.render();
    let text = if io::stdout().is_terminal() { text.ansi().to_string() } else { text.to_string() };
    stdout().line(text.trim_end());
    match printed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => ExitCode::from(failure.exit_code()),
    }
}

/// Moves the reason in clap's message to the last line, where orchestrators read it.
fn reason_last(message: &str) -> String {
    let (reasons, rest): (Vec<&str>, Vec<&str>) = message.trim_end().split("\n\n").partition(|part| part.starts_with("error: "));
    let reason = reasons.join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
    format!("{}\n\n{reason}", rest.join("\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(args: &str) -> String {
        let args = args.split(' ').map(OsString::from);
        with_command(args).iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn options_alone_mean_serve() {
        assert_eq!(completed("sd-worker"), "sd-worker serve");
        assert_eq!(completed("sd-worker --port 0"), "sd-worker serve --port 0");
        assert_eq!(completed("sd-worker --log-level warn --model models"), "sd-worker serve --log-level warn --model models");
        for same in [
            "sd-worker --log-level warn models list",
            "sd-worker --log-level=warn --log-format json models list",
            "sd-worker --help",
            "sd-worker -V",
            "sd-worker generate -o a.png",
            "sd-worker dance",
        ] {
            assert_eq!(completed(same), same);
        }
    }

    #[test]
    fn the_reason_of_a_usage_error_comes_last() {
        assert_eq!(reason_last("error: a\n  b\n\nUsage: x\n\nFor more\n"), "Usage: x\n\nFor more\n\nerror: a b");
    }
}
