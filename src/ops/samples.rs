//! Tensors of fewer samples than a batch has.

use candle_core::{Result, Tensor};

use super::cpu;

/// Repeats the samples of `x` `(samples, …)` for a batch, `(batch, …)`: each sample stands for `batch / samples` of the batch, in order. Of
/// two samples, the first stands for the first half.
///
/// # Errors
/// When the samples do not divide the batch, or the device fails.
pub fn for_batch(x: &Tensor, batch: usize) -> Result<Tensor> {
    let (samples, dims) = (x.dim(0)?, &x.dims()[1..]);
    if samples == batch {
        return Ok(x.clone());
    }
    if samples == 0 || !batch.is_multiple_of(samples) {
        candle_core::bail!("{:?} cannot stand for a batch of {batch}", x.shape());
    }
    if samples == 1 {
        return x.broadcast_as([&[batch], dims].concat());
    }
    let each = |x: &Tensor| x.unsqueeze(1)?.broadcast_as([&[samples, batch / samples], &x.dims()[1..]].concat())?.flatten(0, 1);
    if !cpu::is_fast(x) {
        return each(x);
    }
    cpu::check_room(batch * dims.iter().product::<usize>())?;
    // An image's channels stay last in memory.
    if x.rank() == 4 { each(&x.permute((0, 2, 3, 1))?)?.permute((0, 3, 1, 2)) } else { each(x) }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    /// Tensors of f64 take the way of other devices.
    #[test]
    fn each_stands_for_as_many_in_order() {
        for dtype in [DType::F32, DType::F64] {
            let x = Tensor::arange(0u32, 2 * 3 * 4 * 5, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            for x in [x.reshape((2, 3, 4, 5)).unwrap(), x.reshape((2, 12, 5)).unwrap(), x.reshape((2, 60)).unwrap()] {
                let numbers = |x: &Tensor| x.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
                let (first, second) = (x.narrow(0, 0, 1).unwrap(), x.narrow(0, 1, 1).unwrap());
                let expected = Tensor::cat(&[&first, &first, &first, &second, &second, &second], 0).unwrap();
                let spread = for_batch(&x, 6).unwrap();
                assert_eq!((spread.dims(), numbers(&spread)), (expected.dims(), numbers(&expected)));
                assert_eq!(numbers(&for_batch(&first, 3).unwrap()), numbers(&expected.narrow(0, 0, 3).unwrap()));
                assert_eq!(numbers(&for_batch(&x, 2).unwrap()), numbers(&x));
                assert!(for_batch(&x, 3).is_err() && for_batch(&x, 1).is_err());
            }
        }
    }
}
