//! Normalisations, each in one pass for the sums and one for the result.

use pulp::Arch;
use rayon::prelude::*;

use super::math::silu;

/// Pixels of a task.
const TASK_PIXELS: usize = 256;
/// Pixels whose sums are kept in f32 before they are added up in f64.
const RUN: usize = 16;
/// Rows of a task of the layer norm.
const TASK_ROWS: usize = 64;
/// Sums that are kept apart, so that they fill a vector.
const LANES: usize = 16;

/// Group normalisation of pixels `(batch, height * width, channels)`, followed by `SiLU` where `activate` says so.
#[allow(clippy::too_many_arguments, reason = "an image's shape and a layer's parameters")]
pub(in crate::ops) fn group_norm_silu(
    pixels: &[f32],
    batch: usize,
    channels: usize,
    groups: usize,
    eps: f64,
    weight: &[f32],
    bias: &[f32],
    activate: bool,
) -> Vec<f32> {
    let arch = Arch::new();
    let sample = pixels.len() / batch.max(1);
    let per_group = channels / groups;
    let count = (sample / channels * per_group) as f64;
    let mut out = vec![0.0; pixels.len()];
    for (pixels, out) in pixels.chunks_exact(sample).zip(out.chunks_exact_mut(sample)) {
        let tasks = pixels.par_chunks(TASK_PIXELS * channels);
        let sums: Vec<Vec<f64>> = tasks.map(|pixels| arch.dispatch(|| channel_sums(pixels, channels))).collect();
        let mut scale = vec![0.0; channels];
        let mut shift = vec![0.0; channels];
        for group in 0..groups {
            let of_group = group * per_group..(group + 1) * per_group;
            let total = |offset: usize| sums.iter().map(|sums| sums[offset..][of_group.clone()].iter().sum::<f64>()).sum::<f64>();
            let mean = total(0) / count;
            let variance = (total(channels) / count - mean * mean).max(0.0);
            let deviation = 1.0 / (variance + eps).sqrt();
            for c in of_group {
                scale[c] = (deviation * f64::from(weight[c])) as f32;
                shift[c] = (f64::from(bias[c]) - mean * deviation * f64::from(weight[c])) as f32;
            }
        }
        let task = TASK_PIXELS * channels;
        out.par_chunks_mut(task).zip(pixels.par_chunks(task)).for_each(|(out, pixels)| {
            arch.dispatch(|| {
                for (out, pixel) in out.chunks_exact_mut(channels).zip(pixels.chunks_exact(channels)) {
                    for (((o, x), a), b) in out.iter_mut().zip(pixel).zip(&scale).zip(&shift) {
                        *o = x * a + b;
                    }
                    if activate {
                        for v in out {
                            *v = silu(*v);
                        }
                    }
                }
            });
        });
    }
    out
}

/// The sums of each channel, then the sums of their squares.
#[inline(always)]
fn channel_sums(pixels: &[f32], channels: usize) -> Vec<f64> {
    let mut totals = vec![0.0; 2 * channels];
    let mut run = vec![0.0f32; 2 * channels];
    for pixels in pixels.chunks(RUN * channels) {
        run.fill(0.0);
        let (sums, squares) = run.split_at_mut(channels);
        for pixel in pixels.chunks_exact(channels) {
            for ((sum, square), x) in sums.iter_mut().zip(squares.iter_mut()).zip(pixel) {
                *sum += x;
                *square += x * x;
            }
        }
        totals.iter_mut().zip(&run).for_each(|(total, run)| *total += f64::from(*run));
    }
    totals
}

/// Layer normalisation of rows.
pub(in crate::ops) fn layer_norm(values: &[f32], features: usize, eps: f32, weight: &[f32], bias: &[f32]) -> Vec<f32> {
    let arch = Arch::new();
    let mut out = vec![0.0; values.len()];
    let task = TASK_ROWS * features;
    out.par_chunks_mut(task).zip(values.par_chunks(task)).for_each(|(out, values)| {
        arch.dispatch(|| {
            for (out, row) in out.chunks_exact_mut(features).zip(values.chunks_exact(features)) {
                let mean = sum(row, |x| x) / features as f32;
                let variance = sum(row, |x| (x - mean) * (x - mean)) / features as f32;
                let deviation = 1.0 / (variance + eps).sqrt();
                for (((o, x), w), b) in out.iter_mut().zip(row).zip(weight).zip(bias) {
                    *o = (x - mean) * deviation * w + b;
                }
            }
        });
    });
    out
}

/// A sum in an order that fills vectors.
#[inline(always)]
fn sum(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let whole = values.chunks_exact(LANES);
    let rest: f32 = whole.remainder().iter().map(|x| f(*x)).sum();
    for chunk in whole {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += f(*x);
        }
    }
    lanes.iter().sum::<f32>() + rest
}
