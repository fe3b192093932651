//! Where the weights of a layer come from, and how they are kept.

use std::{fmt, str::FromStr};

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::VarBuilder;

use super::{LayerIndex, LayerNames};

/// How weights are kept. On a CPU everything is worked out in f32, whatever they are kept in; elsewhere it is the networks' type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Storage {
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

impl Storage {
    /// The name that people know it by.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
        }
    }

    /// The type in which networks work on a device, if they can with weights kept so.
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

    /// For weights that are not of linear layers.
    pub(super) fn of_convolutions(self) -> Self {
        if self == Self::Q8_0 { Self::F16 } else { self }
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is none of them.
#[derive(Debug, thiserror::Error)]
#[error("\"{0}\" is none of f32, f16, bf16, q8_0")]
pub struct UnknownStorage(String);

impl FromStr for Storage {
    type Err = UnknownStorage;

    fn from_str(name: &str) -> std::result::Result<Self, UnknownStorage> {
        let all = [Self::F32, Self::F16, Self::Bf16, Self::Q8_0];
        all.into_iter().find(|storage| storage.name().eq_ignore_ascii_case(name)).ok_or_else(|| UnknownStorage(name.to_owned()))
    }
}

/// A place in a checkpoint, and how the weights below it are to be kept.
#[derive(Clone)]
pub struct Weights {
    vb: VarBuilder<'static>,
    storage: Storage,
    freed_after_use: bool,
    layers: LayerNames,
}

impl Weights {
    /// `vb` gives tensors of the type that the networks work in.
    #[must_use]
    pub fn new(vb: VarBuilder<'static>, storage: Storage) -> Self {
        Self { vb, storage, freed_after_use: false, layers: LayerNames::default() }
    }

    /// The same, for parts of networks that can be read again to be in memory only while they work.
    #[must_use]
    pub fn freed_after_use(self, freed_after_use: bool) -> Self {
        Self { freed_after_use, ..self }
    }

    pub(super) fn are_freed_after_use(&self) -> bool {
        self.freed_after_use
    }

    /// The place of that name below this one.
    #[must_use]
    pub fn pp(&self, name: impl ToString) -> Self {
        Self { vb: self.vb.pp(name), ..self.clone() }
    }

    /// The name of this place.
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

    /// A tensor of this shape.
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

    /// How to pack a weight for the kernels of this crate, if they take it.
    pub(super) fn packed(&self, weight: &Tensor) -> Option<Storage> {
        super::cpu::is_fast(weight).then_some(self.storage)
    }
}
