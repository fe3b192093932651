//! The text as the cross-attention layers of a network look at it: keys and values, which stay the same from step to step.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::ops::LayerIndex;

/// The keys and values of one attention layer, `(batch, tokens, channels)` each.
#[derive(Debug, Clone)]
pub(super) struct KeyValues {
    pub(super) keys: Tensor,
    pub(super) values: Tensor,
}

impl KeyValues {
    /// Those of several batches, one after the other. They must have as many tokens each.
    pub(super) fn join(all: &[&Self]) -> Result<Self> {
        let join = |part: fn(&Self) -> &Tensor| Tensor::cat(&all.iter().map(|one| part(one)).collect::<Vec<_>>(), 0);
        Ok(Self { keys: join(|one| &one.keys)?, values: join(|one| &one.values)? })
    }
}

/// The text of one generation, or of several that go through the network together.
#[derive(Debug, Clone)]
pub(super) struct TextContext {
    /// One after the other. Neighbours differ in length.
    passages: Vec<Passage>,
}

/// Samples whose texts have the same length.
#[derive(Debug, Clone)]
struct Passage {
    /// By [`LayerIndex`]; none for layers that look at no text.
    layers: Arc<Vec<Option<KeyValues>>>,
    batch: usize,
    tokens: usize,
}

impl TextContext {
    /// `text` is `(batch, tokens, cross_attention_dim)`; `key_values` is what each layer makes of it.
    pub(super) fn new(text: &Tensor, key_values: impl Iterator<Item = Result<(LayerIndex, KeyValues)>>) -> Result<Self> {
        let mut layers = Vec::new();
        for layer in key_values {
            let (index, key_values) = layer?;
            if layers.len() <= index.get() {
                layers.resize_with(index.get() + 1, || None);
            }
            layers[index.get()] = Some(key_values);
        }
        Ok(Self { passages: vec![Passage { layers: Arc::new(layers), batch: text.dim(0)?, tokens: text.dim(1)? }] })
    }

    /// The texts of several generations, one after the other. Neighbours of one length become one passage.
    pub(super) fn join(all: &[&Self]) -> Result<Self> {
        let passages: Vec<&Passage> = all.iter().flat_map(|one| &one.passages).collect();
        let passages = passages.chunk_by(|one, next| one.tokens == next.tokens).map(Passage::join);
        Ok(Self { passages: passages.collect::<Result<_>>()? })
    }

    /// Number of samples.
    pub(super) fn batch(&self) -> usize {
        self.passages.iter().map(|passage| passage.batch).sum()
    }

    /// What a layer looks at, passage by passage.
    pub(super) fn of_layer(&self, index: LayerIndex) -> Result<Vec<&KeyValues>> {
        let found: Option<Vec<&KeyValues>> = self.passages.iter().map(|passage| passage.layers.get(index.get())?.as_ref()).collect();
        found.ok_or_else(|| candle_core::Error::msg(format!("the text has no keys for layer {}", index.get())))
    }
}

impl Passage {
    fn join(all: &[&Self]) -> Result<Self> {
        let first = match all {
            [] => candle_core::bail!("there is no text"),
            [only] => return Ok(Self::clone(only)),
            [first, ..] => first,
        };
        let of_layer = |index: usize| {
            let key_values: Vec<&KeyValues> = all.iter().filter_map(|one| one.layers.get(index)?.as_ref()).collect();
            if key_values.is_empty() { Ok(None) } else { KeyValues::join(&key_values).map(Some) }
        };
        let layers = Arc::new((0..first.layers.len()).map(of_layer).collect::<Result<_>>()?);
        Ok(Self { layers, batch: all.iter().map(|one| one.batch).sum(), tokens: first.tokens })
    }
}
