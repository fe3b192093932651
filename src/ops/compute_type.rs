//! The types in which a CPU multiplies.

use std::{fmt, str::FromStr};

/// The type in which a CPU multiplies matrices. Sums are f32, and so is everything between two layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ComputeType {
    /// All digits of the numbers, or 16 binary digits where tile units multiply them.
    #[default]
    F32,
    /// 8 binary digits, where the processor multiplies such numbers faster. Where vectors do, 3 x 3 convolutions stay in f32: Winograd's
    /// algorithm saves more multiplications.
    Bf16,
    /// Whole numbers of 8 bits, 64 of which share a factor: in linear layers, and in convolutions whose channels are a multiple of 64. Other
    /// layers, attention and the products of Winograd's algorithm are in bf16, where the processor has that and there are channels enough,
    /// or in f32.
    Int8,
}

impl ComputeType {
    /// The name that users know it by.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

impl fmt::Display for ComputeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that no type has.
#[derive(Debug, thiserror::Error)]
#[error("\"{0}\" is none of f32, bf16, int8")]
pub struct UnknownComputeType(String);

impl FromStr for ComputeType {
    type Err = UnknownComputeType;

    fn from_str(name: &str) -> std::result::Result<Self, UnknownComputeType> {
        let all = [Self::F32, Self::Bf16, Self::Int8];
        all.into_iter().find(|all| all.name().eq_ignore_ascii_case(name)).ok_or_else(|| UnknownComputeType(name.to_owned()))
    }
}
