//! What a device needs before there is a tensor on it.

use candle_core::{Device, Result};

/// Makes a device ready for the operations here. Nothing but a GPU needs it, and it need not be done, but they are slower without it.
///
/// # Errors
/// When the device fails.
#[cfg_attr(not(feature = "cuda"), allow(unused_variables, clippy::unnecessary_wraps, reason = "there is nothing to do"))]
pub fn prepare(device: &Device) -> Result<()> {
    #[cfg(feature = "cuda")]
    super::cuda::prepare(device)?;
    Ok(())
}
