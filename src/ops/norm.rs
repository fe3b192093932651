//! Normalization over groups of channels, and over features.

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::Module;

#[cfg(feature = "cuda")]
use super::cuda;
use super::{GroupStatistics, LayerIndex, LayerKind, Weights, cpu};

/// [Group normalization](https://arxiv.org/abs/1803.08494) of images.
#[derive(Debug, Clone)]
pub struct GroupNorm {
    /// Weight and bias as tensors, for other devices than a CPU.
    tensors: [Tensor; 2],
    weight: Vec<f32>,
    bias: Vec<f32>,
    groups: usize,
    eps: f64,
    /// In place of each image's own statistics.
    statistics: Option<GroupStatistics>,
    index: LayerIndex,
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
        let numbers = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.to_vec1();
        let (weight_numbers, bias_numbers) = (numbers(&weight)?, numbers(&bias)?);
        let index = vb.weight_layer_index(LayerKind::GroupNorm { groups, eps }, &[channels]);
        Ok(Self { tensors: [weight, bias], weight: weight_numbers, bias: bias_numbers, groups, eps, statistics: None, index })
    }

    /// The number of this layer.
    pub(super) fn layer_index(&self) -> LayerIndex {
        self.index
    }

    /// Mean and variance of each group, over all images `(batch, channels, height, width)` together.
    ///
    /// # Errors
    /// When the number of channels is another, or the device fails.
    pub fn statistics(&self, x: &Tensor) -> Result<GroupStatistics> {
        if cpu::is_fast(x) {
            let image = cpu::Image::new(x)?;
            let config = self.config(&image, false)?;
            return image.with(|pixels| Ok(GroupStatistics::of(pixels, image.batch, config)));
        }
        #[cfg(feature = "cuda")]
        if cuda::takes(x) {
            return cuda::group_statistics(x, self.groups);
        }
        let (batch, channels, height, width) = x.dims4()?;
        let groups = x.to_dtype(DType::F32)?.reshape((batch, self.groups, channels / self.groups * height * width))?;
        let mean = groups.mean((0, 2))?;
        let variance = (groups.sqr()?.mean((0, 2))? - mean.sqr()?)?;
        let pairs = mean.to_vec1::<f32>()?.into_iter().zip(variance.to_vec1::<f32>()?);
        Ok(GroupStatistics::new(pairs.map(|(mean, variance)| (mean.into(), variance.max(0.0).into())).collect()))
    }

    /// The same norm with given statistics in place of each image's own, for images that are parts of one.
    #[must_use]
    pub fn with_statistics(&self, statistics: GroupStatistics) -> Self {
        Self { statistics: Some(statistics), ..self.clone() }
    }

    /// Normalizes `(batch, channels, height, width)`. The shape stays.
    ///
    /// # Errors
    /// When the number of channels is another, or the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, false)
    }

    /// [`GroupNorm::forward`] followed by SiLU, as almost everywhere in these networks.
    ///
    /// # Errors
    /// As [`GroupNorm::forward`].
    pub fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, true)
    }

    fn run(&self, x: &Tensor, activate: bool) -> Result<Tensor> {
        if cpu::is_fast(x) {
            return self.fast(x, activate);
        }
        #[cfg(feature = "cuda")]
        if cuda::takes(x) {
            let ([weight, bias], statistics) = (&self.tensors, self.statistics.as_ref());
            let config = cuda::GroupNormConfig { groups: self.groups, eps: self.eps, weight, bias, activate, statistics };
            return cuda::group_norm(x, config);
        }
        let normed = self.slow(x)?;
        if activate { normed.silu() } else { Ok(normed) }
    }

    /// The norm in candle's own operations.
    fn slow(&self, x: &Tensor) -> Result<Tensor> {
        let Some(statistics) = &self.statistics else {
            let [weight, bias] = self.tensors.clone();
            return candle_nn::GroupNorm::new(weight, bias, self.weight.len(), self.groups, self.eps)?.forward(x);
        };
        let per_group = self.weight.len() / self.groups;
        let of_channels = self.weight.iter().zip(&self.bias).enumerate().map(|(c, (weight, bias))| {
            let (mean, variance) = statistics.of_groups()[c / per_group];
            let factor = f64::from(*weight) / (variance + self.eps).sqrt();
            (factor as f32, (f64::from(*bias) - mean * factor) as f32)
        });
        let (factors, shifts): (Vec<f32>, Vec<f32>) = of_channels.unzip();
        let of_channels = |numbers| Tensor::from_vec(numbers, (1, self.weight.len(), 1, 1), x.device())?.to_dtype(x.dtype());
        x.broadcast_mul(&of_channels(factors)?)?.broadcast_add(&of_channels(shifts)?)
    }

    fn fast(&self, x: &Tensor, activate: bool) -> Result<Tensor> {
        let image = cpu::Image::new(x)?;
        let config = self.config(&image, activate)?;
        let normed = image.with(|pixels| Ok(cpu::group_norm(pixels, image.batch, config)))?;
        cpu::Image::tensor(normed, image.batch, image.height, image.width, image.channels)
    }

    /// The first pass of the norm and SiLU over an image. A convolution does the rest.
    pub(super) fn sums_of(&self, image: &cpu::Image) -> Result<cpu::Normalization> {
        let config = self.config(image, true)?;
        image.with(|pixels| Ok(cpu::Normalization::new(pixels, image.batch, config)))
    }

    fn config(&self, image: &cpu::Image, activate: bool) -> Result<cpu::GroupNormConfig<'_>> {
        if image.channels != self.weight.len() {
            candle_core::bail!("a group norm of {} channels got {}", self.weight.len(), image.channels);
        }
        Ok(cpu::GroupNormConfig {
            groups: self.groups,
            eps: self.eps,
            weight: &self.weight,
            bias: &self.bias,
            activate,
            statistics: self.statistics.as_ref(),
        })
    }
}

