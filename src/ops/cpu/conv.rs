//! Convolution over images with their channels last.

use super::{
    epilogue::Epilogue,
    machine::Machine,
    matmul::{Inputs, matmul},
    memory::{Shared, written},
    panels::Panels,
    winograd,
};
use crate::ops::{Conv2dConfig, Storage};

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

/// The weights of a convolution: a matrix `(kernel * kernel * channels, outputs)`.
#[derive(Debug, Clone)]
pub(in crate::ops) struct PackedConv {
    panels: Panels,
    bias: Vec<f32>,
    channels: usize,
    config: Conv2dConfig,
}

/// How a convolution is worked out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    /// As it is defined.
    Direct,
    /// See [`winograd`].
    Winograd,
}

impl PackedConv {
    /// Packs `weight` `(outputs, channels, kernel, kernel)`.
    pub(in crate::ops) fn new(storage: Storage, weight: &[f32], channels: usize, bias: Vec<f32>, config: Conv2dConfig) -> Self {
        Self::on(Machine::best(), storage, weight, channels, bias, config)
    }

    /// With a choice of instructions, for tests.
    pub(super) fn on(machine: Machine, storage: Storage, weight: &[f32], channels: usize, bias: Vec<f32>, config: Conv2dConfig) -> Self {
        let taps = config.kernel * config.kernel;
        let at = |k: usize, n: usize| weight[(n * channels + k % channels) * taps + k / channels];
        let panels = Panels::new(machine, storage, taps * channels, bias.len(), at);
        Self { panels, bias, channels, config }
    }

    /// Channels of the result.
    pub(in crate::ops) fn outputs(&self) -> usize {
        self.bias.len()
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
        // Tile units do the four times as many multiplications faster than vectors do the transforms.
        let vectors = self.panels.machine.amx.is_none();
        let pays = vectors && self.config == Conv2dConfig::SAME_3X3 && winograd::pays(self.channels, shape.seen);
        self.forward_by(if pays { Algorithm::Winograd } else { Algorithm::Direct }, pixels, shape, epilogue)
    }

    /// With a choice of algorithm, for tests.
    #[allow(unsafe_code)]
    pub(super) fn forward_by(&self, algorithm: Algorithm, pixels: &[f32], shape: Shape, epilogue: Epilogue) -> Vec<f32> {
        assert_eq!(pixels.len(), shape.batch * shape.height * shape.width * self.channels);
        let output = self.output_size(shape.seen);
        let rows = shape.batch * output.0 * output.1;
        let epilogue = Epilogue { columns: self.outputs(), bias: Some(&self.bias), ..epilogue };
        let image = Pixels { values: pixels, shape, channels: self.channels };
        let write = |out: &mut [_]| match algorithm {
            Algorithm::Direct => {
                matmul(&Windows { image, config: self.config, output }, rows, &self.panels, &epilogue, Shared::new(out));
            }
            Algorithm::Winograd => winograd::convolve(&image, &self.panels, &epilogue, Shared::new(out)),
        };
        // SAFETY: both write every row of the result.
        unsafe { written(rows * self.outputs(), write) }
    }
}

/// An image with nothing around it.
#[derive(Clone, Copy)]
pub(super) struct Pixels<'a> {
    values: &'a [f32],
    pub(super) shape: Shape,
    pub(super) channels: usize,
}

impl Pixels<'_> {
    /// The channels of a pixel, wherever it is: none outside.
    #[inline(always)]
    pub(super) fn at(&self, batch: usize, y: isize, x: isize) -> Option<&[f32]> {
        let Shape { height, width, seen, .. } = self.shape;
        if y < 0 || x < 0 || y as usize >= seen.0 || x as usize >= seen.1 {
            return None;
        }
        let (y, x) = (y as usize * height / seen.0, x as usize * width / seen.1);
        let start = ((batch * height + y) * width + x) * self.channels;
        Some(&self.values[start..start + self.channels])
    }
}

/// What each pixel of the result sees.
struct Windows<'a> {
    image: Pixels<'a>,
    config: Conv2dConfig,
    output: (usize, usize),
}

impl Inputs for Windows<'_> {
    #[inline(always)]
    fn copy(&self, row: usize, first: usize, mut out: &mut [f32]) {
        let Conv2dConfig { kernel, stride, padding } = self.config;
        let (height, width) = self.output;
        let (batch, y, x) = (row / (height * width), row / width % height, row % width);
        let at = |output: usize, tap: usize| (output * stride + tap).cast_signed() - padding.cast_signed();
        let (mut tap, mut channel) = (first / self.image.channels, first % self.image.channels);
        while !out.is_empty() {
            let (run, rest) = out.split_at_mut(out.len().min(self.image.channels - channel));
            match self.image.at(batch, at(y, tap / kernel), at(x, tap % kernel)) {
                Some(pixel) => run.copy_from_slice(&pixel[channel..channel + run.len()]),
                None => run.fill(0.0),
            }
            (tap, channel, out) = (tap + 1, 0, rest);
        }
    }
}
