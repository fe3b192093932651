//! Parts of a network that may be read from their files each time that they run.

use std::{fmt, sync::Arc};

use candle_core::Result;

use super::Weights;

/// A part of a network: in memory all the time, or, where its [`Weights`] are freed after use, only while it runs.
#[derive(Clone)]
pub struct OnDemand<T>(Part<T>);

#[derive(Clone)]
enum Part<T> {
    Loaded(T),
    ReadEachTime(Arc<dyn Fn() -> Result<T> + Send + Sync>),
}

impl<T> OnDemand<T> {
    /// The part that `new` builds from the weights. It is built once in any case, so that weights that do not fit are found now.
    ///
    /// # Errors
    /// Those of `new`.
    pub fn new(weights: Weights, new: impl Fn(&Weights) -> Result<T> + Send + Sync + 'static) -> Result<Self> {
        let part = new(&weights)?;
        let is_freed = weights.are_freed_after_use();
        Ok(Self(if is_freed { Part::ReadEachTime(Arc::new(move || new(&weights))) } else { Part::Loaded(part) }))
    }

    /// Runs `work` with the part.
    ///
    /// # Errors
    /// Those of `work`, and when the weights cannot be read again.
    pub fn with<R>(&self, work: impl FnOnce(&T) -> Result<R>) -> Result<R> {
        match &self.0 {
            Part::Loaded(part) => work(part),
            Part::ReadEachTime(read) => work(&read()?),
        }
    }
}

impl<T> fmt::Debug for OnDemand<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnDemand(…)")
    }
}
