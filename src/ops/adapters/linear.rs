//! Fully connected layers in a pass that has adapters.

use candle_core::{Result, Tensor};

use super::{Adapted, Adapters, LayerAdapter, MergedLayer, samples};
use crate::ops::{
    Activation, Geglu, LayerIndex, Linear, cpu,
    linear::{Part, packed_low_rank, run_packed},
};

impl Linear {
    /// The layer in a pass with these adapters.
    #[must_use]
    pub fn with<'a>(&'a self, adapters: &'a Adapters) -> Adapted<'a, Self> {
        Adapted { layer: self, adapters }
    }
}

impl Geglu {
    /// The layer in a pass with these adapters.
    #[must_use]
    pub fn with<'a>(&'a self, adapters: &'a Adapters) -> Adapted<'a, Self> {
        Adapted { layer: self, adapters }
    }
}

impl Adapted<'_, Linear> {
    /// [`Linear::forward`].
    ///
    /// # Errors
    /// As [`Linear::forward`], and when the samples do not fall into the pass's requests.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, None, None)
    }

    /// [`Linear::forward_add`].
    ///
    /// # Errors
    /// As [`Linear::forward_add`], and when the samples do not fall into the pass's requests.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.run(x, Some(residual), None)
    }

    /// [`Linear::forward_activated`].
    ///
    /// # Errors
    /// As [`Linear::forward_activated`], and when the samples do not fall into the pass's requests.
    pub fn forward_activated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        self.run(x, None, Some(activation))
    }

    fn run(&self, x: &Tensor, residual: Option<&Tensor>, activation: Option<Activation>) -> Result<Tensor> {
        let Self { layer, adapters } = *self;
        if !adapters.touch(layer.layer_index()) {
            return layer.run(x, residual, activation, None);
        }
        if let Some(packed) = layer.packed()
            && let Some(parts) = low_rank_parts(packed, adapters, layer.layer_index(), x.dim(0)?)?
        {
            return run_packed(packed, x, residual, activation, &parts);
        }
        adapters.in_parts(x.dim(0)?, |of, layers| {
            let (x, residual) = (&samples(x, &of)?, residual.map(|residual| samples(residual, &of)).transpose()?);
            match layers.and_then(|layers| layers.get(layer.layer_index())) {
                None => layer.run(x, residual.as_ref(), activation, None),
                Some(LayerAdapter::LowRank(low_rank)) => layer.run(x, residual.as_ref(), activation, Some(low_rank)),
                Some(LayerAdapter::Merged(MergedLayer::Linear(merged))) => merged.run(x, residual.as_ref(), activation, None),
                Some(_) => candle_core::bail!("the adapter of another layer in a linear one"),
            }
        })
    }
}

impl Adapted<'_, Geglu> {
    /// [`Geglu::forward`].
    ///
    /// # Errors
    /// As [`Geglu::forward`], and when the samples do not fall into the pass's requests.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let Self { layer, adapters } = *self;
        if !adapters.touch(layer.layer_index()) {
            return layer.forward(x);
        }
        if let Some(packed) = layer.packed()
            && let Some(parts) = low_rank_parts(packed, adapters, layer.layer_index(), x.dim(0)?)?
        {
            return run_packed(packed, x, None, None, &parts);
        }
        adapters.in_parts(x.dim(0)?, |of, layers| {
            let x = &samples(x, &of)?;
            match layers.and_then(|layers| layers.get(layer.layer_index())) {
                None => layer.run(x, None),
                Some(LayerAdapter::LowRank(low_rank)) => layer.run(x, Some(low_rank)),
                Some(LayerAdapter::Merged(MergedLayer::Geglu(merged))) => merged.run(x, None),
                Some(_) => candle_core::bail!("the adapter of another layer in a gated one"),
            }
        })
    }
}

/// The parts of a batch of `batch` samples; none if there is an adapter of another kind.
fn low_rank_parts<'a>(
    packed: &cpu::PackedLinear,
    adapters: &'a Adapters,
    index: LayerIndex,
    batch: usize,
) -> Result<Option<Vec<Part<'a>>>> {
    let mut parts = Vec::new();
    for (of, layers) in adapters.parts(batch)? {
        match layers.and_then(|layers| layers.get(index)) {
            None => parts.push((of.len(), None)),
            Some(LayerAdapter::LowRank(low_rank)) => parts.push((of.len(), Some(packed_low_rank(packed, low_rank)?))),
            Some(_) => return Ok(None),
        }
    }
    Ok(Some(parts))
}
