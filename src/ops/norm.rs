//! Normalisation over groups of channels and over features.

use candle_core::{D, Device, Result, Tensor};
use candle_nn::Module;

use super::{Weights, cpu};

/// [Group normalisation](https://arxiv.org/abs/1803.08494) of images.
#[derive(Debug, Clone)]
pub struct GroupNorm {
    plain: candle_nn::GroupNorm,
    weight: Vec<f32>,
    bias: Vec<f32>,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// Reads `weight` and `bias`, one number a channel.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape, or when the groups do not divide the channels.
    pub fn new(groups: usize, channels: usize, eps: f64, vb: &Weights) -> Result<Self> {
        if groups == 0 || !channels.is_multiple_of(groups) {
            candle_core::bail!("{}: {channels} channels do not fall into {groups} groups", vb.prefix());
        }
        let (weight, bias) = (vb.get(channels, "weight")?, vb.get(channels, "bias")?);
        let numbers = |tensor: &Tensor| tensor.to_dtype(candle_core::DType::F32)?.to_vec1();
        let (weight_numbers, bias_numbers) = (numbers(&weight)?, numbers(&bias)?);
        let plain = candle_nn::GroupNorm::new(weight, bias, channels, groups, eps)?;
        Ok(Self { plain, weight: weight_numbers, bias: bias_numbers, groups, eps })
    }

    /// `(batch, channels, height, width)`, keeps the shape.
    ///
    /// # Errors
    /// When the number of channels is another, or the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if cpu::is_fast(x) { self.fast(x, false) } else { self.plain.forward(x) }
    }

    /// Followed by SiLU, as almost everywhere in these networks.
    ///
    /// # Errors
    /// As [`GroupNorm::forward`].
    pub fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        if cpu::is_fast(x) { self.fast(x, true) } else { self.plain.forward(x)?.silu() }
    }

    fn fast(&self, x: &Tensor, activate: bool) -> Result<Tensor> {
        let image = cpu::Image::new(x)?;
        let config = self.config(&image, activate)?;
        let normed = image.with(|pixels| Ok(cpu::group_norm(pixels, image.batch, config)))?;
        cpu::Image::tensor(normed, image.batch, image.height, image.width, image.channels)
    }

    /// The sums of an image, for who does the rest of the norm, and SiLU.
    pub(super) fn sums_of(&self, image: &cpu::Image) -> Result<cpu::Normalization> {
        let config = self.config(image, true)?;
        image.with(|pixels| Ok(cpu::Normalization::new(pixels, image.batch, config)))
    }

    fn config(&self, image: &cpu::Image, activate: bool) -> Result<cpu::GroupNormConfig<'_>> {
        if image.channels != self.weight.len() {
            candle_core::bail!("a group norm of {} channels got {}", self.weight.len(), image.channels);
        }
        Ok(cpu::GroupNormConfig { groups: self.groups, eps: self.eps, weight: &self.weight, bias: &self.bias, activate })
    }
}

/// [Layer normalisation](https://arxiv.org/abs/1607.06450) over the last dimension.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    plain: candle_nn::LayerNorm,
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f64,
}

impl LayerNorm {
    /// Reads `weight` and `bias`, one number a feature.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(features: usize, eps: f64, vb: &Weights) -> Result<Self> {
        let (weight, bias) = (vb.get(features, "weight")?, vb.get(features, "bias")?);
        let numbers = |tensor: &Tensor| tensor.to_dtype(candle_core::DType::F32)?.to_vec1();
        let (weight_numbers, bias_numbers) = (numbers(&weight)?, numbers(&bias)?);
        Ok(Self { plain: candle_nn::LayerNorm::new(weight, bias, eps), weight: weight_numbers, bias: bias_numbers, eps })
    }

    /// Keeps the shape.
    ///
    /// # Errors
    /// When the last dimension is another, or the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let features = self.weight.len();
        if !cpu::is_fast(x) {
            return self.plain.forward(x);
        }
        if x.dim(D::Minus1)? != features {
            candle_core::bail!("a layer norm of {features} features got {:?}", x.shape());
        }
        let normed = cpu::Rows::new(x)?.with(|values| Ok(cpu::layer_norm(values, self.eps as f32, &self.weight, &self.bias)))?;
        Tensor::from_vec(normed, x.shape(), &Device::Cpu)
    }
}
