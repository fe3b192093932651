//! Fully connected layers.

use candle_core::{D, Device, Result, Tensor};
use candle_nn::Module;

#[cfg(feature = "cuda")]
use super::cuda;
use super::{
    Activation, LayerIndex, LayerKind, Weights, cpu,
    low_rank::{Factors, LowRank},
    weights::Matrix,
};

/// `x W^T + b` over the last dimension.
#[derive(Debug, Clone)]
pub struct Linear {
    implementation: Implementation,
    index: LayerIndex,
}

/// What computes a layer.
#[derive(Debug, Clone)]
enum Implementation {
    Packed(Box<cpu::PackedLinear>),
    Candle { product: candle_nn::Linear, bias: Option<Tensor> },
}

impl Implementation {
    fn bytes(&self) -> usize {
        match self {
            Self::Packed(packed) => packed.bytes(),
            Self::Candle { product, .. } => product.weight().elem_count() * product.weight().dtype().size_in_bytes(),
        }
    }

    fn packed(&self) -> Option<&cpu::PackedLinear> {
        match self {
            Self::Packed(packed) => Some(packed),
            Self::Candle { .. } => None,
        }
    }

    /// Reads `weight` `(outputs, inputs)` and, if there is one, `bias`. `pack` packs them for a CPU.
    fn read(
        (inputs, outputs): (usize, usize),
        has_bias: bool,
        vb: &Weights,
        pack: impl FnOnce(cpu::LinearWeight, Option<Vec<f32>>) -> cpu::PackedLinear,
    ) -> Result<Self> {
        let matrix = vb.matrix(outputs, inputs)?;
        let bias = has_bias.then(|| vb.get(outputs, "bias")).transpose()?;
        let numbers = || bias.as_ref().map(Tensor::to_vec1).transpose();
        let packed = match matrix {
            Matrix::Blocks(blocks) => {
                let bias = numbers()?;
                cpu::fallible(|| Ok(pack(cpu::LinearWeight::Blocks(&blocks), bias)))?
            }
            Matrix::Dense(weight) => {
                let Some(dtype) = vb.packed_type(&weight) else {
                    return Ok(Self::Candle { product: candle_nn::Linear::new(weight, None), bias });
                };
                let bias = numbers()?;
                cpu::Rows::new(&weight)?.with(|weight| Ok(pack(cpu::LinearWeight::Dense(dtype, weight, inputs), bias)))?
            }
        };
        Ok(Self::Packed(Box::new(packed)))
    }
}

impl Linear {
    /// Reads `weight` `(out_features, in_features)` and `bias`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(in_features: usize, out_features: usize, vb: &Weights) -> Result<Self> {
        Self::read(in_features, out_features, true, vb)
    }

    /// Reads `weight` alone.
    ///
    /// # Errors
    /// As [`Linear::new`].
    pub fn no_bias(in_features: usize, out_features: usize, vb: &Weights) -> Result<Self> {
        Self::read(in_features, out_features, false, vb)
    }

    fn read(in_features: usize, out_features: usize, has_bias: bool, vb: &Weights) -> Result<Self> {
        let pack = |weight: cpu::LinearWeight, bias| cpu::PackedLinear::new(vb.machine(), weight, out_features, bias);
        let implementation = Implementation::read((in_features, out_features), has_bias, vb, pack)?;
        let index = vb.weight_layer_index(LayerKind::Linear { has_bias }, &[out_features, in_features]);
        Ok(Self { implementation, index })
    }

    /// The number of this layer.
    #[must_use]
    pub fn layer_index(&self) -> LayerIndex {
        self.index
    }

    /// The memory that the weight takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.implementation.bytes()
    }

    /// The layer for the kernels on a CPU, if it is one.
    pub(super) fn packed(&self) -> Option<&cpu::PackedLinear> {
        self.implementation.packed()
    }

    /// `(…, in_features)` to `(…, out_features)`.
    ///
    /// # Errors
    /// When the last dimension is another, or the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, None, None, None)
    }

    /// [`Linear::forward`], with `residual` of the result's shape added.
    ///
    /// # Errors
    /// As [`Linear::forward`], and when `residual` has another shape.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.run(x, Some(residual), None, None)
    }

    /// [`Linear::forward`], followed by an activation function.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward_activated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        self.run(x, None, Some(activation), None)
    }

    pub(super) fn run(
        &self,
        x: &Tensor,
        residual: Option<&Tensor>,
        activation: Option<Activation>,
        low_rank: Option<&LowRank>,
    ) -> Result<Tensor> {
        let (product, bias) = match &self.implementation {
            Implementation::Packed(packed) => {
                let low_rank = low_rank.map(|low_rank| packed_low_rank(packed, low_rank)).transpose()?;
                return run_packed(packed, x, residual, activation, &[(x.dim(0)?, low_rank)]);
            }
            Implementation::Candle { product, bias } => (product, bias.as_ref()),
        };
        let mut y = product_with(product, low_rank, x)?;
        #[cfg(feature = "cuda")]
        if cuda::takes(&y) {
            return cuda::add(y, cuda::Added { bias, residual, activation, sample_bias: None });
        }
        if let Some(bias) = bias {
            y = y.broadcast_add(bias)?;
        }
        if let Some(residual) = residual {
            y = (y + residual)?;
        }
        activation.map_or(Ok(y.clone()), |activation| activation.forward(&y))
    }
}

