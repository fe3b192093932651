//! What adapters (LoRA and its relatives) change in the layers of a network, for some samples of a batch.
//!
//! An adapter of low rank is computed beside the layer, whose weight stays as it is. Of any other kind, a copy of the layer is made, with
//! the adapter merged into its weight.

mod conv;
mod linear;
mod norm;

use std::{ops::Range, sync::Arc};

use candle_core::{Result, Tensor};

use super::{Conv2d, Conv2dConfig, Geglu, GroupNorm, LayerIndex, LayerKind, LayerNorm, Linear, LowRank, WeightLayer, Weights, cpu};

/// What an adapter makes of one layer.
#[derive(Debug, Clone)]
pub enum LayerAdapter {
    /// Of a linear layer, gated or not.
    LowRank(LowRank),
    /// Of a convolution: one to fewer channels, and one from each of their pixels to all channels, without bias.
    LowRankConv {
        /// With the layer's own kernel.
        down: Box<Conv2d>,
        /// 1 x 1.
        up: Box<Conv2d>,
    },
    /// A layer that takes the layer's place.
    Merged(MergedLayer),
}

/// A layer with an adapter in its weight.
#[derive(Debug, Clone)]
pub enum MergedLayer {
    /// In place of a linear layer.
    Linear(Box<Linear>),
    /// In place of a gated one.
    Geglu(Box<Geglu>),
    /// In place of a convolution.
    Conv2d(Box<Conv2d>),
    /// In place of a group norm.
    GroupNorm(Box<GroupNorm>),
    /// In place of a layer norm.
    LayerNorm(Box<LayerNorm>),
}

/// What the adapters of one request make of the layers of one network.
#[derive(Debug, Default)]
pub struct AdaptedLayers(Vec<Option<LayerAdapter>>);

/// The adapters of a pass: those of each request in the batch, in order.
#[derive(Debug, Clone, Default)]
pub struct Adapters(Vec<Share>);

/// Neighbouring requests with the same adapters, or without any.
#[derive(Debug, Clone)]
struct Share {
    requests: usize,
    layers: Option<Arc<AdaptedLayers>>,
}

impl LayerAdapter {
    /// The adapter of low rank of a linear layer or a convolution: `up` `(outputs, rank)` and `down` `(rank, …)`, with the kernel of the
    /// layer's weight. Both are f32 on a CPU. `vb` is the type and device of the layer's weights.
    ///
    /// # Errors
    /// When the shapes are not the layer's, or there is no memory.
    pub fn low_rank(layer: &WeightLayer, down: &Tensor, up: &Tensor, vb: &Weights) -> Result<Self> {
        let (rank, inputs) = (down.dim(0)?, &layer.shape[1..]);
        if down.dims()[1..] != *inputs || up.dims() != [layer.shape[0], rank] || rank == 0 {
            candle_core::bail!("{}: {:?} and {:?} are no adapter of {:?}", layer.name, down.shape(), up.shape(), layer.shape);
        }
        let is_gated = layer.kind == LayerKind::Geglu;
        match layer.kind {
            LayerKind::Linear { .. } | LayerKind::Geglu => LowRank::new(down, up, is_gated, vb).map(Self::LowRank),
            LayerKind::Conv2d(config) => {
                let down = Conv2d::of_weight(down, config, layer.index, vb)?;
                let up = Conv2d::of_weight(&up.unsqueeze(2)?.unsqueeze(3)?, Conv2dConfig::POINTWISE, layer.index, vb)?;
                Ok(Self::LowRankConv { down: Box::new(down), up: Box::new(up) })
            }
            LayerKind::GroupNorm { .. } | LayerKind::LayerNorm { .. } => candle_core::bail!("{}: a norm has no rank", layer.name),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::LowRank(low_rank) => low_rank.bytes(),
            Self::LowRankConv { down, up } => down.bytes() + up.bytes(),
            Self::Merged(MergedLayer::Linear(layer)) => layer.bytes(),
            Self::Merged(MergedLayer::Geglu(layer)) => layer.bytes(),
            Self::Merged(MergedLayer::Conv2d(layer)) => layer.bytes(),
            Self::Merged(MergedLayer::GroupNorm(_) | MergedLayer::LayerNorm(_)) => 0,
        }
    }
}

