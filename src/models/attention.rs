//! Multi-head attention, after diffusers' `attention_processor.py`.

use candle_core::{Result, Tensor};

use super::{pass::Pass, text_context::KeyValues};
use crate::ops::{Adapters, ComputeType, LayerIndex, Linear, Weights, attention, for_batch};

/// The most queries times keys between two checks of the interrupt. A layer of a very large picture takes minutes.
const MAX_PAIRS: usize = 1 << 32;

/// What the queries of a layer are compared with.
#[derive(Debug)]
pub(super) struct Seen<'a> {
    /// Keys and values of the batch, in one or several parts.
    pub(super) parts: Vec<&'a KeyValues>,
    /// Those of pictures, each with its scale, by request: looked at beside the others, and added. Nothing where no request has any.
    pub(super) images: Vec<Vec<(&'a KeyValues, f64)>>,
}

impl<'a> Seen<'a> {
    /// Keys and values without pictures.
    pub(super) fn of(parts: &[&'a KeyValues]) -> Self {
        Self { parts: parts.to_vec(), images: Vec::new() }
    }
}

/// diffusers' `Attention` without its many options: self-attention or cross-attention.
#[derive(Debug, Clone)]
pub(super) struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
    compute: ComputeType,
}

impl Attention {
    /// `channels` is the width of the queries and of the result, `context` that of the keys' and values' sequence.
    pub(super) fn new(channels: usize, context: usize, heads: usize, vb: &Weights) -> Result<Self> {
        Ok(Self {
            to_q: Linear::no_bias(channels, channels, &vb.pp("to_q"))?,
            to_k: Linear::no_bias(context, channels, &vb.pp("to_k"))?,
            to_v: Linear::no_bias(context, channels, &vb.pp("to_v"))?,
            to_out: Linear::new(channels, channels, &vb.pp("to_out.0"))?,
            heads,
            compute: vb.compute_type(),
        })
    }

    /// A VAE's attention: one head, projections with bias. Older checkpoints have other names for the same tensors.
    pub(super) fn for_vae(channels: usize, vb: &Weights) -> Result<Self> {
        let names =
            if vb.contains_tensor("query.weight") { ["query", "key", "value", "proj_attn"] } else { ["to_q", "to_k", "to_v", "to_out.0"] };
        let [to_q, to_k, to_v, to_out] = names.map(|name| Linear::new(channels, channels, &vb.pp(name)));
        Ok(Self { to_q: to_q?, to_k: to_k?, to_v: to_v?, to_out: to_out?, heads: 1, compute: vb.compute_type() })
    }

    /// The keys and values of a sequence `(batch, tokens, context)`.
    pub(super) fn key_values(&self, context: &Tensor, adapters: &Adapters) -> Result<KeyValues> {
        Ok(KeyValues { keys: self.to_k.with(adapters).forward(context)?, values: self.to_v.with(adapters).forward(context)? })
    }

    /// `x` and `residual`, which is added to the result, are `(batch, tokens, channels)`, or of fewer samples that stand for the batch as in
    /// [`for_batch`].
    pub(super) fn forward(&self, x: &Tensor, seen: &Seen, residual: &Tensor, pass: &Pass) -> Result<Tensor> {
        let keys = seen.parts.iter().map(|part| part.keys.dim(1)).collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or_default();
        self.forward_by((MAX_PAIRS / keys.max(1)).max(1), x, seen, residual, pass)
    }

    /// `at_once` queries at a time.
    fn forward_by(&self, at_once: usize, x: &Tensor, seen: &Seen, residual: &Tensor, pass: &Pass) -> Result<Tensor> {
        let tokens = x.dim(1)?;
        if tokens > at_once {
            let part = |start: usize| {
                let count = at_once.min(tokens - start);
                self.forward_by(at_once, &x.narrow(1, start, count)?, seen, &residual.narrow(1, start, count)?, pass)
            };
            return Tensor::cat(&(0..tokens).step_by(at_once).map(part).collect::<Result<Vec<_>>>()?, 1);
        }
        pass.check()?;
        let attended = self.attend(&self.to_q.with(pass.adapters).forward(x)?, seen)?;
        pass.check()?;
        self.to_out.with(pass.adapters).forward_add(&attended, &for_batch(residual, attended.dim(0)?)?)
    }

    /// Self-attention.
    pub(super) fn forward_self(&self, x: &Tensor, residual: &Tensor, pass: &Pass) -> Result<Tensor> {
        self.forward(x, &Seen::of(&[&self.key_values(x, pass.adapters)?]), residual, pass)
    }

    /// The values, weighted by how well their keys fit the queries.
    fn attend(&self, queries: &Tensor, seen: &Seen) -> Result<Tensor> {
        let attended = self.attend_parts(queries, &seen.parts)?;
        if seen.images.is_empty() {
            return Ok(attended);
        }
        // Each request has as many samples as the others.
        let requests = seen.images.len();
        let of_request = |x: &Tensor, i: usize| x.narrow(0, i * x.dim(0)? / requests, x.dim(0)? / requests);
        let with_images = |(i, images): (usize, &Vec<(&KeyValues, f64)>)| {
            let mut sum = of_request(&attended, i)?;
            for (image, scale) in images {
                let found = attention(self.compute, &of_request(queries, i)?, &image.keys, &image.values, self.heads, false)?;
                sum = (sum + (found * *scale)?)?;
            }
            Ok(sum)
        };
        let each = seen.images.iter().enumerate().map(with_images).collect::<Result<Vec<_>>>()?;
        if let [only] = &*each { Ok(only.clone()) } else { Tensor::cat(&each, 0) }
    }