/// A number of samples, and what is added to a layer's weight for them.
pub(super) type Part<'a> = (usize, Option<&'a cpu::PackedLowRank>);

pub(super) fn packed_low_rank<'a>(packed: &cpu::PackedLinear, low_rank: &'a LowRank) -> Result<&'a cpu::PackedLowRank> {
    match &low_rank.0 {
        Factors::Packed(low_rank) if low_rank.fits(packed) => Ok(low_rank),
        _ => candle_core::bail!("the adapter of another layer in a linear one"),
    }
}

/// `x W^T`, with an adapter of low rank in the weight or without.
fn product_with(product: &candle_nn::Linear, low_rank: Option<&LowRank>, x: &Tensor) -> Result<Tensor> {
    let y = product.forward(x)?;
    low_rank.map_or(Ok(y.clone()), |low_rank| y + low_rank.addend(x)?)
}

pub(super) fn run_packed(
    packed: &cpu::PackedLinear,
    x: &Tensor,
    residual: Option<&Tensor>,
    activation: Option<Activation>,
    parts: &[Part],
) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    if x.dim(D::Minus1)? != packed.inputs() {
        candle_core::bail!("a linear layer of {} inputs got {:?}", packed.inputs(), x.shape());
    }
    let last = dims.len() - 1;
    dims[last] = packed.outputs();
    if residual.is_some_and(|residual| residual.dims() != dims) {
        candle_core::bail!("a residual of another shape than the layer's {dims:?}");
    }
    let of_sample = dims[..last].iter().skip(1).product::<usize>();
    // A vector has one row and no samples.
    let parts: Vec<_> = parts.iter().map(|&(samples, low_rank)| (if last == 0 { 1 } else { samples * of_sample }, low_rank)).collect();
    let (rows, residual) = (cpu::Rows::new(x)?, residual.map(cpu::Rows::new).transpose()?);
    let run = |residual: Option<&[f32]>| {
        let epilogue = cpu::Epilogue { residual, activation, ..cpu::Epilogue::default() };
        rows.with(|values| Ok(packed.forward_adapted(values, epilogue, &parts)))
    };
    let values = match &residual {
        Some(residual) => residual.with(|residual| run(Some(residual)))?,
        None => run(None)?,
    };
    Tensor::from_vec(values, dims, &Device::Cpu)
}

/// [GEGLU](https://arxiv.org/abs/2002.05202): a linear layer, the second half of whose outputs gates the first through a GELU.
#[derive(Debug, Clone)]
pub struct Geglu {
    implementation: Implementation,
    index: LayerIndex,
}

impl Geglu {
    /// Reads `weight` `(2 * out_features, in_features)` and `bias`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(in_features: usize, out_features: usize, vb: &Weights) -> Result<Self> {
        let pack = |weight: cpu::LinearWeight, bias: Option<Vec<f32>>| {
            cpu::PackedLinear::gated(vb.machine(), weight, out_features, &bias.unwrap_or_default())
        };
        let implementation = Implementation::read((in_features, 2 * out_features), true, vb, pack)?;
        Ok(Self { implementation, index: vb.weight_layer_index(LayerKind::Geglu, &[2 * out_features, in_features]) })
    }

    /// The number of this layer.
    #[must_use]
    pub fn layer_index(&self) -> LayerIndex {
        self.index
    }

    /// The memory that the weight takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.implementation.bytes()
    }

    /// The layer for the kernels on a CPU, if it is one.
    pub(super) fn packed(&self) -> Option<&cpu::PackedLinear> {
        self.implementation.packed()
    }

    /// `(…, in_features)` to `(…, out_features)`.
    ///
    /// # Errors
    /// When the last dimension is another, or the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, None)
    }

    pub(super) fn run(&self, x: &Tensor, low_rank: Option<&LowRank>) -> Result<Tensor> {
        match &self.implementation {
            Implementation::Packed(packed) => {
                let low_rank = low_rank.map(|low_rank| packed_low_rank(packed, low_rank)).transpose()?;
                run_packed(packed, x, None, None, &[(x.dim(0)?, low_rank)])
            }
            Implementation::Candle { product, bias } => {
                let mut both = product_with(product, low_rank, x)?;
                #[cfg(feature = "cuda")]
                if let (true, Some(bias)) = (cuda::takes(&both), bias) {
                    return cuda::geglu(&both, bias);
                }
                if let Some(bias) = bias {
                    both = both.broadcast_add(bias)?;
                }
                let channels = both.dim(D::Minus1)? / 2;
                let (value, gate) = (both.narrow(D::Minus1, 0, channels)?, both.narrow(D::Minus1, channels, channels)?);
                value * Activation::Gelu.forward(&gate.contiguous()?)?
            }
        }
    }
}
