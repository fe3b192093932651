//! Pictures as a prompt: what cross-attention layers look at beside the text, in [IP-Adapter](https://arxiv.org/abs/2308.06721). After
//! diffusers' `IPAdapterAttnProcessor`.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::text_context::KeyValues;
use crate::ops::{LayerIndex, Linear, Weights};

/// The layers of an IP-Adapter: for each cross-attention layer of a denoiser, what makes keys and values of image tokens.
#[derive(Debug, Clone)]
pub struct ImageAttention {
    /// By [`LayerIndex`].
    layers: Vec<Option<[Linear; 2]>>,
}

/// A cross-attention layer, as an IP-Adapter knows it.
#[derive(Debug, Clone, Copy)]
pub struct ImageAttentionLayer {
    /// Of the denoiser's layer.
    pub index: LayerIndex,
    /// The layer's number in the file: N in `ip_adapter.N.to_k_ip.weight`.
    pub number: usize,
    /// Width of its queries.
    pub channels: usize,
}

/// A picture that the denoiser looks at.
#[derive(Debug, Clone, Copy)]
pub struct ImagePrompt<'a> {
    /// Its tokens, `(samples, tokens, cross_attention_dim)`.
    pub tokens: &'a Tensor,
    /// How strongly it counts.
    pub scale: f64,
    /// What the layers make of the tokens.
    pub attention: &'a ImageAttention,
}

/// What the cross-attention layers make of the pictures of each request in a batch, in order; nothing where no request has any.
#[derive(Debug, Clone, Default)]
pub(super) struct ImageContext {
    requests: Vec<Arc<Vec<SeenPicture>>>,
}

/// A picture, as the layers see it.
#[derive(Debug)]
struct SeenPicture {
    scale: f64,
    /// By [`LayerIndex`].
    layers: Vec<Option<KeyValues>>,
}

impl ImageAttention {
    /// Reads the weights below `ip_adapter`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(layers: &[ImageAttentionLayer], cross_attention_dim: usize, vb: &Weights) -> Result<Self> {
        let mut all: Vec<Option<[Linear; 2]>> = Vec::new();
        for ImageAttentionLayer { index, number, channels } in layers {
            let vb = vb.pp("ip_adapter").pp(number);
            let linear = |name: &str| Linear::no_bias(cross_attention_dim, *channels, &vb.pp(name));
            if all.len() <= index.get() {
                all.resize_with(index.get() + 1, || None);
            }
            all[index.get()] = Some([linear("to_k_ip")?, linear("to_v_ip")?]);
        }
        Ok(Self { layers: all })
    }

    fn key_values(&self, tokens: &Tensor) -> Result<Vec<Option<KeyValues>>> {
        let of_layer = |layer: &Option<[Linear; 2]>| {
            let Some([keys, values]) = layer else { return Ok(None) };
            Ok(Some(KeyValues { keys: keys.forward(tokens)?, values: values.forward(tokens)? }))
        };
        self.layers.iter().map(of_layer).collect()
    }
}

impl ImageContext {
    /// No pictures, for any batch.
    pub(super) const NONE: &'static Self = &Self { requests: Vec::new() };

    /// Those of one request.
    pub(super) fn new(pictures: &[ImagePrompt]) -> Result<Self> {
        let seen = pictures
            .iter()
            .map(|ImagePrompt { tokens, scale, attention }| Ok(SeenPicture { scale: *scale, layers: attention.key_values(tokens)? }));
        let seen: Vec<SeenPicture> = seen.collect::<Result<_>>()?;
        Ok(Self { requests: if seen.is_empty() { Vec::new() } else { vec![Arc::new(seen)] } })
    }

    /// Those of several requests, one after the other.
    pub(super) fn join(all: &[&Self]) -> Self {
        if all.iter().all(|one| one.requests.is_empty()) {
            return Self::default();
        }
        let of_one = |one: &&Self| if one.requests.is_empty() { vec![Arc::default()] } else { one.requests.clone() };
        Self { requests: all.iter().flat_map(of_one).collect() }
    }

    /// For each request, what a layer looks at, and how strongly it counts; nothing where no request has any.
    pub(super) fn of_layer(&self, index: LayerIndex) -> Vec<Vec<(&KeyValues, f64)>> {
        self.requests.iter().map(|pictures| pictures.iter().filter_map(|picture| picture.of_layer(index)).collect()).collect()
    }
}

impl SeenPicture {
    fn of_layer(&self, index: LayerIndex) -> Option<(&KeyValues, f64)> {
        Some((self.layers.get(index.get())?.as_ref()?, self.scale))
    }
}
