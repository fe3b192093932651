//! What can go wrong behind the queue.

use std::path::PathBuf;

use crate::{
    common::{ImageSize, InvalidValue},
    device::DeviceError,
    models::ConfigError,
};

/// Why a generation ended without a picture. Costs the request that it happened to, and no other.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    /// The request asks for what this model or this worker cannot do.
    #[error("{} {}", .0.name, .0)]
    Unsupported(InvalidValue),
    /// The client went away, or cancelled.
    #[error("the request was cancelled")]
    Cancelled,
    /// It waited for its turn longer than the client waits for it.
    #[error("its turn did not come in the time that the client waits")]
    TooLate,
    /// The picture has values that are no numbers.
    #[error("the picture came out with values that are not numbers (NaN); try fewer extremes in guidance_scale, or another sampler")]
    NotANumber,
    /// Nothing but black.
    #[error("the picture came out all black; try another seed, or a lower guidance_scale")]
    AllBlack,
    /// Nothing but one colour.
    #[error("the picture came out in one colour, {0:?} in red, green and blue; try another seed, or a lower guidance_scale")]
    OneColor([u8; 3]),
    /// The tokenizer failed.
    #[error("the prompt could not be read: {0}")]
    Tokenizer(String),
    /// A tensor operation failed.
    #[error("the model failed")]
    Model(#[source] candle_core::Error),
    /// The device has no room for it.
    #[error("the device ran out of memory; ask for a smaller picture")]
    OutOfMemory(#[source] candle_core::Error),
    /// The picture could not be written.
    #[error("the picture could not be encoded: {0}")]
    Encoding(String),
    /// A bug.
    #[error("the generation panicked: {0}")]
    Panicked(String),
}

/// Why a model could not be loaded. Says which file, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is no such model.
    #[error("{0}")]
    NotFound(String),
    /// What is asked for does not work on this device.
    #[error("{0}")]
    Unsupported(String),
    /// A file of the model is missing.
    #[error("{path} is missing; a model directory has the layout of diffusers' save_pretrained", path = .0.display())]
    MissingFile(PathBuf),
    /// A file cannot be read.
    #[error("{path} cannot be read", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// A file holds no valid weights.
    #[error("{path} is no whole safetensors file", path = .path.display())]
    BadWeights {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        #[source]
        source: candle_core::Error,
    },
    /// Not all weights of a network are there.
    #[error("{path} has not all weights of {owner}; {wrong}", path = .path.display())]
    MissingWeights {
        /// The file.
        path: PathBuf,
        /// What asks for them: the name of a variant of Stable Diffusion, or a configuration.
        owner: &'static str,
        /// The tensors that are missing or have another shape.
        wrong: String,
    },
    /// The weights cannot be used.
    #[error("{path} has weights that cannot be used", path = .path.display())]
    WrongWeights {
        /// The file.
        path: PathBuf,
        /// Which tensor, and how.
        #[source]
        source: candle_core::Error,
    },
    /// A configuration that describes nothing that can be built.
    #[error("{path}: {reason}", path = .path.display())]
    BadConfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A model could not be downloaded.
    #[error("{repository} cannot be downloaded")]
    Download {
        /// The repository's name.
        repository: String,
        /// What the hub says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The model's own pictures would be refused.
    #[error("--max-pixels {max_pixels} is less than the model's own {size} needs")]
    Limit {
        /// The option.
        max_pixels: u64,
        /// The size that the model was trained for.
        size: ImageSize,
    },
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The model is loaded, but a small real generation with it failed.
    #[error("the model loads, but does not work")]
    SelfTest(#[source] GenerationError),
}

// Not derived, since the value is the message and not a cause of it.
impl From<InvalidValue> for GenerationError {
    fn from(error: InvalidValue) -> Self {
        Self::Unsupported(error)
    }
}

impl From<candle_core::Error> for GenerationError {
    fn from(error: candle_core::Error) -> Self {
        if is_out_of_memory(&error) { Self::OutOfMemory(error) } else { Self::Model(error) }
    }
}

/// What drivers say has no type of its own.
fn is_out_of_memory(error: &candle_core::Error) -> bool {
    // To write a backtrace out takes memory.
    if let candle_core::Error::WithBacktrace { inner, .. } = error {
        return is_out_of_memory(inner);
    }
    let text = error.to_string().to_ascii_lowercase();
    text.contains("out of memory") || text.contains("out_of_memory")
}

impl LoadError {
    /// Whether the model would load on a device with more memory.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::BadWeights { source, .. } | Self::WrongWeights { source, .. } => is_out_of_memory(source),
            Self::SelfTest(error) => matches!(error, GenerationError::OutOfMemory(_)),
            _ => false,
        }
    }

    pub(super) fn config(path: PathBuf) -> impl FnOnce(ConfigError) -> Self {
        move |error| Self::BadConfig { path, reason: error.to_string() }
    }
}
