//! Enlarging an image.

use candle_core::{Result, Tensor};

/// Nearest-neighbour interpolation of `(batch, channels, h, w)` to `(batch, channels, height, width)`.
///
/// # Errors
/// When the device fails.
pub fn upsample_nearest(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    x.upsample_nearest2d(height, width)
}
