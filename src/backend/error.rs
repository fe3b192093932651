//! Errors of generations, and of loading a model.

use std::path::PathBuf;

use super::adapter_error::AdapterError;
use crate::{
    common::{ImageSize, InvalidValue, error_chain},
    device::DeviceError,
    models::ConfigError,
};

/// Why a generation ended without a picture. It fails its own request alone.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    /// The request asks for what this model or this worker cannot do.
    #[error("{} {}", .0.name, .0)]
    Unsupported(InvalidValue),
    /// An adapter cannot be used.
    #[error("a LoRA of the request cannot be used: {}", error_chain(.0))]
    Adapter(AdapterError),
    /// A control network cannot be used.
    #[error("a network that looks at a picture of the request cannot be used: {}", error_chain(.0))]
    Control(Box<LoadError>),
    /// An upscaler cannot be used.
    #[error("the upscaler of the request cannot be used: {0}")]
    Upscaler(String),
    /// The client went away, or cancelled.
    #[error("the request was cancelled")]
    Cancelled,
    /// The request waited for its turn until after its latest start.
    #[error("its turn did not come in the time that the client waits")]
    TooLate,
    /// The picture has values that are NaN or infinite.
    #[error("the picture came out with values that are not numbers (NaN); try fewer extremes in guidance_scale, or another sampler")]
    NotANumber,
    /// Every pixel is black.
    #[error("the picture came out all black; try another seed, or a lower guidance_scale")]
    AllBlack,
    /// Every pixel has this colour.
    #[error("the picture came out in one colour, {0:?} in red, green and blue; try another seed, or a lower guidance_scale")]
    OneColor([u8; 3]),
    /// The tokenizer failed.
    #[error("the prompt could not be read: {0}")]
    Tokenizer(String),
    /// A tensor operation failed.
    #[error("the model failed")]
    Model(#[source] candle_core::Error),
    /// The device has not enough memory.
    #[error("the device ran out of memory; ask for a smaller picture, or for fewer networks beside the model's own")]
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
    /// An option does not work with this model or on this device.
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
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A file holds no valid weights.
    #[error("{path} is no whole safetensors file", path = .path.display())]
    BadWeights {
        /// The file.
        path: PathBuf,
        /// The parser's error.
        #[source]
        source: candle_core::Error,
    },
    /// Not all weights of a network are there.
    #[error("{path} has not all weights of {owner}; {wrong}", path = .path.display())]
    MissingWeights {
        /// The file.
        path: PathBuf,
        /// What they belong to: a variant of Stable Diffusion, or a configuration.
        owner: &'static str,
        /// The tensors that are missing or have another shape.
        wrong: String,
    },
    /// The weights cannot be used.
    #[error("{path} has weights that cannot be used", path = .path.display())]
    WrongWeights {
        /// The file.
        path: PathBuf,
        /// Names the tensor, and what is wrong with it.
        #[source]
        source: candle_core::Error,
    },
    /// A configuration cannot be used.
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
        /// The hub's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// `--max-pixels` refuses pictures of the model's own size.
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
    /// The folder of adapters cannot be read.
    #[error(transparent)]
    Adapters(#[from] AdapterError),
    /// The model is loaded, but the first small picture failed.
    #[error("the model loads, but does not work")]
    SelfTest(#[source] GenerationError),
}

impl From<AdapterError> for GenerationError {
    fn from(error: AdapterError) -> Self {
        match error {
            AdapterError::Layer(source) => source.into(),
            AdapterError::WrongValues { source, .. } | AdapterError::Merge { source, .. } if is_out_of_memory(&source) => {
                Self::OutOfMemory(*source)
            }
            error => Self::Adapter(error),
        }
    }
}

// Not derived: the value is the message, and not its cause.
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

/// Drivers have no error type for it: the text tells.
fn is_out_of_memory(error: &candle_core::Error) -> bool {
    // Formatting a backtrace takes memory.
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
