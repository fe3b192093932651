//! Parts of a network whose weights may be read again each time that they are needed.

use std::{fmt, sync::Arc};

use candle_core::Result;

use super::Weights;

/// A part of a network: in memory from the start, or, where its [`Weights`] are freed after use, only while it works.
#[derive(Clone)]
pub struct OnDemand<T>(Source<T>);

#[derive(Clone)]
enum Source<T> {
    Memory(T),
    Files(Arc<dyn Fn() -> Result<T> + Send + Sync>),
}

impl<T> OnDemand<T> {
    /// What `new` makes of the weights. It is made once in any case, so that weights that do not fit are found now.
    ///
    /// # Errors
    /// Those of `new`.
    pub fn new(weights: Weights, new: impl Fn(&Weights) -> Result<T> + Send + Sync + 'static) -> Result<Self> {
        let part = new(&weights)?;
        let is_freed = weights.are_freed_after_use();
        Ok(Self(if is_freed { Source::Files(Arc::new(move || new(&weights))) } else { Source::Memory(part) }))
    }

    /// Has the part do its work.
    ///
    /// # Errors
    /// Those of `work`, and when the weights cannot be read any more.
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
