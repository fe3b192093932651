//! Group and layer normalization: one pass over the numbers for their sums, one for the result. Both are bound by memory.
//!
//! Group norm works on pixels `(batch, height * width, channels)`. Its sums are per channel, in f32 over short runs of pixels and in f64 from
//! there on, and only then per group, so that channels fill whole vectors whatever the size of a group.

#![allow(unsafe_code)]

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::{
    epilogue::{load, map, store},
    math::silu,
    memory::written,
    output::Output,
};

/// About how many numbers a task has. They are still in a cache when they are read again, if the whole sample fits one.
const TASK: usize = 1 << 16;
/// Pixels whose sums are kept in f32 before they are added up in f64.
const RUN: usize = 16;

/// The weights and settings of a group norm.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct GroupNormConfig<'a> {
    pub(in crate::ops) groups: usize,
    pub(in crate::ops) eps: f64,
    /// One for each channel.
    pub(in crate::ops) weight: &'a [f32],
    /// One for each channel.
    pub(in crate::ops) bias: &'a [f32],
    /// Whether `SiLU` follows.
    pub(in crate::ops) activate: bool,
    /// In place of each image's own statistics.
    pub(in crate::ops) statistics: Option<&'a GroupStatistics>,
}

/// Mean and variance of each group of channels, over an image or several together.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupStatistics {
    of_groups: Vec<(f64, f64)>,
}

impl GroupStatistics {
    /// From means and variances, the first group's first.
    #[must_use]
    pub fn new(of_groups: Vec<(f64, f64)>) -> Self {
        Self { of_groups }
    }

    /// Those of an image, from those of its parts and the parts' sizes.
    #[must_use]
    pub fn joined(parts: &[(Self, usize)]) -> Self {
        let all: usize = parts.iter().map(|(_, size)| size).sum();
        let share = |value: &dyn Fn(f64, f64) -> f64, group: usize| {
            let of_part = |(part, size): &(Self, usize)| value(part.of_groups[group].0, part.of_groups[group].1) * *size as f64;
            parts.iter().map(of_part).sum::<f64>() / all as f64
        };
        let of_group = |group| {
            let mean = share(&|mean, _| mean, group);
            // The variance within the parts, and the variance of their means.
            (mean, share(&|part, variance| variance + (part - mean).powi(2), group))
        };
        let groups = parts.first().map_or(0, |(part, _)| part.of_groups.len());
        Self { of_groups: (0..groups).map(of_group).collect() }
    }

    /// Mean and variance of each group.
    #[must_use]
    pub fn of_groups(&self) -> &[(f64, f64)] {
        &self.of_groups
    }

    /// Those of all pixels `(batch, height * width, channels)` together.
    pub(in crate::ops) fn of(pixels: &[f32], batch: usize, config: GroupNormConfig) -> Self {
        let channels = config.weight.len();
        Self::from_sums(&channel_sums(Arch::new(), pixels, batch, channels), (pixels.len() / channels) as f64, config)
    }

    /// Those of so many pixels, from the sums of their parts.
    fn from_sums(sums: &[Vec<f64>], pixels: f64, config: GroupNormConfig) -> Self {
        let channels = config.weight.len();
        let per_group = channels / config.groups;
        let count = pixels * per_group as f64;
        let of_group = |group: usize| {
            let of_group = group * per_group..(group + 1) * per_group;
            let total = |offset: usize| sums.iter().map(|sums| sums[offset..][of_group.clone()].iter().sum::<f64>()).sum::<f64>();
            let mean = total(0) / count;
            (mean, (total(channels) / count - mean * mean).max(0.0))
        };
        Self { of_groups: (0..config.groups).map(of_group).collect() }
    }
}

/// Group normalization of pixels `(batch, height * width, channels)`.
pub(in crate::ops) fn group_norm(pixels: &[f32], batch: usize, config: GroupNormConfig) -> Vec<f32> {
    group_norm_with(Arch::new(), pixels, batch, config)
}

/// With a choice of instructions, for tests.
pub(super) fn group_norm_with(arch: Arch, pixels: &[f32], batch: usize, config: GroupNormConfig) -> Vec<f32> {
    let norm = Normalization::with_arch(arch, pixels, batch, config);
    let Parts { sample, part, .. } = Parts::new(pixels.len(), batch, config.weight.len());
    let write = |out: &mut [_]| {
        let samples = pixels.par_chunks(sample.max(1)).zip(out.par_chunks_mut(sample.max(1))).enumerate();
        samples.for_each(|(sample, (pixels, out))| {
            pixels.par_chunks(part).zip(out.par_chunks_mut(part)).for_each(|(pixels, out)| {
                norm.apply(sample, pixels, &mut Output::new(out));
            });
        });
    };
    // SAFETY: the parts make up all samples, and a part is whole pixels, all of which are written.
    unsafe { written(pixels.len(), write) }
}

