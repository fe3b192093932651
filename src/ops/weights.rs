//! Where the weights of a layer come from.

use std::{collections::HashMap, fmt};

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::VarBuilder;

use super::{
    ComputeType, LayerIndex, LayerKind, LayerNames,
    cpu::{self, Blocks},
    weight_type::{DenseType, WeightType},
};

/// A weight `(rows, columns)`: outputs by inputs.
#[derive(Debug)]
pub(super) enum Matrix {
    /// Every number of it.
    Dense(Tensor),
    /// Fewer bits, for the kernels on a CPU.
    Blocks(Blocks),
}

/// The tensors of a checkpoint below a prefix, and the type in which to keep them.
#[derive(Clone)]
pub struct Weights {
    vb: VarBuilder<'static>,
    weight_type: WeightType,
    compute: ComputeType,
    freed_after_use: bool,
    layers: LayerNames,
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Weights").field("prefix", &self.prefix()).field("weight_type", &self.weight_type).finish_non_exhaustive()
    }
}

impl Weights {
    /// `vb` gives tensors of the type that the networks compute in.
    #[must_use]
    pub fn new(vb: VarBuilder<'static>, weight_type: WeightType) -> Self {
        Self { vb, weight_type, compute: ComputeType::F32, freed_after_use: false, layers: LayerNames::default() }
    }

    /// The same for a network whose matrices a CPU multiplies in `compute`.
    #[must_use]
    pub fn computing_in(self, compute: ComputeType) -> Self {
        Self { compute, ..self }
    }

    /// The same. If `freed_after_use`, parts of networks that can be read again are in memory only while they run, see
    /// [`OnDemand`](super::OnDemand).
    #[must_use]
    pub fn freed_after_use(self, freed_after_use: bool) -> Self {
        Self { freed_after_use, ..self }
    }

    /// Other tensors, f32 on a CPU, by their names, in the types and on the device of these.
    ///
    /// # Errors
    /// When the device fails.
    pub fn of_tensors(&self, tensors: HashMap<String, Tensor>) -> Result<Self> {
        let moved = tensors.into_iter().map(|(name, tensor)| Ok((name, tensor.to_dtype(self.dtype())?.to_device(self.device())?)));
        Ok(self.of(VarBuilder::from_tensors(moved.collect::<Result<_>>()?, self.dtype(), self.device())))
    }

    /// Other weights, for a network that keeps them and computes as this one does.
    #[must_use]
    pub fn of(&self, vb: VarBuilder<'static>) -> Self {
        Self::new(vb, self.weight_type).computing_in(self.compute)
    }

    /// The type in which they are kept.
    #[must_use]
    pub fn weight_type(&self) -> WeightType {
        self.weight_type
    }

    /// The type in which a CPU multiplies the network's matrices.
    #[must_use]
    pub fn compute_type(&self) -> ComputeType {
        self.compute
    }

    /// The instructions for the network's layers.
    pub(super) fn machine(&self) -> cpu::Machine {
        cpu::Machine::of(self.compute)
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
        self.layers.index(&self.prefix(), None)
    }

    /// The same of a layer of this kind, whose weight has this shape.
    pub(super) fn weight_layer_index(&self, kind: LayerKind, shape: &[usize]) -> LayerIndex {
        self.layers.index(&self.prefix(), Some((kind, shape)))
    }

    /// The type that the network computes in.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.vb.dtype()
    }

    /// Where the network computes.
    #[must_use]
    pub fn device(&self) -> &Device {
        self.vb.device()
    }

    /// Whether the kernels of this crate take the network's layers.
    pub(super) fn are_packed(&self) -> bool {
        self.device().is_cpu() && self.dtype() == DType::F32
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
