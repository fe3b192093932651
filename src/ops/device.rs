//! Preparing a device.

use candle_core::{Device, Result};

/// Prepares a device for the operations here, before there is a tensor on it. An NVIDIA GPU is slower without; other devices need nothing.
///
/// # Errors
/// When the device fails.
#[cfg_attr(not(feature = "cuda"), allow(unused_variables, clippy::unnecessary_wraps, reason = "there is nothing to do"))]
pub fn prepare(device: &Device) -> Result<()> {
    #[cfg(feature = "cuda")]
    super::cuda::prepare(device)?;
    Ok(())
}