    fn attend_parts(&self, queries: &Tensor, key_values: &[&KeyValues]) -> Result<Tensor> {
        let attend = |queries: &Tensor, part: &KeyValues| attention(self.compute, queries, &part.keys, &part.values, self.heads, false);
        if let [all] = key_values {
            return attend(queries, all);
        }
        let batches = key_values.iter().map(|part| part.keys.dim(0)).collect::<Result<Vec<usize>>>()?;
        let (samples, batch) = (queries.dim(0)?, batches.iter().sum::<usize>());
        let mut attended = Vec::with_capacity(key_values.len());
        let mut first = 0;
        for (part, of_part) in key_values.iter().zip(batches) {
            let count = samples * of_part / batch;
            attended.push(attend(&queries.narrow(0, first, count)?, part)?);
            first += count;
        }
        Tensor::cat(&attended, 0)
    }
}

/// Attention to the text.
#[derive(Debug, Clone)]
pub(super) struct CrossAttention {
    attention: Attention,
    /// By which its keys and values are found in a [`TextContext`](super::text_context::TextContext).
    index: LayerIndex,
}

impl CrossAttention {
    /// `channels` is the width of the queries, `context` that of the text.
    pub(super) fn new(channels: usize, context: usize, heads: usize, vb: &Weights) -> Result<Self> {
        Ok(Self { attention: Attention::new(channels, context, heads, vb)?, index: vb.layer_index() })
    }

    /// What this layer makes of a text `(batch, tokens, context)`.
    pub(super) fn key_values(&self, text: &Tensor, adapters: &Adapters) -> Result<(LayerIndex, KeyValues)> {
        Ok((self.index, self.attention.key_values(text, adapters)?))
    }

