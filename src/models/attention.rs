//! Multi-head attention, after diffusers' `attention_processor.py`.

use candle_core::{Result, Tensor};

use super::interrupt;
use crate::ops::{Linear, Weights, attention, for_batch};

/// Queries times keys that are worked on between two questions whether anybody still waits: of very large pictures, all of them would take
/// minutes.
const PAIRS: usize = 1 << 32;

/// diffusers' `Attention` without its many options: of a sequence to itself, or to another one.
#[derive(Debug, Clone)]
pub(super) struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
}

/// What one [`Attention`] looks at: keys and values, `(batch, keys, channels)`.
#[derive(Debug, Clone)]
pub(super) struct KeyValues {
    keys: Tensor,
    values: Tensor,
}

impl Attention {
    /// `channels` is the width of the queries and of the result, `context` that of the sequence that is looked at.
    pub(super) fn new(channels: usize, context: usize, heads: usize, vb: &Weights) -> Result<Self> {
        Ok(Self {
            to_q: Linear::no_bias(channels, channels, &vb.pp("to_q"))?,
            to_k: Linear::no_bias(context, channels, &vb.pp("to_k"))?,
            to_v: Linear::no_bias(context, channels, &vb.pp("to_v"))?,
            to_out: Linear::new(channels, channels, &vb.pp("to_out.0"))?,
            heads,
        })
    }

    /// The VAE's: one head, projections with bias. Older checkpoints have other names for the same.
    pub(super) fn for_vae(channels: usize, vb: &Weights) -> Result<Self> {
        let names =
            if vb.contains_tensor("query.weight") { ["query", "key", "value", "proj_attn"] } else { ["to_q", "to_k", "to_v", "to_out.0"] };
        let [to_q, to_k, to_v, to_out] = names.map(|name| Linear::new(channels, channels, &vb.pp(name)));
        Ok(Self { to_q: to_q?, to_k: to_k?, to_v: to_v?, to_out: to_out?, heads: 1 })
    }

    /// What there is to look at in a sequence `(batch, keys, context)`.
    pub(super) fn key_values(&self, context: &Tensor) -> Result<KeyValues> {
        Ok(KeyValues { keys: self.to_k.forward(context)?, values: self.to_v.forward(context)? })
    }

    /// `x` and `residual`, which is added to the result, are `(batch, tokens, channels)`, or of fewer samples that stand for the batch as
    /// in [`for_batch`]. The batch is what is seen, one after the other.
    pub(super) fn forward(&self, x: &Tensor, seen: &[&KeyValues], residual: &Tensor) -> Result<Tensor> {
        let keys = seen.iter().map(|seen| seen.keys.dim(1)).collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or_default();
        self.forward_by((PAIRS / keys.max(1)).max(1), x, seen, residual)
    }

    /// So many queries at a time.
    fn forward_by(&self, at_once: usize, x: &Tensor, seen: &[&KeyValues], residual: &Tensor) -> Result<Tensor> {
        let tokens = x.dim(1)?;
        if tokens > at_once {
            let part = |start: usize| {
                let count = at_once.min(tokens - start);
                self.forward_by(at_once, &x.narrow(1, start, count)?, seen, &residual.narrow(1, start, count)?)
            };
            return Tensor::cat(&(0..tokens).step_by(at_once).map(part).collect::<Result<Vec<_>>>()?, 1);
        }
        interrupt::check()?;
        let found = self.look(&self.to_q.forward(x)?, seen)?;
        interrupt::check()?;
        self.to_out.forward_add(&found, &for_batch(residual, found.dim(0)?)?)
    }

    /// A sequence looks at itself.
    pub(super) fn forward_self(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.forward(x, &[&self.key_values(x)?], residual)
    }

    fn look(&self, queries: &Tensor, seen: &[&KeyValues]) -> Result<Tensor> {
        let look = |queries: &Tensor, seen: &KeyValues| attention(queries, &seen.keys, &seen.values, self.heads, false);
        if let [all] = seen {
            return look(queries, all);
        }
        let batches = seen.iter().map(|seen| seen.keys.dim(0)).collect::<Result<Vec<usize>>>()?;
        let (samples, batch) = (queries.dim(0)?, batches.iter().sum::<usize>());
        let mut found = Vec::with_capacity(seen.len());
        let mut first = 0;
        for (seen, part) in seen.iter().zip(batches) {
            let count = samples * part / batch;
            found.push(look(&queries.narrow(0, first, count)?, seen)?);
            first += count;
        }
        Tensor::cat(&found, 0)
    }
}

impl KeyValues {
    /// Those of all, one after the other. They must have as many keys.
    pub(super) fn join(all: &[&Self]) -> Result<Self> {
        let join = |part: fn(&Self) -> &Tensor| Tensor::cat(&all.iter().map(|one| part(one)).collect::<Vec<_>>(), 0);
        Ok(Self { keys: join(|one| &one.keys)?, values: join(|one| &one.values)? })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use candle_nn::VarBuilder;

    use super::*;
    use crate::ops::{WeightType, concat_channels, to_image};

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
            let seen = attention.key_values(&made_up(&[2, 5, 6], 0.7)).unwrap();

            let (x, residual) = (made_up(&[1, 20, 6], 0.3), made_up(&[1, 20, 6], 0.4));
            let found = attention.forward(&x, &[&seen], &residual).unwrap();
            assert_eq!(found.dims(), [2, 20, 6]);
            assert_ne!(numbers(&found.get(0).unwrap()), numbers(&found.get(1).unwrap()), "they look at different things");
            assert_eq!(numbers(&found), numbers(&attention.forward(&twice(&x), &[&seen], &twice(&residual)).unwrap()));

            let in_parts = attention.forward_by(7, &x, &[&seen], &residual).unwrap();
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
            let key_values = |keys: usize, scale| attention.key_values(&made_up(dtype, &[2, keys, 6], scale)).unwrap();
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
                    let together = numbers(&attention.forward(&x, together, &residual).unwrap());
                    let of = |x: &Tensor, i: usize| x.narrow(0, i * each, each).unwrap();
                    let alone = |i: usize| numbers(&attention.forward(&of(&x, i), &alone[i..=i], &of(&residual, i)).unwrap());
                    let alone = [alone(0), alone(1)].concat();
                    assert_eq!(together.len(), alone.len());
                    let off = together.iter().zip(&alone).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                    assert!(off <= limit, "{samples} samples in {dtype:?} are off by {off}");
                }
            }
        }
    }
}