/// How a batch is cut into tasks. None has pixels of two samples, so that neither threads nor the rest of a batch change the order of sums.
#[derive(Clone, Copy)]
struct Parts {
    batch: usize,
    /// Numbers of a sample.
    sample: usize,
    /// Numbers of a part.
    part: usize,
    of_sample: usize,
}

impl Parts {
    fn new(numbers: usize, batch: usize, channels: usize) -> Self {
        assert!(numbers.is_multiple_of(batch * channels), "{numbers} numbers in {batch} samples of {channels} channels");
        let sample = numbers / batch.max(1);
        let part = (TASK / channels).max(1) * channels;
        Self { batch, sample, part, of_sample: sample.div_ceil(part) }
    }

    fn count(self) -> usize {
        self.batch * self.of_sample
    }

    fn range(self, index: usize) -> std::ops::Range<usize> {
        let (start, end) = (index / self.of_sample * self.sample, (index / self.of_sample + 1) * self.sample);
        let first = start + index % self.of_sample * self.part;
        first..(first + self.part).min(end)
    }
}

/// A group norm after its first pass: a factor and a shift for each channel of each sample.
#[derive(Debug)]
pub(in crate::ops) struct Normalization {
    arch: Arch,
    /// One for each sample.
    scales: Vec<Scale>,
    activate: bool,
}

impl Normalization {
    /// That of pixels `(batch, height * width, channels)`.
    pub(in crate::ops) fn new(pixels: &[f32], batch: usize, config: GroupNormConfig) -> Self {
        Self::with_arch(Arch::new(), pixels, batch, config)
    }

    fn with_arch(arch: Arch, pixels: &[f32], batch: usize, config: GroupNormConfig) -> Self {
        let channels = config.weight.len();
        let scales = if let Some(statistics) = config.statistics {
            (0..batch).map(|_| Scale::new(statistics, config)).collect()
        } else {
            let parts = Parts::new(pixels.len(), batch, channels);
            let sums = channel_sums(arch, pixels, batch, channels);
            let of_sample = |sums| GroupStatistics::from_sums(sums, (parts.sample / channels) as f64, config);
            sums.chunks_exact(parts.of_sample.max(1)).map(|sums| Scale::new(&of_sample(sums), config)).collect()
        };
        Self { arch, scales, activate: config.activate }
    }

    /// Writes the normalized pixels of a sample.
    pub(super) fn apply(&self, sample: usize, pixels: &[f32], out: &mut Output) {
        self.arch.dispatch(Rescale { pixels, scale: &self.scales[sample], activate: self.activate, out });
    }
}

/// The sums of each part, of all samples.
fn channel_sums(arch: Arch, pixels: &[f32], batch: usize, channels: usize) -> Vec<Vec<f64>> {
    let parts = Parts::new(pixels.len(), batch, channels);
    let sum = |index| arch.dispatch(ChannelSums { pixels: &pixels[parts.range(index)], channels });
    (0..parts.count()).into_par_iter().map(sum).collect()
}

/// The factor and the shift of each channel.
#[derive(Debug)]
struct Scale {
    factor: Vec<f32>,
    shift: Vec<f32>,
}

impl Scale {
    fn new(statistics: &GroupStatistics, config: GroupNormConfig) -> Self {
        let channels = config.weight.len();
        let per_group = channels / config.groups;
        let (mut factor, mut shift) = (vec![0.0; channels], vec![0.0; channels]);
        for (group, (mean, variance)) in statistics.of_groups.iter().enumerate() {
            let deviation = 1.0 / (variance + config.eps).sqrt();
            for c in group * per_group..(group + 1) * per_group {
                let weight = f64::from(config.weight[c]);
                factor[c] = (deviation * weight) as f32;
                shift[c] = (f64::from(config.bias[c]) - mean * deviation * weight) as f32;
            }
        }
        Self { factor, shift }
    }
}

/// The sums of each channel, then the sums of their squares.
struct ChannelSums<'a> {
    pixels: &'a [f32],
    channels: usize,
}

