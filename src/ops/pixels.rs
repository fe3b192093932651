//! From images to sequences of pixels, and back.

use candle_core::{Result, Tensor};

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
