//! Two-dimensional convolution.

use candle_core::{Result, Tensor};

#[cfg(feature = "cuda")]
use super::cuda;
use super::{GroupNorm, Storage, Weights, cpu, for_batch};

/// Shape of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// Side of the square kernel.
    pub kernel: usize,
    /// Step between outputs, in pixels.
    pub stride: usize,
    /// Zeros around the image, in pixels.
    pub padding: usize,
}

impl Conv2dConfig {
    /// 1 x 1.
    pub const POINTWISE: Self = Self { kernel: 1, stride: 1, padding: 0 };
    /// 3 x 3, the image keeps its size.
    pub const SAME_3X3: Self = Self { kernel: 3, stride: 1, padding: 1 };
}

/// A convolution with bias.
#[derive(Debug, Clone)]
pub struct Conv2d {
    layer: Layer,
    config: Conv2dConfig,
}

#[derive(Debug, Clone)]
enum Layer {
    Packed(Box<cpu::PackedConv>),
    Plain { weight: Tensor, bias: Tensor },
}

/// What is added to the result of a convolution.
#[derive(Debug, Clone, Copy, Default)]
pub struct Added<'a> {
    /// A number for each sample and channel, `(batch, out_channels)`, or of fewer samples that stand for the batch as in [`for_batch`].
    pub sample_bias: Option<&'a Tensor>,
    /// An image of the result's shape.
    pub residual: Option<&'a Tensor>,
}

impl Conv2d {
    /// Reads `weight` `(out_channels, in_channels, kernel, kernel)` and `bias`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(in_channels: usize, out_channels: usize, config: Conv2dConfig, vb: &Weights) -> Result<Self> {
        let pack = |storage, weight: &[f32], in_channels, bias| cpu::PackedConv::new(storage, weight, in_channels, bias, config);
        Self::build(in_channels, out_channels, config, vb, pack)
    }

    fn build(
        in_channels: usize,
        out_channels: usize,
        config: Conv2dConfig,
        vb: &Weights,
        pack: impl FnOnce(Storage, &[f32], usize, Vec<f32>) -> cpu::PackedConv,
    ) -> Result<Self> {
        let weight = vb.get((out_channels, in_channels, config.kernel, config.kernel), "weight")?;
        let bias = vb.get(out_channels, "bias")?;
        let layer = if let Some(storage) = vb.packed(&weight).map(Storage::of_convolutions) {
            let bias = bias.to_vec1()?;
            let packed = cpu::Rows::new(&weight)?.with(|weight| Ok(pack(storage, weight, in_channels, bias)))?;
            Layer::Packed(Box::new(packed))
        } else {
            Layer::Plain { weight, bias: bias.reshape((1, out_channels, 1, 1))? }
        };
        Ok(Self { layer, config })
    }

    /// A 3 x 3 convolution for [`Conv2d::forward_enlarged`] to exactly twice the size, and nothing else: where there are tile units, its
    /// weights are kept in another order.
    ///
    /// # Errors
    /// As [`Conv2d::new`].
    pub fn doubling(in_channels: usize, out_channels: usize, vb: &Weights) -> Result<Self> {
        Self::build(in_channels, out_channels, Conv2dConfig::SAME_3X3, vb, cpu::PackedConv::doubling)
    }

    /// Channels of the result.
    #[must_use]
    pub fn out_channels(&self) -> usize {
        match &self.layer {
            Layer::Packed(packed) => packed.outputs(),
            Layer::Plain { bias, .. } => bias.elem_count(),
        }
    }

    /// `(batch, in_channels, height, width)` to `(batch, out_channels, height', width')`.
    ///
    /// # Errors
    /// When the number of channels is another, or the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_add(x, Added::default())
    }

    /// The same, with something added to the result on the way.
    ///
    /// # Errors
    /// As [`Conv2d::forward`], and when the shape of what is added does not fit.
    pub fn forward_add(&self, x: &Tensor, added: Added) -> Result<Tensor> {
        self.forward_enlarged(x, (x.dim(2)?, x.dim(3)?), added)
    }

    /// The same, of the image after a group norm and SiLU.
    ///
    /// # Errors
    /// As [`Conv2d::forward_add`] and [`GroupNorm::forward_silu`].
    pub fn forward_normed(&self, norm: &GroupNorm, x: &Tensor, added: Added) -> Result<Tensor> {
        match &self.layer {
            Layer::Packed(packed) => packed_forward(packed, x, Some(norm), (x.dim(2)?, x.dim(3)?), added),
            Layer::Plain { .. } => self.forward_add(&norm.forward_silu(x)?, added),
        }
    }

    /// The same, of an image that nothing else holds: the result may take its memory.
    ///
    /// # Errors
    /// As [`Conv2d::forward_normed`].
    #[allow(clippy::needless_pass_by_value, reason = "it is given up")]
    pub fn forward_normed_in_place(&self, norm: &GroupNorm, x: Tensor, added: Added) -> Result<Tensor> {
        let Layer::Packed(packed) = &self.layer else { return self.forward_normed(norm, &x, added) };
        let size = (x.dim(2)?, x.dim(3)?);
        packed_forward_by(packed, &x, Some(norm), size, added, |image, shape, norm, epilogue| {
            Ok(packed.forward_in_place(image.into_pixels()?, shape, norm, epilogue))
        })
    }

    /// Added to an image of the result's shape that nothing else holds: the result takes its memory.
    ///
    /// # Errors
    /// As [`Conv2d::forward_add`].
    #[allow(clippy::needless_pass_by_value, reason = "it is given up")]
    pub fn forward_onto(&self, x: &Tensor, onto: Tensor) -> Result<Tensor> {
        let Layer::Packed(packed) = &self.layer else {
            return self.forward_add(x, Added { sample_bias: None, residual: Some(&onto) });
        };
        let size = packed.output_size((x.dim(2)?, x.dim(3)?));
        if onto.dims() != [x.dim(0)?, packed.outputs(), size.0, size.1] {
            candle_core::bail!("a convolution of {:?} cannot be added to {:?}", x.shape(), onto.shape());
        }
        let onto = cpu::Image::new(&onto)?.into_pixels()?;
        packed_forward_by(packed, x, None, (x.dim(2)?, x.dim(3)?), Added::default(), |image, shape, _, _| {
            image.with(|pixels| Ok(packed.forward_onto(pixels, shape, onto)))
        })
    }

    /// The same, of the image enlarged to `size` (height, width) by nearest neighbours.
    ///
    /// # Errors
    /// As [`Conv2d::forward_add`].
    pub fn forward_enlarged(&self, x: &Tensor, size: (usize, usize), added: Added) -> Result<Tensor> {
        match &self.layer {
            Layer::Packed(packed) => packed_forward(packed, x, None, size, added),
            Layer::Plain { weight, bias } => {
                let same = size == (x.dim(2)?, x.dim(3)?);
                let x = if same { x.clone() } else { x.upsample_nearest2d(size.0, size.1)? };
                let y = x.conv2d(weight, self.config.padding, self.config.stride, 1, 1)?;
                #[cfg(feature = "cuda")]
                if cuda::takes(&y) {
                    let Added { sample_bias, residual } = added;
                    return cuda::add(y, cuda::Added { bias: Some(bias), sample_bias, residual, activation: None });
                }
                let mut y = y.broadcast_add(bias)?;
                if let Some(bias) = added.sample_bias {
                    y = y.broadcast_add(&for_batch(bias, y.dim(0)?)?.unsqueeze(2)?.unsqueeze(3)?)?;
                }
                added.residual.map_or(Ok(y.clone()), |residual| y + residual)
            }
        }
    }
}

