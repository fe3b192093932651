//! Where the weights of a layer come from, and in which type they are kept.

use std::{fmt, str::FromStr};

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::VarBuilder;

use super::{
    LayerIndex, LayerNames, cpu,
    matrix::{Blocks, Matrix},
};

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
    fn dense(self) -> DenseType {
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

/// The tensors of a checkpoint below a prefix, and the type in which to keep them.
#[derive(Clone)]
pub struct Weights {
    vb: VarBuilder<'static>,
    weight_type: WeightType,
    freed_after_use: bool,
    layers: LayerNames,
}

impl Weights {
    /// `vb` gives tensors of the type that the networks compute in.
    #[must_use]
    pub fn new(vb: VarBuilder<'static>, weight_type: WeightType) -> Self {
        Self { vb, weight_type, freed_after_use: false, layers: LayerNames::default() }
    }

    /// The same. If `freed_after_use`, parts of networks that can be read again are in memory only while they run, see
    /// [`OnDemand`](super::OnDemand).
    #[must_use]
    pub fn freed_after_use(self, freed_after_use: bool) -> Self {
        Self { freed_after_use, ..self }
    }

    pub(super) fn are_freed_after_use(&self) -> bool {
        self.freed_after_use
    }

    /// The tensors below `name`. After candle's `VarBuilder::pp`, "push prefix".
    #[must_use]
    pub fn pp(&self, name: impl ToString) -> Self {
        Self { vb: self.vb.pp(name), ..self.clone() }
    }

    /// The prefix of the tensors' names.
    #[must_use]
    pub fn prefix(&self) -> String {
        self.vb.prefix()
    }

    /// The number of the layer whose weights are here.
    #[must_use]
    pub fn layer_index(&self) -> LayerIndex {
        self.layers.index(&self.prefix())
    }

    /// The layers that were built of these weights so far, and of all that come from the same [`Weights::new`].
    #[must_use]
    pub fn layer_names(&self) -> LayerNames {
        self.layers.clone()
    }

    /// The tensor of this name and shape.
    ///
    /// # Errors
    /// When there is none, or it has another shape.
    pub fn get(&self, shape: impl Into<Shape>, name: &str) -> Result<Tensor> {
        self.vb.get(shape, name)
    }

    /// Whether there is a tensor of that name.
    #[must_use]
    pub fn contains_tensor(&self, name: &str) -> bool {
        self.vb.contains_tensor(name)
    }

    /// The tensor `weight` of a linear layer, `(outputs, inputs)`.
    ///
    /// # Errors
    /// When there is none, or it has another shape, or there is no memory for it.
    pub(super) fn matrix(&self, outputs: usize, inputs: usize) -> Result<Matrix> {
        let weight = self.get((outputs, inputs), "weight")?;
        match self.weight_type {
            WeightType::Q8_0 if cpu::is_fast(&weight) => {
                cpu::Rows::new(&weight)?.with(|numbers| Blocks::quantize(numbers, inputs)).map(Matrix::Blocks)
            }
            WeightType::F32 | WeightType::F16 | WeightType::Bf16 | WeightType::Q8_0 => Ok(Matrix::Dense(weight)),
        }
    }

    /// The type in which the kernels of this crate keep a dense weight, if they take it.
    pub(super) fn packed_type(&self, weight: &Tensor) -> Option<DenseType> {
        cpu::is_fast(weight).then(|| self.weight_type.dense())
    }
}
