//! Two-dimensional convolutions.

use candle_core::{Result, Tensor};

#[cfg(feature = "cuda")]
use super::cuda;
use super::{Activation, Conv2dConfig, GroupNorm, LayerIndex, LayerKind, PRelu, Weights, cpu, for_batch, weight_type::DenseType};

/// A convolution.
#[derive(Debug, Clone)]
pub struct Conv2d {
    implementation: Implementation,
    config: Conv2dConfig,
    index: LayerIndex,
}

/// What computes a convolution.
#[derive(Debug, Clone)]
enum Implementation {
    Packed(Box<cpu::PackedConv>),
    Candle { weight: Tensor, bias: Tensor },
}

/// What is added to the result of a convolution.
#[derive(Debug, Clone, Copy, Default)]
pub struct Added<'a> {
    /// `(batch, out_channels)`, or fewer samples that stand for the batch as in [`for_batch`]: one number for each sample and channel.
    pub sample_bias: Option<&'a Tensor>,
    /// An image of the result's shape.
    pub residual: Option<&'a Tensor>,
}

/// All that a convolution does beside itself.
#[derive(Clone, Copy)]
struct Around<'a> {
    /// Comes first, with SiLU.
    norm: Option<&'a GroupNorm>,
    /// Height and width to which the image is enlarged.
    size: (usize, usize),
    added: Added<'a>,
    activation: Option<Activation>,
    /// Comes last.
    prelu: Option<&'a PRelu>,
}

impl<'a> Around<'a> {
    /// The image keeps its size.
    fn new(x: &Tensor, added: Added<'a>) -> Result<Self> {
        Ok(Self { norm: None, size: (x.dim(2)?, x.dim(3)?), added, activation: None, prelu: None })
    }
}

