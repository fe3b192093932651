//! Errors of adapter files.

use std::path::PathBuf;

/// Why an adapter cannot be used. Says which file, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A file or a folder cannot be read.
    #[error("{path} cannot be read", path = .path.display())]
    Unreadable {
        /// The file or the folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// Another file has taken the place of the one that a request chose.
    #[error("{path} was replaced while a request for it waited; ask again", path = .path.display())]
    Replaced {
        /// The file.
        path: PathBuf,
    },
    /// A file's header is too long.
    #[error("{path} has a header of {bytes} bytes, and that of a LoRA has at most {most}", path = .path.display())]
    LongHeader {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// The limit.
        most: u64,
    },
    /// A layer of the model could not be read or packed.
    #[error("a layer of the model cannot be changed")]
    Layer(#[source] candle_core::Error),
    /// A file is damaged, or of another format.
    #[error("{path} is no whole safetensors file; get it again", path = .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The parser's error.
        #[source]
        source: Box<candle_core::Error>,
    },
    /// No tensor of a file is of a kind that is known.
    #[error(
        "{path} has no adapter of a known kind (LoRA, LoHa, LoKr, DoRA, differences of weights) among its {count} tensors ({names})",
        path = .path.display()
    )]
    NoModules {
        /// The file.
        path: PathBuf,
        /// Number of tensors in it.
        count: usize,
        /// The first names, in order.
        names: String,
    },
    /// A tensor does not go with the other tensors of its module.
    #[error("{path}: {tensor} {problem}", path = .path.display())]
    WrongTensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name, or the module's if a tensor is missing.
        tensor: String,
        /// What is wrong with it, with the value.
        problem: String,
    },
    /// The values of a tensor cannot be read, or are not finite.
    #[error("{path} has values that cannot be used", path = .path.display())]
    WrongValues {
        /// The file.
        path: PathBuf,
        /// Names the tensor, and what is wrong with it.
        #[source]
        source: Box<candle_core::Error>,
    },
    /// The layer has another shape than the module.
    #[error(
        "{path}: {layer} changes a weight of the shape {found:?}, and the model's is {expected:?}; use an adapter for this \
         family of models",
        path = .path.display()
    )]
    WrongShape {
        /// The file.
        path: PathBuf,
        /// The layer, as the file spells it, and its network.
        layer: String,
        /// The module's shape.
        found: Vec<usize>,
        /// The layer's shape.
        expected: Vec<usize>,
    },
    /// A strength is NaN, infinite, or too large for f32.
    #[error("a strength of {0} is no number to multiply weights with; use one around 1")]
    WrongStrength(f64),
    /// A tensor operation failed.
    #[error("{path}: {layer} cannot be merged", path = .path.display())]
    Merge {
        /// The file.
        path: PathBuf,
        /// The layer, as the file spells it.
        layer: String,
        /// The operation's error.
        #[source]
        source: Box<candle_core::Error>,
    },
}
