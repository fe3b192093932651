//! Arithmetic on images that does not ask where their channels are.

use candle_core::{Result, Tensor};

use super::{cpu, for_batch};

/// The sum of two images `(batch, channels, height, width)`. One of them may have fewer samples, which stand for the batch as in
/// [`for_batch`].
///
/// # Errors
/// When the shapes differ, or the device fails.
pub fn add_images(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let batch = x.dim(0)?.max(y.dim(0)?);
    in_memory_order(&[&for_batch(x, batch)?, &for_batch(y, batch)?], |images| &images[0] + &images[1])
}

/// An image `(batch, channels, height, width)` times a factor.
///
/// # Errors
/// When the device fails.
pub fn scale_image(x: &Tensor, factor: f64) -> Result<Tensor> {
    // Not a bit of the image changes at 1.
    if factor.to_bits() == 1.0_f64.to_bits() { Ok(x.clone()) } else { in_memory_order(&[x], |images| &images[0] * factor) }
}

/// An image times a factor, plus a number.
///
/// # Errors
/// When the device fails.
pub fn affine_image(x: &Tensor, factor: f64, shift: f64) -> Result<Tensor> {
    in_memory_order(&[x], |images| images[0].affine(factor, shift))
}

/// Images `(samples, channels, height, width)`, one after the other.
///
/// # Errors
/// When there are none, the shapes differ, or the device fails.
pub fn join_images(images: &[&Tensor]) -> Result<Tensor> {
    in_memory_order(images, |images| Tensor::cat(images, 0))
}

/// `count` samples of an image `(samples, channels, height, width)` from `first` on: the image itself if these are all, otherwise copied to
/// memory of their own.
///
/// # Errors
/// When the image has fewer, or the device fails.
pub fn separate_samples(x: &Tensor, first: usize, count: usize) -> Result<Tensor> {
    if count == x.dim(0)? {
        return Ok(x.clone());
    }
    in_memory_order(&[&x.narrow(0, first, count)?], |images| images[0].force_contiguous())
}

/// SiLU of every number of an image.
///
/// # Errors
/// When the device fails.
pub fn silu_image(x: &Tensor) -> Result<Tensor> {
    in_memory_order(&[x], |images| images[0].silu())
}

/// ReLU of every number of an image.
///
/// # Errors
/// When the device fails.
pub fn relu_image(x: &Tensor) -> Result<Tensor> {
    in_memory_order(&[x], |images| images[0].relu())
}

/// Half the resolution of an image, by means of 2 x 2 pixels. At odd edges, as in torch's `AvgPool2d` with `ceil_mode`, of those that there
/// are.
///
/// # Errors
/// When the device fails.
pub fn half_image(x: &Tensor) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    // A repeated edge has the mean of what is there.
    let edges = |x: &Tensor, dim: usize, odd: bool| if odd { x.pad_with_same(dim, 0, 1) } else { Ok(x.clone()) };
    edges(&edges(x, 2, !height.is_multiple_of(2))?, 3, !width.is_multiple_of(2))?.contiguous()?.avg_pool2d(2)
}

/// An operation that does not ask where the channels are. candle is several times as fast where it takes numbers in their order in memory, in
/// which the channels of an image come last on a CPU.
fn in_memory_order(images: &[&Tensor], operation: impl FnOnce(&[Tensor]) -> Result<Tensor>) -> Result<Tensor> {
    let is_fast = images.iter().all(|image| cpu::is_fast(image));
    let order = |image: &&Tensor| if is_fast { image.permute((0, 2, 3, 1))?.contiguous() } else { Ok((*image).clone()) };
    if is_fast {
        cpu::check_room(images.iter().map(|image| image.elem_count()).sum())?;
    }
    let result = operation(&images.iter().map(order).collect::<Result<Vec<_>>>()?)?;
    if is_fast { result.permute((0, 3, 1, 2)) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    /// Tensors of f64 take the way of other devices.
    #[test]
    fn images_are_added_scaled_and_joined_wherever_their_channels_are() {
        for dtype in [DType::F32, DType::F64] {
            let image = |samples: usize, shift: f64| {
                let numbers = Tensor::arange(0u32, (samples * 3 * 4 * 5) as u32, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
                (numbers.reshape((samples, 3, 4, 5)).unwrap() + shift).unwrap()
            };
            let numbers = |x: &Tensor| x.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
            let channels_last = |x: &Tensor| x.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap().permute((0, 3, 1, 2)).unwrap();
            let (two, one) = (image(2, 0.5), image(1, 7.0));
            let twice = Tensor::cat(&[&one, &one], 0).unwrap();
            let sum = numbers(&(&two + &twice).unwrap());
            for (two, one) in [(two.clone(), channels_last(&one)), (channels_last(&two), one.clone())] {
                assert_eq!(numbers(&add_images(&two, &one).unwrap()), sum);
                assert_eq!(numbers(&add_images(&one, &two).unwrap()), sum);
                assert_eq!(numbers(&join_images(&[&one, &one]).unwrap()), numbers(&twice));
                let second = numbers(&two.narrow(0, 1, 1).unwrap());
                assert_eq!(numbers(&separate_samples(&two, 1, 1).unwrap()), second);
            }
            assert_eq!(numbers(&scale_image(&two, 0.25).unwrap()), numbers(&(&two * 0.25).unwrap()));
            assert_eq!(numbers(&affine_image(&channels_last(&two), 2.0, -1.0).unwrap()), numbers(&two.affine(2.0, -1.0).unwrap()));
            assert_eq!(numbers(&silu_image(&channels_last(&two)).unwrap()), numbers(&two.silu().unwrap()));
            assert_eq!(numbers(&relu_image(&(&two - 20.0).unwrap()).unwrap()), numbers(&(&two - 20.0).unwrap().relu().unwrap()));
            assert!(add_images(&two, &image(3, 0.0)).is_err() && join_images(&[]).is_err());
        }
    }

    #[test]
    fn the_odd_edge_of_a_halved_image_is_the_mean_of_what_is_there() {
        let image = Tensor::new(&[[[[1f32, 3.0, 5.0], [5.0, 7.0, 9.0], [2.0, 4.0, 8.0]]]], &Device::Cpu).unwrap();
        assert_eq!(half_image(&image).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap(), [4.0, 7.0, 3.0, 8.0]);
    }
}