impl WithSimd for ChannelSums<'_> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f64> {
        let Self { pixels, channels } = self;
        let mut totals = vec![0.0; 2 * channels];
        let (sums, squares) = totals.split_at_mut(channels);
        for pixels in pixels.chunks(RUN * channels) {
            for first in (0..channels).step_by(S::F32_LANES) {
                let n = S::F32_LANES.min(channels - first);
                let (mut sum, mut square) = (simd.splat_f32s(0.0), simd.splat_f32s(0.0));
                for pixel in pixels.chunks_exact(channels) {
                    let x = load(simd, &pixel[first..first + n]);
                    sum = simd.add_f32s(sum, x);
                    square = simd.mul_add_e_f32s(x, x, square);
                }
                let (sum, square) = ([sum], [square]);
                let (sum, square): (&[f32], &[f32]) = (pulp::bytemuck::cast_slice(&sum), pulp::bytemuck::cast_slice(&square));
                for (total, x) in sums[first..first + n].iter_mut().zip(sum) {
                    *total += f64::from(*x);
                }
                for (total, x) in squares[first..first + n].iter_mut().zip(square) {
                    *total += f64::from(*x);
                }
            }
        }
        totals
    }
}

/// `x * factor + shift` of each channel, and `SiLU` of it where that follows.
struct Rescale<'a, 'b> {
    pixels: &'a [f32],
    scale: &'a Scale,
    activate: bool,
    out: &'a mut Output<'b>,
}

impl WithSimd for Rescale<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Scale { factor, shift } = self.scale;
        let channels = factor.len();
        for (i, pixel) in self.pixels.chunks_exact(channels).enumerate() {
            for first in (0..channels).step_by(S::F32_LANES) {
                let part = first..(first + S::F32_LANES).min(channels);
                let x = load(simd, &pixel[part.clone()]);
                let y = simd.mul_add_e_f32s(x, load(simd, &factor[part.clone()]), load(simd, &shift[part.clone()]));
                let y = if self.activate { map(y, silu) } else { y };
                store::<S>(y, part.len(), i * channels + first, self.out);
            }
        }
    }
}

/// Layer normalization of rows `(rows, features)`.
pub(in crate::ops) fn layer_norm(values: &[f32], eps: f32, weight: &[f32], bias: &[f32]) -> Vec<f32> {
    layer_norm_with(Arch::new(), values, eps, weight, bias)
}

/// With a choice of instructions, for tests.
pub(super) fn layer_norm_with(arch: Arch, values: &[f32], eps: f32, weight: &[f32], bias: &[f32]) -> Vec<f32> {
    assert!(values.len().is_multiple_of(weight.len()), "rows of {} features in {} numbers", weight.len(), values.len());
    let task = (TASK / weight.len()).max(1) * weight.len();
    let write = |out: &mut [_]| {
        values.par_chunks(task).zip(out.par_chunks_mut(task)).for_each(|(values, out)| {
            arch.dispatch(LayerNormRows { values, eps, weight, bias, out: Output::new(out) });
        });
    };
    // SAFETY: each task writes its rows, which are whole.
    unsafe { written(values.len(), write) }
}

struct LayerNormRows<'a> {
    values: &'a [f32],
    eps: f32,
    weight: &'a [f32],
    bias: &'a [f32],
    out: Output<'a>,
}

impl WithSimd for LayerNormRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let features = self.weight.len();
        for (i, row) in self.values.chunks_exact(features).enumerate() {
            let mut sum = simd.splat_f32s(0.0);
            for part in row.chunks(S::F32_LANES) {
                sum = simd.add_f32s(sum, load(simd, part));
            }
            let mean = simd.reduce_sum_f32s(sum) / features as f32;
            // `load` fills up the last vector of a row with zeros in both, so that the padding stays zero. No vector is longer.
            let means = [mean; 64];
            let mut squares = simd.splat_f32s(0.0);
            for part in row.chunks(S::F32_LANES) {
                let x = simd.sub_f32s(load(simd, part), load(simd, &means[..part.len()]));
                squares = simd.mul_add_e_f32s(x, x, squares);
            }
            let variance = simd.reduce_sum_f32s(squares) / features as f32;
            let deviation = simd.splat_f32s(1.0 / (variance + self.eps).sqrt());
            for first in (0..features).step_by(S::F32_LANES) {
                let part = first..(first + S::F32_LANES).min(features);
                let x = simd.mul_f32s(simd.sub_f32s(load(simd, &row[part.clone()]), simd.splat_f32s(mean)), deviation);
                let y = simd.mul_add_e_f32s(x, load(simd, &self.weight[part.clone()]), load(simd, &self.bias[part.clone()]));
                store::<S>(y, part.len(), i * features + first, &mut self.out);
            }
        }
    }
}
