//! From images to sequences of pixels, and back; and from channels to pixels.

use candle_core::{Result, Tensor};

use super::cpu;
#[cfg(feature = "cuda")]
use super::cuda;

/// `(batch, channels, height, width)` to a sequence of pixels, `(batch, height * width, channels)`.
///
/// # Errors
/// When `x` has not four dimensions, or the device fails.
pub fn to_sequence(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if cuda::takes(x) {
        return cuda::transpose(&x.contiguous()?.flatten_from(2)?);
    }
    let (batch, channels, height, width) = x.dims4()?;
    x.permute((0, 2, 3, 1))?.reshape((batch, height * width, channels))
}

/// A sequence of pixels `(batch, height * width, channels)` to `(batch, channels, height, width)`, with the height and width of `like`.
///
/// # Errors
/// When there are not as many pixels, or the device fails.
pub fn to_image(x: &Tensor, like: &Tensor) -> Result<Tensor> {
    let (_, _, height, width) = like.dims4()?;
    let (batch, _, channels) = x.dims3()?;
    #[cfg(feature = "cuda")]
    if cuda::takes(x) {
        return cuda::transpose(&x.contiguous()?)?.reshape((batch, channels, height, width));
    }
    x.reshape((batch, height, width, channels))?.permute((0, 3, 1, 2))
}

/// `(batch, channels * factor^2, height, width)` to `(batch, channels, height * factor, width * factor)`: torch's `pixel_shuffle`.
///
/// # Errors
/// When the channels cannot be divided so, or the device fails.
pub fn pixel_shuffle(x: &Tensor, factor: usize) -> Result<Tensor> {
    cpu::check_room(x.elem_count())?;
    candle_nn::ops::pixel_shuffle(x, factor)
}

/// `(batch, channels, height, width)` to `(batch, channels * factor^2, height / factor, width / factor)`: torch's `pixel_unshuffle`.
///
/// # Errors
/// When the sides are no multiples of the factor, or the device fails.
pub fn pixel_unshuffle(x: &Tensor, factor: usize) -> Result<Tensor> {
    cpu::check_room(x.elem_count())?;
    candle_nn::ops::pixel_unshuffle(x, factor)
}

/// Each channel of an image `times` times, one after the other. After [`pixel_shuffle`], that is the image enlarged by nearest neighbours.
///
/// # Errors
/// When the device fails.
pub fn repeat_channels(x: &Tensor, times: usize) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    cpu::check_room(x.elem_count() * times)?;
    x.unsqueeze(2)?.broadcast_as((batch, channels, times, height, width))?.reshape((batch, channels * times, height, width))
}
