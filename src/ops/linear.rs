//! Fully connected layer.

use candle_core::{D, Device, Result, Tensor};
use candle_nn::Module;

#[cfg(feature = "cuda")]
use super::cuda;
use super::{Activation, Weights, cpu};

/// `x W^T + b` over the last dimension.
#[derive(Debug, Clone)]
pub struct Linear(Layer);

#[derive(Debug, Clone)]
enum Layer {
    Packed(Box<cpu::PackedLinear>),
    Plain { product: candle_nn::Linear, bias: Option<Tensor> },
}

impl Layer {
    fn plain(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self::Plain { product: candle_nn::Linear::new(weight, None), bias }
    }
}

impl Linear {
    /// Reads `weight` `(out_features, in_features)` and `bias`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(in_features: usize, out_features: usize, vb: &Weights) -> Result<Self> {
        Self::pack(vb, &vb.get((out_features, in_features), "weight")?, Some(&vb.get(out_features, "bias")?))
    }

    /// Reads `weight` alone.
    ///
    /// # Errors
    /// As [`Linear::new`].
    pub fn no_bias(in_features: usize, out_features: usize, vb: &Weights) -> Result<Self> {
        Self::pack(vb, &vb.get((out_features, in_features), "weight")?, None)
    }

    fn pack(vb: &Weights, weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let Some(storage) = vb.packed(weight) else {
            return Ok(Self(Layer::plain(weight.clone(), bias.cloned())));
        };
        let (outputs, inputs) = weight.dims2()?;
        let bias = bias.map(Tensor::to_vec1).transpose()?;
        let packed = cpu::Rows::new(weight)?.with(|weight| Ok(cpu::PackedLinear::new(storage, weight, inputs, outputs, bias)))?;
        Ok(Self(Layer::Packed(Box::new(packed))))
    }

    /// `(…, in_features)` to `(…, out_features)`.
    ///
    /// # Errors
    /// When the last dimension is another, or the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, None, None)
    }

    /// The same, with `residual` of the result's shape added.
    ///
    /// # Errors
    /// As [`Linear::forward`], and when `residual` has another shape.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.run(x, Some(residual), None)
    }

    /// The same, followed by an activation function.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward_activated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        self.run(x, None, Some(activation))
    }

    fn run(&self, x: &Tensor, residual: Option<&Tensor>, activation: Option<Activation>) -> Result<Tensor> {
        let (product, bias) = match &self.0 {
            Layer::Packed(packed) => return run_packed(packed, x, residual, activation),
            Layer::Plain { product, bias } => (product, bias.as_ref()),
        };
        let mut y = product.forward(x)?;
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

fn run_packed(packed: &cpu::PackedLinear, x: &Tensor, residual: Option<&Tensor>, activation: Option<Activation>) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    if x.dim(D::Minus1)? != packed.inputs() {
        candle_core::bail!("a linear layer of {} inputs got {:?}", packed.inputs(), x.shape());
    }
    let last = dims.len() - 1;
    dims[last] = packed.outputs();
    if residual.is_some_and(|residual| residual.dims() != dims) {
        candle_core::bail!("a residual of another shape than the layer's {dims:?}");
    }
    let (rows, residual) = (cpu::Rows::new(x)?, residual.map(cpu::Rows::new).transpose()?);
    let run = |residual: Option<&[f32]>| {
        let epilogue = cpu::Epilogue { residual, activation, ..cpu::Epilogue::default() };
        rows.with(|values| Ok(packed.forward(values, epilogue)))
    };
    let values = match &residual {
        Some(residual) => residual.with(|residual| run(Some(residual)))?,
        None => run(None)?,
    };
    Tensor::from_vec(values, dims, &Device::Cpu)
}

/// [GEGLU](https://arxiv.org/abs/2002.05202): a linear layer, the second half of whose outputs gates the first through a GELU.
#[derive(Debug, Clone)]
pub struct Geglu(Layer);

impl Geglu {
    /// Reads `weight` `(2 * out_features, in_features)` and `bias`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(in_features: usize, out_features: usize, vb: &Weights) -> Result<Self> {
        let (weight, bias) = (vb.get((2 * out_features, in_features), "weight")?, vb.get(2 * out_features, "bias")?);
        let Some(storage) = vb.packed(&weight) else {
            return Ok(Self(Layer::plain(weight, Some(bias))));
        };
        let bias = bias.to_vec1::<f32>()?;
        let packed = cpu::Rows::new(&weight)?
            .with(|weight| Ok(cpu::PackedLinear::gated(cpu::Machine::best(), storage, weight, in_features, out_features, &bias)))?;
        Ok(Self(Layer::Packed(Box::new(packed))))
    }

    /// `(batch, tokens, in_features)` to `(batch, tokens, out_features)`.
    ///
    /// # Errors
    /// When the last dimension is another, or the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.0 {
            Layer::Packed(packed) => run_packed(packed, x, None, None),
            Layer::Plain { product, bias } => {
                let mut both = product.forward(x)?;
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
