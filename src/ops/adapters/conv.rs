//! Convolutions in a pass that has adapters.

use candle_core::{Result, Tensor};

use super::{Adapted, Adapters, LayerAdapter, MergedLayer, samples};
use crate::ops::{Added, Conv2d, GroupNorm, for_batch};

impl Conv2d {
    /// The layer in a pass with these adapters.
    #[must_use]
    pub fn with<'a>(&'a self, adapters: &'a Adapters) -> Adapted<'a, Self> {
        Adapted { layer: self, adapters }
    }
}

impl Adapted<'_, Conv2d> {
    /// [`Conv2d::forward`].
    ///
    /// # Errors
    /// As [`Conv2d::forward`], and when the samples do not fall into the pass's requests.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.in_parts(x, Added::default(), Conv2d::forward_add)
    }

    /// [`Conv2d::forward_enlarged`] with nothing added.
    ///
    /// # Errors
    /// As [`Conv2d::forward_enlarged`], and when the samples do not fall into the pass's requests.
    pub fn forward_enlarged(&self, x: &Tensor, size: (usize, usize)) -> Result<Tensor> {
        self.in_parts(x, Added::default(), |conv, x, added| conv.forward_enlarged(x, size, added))
    }

    /// [`Conv2d::forward_normed`].
    ///
    /// # Errors
    /// As [`Conv2d::forward_normed`], and when the samples do not fall into the pass's requests.
    pub fn forward_normed(&self, norm: Adapted<GroupNorm>, x: &Tensor, added: Added) -> Result<Tensor> {
        if norm.is_touched() {
            // Each request's own norm goes first.
            return self.in_parts(&norm.forward_silu(x)?, added, Conv2d::forward_add);
        }
        self.in_parts(x, added, |conv, x, added| conv.forward_normed(norm.layer, x, added))
    }

    /// [`Conv2d::forward_normed_in_place`].
    ///
    /// # Errors
    /// As [`Conv2d::forward_normed_in_place`], and when the samples do not fall into the pass's requests.
    pub fn forward_normed_in_place(&self, norm: Adapted<GroupNorm>, x: Tensor, added: Added) -> Result<Tensor> {
        if norm.is_touched() || self.adapters.touch(self.layer.layer_index()) {
            return self.forward_normed(norm, &x, added);
        }
        self.layer.forward_normed_in_place(norm.layer, x, added)
    }

    /// [`Conv2d::forward_onto`].
    ///
    /// # Errors
    /// As [`Conv2d::forward_onto`], and when the samples do not fall into the pass's requests.
    pub fn forward_onto(&self, x: &Tensor, onto: Tensor) -> Result<Tensor> {
        if self.adapters.touch(self.layer.layer_index()) {
            return self.in_parts(x, Added { sample_bias: None, residual: Some(&onto) }, Conv2d::forward_add);
        }
        self.layer.forward_onto(x, onto)
    }

    /// `run` by this layer, and with the adapters of each request in turn.
    fn in_parts(&self, x: &Tensor, added: Added, run: impl Fn(&Conv2d, &Tensor, Added) -> Result<Tensor>) -> Result<Tensor> {
        let Self { layer, adapters } = *self;
        if !adapters.touch(layer.layer_index()) {
            return run(layer, x, added);
        }
        let batch = x.dim(0)?;
        let sample_bias = added.sample_bias.map(|bias| for_batch(bias, batch)).transpose()?;
        adapters.in_parts(batch, |of, layers| {
            let part = |whole: Option<&Tensor>| whole.map(|whole| samples(whole, &of)).transpose();
            let (x, sample_bias, residual) = (&samples(x, &of)?, part(sample_bias.as_ref())?, part(added.residual)?);
            let added = Added { sample_bias: sample_bias.as_ref(), residual: residual.as_ref() };
            match layers.and_then(|layers| layers.get(layer.layer_index())) {
                None => run(layer, x, added),
                Some(LayerAdapter::LowRankConv { down, up }) => up.forward_onto(&run(down, x, Added::default())?, run(layer, x, added)?),
                Some(LayerAdapter::Merged(MergedLayer::Conv2d(merged))) => run(merged, x, added),
                Some(_) => candle_core::bail!("the adapter of another layer in a convolution"),
            }
        })
    }
}