fn packed_forward(packed: &cpu::PackedConv, x: &Tensor, norm: Option<&GroupNorm>, size: (usize, usize), added: Added) -> Result<Tensor> {
    packed_forward_by(packed, x, norm, size, added, |image, shape, norm, epilogue| {
        image.with(|pixels| Ok(packed.forward(pixels, shape, norm, epilogue)))
    })
}

/// `run` does the work, once everything is known to fit.
fn packed_forward_by(
    packed: &cpu::PackedConv,
    x: &Tensor,
    norm: Option<&GroupNorm>,
    size: (usize, usize),
    added: Added,
    run: impl FnOnce(cpu::Image, cpu::Shape, Option<&cpu::Normalization>, cpu::Epilogue) -> Result<Vec<f32>>,
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
    let bias = added.sample_bias.map(|bias| for_batch(bias, batch)?.broadcast_as((batch, channels))?.flatten_all()?.to_vec1());
    let bias: Option<Vec<f32>> = bias.transpose()?;
    let residual = added.residual.map(cpu::Image::new).transpose()?;
    let norm = norm.map(|norm| norm.sums_of(&image)).transpose()?;
    let shape = cpu::Shape { batch, height: image.height, width: image.width, seen: size };
    let run = |residual: Option<&[f32]>| {
        let sample_bias = bias.as_deref().map(|bias| (bias, height * width));
        run(image, shape, norm.as_ref(), cpu::Epilogue { sample_bias, residual, ..cpu::Epilogue::default() })
    };
    let pixels = cpu::fallible(|| match &residual {
        Some(residual) => residual.with(|residual| run(Some(residual))),
        None => run(None),
    })?;
    cpu::Image::tensor(pixels, batch, height, width, channels)
}
