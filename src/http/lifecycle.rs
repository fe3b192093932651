//! The life of a worker, seen from outside.

use std::sync::Arc;

use crate::backend::ModelInfo;

/// Where the worker stands. It only ever moves down this list.
#[derive(Debug, Clone)]
pub enum Lifecycle {
    /// The socket is bound, the model is not loaded yet.
    Loading,
    /// A small real generation has succeeded.
    Ready(Arc<ModelInfo>),
    /// No new work is taken; what runs may finish.
    Draining,
}
