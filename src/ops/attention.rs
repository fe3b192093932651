//! Scaled dot-product attention.

use candle_core::{D, Result, Tensor};

/// Scores are worked out for this many bytes at a time, so that memory does not grow with the square of the picture.
const SCORE_BYTES: usize = 64 << 20;

/// `softmax(q k^T / sqrt(head_dim) + mask) v` ([Vaswani et al.](https://arxiv.org/abs/1706.03762), equation 1).
///
/// `q` is `(batch, heads, queries, head_dim)`, `k` and `v` are `(batch, heads, keys, head_dim)`, `mask` is `(queries, keys)`. The
/// result has the shape of `q`.
///
/// # Errors
/// When the shapes do not fit, or the device fails.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    #[cfg(feature = "flash-attn")]
    if mask.is_none() && q.device().is_cuda() && q.dtype() != candle_core::DType::F32 {
        return flash(q, k, v);
    }
    let (batch, heads, queries, head_dim) = q.dims4()?;
    let scale = 1.0 / (head_dim as f64).sqrt();
    let (q, k, v) = ((q * scale)?, k.transpose(2, 3)?.contiguous()?, v.contiguous()?);
    let row_bytes = batch * heads * k.dim(3)? * q.dtype().size_in_bytes();
    let rows = (SCORE_BYTES / row_bytes.max(1)).clamp(1, queries);
    let block = |start: usize| {
        let count = rows.min(queries - start);
        let mut scores = q.narrow(2, start, count)?.contiguous()?.matmul(&k)?;
        if let Some(mask) = mask {
            scores = scores.broadcast_add(&mask.narrow(0, start, count)?)?;
        }
        candle_nn::ops::softmax_last_dim(&scores)?.matmul(&v)
    };
    let blocks = (0..queries).step_by(rows).map(block).collect::<Result<Vec<_>>>()?;
    match blocks.as_slice() {
        [only] => Ok(only.clone()),
        many => Tensor::cat(many, D::Minus2),
    }
}

/// candle's flash attention takes `(batch, tokens, heads, head_dim)`.
#[cfg(feature = "flash-attn")]
fn flash(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let scale = 1.0 / (q.dim(D::Minus1)? as f32).sqrt();
    let [q, k, v] = [q.transpose(1, 2)?, k.transpose(1, 2)?, v.transpose(1, 2)?];
    candle_flash_attn::flash_attn(&q, &k, &v, scale, false)?.transpose(1, 2)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::attention;

    #[test]
    fn blocks_of_queries_give_what_all_at_once_give() {
        // 12,000 keys x 8 heads x 4 bytes: 174 queries to a block.
        let device = Device::Cpu;
        let random = |tokens: usize| Tensor::rand(-1f32, 1., (1, 8, tokens, 4), &device).unwrap();
        let (q, k, v) = (random(200), random(12_000), random(12_000));
        let whole = attention(&q, &k, &v, None).unwrap();
        let last = attention(&q.narrow(2, 190, 10).unwrap(), &k, &v, None).unwrap();
        let difference = (whole.narrow(2, 190, 10).unwrap() - last).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f32>().unwrap() < 1e-6);
        assert_eq!(whole.dims(), q.dims());
    }
}
