//! Parts of a network that may be read from their files each time that they run.

use std::{fmt, sync::Arc};

use candle_core::Result;

use super::Weights;

/// A part of a network: in memory all the time, or, where its [`Weights`] are freed after use, only while it runs.
#[derive(Clone)]
pub struct OnDemand<T>(Source<T>);

#[derive(Clone)]
enum Source<T> {
    Memory(T),
    Files(Arc<dyn Fn() -> Result<T> + Send + Sync>),
}

impl<T> OnDemand<T> {
    /// The part that `new` builds from the weights. It is built once in any case, so that weights that do not fit are found now.
    ///
    /// # Errors
    /// Those of `new`.
    pub fn new(weights: Weights, new: impl Fn(&Weights) -> Result<T> + Send + Sync + 'static) -> Result<Self> {
        let part = new(&weights)?;
        let is_freed = weights.are_freed_after_use();
        Ok(Self(if is_freed { Source::Files(Arc::new(move || new(&weights))) } else { Source::Memory(part) }))
    }

    /// Runs `work` with the part.
    ///
    /// # Errors
    /// Those of `work`, and when the weights cannot be read again.
    pub fn with<R>(&self, work: impl FnOnce(&T) -> Result<R>) -> Result<R> {
        match &self.0 {
            Source::Memory(part) => work(part),
            Source::Files(read) => work(&read()?),
        }
    }
}

impl<T> fmt::Debug for OnDemand<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnDemand(…)")
    }
}