/// [Layer normalization](https://arxiv.org/abs/1607.06450) over the last dimension.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    plain: candle_nn::LayerNorm,
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f64,
    index: LayerIndex,
}

impl LayerNorm {
    /// Reads `weight` and `bias`, one number a feature.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(features: usize, eps: f64, vb: &Weights) -> Result<Self> {
        let (weight, bias) = (vb.get(features, "weight")?, vb.get(features, "bias")?);
        let numbers = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.to_vec1();
        let (weight_numbers, bias_numbers) = (numbers(&weight)?, numbers(&bias)?);
        let index = vb.weight_layer_index(LayerKind::LayerNorm { eps }, &[features]);
        Ok(Self { plain: candle_nn::LayerNorm::new(weight, bias, eps), weight: weight_numbers, bias: bias_numbers, eps, index })
    }

    /// The number of this layer.
    pub(super) fn layer_index(&self) -> LayerIndex {
        self.index
    }

    /// Normalizes `(…, features)`. The shape stays.
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

#[cfg(test)]
mod tests {
    use candle_nn::VarBuilder;

    use super::*;
    use crate::ops::WeightType;

    /// Tensors of f64 go through candle's own operations, as on other devices.
    #[test]
    fn a_part_with_the_statistics_of_the_whole_is_a_part_of_the_whole() {
        for (dtype, limit) in [(DType::F32, 1e-6), (DType::F64, 1e-5)] {
            let made_up = |shape: &[usize], scale: f64| {
                let count = shape.iter().product::<usize>() as f64;
                let values = (Tensor::arange(0f64, count, &Device::Cpu).unwrap() * scale).unwrap().sin().unwrap();
                values.reshape(shape).unwrap().to_dtype(dtype).unwrap()
            };
            let tensors = [("weight".to_owned(), made_up(&[12], 0.7)), ("bias".to_owned(), made_up(&[12], 0.4))];
            let vb = Weights::new(VarBuilder::from_tensors(tensors.into(), dtype, &Device::Cpu), WeightType::F32);
            let norm = GroupNorm::new(3, 12, 1e-6, &vb).unwrap();
            let x = made_up(&[1, 12, 9, 8], 0.3);
            let part = |x: &Tensor| x.narrow(2, 2, 5).unwrap().narrow(3, 1, 4).unwrap();
            let given = norm.with_statistics(norm.statistics(&x).unwrap());
            for (whole, parts) in [(norm.forward(&x), given.forward(&part(&x))), (norm.forward_silu(&x), given.forward_silu(&part(&x)))] {
                let off = (part(&whole.unwrap()) - parts.unwrap()).unwrap().to_dtype(DType::F64).unwrap().abs().unwrap();
                let off = off.max_all().unwrap().to_scalar::<f64>().unwrap();
                assert!(off < limit, "{dtype:?}: {off}");
            }
            // Of several images, the statistics are those of all of them together.
            let (top, bottom) = (x.narrow(2, 0, 4).unwrap(), x.narrow(2, 4, 4).unwrap());
            let [together, batch] =
                [x.narrow(2, 0, 8).unwrap(), Tensor::cat(&[top, bottom], 0).unwrap()].map(|x| norm.statistics(&x).unwrap());
            for ((mean, variance), (other_mean, other_variance)) in together.of_groups().iter().zip(batch.of_groups()) {
                assert!((mean - other_mean).abs() < limit && (variance - other_variance).abs() < limit, "{together:?} {batch:?}");
            }
        }
    }
}