    /// `x` and `residual`, which is added to the result, are `(batch, tokens, channels)`, or of one sample a generation.
    pub(super) fn forward(&self, x: &Tensor, residual: &Tensor, pass: &Pass) -> Result<Tensor> {
        let Some(text) = pass.text else { candle_core::bail!("a layer looks at the text, and the pass brings none") };
        let seen = Seen { parts: text.of_layer(self.index)?, images: pass.images.of_layer(self.index) };
        self.attention.forward(x, &seen, residual, pass)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use candle_nn::VarBuilder;

    use super::*;
    use crate::{
        models::{Interrupt, image_prompt::ImageContext, text_context::TextContext},
        ops::{WeightType, concat_channels, to_image},
    };

    const PASS: Pass = Pass { temb: None, text: None, images: ImageContext::NONE, adapters: Adapters::NONE, interrupt: Interrupt::NEVER };

    fn made_up(dtype: DType, shape: &[usize], scale: f64) -> Tensor {
        let count = shape.iter().product::<usize>() as f64;
        let values = (Tensor::arange(0f64, count, &Device::Cpu).unwrap() * scale).unwrap().sin().unwrap();
        values.reshape(shape).unwrap().to_dtype(dtype).unwrap()
    }

    fn layer(dtype: DType) -> Attention {
        let weights = ["to_q", "to_k", "to_v", "to_out.0"].into_iter().zip(1..);
        let weight = |(name, i)| (format!("{name}.weight"), made_up(dtype, &[6, 6], 0.2 + 0.1 * f64::from(i)));
        let mut tensors: Vec<_> = weights.map(weight).collect();
        tensors.push(("to_out.0.bias".to_owned(), made_up(dtype, &[6], 0.9)));
        let vb = Weights::new(VarBuilder::from_tensors(tensors.into_iter().collect(), dtype, &Device::Cpu), WeightType::F32);
        Attention::new(6, 6, 2, &vb).unwrap()
    }

    fn numbers(x: &Tensor) -> Vec<f64> {
        x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    /// In f64 everything goes through candle's own operations, as it does on other devices.
    #[test]
    fn one_sample_stands_for_all() {
        for dtype in [DType::F32, DType::F64] {
            let made_up = |shape: &[usize], scale| made_up(dtype, shape, scale);
            let twice = |x: &Tensor| Tensor::cat(&[x, x], 0).unwrap();
            let attention = layer(dtype);
            let seen = attention.key_values(&made_up(&[2, 5, 6], 0.7), Adapters::NONE).unwrap();

            let (x, residual) = (made_up(&[1, 20, 6], 0.3), made_up(&[1, 20, 6], 0.4));
            let found = attention.forward(&x, &Seen::of(&[&seen]), &residual, &PASS).unwrap();
            assert_eq!(found.dims(), [2, 20, 6]);
            assert_ne!(numbers(&found.get(0).unwrap()), numbers(&found.get(1).unwrap()), "they look at different things");
            assert_eq!(numbers(&found), numbers(&attention.forward(&twice(&x), &Seen::of(&[&seen]), &twice(&residual), &PASS).unwrap()));

            let in_parts = attention.forward_by(7, &x, &Seen::of(&[&seen]), &residual, &PASS).unwrap();
            assert!(numbers(&found).iter().zip(numbers(&in_parts)).all(|(whole, part)| (whole - part).abs() < 1e-6), "{dtype:?}");

            let (image, skip) = (to_image(&found, &made_up(&[1, 6, 4, 5], 1.0)).unwrap(), made_up(&[1, 3, 4, 5], 0.6));
            let joined = concat_channels(&image, &for_batch(&skip, 2).unwrap()).unwrap();
            assert_eq!(numbers(&joined), numbers(&concat_channels(&image, &twice(&skip)).unwrap()));
        }
    }

    /// Of two generations with two sides each.
    #[test]
    fn each_generation_looks_at_its_own() {
        // candle's matrix products are cut by the size of the batch.
        for (dtype, limit) in [(DType::F32, 0.0), (DType::F64, 1e-12)] {
            let attention = layer(dtype);
            let key_values = |keys: usize, scale| attention.key_values(&made_up(dtype, &[2, keys, 6], scale), Adapters::NONE).unwrap();
            let (one, same_length, longer) = (key_values(5, 0.7), key_values(5, 0.8), key_values(9, 0.8));
            let joined = KeyValues::join(&[&one, &same_length]).unwrap();
            // Before and after the text made the sides differ.
            for (samples, each) in [(2, 1), (4, 2)] {
                let (x, residual) = (made_up(dtype, &[samples, 20, 6], 0.35), made_up(dtype, &[samples, 20, 6], 0.45));
                for (together, alone) in [
                    (&[&one, &longer][..], [&one, &longer]),
                    (&[&one, &same_length], [&one, &same_length]),
                    (&[&joined], [&one, &same_length]),
                ] {
                    let together = numbers(&attention.forward(&x, &Seen::of(together), &residual, &PASS).unwrap());
                    let of = |x: &Tensor, i: usize| x.narrow(0, i * each, each).unwrap();
                    let alone =
                        |i: usize| numbers(&attention.forward(&of(&x, i), &Seen::of(&alone[i..=i]), &of(&residual, i), &PASS).unwrap());
                    let alone = [alone(0), alone(1)].concat();
                    assert_eq!(together.len(), alone.len());
                    let off = together.iter().zip(&alone).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                    assert!(off <= limit, "{samples} samples in {dtype:?} are off by {off}");
                }
            }
        }
    }

    /// A layer that counted instead of asking by its number would look at the keys of another one.
    #[test]
    fn a_layer_finds_its_own_keys_or_says_so() {
        let values = |scale: f64| made_up(DType::F32, &[4, 4], scale);
        let weights = |name: &str, scale: f64| {
            let parts = ["to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"].into_iter().zip(1..);
            let mut all: Vec<_> = parts.map(|(part, i)| (format!("{name}.{part}"), values(scale * f64::from(i)))).collect();
            all.push((format!("{name}.to_out.0.bias"), made_up(DType::F32, &[4], 0.0)));
            all
        };
        let tensors = [weights("one", 0.3), weights("two", 0.7)].concat().into_iter().collect();
        let vb = Weights::new(VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu), WeightType::F32);
        let [one, two] = ["one", "two"].map(|name| CrossAttention::new(4, 4, 2, &vb.pp(name)).unwrap());

        let (x, text) = (values(0.5).unsqueeze(0).unwrap(), values(0.9).unsqueeze(0).unwrap());
        // In another order than they are asked in.
        let context = TextContext::new(&text, [&two, &one].into_iter().map(|layer| layer.key_values(&text, Adapters::NONE))).unwrap();
        for layer in [&one, &two] {
            let own = layer.attention.key_values(&text, Adapters::NONE).unwrap();
            let directly = layer.attention.forward(&x, &Seen::of(&[&own]), &x, &PASS).unwrap();
            let found = layer.forward(&x, &x, &Pass { text: Some(&context), ..PASS }).unwrap();
            assert_eq!(numbers(&found), numbers(&directly));
        }
        let half = TextContext::new(&text, std::iter::once(one.key_values(&text, Adapters::NONE))).unwrap();
        let error = two.forward(&x, &x, &Pass { text: Some(&half), ..PASS }).unwrap_err().to_string();
        assert!(error.contains("no keys for layer"), "{error}");
        assert!(two.forward(&x, &x, &PASS).is_err());
    }

    #[test]
    fn a_pass_that_nobody_waits_for_is_given_up() {
        let (attention, x) = (layer(DType::F32), made_up(DType::F32, &[1, 20, 6], 0.3));
        let interrupted = || true;
        let error = attention.forward_self(&x, &x, &Pass { interrupt: Interrupt::when(&interrupted), ..PASS }).unwrap_err().to_string();
        assert!(error.contains("interrupted"), "{error}");
    }
}
