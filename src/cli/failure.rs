//! The reasons for which the process ends, with their exit codes.

use std::{any::Any, net::SocketAddr, path::PathBuf};

use rayon::ThreadPoolBuildError;

use crate::{
    backend::{GenerationError, LoadError},
    common::InvalidValue,
};

/// The reason for which the process ends. Exit codes are those of BSD's `sysexits.h`.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Arguments that contradict each other or the model.
    #[error("{} {}", .0.name, .0)]
    Usage(InvalidValue),
    /// Settings that are unsafe or impossible.
    #[error("{0}")]
    Configuration(String),
    /// The model is missing, broken, or does not work.
    #[error(transparent)]
    Model(#[from] LoadError),
    /// The worker cannot listen on the address.
    #[error("cannot listen on {address}")]
    Port {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A picture could not be made.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// The device computes wrong results.
    #[error(
        "{wrong} of {all} comparisons with diffusers are beyond their limits; a driver or a library of this device is at fault, or sd-worker is"
    )]
    Selfcheck {
        /// The comparisons beyond their limits.
        wrong: usize,
        /// All comparisons.
        all: usize,
    },
    /// A file that an argument names cannot be read.
    #[error("cannot read {path}", path = .path.display())]
    Input {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {path}", path = .path.display())]
    Output {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The system refuses threads, each of which needs memory.
    #[error("the threads cannot be started: {0}")]
    Threads(ThreadPoolBuildError),
    /// The process itself cannot work.
    #[error(transparent)]
    Internal(anyhow::Error),
}

impl Failure {
    /// The message and the exit code for an uncaught panic. A thread that the system refuses is not a bug.
    #[must_use]
    pub fn of_panic(panic: &(dyn Any + Send)) -> (&'static str, u8) {
        let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        match text {
            // The messages of std, of tokio and of tracing-appender.
            Some(text) if ["failed to spawn", "OS can't spawn"].iter().any(|words| text.contains(words)) => {
                ("the system starts no more threads", Self::OUT_OF_MEMORY)
            }
            _ => ("this is a bug in sd-worker", 70),
        }
    }

    /// Exit code of arguments that cannot be parsed.
    pub const USAGE: u8 = 64;
    /// Exit code of a device with too little memory.
    pub const OUT_OF_MEMORY: u8 = 75;

    /// The exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Generation(GenerationError::Unsupported(_) | GenerationError::Adapter(_)) => Self::USAGE,
            Self::Generation(GenerationError::OutOfMemory(_)) | Self::Threads(_) => Self::OUT_OF_MEMORY,
            Self::Model(error) if error.is_out_of_memory() => Self::OUT_OF_MEMORY,
            Self::Model(LoadError::Device(_)) | Self::Port { .. } => 69,
            Self::Input { .. }
            | Self::Model(
                LoadError::NotFound(_)
                | LoadError::MissingFile(_)
                | LoadError::Unreadable { .. }
                | LoadError::BadWeights { .. }
                | LoadError::MissingWeights { .. }
                | LoadError::WrongWeights { .. }
                | LoadError::BadConfig { .. }
                | LoadError::Download { .. }
                | LoadError::Adapters(_)
                | LoadError::SelfTest(_),
            ) => 66,
            Self::Generation(_) | Self::Selfcheck { .. } | Self::Internal(_) => 70,
            Self::Output { .. } => 73,
            Self::Configuration(_) | Self::Model(LoadError::Limit { .. } | LoadError::Unsupported(_)) => 78,
        }
    }
}

// Written by hand: the value is the message, not its cause.
impl From<InvalidValue> for Failure {
    fn from(error: InvalidValue) -> Self {
        Self::Usage(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_memory_has_a_code_of_its_own() {
        let error = || candle_core::Error::msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")");
        let load = LoadError::WrongWeights { path: "unet".into(), source: error() };
        for failure in [Failure::from(load), LoadError::SelfTest(error().into()).into(), GenerationError::from(error()).into()] {
            assert_eq!(failure.exit_code(), 75, "{failure}");
        }
        assert_eq!(Failure::from(GenerationError::from(candle_core::Error::msg("shape mismatch"))).exit_code(), 70);
        assert_eq!(Failure::Selfcheck { wrong: 1, all: 18 }.exit_code(), 70, "nor is a device that is wrong one without memory");
    }
}