impl Conv2d {
    /// Reads `weight` `(out_channels, in_channels, kernel, kernel)` and `bias`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(in_channels: usize, out_channels: usize, config: Conv2dConfig, vb: &Weights) -> Result<Self> {
        let bias = || vb.get(out_channels, "bias");
        Self::read([out_channels, in_channels], config, vb, bias, |dtype, weight, bias| {
            cpu::PackedConv::new(vb.machine(), dtype, weight, in_channels, bias, config)
        })
    }

    /// `pack` packs the weight for a CPU.
    fn read(
        [out_channels, in_channels]: [usize; 2],
        config: Conv2dConfig,
        vb: &Weights,
        bias: impl FnOnce() -> Result<Tensor>,
        pack: impl FnOnce(DenseType, &[f32], Vec<f32>) -> cpu::PackedConv,
    ) -> Result<Self> {
        let shape = [out_channels, in_channels, config.kernel, config.kernel];
        let weight = vb.get(&shape[..], "weight")?;
        let bias = bias()?;
        let index = vb.weight_layer_index(LayerKind::Conv2d(config), &shape);
        let implementation = if let Some(dtype) = vb.packed_type(&weight) {
            let bias = bias.to_vec1()?;
            let packed = cpu::Rows::new(&weight)?.with(|weight| Ok(pack(dtype, weight, bias)))?;
            Implementation::Packed(Box::new(packed))
        } else {
            Implementation::Candle { weight, bias: bias.unsqueeze(0)?.unsqueeze(2)?.unsqueeze(3)? }
        };
        Ok(Self { implementation, config, index })
    }

    /// [`Conv2d::new`] without a bias.
    ///
    /// # Errors
    /// As [`Conv2d::new`].
    pub fn without_bias(in_channels: usize, out_channels: usize, config: Conv2dConfig, vb: &Weights) -> Result<Self> {
        let bias = || Tensor::zeros(out_channels, vb.dtype(), vb.device());
        Self::read([out_channels, in_channels], config, vb, bias, |dtype, weight, bias| {
            cpu::PackedConv::new(vb.machine(), dtype, weight, in_channels, bias, config)
        })
    }

    /// A convolution by `weight` `(out_channels, in_channels, kernel, kernel)`, f32 on a CPU, without bias: what an adapter adds to the layer
    /// of this number. It has the type and is on the device of `vb`.
    pub(super) fn of_weight(weight: &Tensor, config: Conv2dConfig, index: LayerIndex, vb: &Weights) -> Result<Self> {
        let (outputs, inputs, ..) = weight.dims4()?;
        let implementation = if vb.are_packed() {
            let pack = |weight: &[f32]| {
                let bias = vec![0.0; outputs];
                Ok(cpu::PackedConv::new(vb.machine(), DenseType::F32, weight, inputs, bias, config))
            };
            Implementation::Packed(Box::new(cpu::Rows::new(weight)?.with(pack)?))
        } else {
            let weight = weight.to_dtype(vb.dtype())?.to_device(vb.device())?;
            Implementation::Candle { bias: Tensor::zeros((1, outputs, 1, 1), vb.dtype(), vb.device())?, weight }
        };
        Ok(Self { implementation, config, index })
    }

    /// A 3 x 3 convolution for [`Conv2d::forward_enlarged`] to exactly twice the size, and nothing else: some machines keep its weights as
    /// four kernels of 2 x 2.
    ///
    /// # Errors
    /// As [`Conv2d::new`].
    pub fn doubling(in_channels: usize, out_channels: usize, vb: &Weights) -> Result<Self> {
        Self::doubling_by(in_channels, out_channels, vb, || vb.get(out_channels, "bias"))
    }

    /// [`Conv2d::doubling`] without a bias.
    ///
    /// # Errors
    /// As [`Conv2d::new`].
    pub fn doubling_without_bias(in_channels: usize, out_channels: usize, vb: &Weights) -> Result<Self> {
        Self::doubling_by(in_channels, out_channels, vb, || Tensor::zeros(out_channels, vb.dtype(), vb.device()))
    }

    fn doubling_by(in_channels: usize, out_channels: usize, vb: &Weights, bias: impl FnOnce() -> Result<Tensor>) -> Result<Self> {
        Self::read([out_channels, in_channels], Conv2dConfig::SAME_3X3, vb, bias, |dtype, weight, bias| {
            cpu::PackedConv::doubling(vb.machine(), dtype, weight, in_channels, bias)
        })
    }

    /// The number of this layer.
    #[must_use]
    pub fn layer_index(&self) -> LayerIndex {
        self.index
    }

    /// About the memory that the weight takes, in bytes: Winograd's algorithm keeps a form of its own, of up to four times as much.
    pub(super) fn bytes(&self) -> usize {
        match &self.implementation {
            Implementation::Packed(packed) => {
                size_of::<f32>() * packed.outputs() * packed.channels() * self.config.kernel * self.config.kernel
            }
            Implementation::Candle { weight, .. } => weight.elem_count() * weight.dtype().size_in_bytes(),
        }
    }

    /// Channels of the result.
    #[must_use]
    pub fn out_channels(&self) -> usize {
        match &self.implementation {
            Implementation::Packed(packed) => packed.outputs(),
            Implementation::Candle { bias, .. } => bias.elem_count(),
        }
    }

    /// `(batch, in_channels, height, width)` to `(batch, out_channels, height', width')`.
    ///
    /// # Errors
    /// When the number of channels is another, or the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_add(x, Added::default())
    }

    /// [`Conv2d::forward`], with something added to the result.
    ///
    /// # Errors
    /// As [`Conv2d::forward`], and when the shape of what is added does not fit.
    pub fn forward_add(&self, x: &Tensor, added: Added) -> Result<Tensor> {
        self.run(x, Around::new(x, added)?)
    }

    /// [`Conv2d::forward_add`], and then ReLU.
    ///
    /// # Errors
    /// As [`Conv2d::forward_add`].
    pub fn forward_relu(&self, x: &Tensor, added: Added) -> Result<Tensor> {
        self.run(x, Around { activation: Some(Activation::Relu), ..Around::new(x, added)? })
    }

    /// [`Conv2d::forward`], and then `PReLU`.
    ///
    /// # Errors
    /// As [`Conv2d::forward`], and when there are not as many slopes as channels.
    pub fn forward_prelu(&self, x: &Tensor, prelu: &PRelu) -> Result<Tensor> {
        self.run(x, Around { prelu: Some(prelu), ..Around::new(x, Added::default())? })
    }

    /// [`Conv2d::forward_prelu`] of the image, enlarged to `size` (height, width) by nearest neighbours first.
    ///
    /// # Errors
    /// As [`Conv2d::forward_prelu`].
    pub fn forward_enlarged_prelu(&self, x: &Tensor, size: (usize, usize), prelu: &PRelu) -> Result<Tensor> {
        self.run(x, Around { size, prelu: Some(prelu), ..Around::new(x, Added::default())? })
    }

    /// [`Conv2d::forward_relu`] of an image that nothing else uses, as [`Conv2d::forward_normed_in_place`].
    ///
    /// # Errors
    /// As [`Conv2d::forward_add`].
    pub fn forward_relu_in_place(&self, x: Tensor, added: Added) -> Result<Tensor> {
        let around = Around { activation: Some(Activation::Relu), ..Around::new(&x, added)? };
        self.run_in_place(x, around)
    }

    /// [`Conv2d::forward_add`] of the image after a group norm and SiLU.
    ///
    /// # Errors
    /// As [`Conv2d::forward_add`] and [`GroupNorm::forward_silu`].
    pub fn forward_normed(&self, norm: &GroupNorm, x: &Tensor, added: Added) -> Result<Tensor> {
        self.run(x, Around { norm: Some(norm), ..Around::new(x, added)? })
    }

    /// [`Conv2d::forward_normed`] of an image that nothing else uses: the result may take its memory. Tensors that share that memory see the
    /// result in it, and `residual` must not be one of them.
    ///
    /// # Errors
    /// As [`Conv2d::forward_normed`].
    pub fn forward_normed_in_place(&self, norm: &GroupNorm, x: Tensor, added: Added) -> Result<Tensor> {
        let around = Around { norm: Some(norm), ..Around::new(&x, added)? };
        self.run_in_place(x, around)
    }

    #[allow(clippy::needless_pass_by_value, reason = "the image is given up")]
    fn run_in_place(&self, x: Tensor, around: Around) -> Result<Tensor> {
        let Implementation::Packed(packed) = &self.implementation else { return self.run(&x, around) };
        packed_forward_by(packed, &x, around, |image, shape, norm, epilogue| {
            if !packed.works_in_place(shape) {
                return new_image(packed, &image, shape, norm, epilogue);
            }
            image.with_mut(|pixels| packed.forward_in_place(pixels, shape, norm, epilogue))
        })
    }

    /// Added to an image of the result's shape that nothing else uses: the result takes its memory. Tensors that share that memory see the
    /// result in it, and `x` must not be one of them.
    ///
    /// # Errors
    /// As [`Conv2d::forward_add`].
    #[allow(clippy::needless_pass_by_value, reason = "the image is given up")]
    pub fn forward_onto(&self, x: &Tensor, onto: Tensor) -> Result<Tensor> {
        let Implementation::Packed(packed) = &self.implementation else {
            return self.forward_add(x, Added { sample_bias: None, residual: Some(&onto) });
        };
        let size = packed.output_size((x.dim(2)?, x.dim(3)?));
        if onto.dims() != [x.dim(0)?, packed.outputs(), size.0, size.1] {
            candle_core::bail!("a convolution of {:?} cannot be added to {:?}", x.shape(), onto.shape());
        }
        let onto = cpu::Image::new(&onto)?;
        packed_forward_by(packed, x, Around::new(x, Added::default())?, |image, shape, _, _| {
            image.with(|pixels| onto.with_mut(|onto| packed.forward_onto(pixels, shape, onto)))
        })
    }

    /// [`Conv2d::forward_add`] of the image, enlarged to `size` (height, width) by nearest neighbours first.
    ///
    /// # Errors
    /// As [`Conv2d::forward_add`].
    pub fn forward_enlarged(&self, x: &Tensor, size: (usize, usize), added: Added) -> Result<Tensor> {
        self.run(x, Around { size, ..Around::new(x, added)? })
    }

    fn run(&self, x: &Tensor, around: Around) -> Result<Tensor> {
        match &self.implementation {
            Implementation::Packed(packed) => {
                packed_forward_by(packed, x, around, |image, shape, norm, epilogue| new_image(packed, &image, shape, norm, epilogue))
            }
            Implementation::Candle { weight, bias } => self.candle_forward((weight, bias), x, around),
        }
    }

    /// In candle's operations.
    fn candle_forward(&self, (weight, bias): (&Tensor, &Tensor), x: &Tensor, around: Around) -> Result<Tensor> {
        let Around { norm, size, added: Added { sample_bias, residual }, activation, prelu } = around;
        let x = norm.map_or_else(|| Ok(x.clone()), |norm| norm.forward_silu(x))?;
        let same = size == (x.dim(2)?, x.dim(3)?);
        let x = if same { x } else { x.upsample_nearest2d(size.0, size.1)? };
        let y = x.conv2d(weight, self.config.padding, self.config.stride, 1, 1)?;
        #[cfg(feature = "cuda")]
        if cuda::takes(&y) {
            let y = cuda::add(y, cuda::Added { bias: Some(bias), sample_bias, residual, activation })?;
            return prelu.map_or_else(|| Ok(y.clone()), |prelu| prelu.forward(&y));
        }
        let mut y = y.broadcast_add(bias)?;
        if let Some(bias) = sample_bias {
            y = y.broadcast_add(&for_batch(bias, y.dim(0)?)?.unsqueeze(2)?.unsqueeze(3)?)?;
        }
        if let Some(residual) = residual {
            y = (y + residual)?;
        }
        let y = activation.map_or_else(|| Ok(y.clone()), |activation| activation.forward(&y))?;
        prelu.map_or_else(|| Ok(y.clone()), |prelu| prelu.forward(&y))
    }
}

