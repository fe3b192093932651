//! The text as the layers of a UNet look at it: keys and values, which stay the same from step to step.

use std::{collections::HashMap, sync::Arc};

use candle_core::{Result, Tensor};

use crate::{
    models::attention::{Attention, KeyValues},
    ops::Weights,
};

/// Text of one generation, or of several that are worked on together.
#[derive(Debug, Clone)]
pub(super) struct TextContext {
    /// One after the other.
    passages: Vec<Passage>,
}

/// Samples whose texts are as long as each other.
#[derive(Debug, Clone)]
struct Passage {
    /// By the layer's name in the checkpoint.
    key_values: Arc<HashMap<String, KeyValues>>,
    batch: usize,
    tokens: usize,
}

impl TextContext {
    /// `text` is `(batch, tokens, cross_attention_dim)`.
    pub(super) fn new<'a>(text: &Tensor, layers: impl Iterator<Item = &'a CrossAttention>) -> Result<Self> {
        let key_values = layers.map(|layer| Ok((layer.name.clone(), layer.attention.key_values(text)?)));
        let (key_values, batch, tokens) = (Arc::new(key_values.collect::<Result<_>>()?), text.dim(0)?, text.dim(1)?);
        Ok(Self { passages: vec![Passage { key_values, batch, tokens }] })
    }

    /// All of them, one after the other. Neighbours of one length are looked at as one.
    pub(super) fn join(all: &[&Self]) -> Result<Self> {
        let passages: Vec<&Passage> = all.iter().flat_map(|one| &one.passages).collect();
        let passages = passages.chunk_by(|one, next| one.tokens == next.tokens).map(Passage::join);
        Ok(Self { passages: passages.collect::<Result<_>>()? })
    }

    /// Number of samples.
    pub(super) fn batch(&self) -> usize {
        self.passages.iter().map(|passage| passage.batch).sum()
    }
}

impl Passage {
    fn join(all: &[&Self]) -> Result<Self> {
        let first = match all {
            [] => candle_core::bail!("there is no text"),
            [only] => return Ok(Self::clone(only)),
            [first, ..] => first,
        };
        let of_layer = |name: &String| {
            let key_values: Vec<&KeyValues> = all.iter().filter_map(|one| one.key_values.get(name)).collect();
            Ok((name.clone(), KeyValues::join(&key_values)?))
        };
        let key_values = Arc::new(first.key_values.keys().map(of_layer).collect::<Result<_>>()?);
        Ok(Self { key_values, batch: all.iter().map(|one| one.batch).sum(), tokens: first.tokens })
    }
}

/// Attention to the text.
#[derive(Debug, Clone)]
pub(super) struct CrossAttention {
    attention: Attention,
    /// Where its keys are in a [`TextContext`].
    name: String,
}

impl CrossAttention {
    /// `channels` is the width of the queries, `context` that of the text.
    pub(super) fn new(channels: usize, context: usize, heads: usize, vb: &Weights) -> Result<Self> {
        Ok(Self { attention: Attention::new(channels, context, heads, vb)?, name: vb.prefix() })
    }

    /// `x` and `residual`, which is added to the result, are `(batch, tokens, channels)`, or of one sample a generation.
    pub(super) fn forward(&self, x: &Tensor, context: &TextContext, residual: &Tensor) -> Result<Tensor> {
        let seen: Option<Vec<&KeyValues>> = context.passages.iter().map(|passage| passage.key_values.get(&self.name)).collect();
        let Some(seen) = seen else { candle_core::bail!("the text has no keys for {}", self.name) };
        self.attention.forward(x, &seen, residual)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use candle_nn::VarBuilder;

    use super::*;
    use crate::ops::WeightType;

    /// A layer that counted instead of asking by name would look at another one's keys.
    #[test]
    fn a_layer_finds_its_own_keys_or_says_so() {
        let cpu = Device::Cpu;
        let values = |scale: f64| (Tensor::arange(0f32, 16., &cpu)?.reshape((4, 4))? * scale)?.sin();
        let weights = |name: &str, scale: f64| {
            let parts = ["to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"].into_iter().zip(1..);
            let mut all =
                parts.map(|(part, i)| Ok((format!("{name}.{part}"), values(scale * f64::from(i))?))).collect::<Result<Vec<_>>>()?;
            all.push((format!("{name}.to_out.0.bias"), Tensor::zeros(4, DType::F32, &cpu)?));
            Ok::<_, candle_core::Error>(all)
        };
        let tensors = [weights("one", 0.3).unwrap(), weights("two", 0.7).unwrap()].concat().into_iter().collect();
        let vb = Weights::new(VarBuilder::from_tensors(tensors, DType::F32, &cpu), WeightType::F32);
        let [one, two] = ["one", "two"].map(|name| CrossAttention::new(4, 4, 2, &vb.pp(name)).unwrap());

        let (x, text) = (values(0.5).unwrap().unsqueeze(0).unwrap(), values(0.9).unwrap().unsqueeze(0).unwrap());
        let numbers = |x: Result<Tensor>| x.unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        // In another order than they are asked in.
        let context = TextContext::new(&text, [&two, &one].into_iter()).unwrap();
        for layer in [&one, &two] {
            let directly = layer.attention.forward(&x, &[&layer.attention.key_values(&text).unwrap()], &x);
            assert_eq!(numbers(layer.forward(&x, &context, &x)), numbers(directly));
        }
        let half = TextContext::new(&text, [&one].into_iter()).unwrap();
        let error = two.forward(&x, &half, &x).unwrap_err().to_string();
        assert!(error.contains("no keys for two"), "{error}");
    }
}
