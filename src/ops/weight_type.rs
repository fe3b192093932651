//! The types in which weights are kept.

use std::{fmt, str::FromStr};

use candle_core::{DType, Device};

/// The type in which weights are kept. A CPU computes in f32 whatever it is; another device computes in this type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightType {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits: 5 of exponent, 10 of fraction.
    F16,
    /// 16 bits: 8 of exponent, 7 of fraction.
    Bf16,
    /// Linear layers in 8.5 bits, after [ggml](https://github.com/ggml-org/ggml): whole numbers from -127 to 127, and a factor for each
    /// 32 of them. Convolutions in f16. On a CPU only.
    Q8_0,
}

/// A type of one number for each weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DenseType {
    F32,
    F16,
    Bf16,
}

impl WeightType {
    /// The name that users know it by.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
        }
    }

    /// The type in which networks compute on a device, if they can with such weights.
    #[must_use]
    pub fn compute_type(self, device: &Device) -> Option<DType> {
        match self {
            _ if device.is_cpu() => Some(DType::F32),
            Self::F32 => Some(DType::F32),
            Self::F16 => Some(DType::F16),
            Self::Bf16 => Some(DType::BF16),
            Self::Q8_0 => None,
        }
    }

    /// The type for dense weights, as those of convolutions and embeddings always are.
    pub(super) fn dense(self) -> DenseType {
        match self {
            Self::F32 => DenseType::F32,
            Self::F16 | Self::Q8_0 => DenseType::F16,
            Self::Bf16 => DenseType::Bf16,
        }
    }
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that no type of weights has.
#[derive(Debug, thiserror::Error)]
#[error("\"{0}\" is none of f32, f16, bf16, q8_0")]
pub struct UnknownWeightType(String);

impl FromStr for WeightType {
    type Err = UnknownWeightType;

    fn from_str(name: &str) -> std::result::Result<Self, UnknownWeightType> {
        let all = [Self::F32, Self::F16, Self::Bf16, Self::Q8_0];
        all.into_iter().find(|all| all.name().eq_ignore_ascii_case(name)).ok_or_else(|| UnknownWeightType(name.to_owned()))
    }
}