/// The result in memory of its own.
fn new_image(
    packed: &cpu::PackedConv,
    image: &cpu::Image,
    shape: cpu::Shape,
    norm: Option<&cpu::Normalization>,
    epilogue: cpu::Epilogue,
) -> Result<Tensor> {
    let (height, width) = packed.output_size(shape.seen);
    let pixels = image.with(|pixels| Ok(packed.forward(pixels, shape, norm, epilogue)))?;
    cpu::Image::tensor(pixels, shape.batch, height, width, packed.outputs())
}

/// Checks all shapes, and has `run` do the work.
fn packed_forward_by(
    packed: &cpu::PackedConv,
    x: &Tensor,
    Around { norm, size, added, activation, prelu }: Around,
    run: impl FnOnce(cpu::Image, cpu::Shape, Option<&cpu::Normalization>, cpu::Epilogue) -> Result<Tensor>,
) -> Result<Tensor> {
    let image = cpu::Image::new(x)?;
    let (batch, (height, width), channels) = (image.batch, packed.output_size(size), packed.outputs());
    if image.channels != packed.channels() {
        candle_core::bail!("a convolution of {} channels got {:?}", packed.channels(), x.shape());
    }
    if packed.is_doubling() && size != (2 * image.height, 2 * image.width) {
        candle_core::bail!("a convolution that doubles an image cannot make {size:?} of {:?}", x.shape());
    }
    if added.residual.is_some_and(|residual| residual.dims() != [batch, channels, height, width]) {
        candle_core::bail!("a residual of another shape than the convolution's {:?}", (batch, channels, height, width));
    }
    if prelu.is_some_and(|prelu| prelu.slopes().len() != channels) {
        candle_core::bail!("a PReLU of other than the convolution's {channels} channels");
    }
    let bias = added.sample_bias.map(|bias| for_batch(bias, batch)?.broadcast_as((batch, channels))?.flatten_all()?.to_vec1());
    let bias: Option<Vec<f32>> = bias.transpose()?;
    let residual = added.residual.map(cpu::Image::new).transpose()?;
    let norm = norm.map(|norm| norm.sums_of(&image)).transpose()?;
    let shape = cpu::Shape { batch, height: image.height, width: image.width, seen: size };
    let run = |residual: Option<&[f32]>| {
        let sample_bias = bias.as_deref().map(|bias| (bias, height * width));
        run(
            image,
            shape,
            norm.as_ref(),
            cpu::Epilogue { sample_bias, residual, activation, slopes: prelu.map(PRelu::slopes), ..cpu::Epilogue::default() },
        )
    };
    cpu::fallible(|| match &residual {
        Some(residual) => residual.with(|residual| run(Some(residual))),
        None => run(None),
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use candle_nn::VarBuilder;

    use super::*;
    use crate::ops::WeightType;

    fn made_up(shape: &[usize], scale: f64) -> Tensor {
        let count = shape.iter().product::<usize>() as f64;
        let numbers = (Tensor::arange(0f64, count, &Device::Cpu).unwrap() * scale).unwrap().sin().unwrap();
        numbers.to_dtype(DType::F32).unwrap().reshape(shape).unwrap()
    }

    fn numbers(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Numbers of f64 take the way of other devices.
    #[test]
    fn what_is_negative_is_multiplied_by_a_number_of_its_channel() {
        for (inputs, outputs) in [(16, 16), (3, 5), (20, 33)] {
            let slopes = made_up(&[outputs], 0.9);
            let tensors = [
                ("weight".to_owned(), made_up(&[outputs, inputs, 3, 3], 0.7)),
                ("bias".to_owned(), made_up(&[outputs], 0.4)),
                ("prelu.weight".to_owned(), slopes.clone()),
            ];
            let image = made_up(&[2, inputs, 9, 18], 0.3);
            let right = |y: &Tensor| -> Vec<f32> {
                let slopes: Vec<f32> = slopes.to_vec1().unwrap();
                let of = |i: usize| slopes[i / (9 * 18) % outputs];
                numbers(y).into_iter().enumerate().map(|(i, y)| if y < 0.0 { y * of(i) } else { y }).collect()
            };
            for dtype in [DType::F32, DType::F64] {
                let tensors = tensors.clone().map(|(name, tensor)| (name, tensor.to_dtype(dtype).unwrap()));
                let vb = Weights::new(VarBuilder::from_tensors(tensors.into(), dtype, &Device::Cpu), WeightType::F32);
                let conv = Conv2d::new(inputs, outputs, Conv2dConfig::SAME_3X3, &vb).unwrap();
                let prelu = PRelu::new(outputs, &vb.pp("prelu")).unwrap();
                let x = image.to_dtype(dtype).unwrap();
                let [plain, ours] = [conv.forward(&x), conv.forward_prelu(&x, &prelu)].map(|y| y.unwrap().to_dtype(DType::F32).unwrap());
                assert!(numbers(&ours).iter().zip(right(&plain)).all(|(ours, right)| (ours - right).abs() <= 1e-6), "{inputs} {outputs}");
                assert!(numbers(&ours).iter().zip(numbers(&plain)).any(|(ours, plain)| (ours - plain).abs() > 0.01));
                // As many slopes as channels, or none.
                let other = PRelu::leaky(outputs + 1, 0.2, &vb).unwrap();
                assert!(conv.forward_prelu(&x, &other).is_err());
            }
        }
    }

    /// candle's own operations trust a tensor's shape: whatever is written over, it must stay true of the memory.
    #[test]
    #[cfg_attr(miri, ignore = "too much for an interpreter")]
    fn a_tensor_whose_memory_is_taken_sees_the_result() {
        let tensors = [
            ("weight".to_owned(), made_up(&[16, 16, 3, 3], 0.7)),
            ("bias".to_owned(), made_up(&[16], 0.4)),
            ("norm.weight".to_owned(), made_up(&[16], 0.2)),
            ("norm.bias".to_owned(), made_up(&[16], 0.3)),
        ];
        let vb = Weights::new(VarBuilder::from_tensors(tensors.into(), DType::F32, &Device::Cpu), WeightType::F32);
        let conv = Conv2d::new(16, 16, Conv2dConfig::SAME_3X3, &vb).unwrap();
        let norm = GroupNorm::new(4, 16, 1e-5, &vb.pp("norm")).unwrap();
        // In memory with the channels last, as between layers.
        let image = || made_up(&[1, 16, 16, 16], 0.1).permute((0, 3, 1, 2)).unwrap();

        let right = conv.forward_normed(&norm, &image(), Added::default()).unwrap();
        let x = image();
        let result = conv.forward_normed_in_place(&norm, x.clone(), Added::default()).unwrap();
        assert_eq!(numbers(&result), numbers(&right));
        assert_eq!(numbers(&x), numbers(&right));

        let added = || Added { residual: Some(&right), ..Added::default() };
        let relu = conv.forward_add(&image(), added()).unwrap().relu().unwrap();
        assert_eq!(numbers(&conv.forward_relu(&image(), added()).unwrap()), numbers(&relu));
        let x = image();
        assert_eq!(numbers(&conv.forward_relu_in_place(x.clone(), added()).unwrap()), numbers(&relu));
        assert_eq!(numbers(&x), numbers(&relu));

        let x = image();
        let onto = image();
        let right = conv.forward_add(&x, Added { residual: Some(&onto), ..Added::default() }).unwrap();
        let result = conv.forward_onto(&x, onto.clone()).unwrap();
        assert_eq!(numbers(&result), numbers(&right));
        assert_eq!(numbers(&onto), numbers(&right));
    }
}
