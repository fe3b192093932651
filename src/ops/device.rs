//! What a device needs and has.

use candle_core::{Device, Result};

use super::{ComputeType, cpu::Machine};

/// Whether this processor has units for a type.
#[must_use]
pub fn computes_in(compute: ComputeType) -> bool {
    Machine::has(compute)
}

/// The fastest type of this processor.
#[must_use]
pub fn fastest_compute_type() -> ComputeType {
    [ComputeType::Int8, ComputeType::Bf16].into_iter().find(|compute| computes_in(*compute)).unwrap_or(ComputeType::F32)
}

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
