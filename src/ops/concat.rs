//! Joining images along their channels.

use candle_core::{Result, Tensor};

use super::cpu;

/// `(batch, a, height, width)` and `(batch, b, height, width)` to `(batch, a + b, height, width)`.
///
/// # Errors
/// When the sizes differ, or the device fails.
pub fn concat_channels(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if !cpu::is_fast(a) {
        return Tensor::cat(&[a, b], 1);
    }
    let last = |x: &Tensor| x.permute((0, 2, 3, 1))?.contiguous();
    Tensor::cat(&[last(a)?, last(b)?], 3)?.permute((0, 3, 1, 2))
}
