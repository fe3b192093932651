//! Joining images along their channels or their rows.

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

/// Images `(batch, channels, rows, width)`, one below the other, copied to new memory.
///
/// # Errors
/// When there are none, the sizes differ, or the device fails.
pub fn concat_rows(parts: &[Tensor]) -> Result<Tensor> {
    let Some(first) = parts.first() else { candle_core::bail!("there are no rows to join") };
    if !cpu::is_fast(first) {
        return Tensor::cat(parts, 2)?.force_contiguous();
    }
    let images = parts.iter().map(cpu::Image::new).collect::<Result<Vec<_>>>()?;
    let (batch, channels, _, width) = first.dims4()?;
    if images.iter().any(|image| (image.batch, image.channels, image.width) != (batch, channels, width)) {
        candle_core::bail!("images of other sizes than {:?} cannot be joined below it", first.shape());
    }
    let height: usize = images.iter().map(|image| image.height).sum();
    let mut pixels: Vec<f32> = cpu::zeroed(batch * height * width * channels)?;
    for (sample, mut out) in pixels.chunks_exact_mut((height * width * channels).max(1)).enumerate() {
        for image in &images {
            let (part, rest) = out.split_at_mut(image.height * width * channels);
            image.with(|from| {
                part.copy_from_slice(&from[sample * part.len()..][..part.len()]);
                Ok(())
            })?;
            out = rest;
        }
    }
    cpu::Image::tensor(pixels, batch, height, width, channels)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn images_are_joined_in_their_order() {
        let numbers = |channels: usize| {
            let values = Tensor::arange(0u32, (2 * channels * 5 * 17) as u32, &Device::Cpu).unwrap();
            values.to_dtype(DType::F32).unwrap().reshape((2, channels, 5, 17)).unwrap()
        };
        let all = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (a, b) in [(3, 2), (1, 40), (16, 16)] {
            let (a, b) = (numbers(a), numbers(b));
            assert_eq!(all(&concat_channels(&a, &b).unwrap()), all(&Tensor::cat(&[&a, &b], 1).unwrap()));
        }
        let (top, bottom) = (numbers(3).narrow(2, 1, 3).unwrap(), (numbers(3) * 2.0).unwrap());
        let joined = concat_rows(&[top.clone(), bottom.clone(), top.clone()]).unwrap();
        assert_eq!(all(&joined), all(&Tensor::cat(&[&top, &bottom, &top], 2).unwrap()));
        assert!(concat_rows(&[top, numbers(2)]).is_err() && concat_rows(&[]).is_err());
        let other = Tensor::zeros((2, 3, 17, 5), DType::F32, &Device::Cpu).unwrap();
        assert!(concat_channels(&numbers(3), &other).is_err());
    }
}