impl MergedLayer {
    /// Reads the layer again, from weights that have the adapter in them.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(layer: &WeightLayer, vb: &Weights) -> Result<Self> {
        let (vb, shape) = (&vb.pp(&layer.name), &*layer.shape);
        Ok(match (layer.kind, shape) {
            (LayerKind::Linear { has_bias: true }, [outputs, inputs]) => Self::Linear(Box::new(Linear::new(*inputs, *outputs, vb)?)),
            (LayerKind::Linear { has_bias: false }, [outputs, inputs]) => Self::Linear(Box::new(Linear::no_bias(*inputs, *outputs, vb)?)),
            (LayerKind::Geglu, [outputs, inputs]) => Self::Geglu(Box::new(Geglu::new(*inputs, outputs / 2, vb)?)),
            (LayerKind::Conv2d(config), [outputs, inputs, ..]) => Self::Conv2d(Box::new(Conv2d::new(*inputs, *outputs, config, vb)?)),
            (LayerKind::GroupNorm { groups, eps }, [channels]) => Self::GroupNorm(Box::new(GroupNorm::new(groups, *channels, eps, vb)?)),
            (LayerKind::LayerNorm { eps }, [features]) => Self::LayerNorm(Box::new(LayerNorm::new(*features, eps, vb)?)),
            _ => candle_core::bail!("{}: {:?} is no shape of such a layer", layer.name, layer.shape),
        })
    }
}

impl AdaptedLayers {
    /// The adapters of the layers of these numbers.
    #[must_use]
    pub fn new(adapters: impl IntoIterator<Item = (LayerIndex, LayerAdapter)>) -> Self {
        let mut layers = Vec::new();
        for (index, adapter) in adapters {
            if layers.len() <= index.get() {
                layers.resize_with(index.get() + 1, || None);
            }
            layers[index.get()] = Some(adapter);
        }
        Self(layers)
    }

    /// The memory that they take, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.0) + self.0.iter().flatten().map(LayerAdapter::bytes).sum::<usize>()
    }

    pub(super) fn get(&self, index: LayerIndex) -> Option<&LayerAdapter> {
        self.0.get(index.get())?.as_ref()
    }
}

impl Adapters {
    /// No adapters, for any batch.
    pub const NONE: &'static Self = &Self(Vec::new());

    /// Those of a pass for one request.
    #[must_use]
    pub fn new(layers: Option<Arc<AdaptedLayers>>) -> Self {
        Self(vec![Share { requests: 1, layers }])
    }

    /// Those of several passes together, in order.
    #[must_use]
    pub fn join(all: &[&Self]) -> Self {
        let mut shares: Vec<Share> = Vec::new();
        for share in all.iter().flat_map(|adapters| &adapters.0) {
            match shares.last_mut() {
                Some(last) if last.layers.as_ref().map(Arc::as_ptr) == share.layers.as_ref().map(Arc::as_ptr) => {
                    last.requests += share.requests;
                }
                _ => shares.push(share.clone()),
            }
        }
        Self(shares)
    }

    /// Whether any request has an adapter of this layer.
    pub(super) fn touch(&self, index: LayerIndex) -> bool {
        self.0.iter().any(|share| share.layers.as_ref().is_some_and(|layers| layers.get(index).is_some()))
    }

    /// Which of a batch's samples belong to which requests. Each request has as many.
    ///
    /// # Errors
    /// When the samples do not fall into so many requests.
    pub(super) fn parts(&self, samples: usize) -> Result<Vec<(Range<usize>, Option<&AdaptedLayers>)>> {
        let requests: usize = self.0.iter().map(|share| share.requests).sum();
        if requests == 0 || !samples.is_multiple_of(requests) {
            candle_core::bail!("{samples} samples do not fall into {requests} requests");
        }
        let mut parts = Vec::with_capacity(self.0.len());
        let mut first = 0;
        for Share { requests: of_share, layers } in &self.0 {
            let count = samples / requests * of_share;
            parts.push((first..first + count, layers.as_deref()));
            first += count;
        }
        Ok(parts)
    }

    /// `run` on the samples of each request alone, whose results are joined again.
    pub(super) fn in_parts(&self, samples: usize, run: impl Fn(Range<usize>, Option<&AdaptedLayers>) -> Result<Tensor>) -> Result<Tensor> {
        let results = self.parts(samples)?.into_iter().map(|(range, layers)| run(range, layers)).collect::<Result<Vec<_>>>()?;
        if let [only] = &*results {
            return Ok(only.clone());
        }
        // An image's channels stay last in memory.
        if results.first().is_some_and(|first| first.rank() == 4 && cpu::is_fast(first)) {
            let images = results.iter().map(|image| image.permute((0, 2, 3, 1))).collect::<Result<Vec<_>>>()?;
            return Tensor::cat(&images, 0)?.permute((0, 3, 1, 2));
        }
        Tensor::cat(&results, 0)
    }
}

/// The samples `of` of a tensor that has as many samples as the batch.
pub(super) fn samples(x: &Tensor, of: &Range<usize>) -> Result<Tensor> {
    x.narrow(0, of.start, of.len())
}

/// A layer in a pass that has adapters.
#[derive(Debug)]
pub struct Adapted<'a, L> {
    pub(super) layer: &'a L,
    pub(super) adapters: &'a Adapters,
}

// Derived, it would be so only for layers that can be copied.
impl<L> Clone for Adapted<'_, L> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<L> Copy for Adapted<'_, L> {}

#[cfg(test)]
mod tests;
