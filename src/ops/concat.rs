//! Joining images along their channels.

use candle_core::{Result, Tensor};

use super::cpu;

/// `(batch, a, height, width)` and `(batch, b, height, width)` to `(batch, a + b, height, width)`.
///
/// # Errors
/// When the sizes differ, or the device fails.
pub fn concat_channels(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if !cpu::is_fast(a) || !cpu::is_fast(b) {
        return Tensor::cat(&[a, b], 1);
    }
    let (a, b) = (cpu::Image::new(a)?, cpu::Image::new(b)?);
    if (a.batch, a.height, a.width) != (b.batch, b.height, b.width) {
        candle_core::bail!("images of {}x{} and {}x{} in batches of {} and {}", a.width, a.height, b.width, b.height, a.batch, b.batch);
    }
    let pixels = a.with(|left| b.with(|right| Ok(cpu::concat(left, a.channels, right, b.channels))))?;
    cpu::Image::tensor(pixels, a.batch, a.height, a.width, a.channels + b.channels)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn channels_of_the_second_follow_those_of_the_first() {
        let numbers = |channels: usize| {
            let values = Tensor::arange(0u32, (2 * channels * 5 * 17) as u32, &Device::Cpu).unwrap();
            values.to_dtype(DType::F32).unwrap().reshape((2, channels, 5, 17)).unwrap()
        };
        let all = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (a, b) in [(3, 2), (1, 40), (16, 16)] {
            let (a, b) = (numbers(a), numbers(b));
            assert_eq!(all(&concat_channels(&a, &b).unwrap()), all(&Tensor::cat(&[&a, &b], 1).unwrap()));
        }
        let other = Tensor::zeros((2, 3, 17, 5), DType::F32, &Device::Cpu).unwrap();
        assert!(concat_channels(&numbers(3), &other).is_err());
    }
}
