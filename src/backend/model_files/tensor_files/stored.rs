//! The types of tensors in safetensors files.

use std::io;

use bytemuck::cast_slice_mut;
use candle_core::{DType, Device, Error, Result, Tensor};
use half::{
    bf16, f16,
    slice::{HalfBitsSliceExt, HalfFloatSliceExt},
};
use safetensors::Dtype;

/// The types of weights, for messages.
const WEIGHTS: &str = "f64, f32, f16, bf16, fp8 (e4m3 or e5m2) and int8 with a weight_scale are";

/// Numbers that a thread reads at a time.
pub(super) const PART: usize = 32 << 10;

/// A stored tensor in a type of candle.
///
/// # Errors
/// When the stored type is none of weights, or a value is not finite.
pub(super) fn tensor(name: &str, stored: Dtype, bytes: &[u8], shape: &[usize]) -> Result<Tensor> {
    let dtype = match stored {
        Dtype::F8_E5M2 => {
            check(name, bytes, |byte| byte & 0x7c != 0x7c)?;
            // E5M2 is the upper half of an f16.
            let numbers = bytes.iter().map(|byte| f16::from_bits(u16::from(*byte) << 8)).collect();
            return Tensor::from_vec(numbers, shape, &Device::Cpu);
        }
        Dtype::F8_E4M3 => {
            check(name, bytes, |byte| byte & 0x7f != 0x7f)?;
            DType::F8E4M3
        }
        // An exponent of ones is an infinity or a NaN.
        Dtype::F16 => {
            check_words(name, bytes, 0x7c00)?;
            DType::F16
        }
        Dtype::BF16 => {
            check_words(name, bytes, 0x7f80)?;
            DType::BF16
        }
        Dtype::F64 => {
            let (numbers, _) = bytes.as_chunks();
            check(name, numbers, |number| f64::from_le_bytes(*number).is_finite())?;
            DType::F64
        }
        other => {
            return Err(Error::msg(format!("{name} is stored as {other:?}, which is no type of weights; {WEIGHTS}")));
        }
    };
    Tensor::from_raw_buffer(bytes, dtype, shape, &Device::Cpu)
}

/// Bytes of a number of a type that most files have.
pub(super) fn size_of_frequent(stored: Dtype) -> Option<usize> {
    match stored {
        Dtype::F32 => Some(4),
        Dtype::F16 | Dtype::BF16 => Some(2),
        _ => None,
    }
}

/// Fills numbers with those of a frequent type, whose bytes `read` reads.
///
/// # Errors
/// Those of `read`.
pub(super) fn fill(stored: Dtype, numbers: &mut [f32], read: impl FnOnce(&mut [u8]) -> io::Result<()>) -> io::Result<()> {
    if stored == Dtype::F32 {
        return read(cast_slice_mut(numbers));
    }
    let mut halves = vec![0_u16; numbers.len()];
    read(cast_slice_mut(&mut halves))?;
    match stored {
        Dtype::F16 => halves.reinterpret_cast::<f16>().convert_to_f32_slice(numbers),
        _ => halves.reinterpret_cast::<bf16>().convert_to_f32_slice(numbers),
    }
    Ok(())
}

/// Checks that all values are finite: a single NaN spoils every picture.
///
/// # Errors
/// Names the first value that is not.
pub(super) fn check<T>(name: &str, numbers: &[T], is_finite: impl Fn(&T) -> bool) -> Result<()> {
    // The sum first, without a branch for each value: nearly all files pass.
    if numbers.iter().fold(true, |all, number| all & is_finite(number)) {
        return Ok(());
    }
    let place = numbers.iter().position(|number| !is_finite(number)).unwrap_or_default();
    Err(Error::msg(format!("{name} has a value that is not a number (NaN) or is infinite, at place {place} of {}", numbers.len())))
}

fn check_words(name: &str, bytes: &[u8], exponent: u16) -> Result<()> {
    let (words, _) = bytes.as_chunks();
    check(name, words, |word| u16::from_le_bytes(*word) & exponent != exponent)
}
