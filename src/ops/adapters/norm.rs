//! Norms in a pass that has adapters.

use candle_core::{Result, Tensor};

use super::{Adapted, Adapters, LayerAdapter, MergedLayer, samples};
use crate::ops::{GroupNorm, LayerNorm};

impl GroupNorm {
    /// The layer in a pass with these adapters.
    #[must_use]
    pub fn with<'a>(&'a self, adapters: &'a Adapters) -> Adapted<'a, Self> {
        Adapted { layer: self, adapters }
    }
}

impl LayerNorm {
    /// The layer in a pass with these adapters.
    #[must_use]
    pub fn with<'a>(&'a self, adapters: &'a Adapters) -> Adapted<'a, Self> {
        Adapted { layer: self, adapters }
    }
}

impl Adapted<'_, GroupNorm> {
    /// [`GroupNorm::forward`].
    ///
    /// # Errors
    /// As [`GroupNorm::forward`], and when the samples do not fall into the pass's requests.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, GroupNorm::forward)
    }

    /// [`GroupNorm::forward_silu`].
    ///
    /// # Errors
    /// As [`GroupNorm::forward_silu`], and when the samples do not fall into the pass's requests.
    pub fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, GroupNorm::forward_silu)
    }

    /// Whether a request of the pass has a norm of its own.
    pub(super) fn is_touched(&self) -> bool {
        self.adapters.touch(self.layer.layer_index())
    }

    fn run(&self, x: &Tensor, run: impl Fn(&GroupNorm, &Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let Self { layer, adapters } = *self;
        if !self.is_touched() {
            return run(layer, x);
        }
        adapters.in_parts(x.dim(0)?, |of, layers| match layers.and_then(|layers| layers.get(layer.layer_index())) {
            None => run(layer, &samples(x, &of)?),
            Some(LayerAdapter::Merged(MergedLayer::GroupNorm(merged))) => run(merged, &samples(x, &of)?),
            Some(_) => candle_core::bail!("the adapter of another layer in a group norm"),
        })
    }
}

impl Adapted<'_, LayerNorm> {
    /// [`LayerNorm::forward`].
    ///
    /// # Errors
    /// As [`LayerNorm::forward`], and when the samples do not fall into the pass's requests.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let Self { layer, adapters } = *self;
        if !adapters.touch(layer.layer_index()) {
            return layer.forward(x);
        }
        adapters.in_parts(x.dim(0)?, |of, layers| match layers.and_then(|layers| layers.get(layer.layer_index())) {
            None => layer.forward(&samples(x, &of)?),
            Some(LayerAdapter::Merged(MergedLayer::LayerNorm(merged))) => merged.forward(&samples(x, &of)?),
            Some(_) => candle_core::bail!("the adapter of another layer in a layer norm"),
        })
    }
}
