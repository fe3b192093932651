//! The phases of a worker's life, as clients see them.

use std::sync::Arc;

use crate::backend::ModelInfo;

/// The phase of a worker. It only ever moves down this list.
#[derive(Debug, Clone)]
pub enum Lifecycle {
    /// The socket is bound; the model is not loaded yet.
    Loading,
    /// The model is loaded, and a small generation has succeeded.
    Ready(Arc<ModelInfo>),
    /// The worker takes no new requests; those that run may finish.
    Draining,
}
