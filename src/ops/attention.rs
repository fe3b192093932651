//! Scaled dot-product attention.

use candle_core::{D, Device, Result, Tensor};

use super::{ComputeType, cpu, for_batch};

/// On other devices than a CPU, scores are computed in blocks of so many bytes, so that memory does not grow with the square of the picture's
/// size.
const SCORE_BYTES: usize = 64 << 20;

/// `softmax(q k^T / sqrt(head_dim)) v` for each head ([Vaswani et al.](https://arxiv.org/abs/1706.03762), equation 1).
///
/// `q` is `(batch, queries, heads * head_dim)`, or of fewer samples that stand for the batch as in [`for_batch`]; `k` and `v` are
/// `(batch, keys, heads * head_dim)`. With `causal`, a query sees no keys after its own token. The result is
/// `(batch, queries, heads * head_dim)`. A CPU multiplies in `compute`.
///
/// # Errors
/// When the shapes do not fit, or the device fails.
pub fn attention(compute: ComputeType, q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    let ((samples, queries, width), (batch, keys, key_width)) = (q.dims3()?, k.dims3()?);
    let fits = width == key_width && k.dims() == v.dims() && batch.is_multiple_of(samples);
    if heads == 0 || !width.is_multiple_of(heads) || !fits {
        candle_core::bail!("attention of {:?} to {:?} and {:?} with {heads} heads", q.shape(), k.shape(), v.shape());
    }
    if cpu::is_fast(q) {
        let shape = cpu::Sequences { batch, heads, head_dim: width / heads, queries, keys, causal };
        let (q, k, v) = (cpu::Rows::new(q)?, cpu::Rows::new(k)?, cpu::Rows::new(v)?);
        let result = q.with(|q| k.with(|k| v.with(|v| Ok(cpu::attention(cpu::Machine::of(compute), q, k, v, shape)))))?;
        return Tensor::from_vec(result, (batch, queries, width), &Device::Cpu);
    }
    let q = &for_batch(q, batch)?.contiguous()?;
    let split = |x: &Tensor| x.reshape((batch, (), heads, width / heads));
    #[cfg(feature = "flash-attn")]
    if q.device().is_cuda() && q.dtype() != candle_core::DType::F32 {
        let scale = 1.0 / ((width / heads) as f32).sqrt();
        return candle_flash_attn::flash_attn(&split(q)?, &split(k)?, &split(v)?, scale, causal)?.flatten_from(2);
    }
    let by_head = |x: &Tensor| split(x)?.transpose(1, 2)?.contiguous();
    whole_scores(&by_head(q)?, &by_head(k)?, &by_head(v)?, causal)?.transpose(1, 2)?.flatten_from(2)
}

/// The same in candle's own operations, for `(batch, heads, tokens, head_dim)`.
fn whole_scores(q: &Tensor, k: &Tensor, v: &Tensor, causal: bool) -> Result<Tensor> {
    let (batch, heads, queries, head_dim) = q.dims4()?;
    let keys = k.dim(2)?;
    let scale = 1.0 / (head_dim as f64).sqrt();
    let (q, k) = ((q * scale)?, k.transpose(2, 3)?.contiguous()?);
    let row_bytes = batch * heads * keys * q.dtype().size_in_bytes();
    let rows = (SCORE_BYTES / row_bytes.max(1)).clamp(1, queries);
    let block = |start: usize| {
        let count = rows.min(queries - start);
        let mut scores = q.narrow(2, start, count)?.contiguous()?.matmul(&k)?;
        if causal {
            let hidden = |i: usize| if i % keys > start + i / keys { f32::NEG_INFINITY } else { 0.0 };
            let mask: Vec<f32> = (0..count * keys).map(hidden).collect();
            let mask = Tensor::from_vec(mask, (count, keys), q.device())?.to_dtype(q.dtype())?;
            scores = scores.broadcast_add(&mask)?;
        }
        candle_nn::ops::softmax_last_dim(&scores)?.matmul(v)
    };
    let blocks = (0..queries).step_by(rows).map(block).collect::<Result<Vec<_>>>()?;
    match blocks.as_slice() {
        [only] => Ok(only.clone()),
        many => Tensor::cat(many, D::Minus2),
    }
}
