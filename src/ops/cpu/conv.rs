//! Convolution over images with their channels last.

use pulp::Arch;

use super::{
    matmul::{Epilogue, Inputs, Panels, matmul},
    winograd::{self, Winograd},
};
use crate::ops::Conv2dConfig;

/// The size of an image in memory and, if it is enlarged on the way, as the convolution sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) struct Shape {
    /// Pictures.
    pub(in crate::ops) batch: usize,
    /// Rows of pixels in memory.
    pub(in crate::ops) height: usize,
    /// Pixels of a row in memory.
    pub(in crate::ops) width: usize,
    /// Rows and pixels of a row that are seen: by nearest neighbours, where they are more.
    pub(in crate::ops) seen: (usize, usize),
}

/// The weights of a convolution.
#[derive(Debug, Clone)]
pub(in crate::ops) struct PackedConv {
    weights: Weights,
    bias: Vec<f32>,
    channels: usize,
    outputs: usize,
    config: Conv2dConfig,
    /// What lies around an image.
    zeros: Vec<f32>,
}

#[derive(Debug, Clone)]
enum Weights {
    Direct(Panels),
    Winograd(Winograd),
}

impl PackedConv {
    /// Packs `weight` `(outputs, channels, kernel, kernel)`.
    pub(in crate::ops) fn new(weight: &[f32], channels: usize, outputs: usize, bias: Vec<f32>, config: Conv2dConfig) -> Self {
        Self::with_arch(
            Arch::new(),
            weight,
            channels,
            outputs,
            bias,
            config,
            config == Conv2dConfig::SAME_3X3 && winograd::pays(channels, outputs),
        )
    }

    /// With a choice of instructions and of algorithm, for tests.
    pub(super) fn with_arch(
        arch: Arch,
        weight: &[f32],
        channels: usize,
        outputs: usize,
        bias: Vec<f32>,
        config: Conv2dConfig,
        winograd: bool,
    ) -> Self {
        let taps = config.kernel * config.kernel;
        let weights = if winograd {
            Weights::Winograd(Winograd::new(arch, weight, channels, outputs))
        } else {
            Weights::Direct(Panels::new(arch, taps * channels, outputs, |k, n| weight[(n * channels + k % channels) * taps + k / channels]))
        };
        Self { weights, bias, channels, outputs, config, zeros: vec![0.0; channels] }
    }

    /// Channels of the result.
    pub(in crate::ops) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Channels of the image.
    pub(in crate::ops) fn channels(&self) -> usize {
        self.channels
    }

    /// Height and width of the result.
    pub(in crate::ops) fn output_size(&self, seen: (usize, usize)) -> (usize, usize) {
        let Conv2dConfig { kernel, stride, padding } = self.config;
        let side = |side: usize| (side + 2 * padding).saturating_sub(kernel) / stride + 1;
        (side(seen.0), side(seen.1))
    }

    /// Pixels of an image to pixels of the result.
    pub(in crate::ops) fn forward(&self, pixels: &[f32], shape: Shape, epilogue: Epilogue) -> Vec<f32> {
        assert_eq!(pixels.len(), shape.batch * shape.height * shape.width * self.channels);
        let (height, width) = self.output_size(shape.seen);
        let mut out = vec![0.0; shape.batch * height * width * self.outputs];
        let epilogue = Epilogue { bias: Some(&self.bias), ..epilogue };
        let image = Pixels { values: pixels, shape, channels: self.channels, zeros: &self.zeros };
        match &self.weights {
            Weights::Direct(panels) => {
                let windows = Windows { image, config: self.config, output: (height, width) };
                matmul(&windows, shape.batch * height * width, panels, &epilogue, &mut out);
            }
            Weights::Winograd(weights) => weights.forward(&image, &epilogue, &mut out),
        }
        out
    }
}

/// An image with zeros around it.
pub(super) struct Pixels<'a> {
    values: &'a [f32],
    pub(super) shape: Shape,
    channels: usize,
    zeros: &'a [f32],
}

impl Pixels<'_> {
    /// The channels of a pixel, wherever it is.
    #[inline(always)]
    pub(super) fn at(&self, batch: usize, y: isize, x: isize) -> &[f32] {
        let Shape { height, width, seen, .. } = self.shape;
        if y < 0 || x < 0 || y as usize >= seen.0 || x as usize >= seen.1 {
            return self.zeros;
        }
        let (y, x) = (y as usize * height / seen.0, x as usize * width / seen.1);
        let start = ((batch * height + y) * width + x) * self.channels;
        &self.values[start..start + self.channels]
    }
}

/// What each pixel of the result sees.
struct Windows<'a> {
    image: Pixels<'a>,
    config: Conv2dConfig,
    output: (usize, usize),
}

impl Inputs for Windows<'_> {
    fn taps(&self) -> usize {
        self.config.kernel * self.config.kernel
    }

    #[inline(always)]
    fn run(&self, row: usize, tap: usize) -> &[f32] {
        let Conv2dConfig { kernel, stride, padding } = self.config;
        let (height, width) = self.output;
        let (batch, y, x) = (row / (height * width), row / width % height, row % width);
        let at = |output: usize, tap: usize| (output * stride + tap).cast_signed() - padding.cast_signed();
        self.image.at(batch, at(y, tap / kernel), at(x, tap % kernel))
    }
}
