//! Every kernel against a plain f64 version, on random shapes and on every set of instructions of [`Machine::all`].

use proptest::prelude::*;

use super::{
    Epilogue, Machine,
    attention::{Sequences, attention},
    conv::{Algorithm, PackedConv, Shape},
    linear::{LinearWeight, PackedLinear},
    math,
    norm::{GroupNormConfig, Normalization, group_norm, group_norm_with, layer_norm_with},
    padded::Kernel,
    winograd::Points,
};
use crate::ops::{Activation, Conv2dConfig, WeightType, weight_type::DenseType};

mod edges;
mod extremes;
mod independence;
mod refusals;

const EPS: f64 = 1e-5;

/// A range of random sizes. Under Miri, an interpreter, there is time for small ones alone.
pub(super) const fn up_to(most: usize, under_miri: usize) -> std::ops::Range<usize> {
    1..if cfg!(miri) { under_miri } else { most }
}

/// The largest error allowed of products. Those that are not exact have 16 binary digits of each number.
pub(super) fn limit(machine: Machine, of_exact: f64) -> f64 {
    match machine.products.digits() {
        f32::MANTISSA_DIGITS => of_exact,
        16 => of_exact.max(6e-5),
        digits => of_exact.max(16.0 / f64::from(1_u32 << digits)),
    }
}

/// The same of Winograd's algorithm, whose transforms enlarge what bf16 rounds away.
pub(super) fn of_points(machine: Machine, channels: usize, of_exact: f64) -> f64 {
    if matches!(Points::new(machine, channels), Points::Bf16(_)) { 0.15 } else { of_exact }
}

/// The algorithms that a machine has for a convolution, and the largest error of each.
fn algorithms(machine: Machine, config: Conv2dConfig, channels: usize, shape: Shape) -> Vec<(Algorithm, f64)> {
    let same = config == Conv2dConfig::SAME_3X3;
    let winograd = (same && machine.of_3x3().products.is_plain()).then_some((Algorithm::Winograd, of_points(machine, channels, 6e-5)));
    let padded = same && shape.seen == (shape.height, shape.width) && Kernel::Same.takes(machine.of_3x3(), channels, 1);
    let padded = padded.then_some((Algorithm::Padded, limit(machine, 1e-5)));
    [(Algorithm::Direct, limit(machine, 1e-5))].into_iter().chain(winograd).chain(padded).collect()
}

const ALL_TYPES: [WeightType; 4] = [WeightType::F32, WeightType::F16, WeightType::Bf16, WeightType::Q8_0];
const DENSE_TYPES: [(WeightType, DenseType); 3] =
    [(WeightType::F32, DenseType::F32), (WeightType::F16, DenseType::F16), (WeightType::Bf16, DenseType::Bf16)];

/// A linear layer of `weight` `(bias.len(), inputs)`.
fn linear(machine: Machine, kept: WeightType, weight: &[f32], inputs: usize, bias: &[f32]) -> PackedLinear {
    with_weight(kept, weight, inputs, |weight| PackedLinear::new(machine, weight, bias.len(), Some(bias.to_vec())))
}

/// A linear layer of `weight` `(2 * outputs, inputs)`, the second half of whose outputs gates the first.
fn gated(machine: Machine, kept: WeightType, weight: &[f32], inputs: usize, outputs: usize, bias: &[f32]) -> PackedLinear {
    with_weight(kept, weight, inputs, |weight| PackedLinear::gated(machine, weight, outputs, bias))
}

fn with_weight<T>(kept: WeightType, weight: &[f32], inputs: usize, pack: impl Fn(LinearWeight) -> T) -> T {
    let dense = |dtype| pack(LinearWeight::Dense(dtype, weight, inputs));
    match kept {
        WeightType::F32 => dense(DenseType::F32),
        WeightType::F16 => dense(DenseType::F16),
        WeightType::Bf16 => dense(DenseType::Bf16),
        WeightType::Q8_0 => pack(LinearWeight::Blocks(&super::Blocks::quantize(weight, inputs).unwrap())),
    }
}

/// Pseudorandom numbers in [-1, 1).
pub(super) fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Weights `(outputs, inputs)`, rounded to the type that they are kept in.
fn stored(kept: WeightType, mut weights: Vec<f32>, inputs: usize) -> Vec<f32> {
    match kept {
        WeightType::F32 => {}
        WeightType::F16 => weights.iter_mut().for_each(|v| *v = half::f16::from_f32(*v).to_f32()),
        WeightType::Bf16 => weights.iter_mut().for_each(|v| *v = half::bf16::from_f32(*v).to_f32()),
        WeightType::Q8_0 => {
            for group in weights.chunks_exact_mut(inputs).flat_map(|row| row.chunks_mut(32)) {
                let factor = group.iter().fold(0f32, |a, b| a.max(b.abs())) / 127.0;
                for v in group {
                    *v = (*v / factor).round() * factor;
                }
            }
        }
    }
    weights
}

/// The largest difference, relative to the root mean square of the right numbers.
pub(super) fn error(ours: &[f32], right: &[f64]) -> f64 {
    assert_eq!(ours.len(), right.len());
    let rms = (right.iter().map(|v| v * v).sum::<f64>() / right.len() as f64).sqrt();
    ours.iter().zip(right).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max) / rms.max(1e-3)
}

/// The convolution by its definition, of an image that may be enlarged first.
fn plain_conv(pixels: &[f32], weight: &[f32], bias: &[f32], shape: Shape, channels: usize, config: Conv2dConfig) -> Vec<f64> {
    let Conv2dConfig { kernel, stride, padding } = config;
    let outputs = bias.len();
    let (height, width) = ((shape.seen.0 + 2 * padding - kernel) / stride + 1, (shape.seen.1 + 2 * padding - kernel) / stride + 1);
    let mut out = Vec::new();
    for (b, y, x) in (0..shape.batch).flat_map(|b| (0..height).flat_map(move |y| (0..width).map(move |x| (b, y, x)))) {
        for (n, bias) in bias.iter().enumerate() {
            let mut sum = f64::from(*bias);
            for (ky, kx) in (0..kernel).flat_map(|ky| (0..kernel).map(move |kx| (ky, kx))) {
                let (Some(iy), Some(ix)) = ((y * stride + ky).checked_sub(padding), (x * stride + kx).checked_sub(padding)) else {
                    continue;
                };
                if iy >= shape.seen.0 || ix >= shape.seen.1 {
                    continue;
                }
                let (iy, ix) = (iy * shape.height / shape.seen.0, ix * shape.width / shape.seen.1);
                for c in 0..channels {
                    let pixel = pixels[((b * shape.height + iy) * shape.width + ix) * channels + c];
                    sum += f64::from(pixel) * f64::from(weight[((n * channels + c) * kernel + ky) * kernel + kx]);
                }
            }
            out.push(sum);
        }
    }
    assert_eq!(out.len(), shape.batch * height * width * outputs);
    out
}

/// A linear layer: `weight` is `(outputs, inputs)`.
fn plain_linear(values: &[f32], weight: &[f32], bias: &[f32], inputs: usize) -> Vec<f64> {
    let dot = |row: &[f32], weight: &[f32]| row.iter().zip(weight).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
    let of_row = |row| weight.chunks_exact(inputs).zip(bias).map(move |(weight, bias)| dot(row, weight) + f64::from(*bias));
    values.chunks_exact(inputs).flat_map(of_row).collect()
}

/// The mean, and the factor that makes the deviation 1.
fn moments(values: &[f64]) -> (f64, f64) {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
    (mean, 1.0 / (variance + EPS).sqrt())
}

fn plain_group_norm(values: &[f32], batch: usize, groups: usize, weight: &[f32], bias: &[f32], activate: bool) -> Vec<f64> {
    let channels = weight.len();
    let of = |i: usize| (i / (values.len() / batch), i % channels / (channels / groups));
    let mut right = vec![0.0; values.len()];
    for group in (0..batch).flat_map(|b| (0..groups).map(move |g| (b, g))) {
        let members: Vec<usize> = (0..values.len()).filter(|i| of(*i) == group).collect();
        let (mean, deviation) = moments(&members.iter().map(|i| f64::from(values[*i])).collect::<Vec<_>>());
        for i in members {
            let y = (f64::from(values[i]) - mean) * deviation * f64::from(weight[i % channels]) + f64::from(bias[i % channels]);
            right[i] = if activate { y / (1.0 + (-y).exp()) } else { y };
        }
    }
    right
}

fn plain_layer_norm(values: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f64> {
    let of_row = |row: &[f32]| {
        let row: Vec<f64> = row.iter().map(|v| f64::from(*v)).collect();
        let (mean, deviation) = moments(&row);
        let scaled = |(c, v): (usize, &f64)| (v - mean) * deviation * f64::from(weight[c]) + f64::from(bias[c]);
        row.iter().enumerate().map(scaled).collect::<Vec<_>>()
    };
    values.chunks_exact(weight.len()).flat_map(of_row).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: if cfg!(miri) { 3 } else { 40 }, ..ProptestConfig::default() })]

    #[test]
    fn linear_layers_agree_with_f64(
        rows in up_to(120, 9),
        depth in prop_oneof![up_to(90, 40), if cfg!(miri) { 641..645usize } else { 380..1400 }],
        columns in up_to(90, 7),
        kept in prop::sample::select(&ALL_TYPES[..]),
        seed in any::<u64>(),
    ) {
        let values = numbers(rows * depth, seed);
        let weight: Vec<f32> = stored(kept, numbers(columns * depth, seed ^ 1), depth);
        let (bias, residual) = (numbers(columns, seed ^ 2), numbers(rows * columns, seed ^ 3));
        let sample_rows = rows.div_ceil(2);
        let sample_bias = numbers(2 * columns, seed ^ 4);
        let products = plain_linear(&values, &weight, &bias, depth);
        let right: Vec<f64> = products.iter().enumerate().map(|(i, product)| {
            let (m, n) = (i / columns, i % columns);
            let sum = product + f64::from(sample_bias[m / sample_rows * columns + n]) + f64::from(residual[i]);
            sum / (1.0 + (-sum).exp())
        }).collect();
        let gelu = |x: f64| f64::from(math::gelu(x as f32));
        let gates = columns / 2;
        let right_gated: Vec<f64> = (0..rows * gates).map(|i| {
            let start = i / gates * columns + i % gates;
            products[start] * gelu(products[start + gates])
        }).collect();
        for machine in Machine::all() {
            let epilogue = Epilogue {
                sample_bias: Some((&sample_bias, sample_rows)), residual: Some(&residual), activation: Some(Activation::Silu), ..Epilogue::default()
            };
            let ours = linear(machine, kept, &weight, depth, &bias).forward(&values, epilogue);
            prop_assert!(error(&ours, &right) < limit(machine, 4e-5), "{machine:?}: {}", error(&ours, &right));
            if columns == 2 * gates {
                let ours = gated(machine, kept, &weight, depth, gates, &bias).forward(&values, Epilogue::default());
                prop_assert!(error(&ours, &right_gated) < 2.0 * limit(machine, 4e-5), "{machine:?}: {}", error(&ours, &right_gated));
            }
        }
    }

    #[test]
    fn convolutions_agree_with_f64(
        (batch, height, width) in (1usize..4, up_to(14, 6), up_to(14, 6)),
        (channels, outputs) in (prop_oneof![up_to(40, 4), (1usize..3).prop_map(|blocks| 32 * blocks)], up_to(40, 4)),
        (kernel, stride, padding) in prop::sample::select(&[(3usize, 1usize, 1usize), (1, 1, 0), (3, 2, 1), (3, 2, 0), (5, 1, 2)][..]),
        enlarged in any::<bool>(),
        (kept, dtype) in prop::sample::select(&DENSE_TYPES[..]),
        seed in any::<u64>(),
    ) {
        let config = Conv2dConfig { kernel, stride, padding };
        // To twice its size, or one row less, as where downsampling met an odd height.
        let seen = if enlarged { (2 * height - seed as usize % 2, 2 * width) } else { (height, width) };
        prop_assume!(seen.0 + 2 * padding >= kernel && seen.1 + 2 * padding >= kernel);
        let shape = Shape { batch, height, width, seen };
        let pixels = numbers(batch * height * width * channels, seed);
        let weight: Vec<f32> = stored(kept, numbers(outputs * channels * kernel * kernel, seed ^ 1), channels);
        let bias = numbers(outputs, seed ^ 2);
        let right = plain_conv(&pixels, &weight, &bias, shape, channels, config);
        for machine in Machine::all() {
            let packed = PackedConv::new(machine, dtype, &weight, channels, bias.clone(), config);
            for (algorithm, limit) in algorithms(machine, config, channels, shape) {
                let ours = packed.forward_by(algorithm, &pixels, shape, None, Epilogue::default());
                prop_assert!(error(&ours, &right) < limit, "{machine:?}, {algorithm:?}: {}", error(&ours, &right));
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "too much for an interpreter")]
    fn doubling_convolutions_agree_with_f64(
        (batch, height, width) in (1usize..4, 1usize..14, 1usize..40),
        (channels, outputs) in prop::sample::select(&[(32usize, 32usize), (64, 32), (32, 96), (8, 32), (32, 5)][..]),
        (kept, dtype) in prop::sample::select(&DENSE_TYPES[..]),
        seed in any::<u64>(),
    ) {
        let shape = Shape { batch, height, width, seen: (2 * height, 2 * width) };
        let pixels = numbers(batch * height * width * channels, seed);
        let weight: Vec<f32> = stored(kept, numbers(outputs * channels * 9, seed ^ 1), channels);
        let bias = numbers(outputs, seed ^ 2);
        let right = plain_conv(&pixels, &weight, &bias, shape, channels, Conv2dConfig::SAME_3X3);
        for machine in Machine::all() {
            let packed = PackedConv::doubling(machine, dtype, &weight, channels, bias.clone());
            prop_assert_eq!(packed.is_doubling(), Kernel::Doubling.takes(machine.of_3x3(), channels, outputs));
            let ours = packed.forward(&pixels, shape, None, Epilogue::default());
            // Sums of weights are kept as weights are.
            let of_type = match kept {
                WeightType::F16 if packed.is_doubling() => 2e-3,
                WeightType::Bf16 if packed.is_doubling() => 1.6e-2,
                _ => of_points(machine, channels, 6e-5),
            };
            let limit = limit(machine.of_3x3(), of_type);
            prop_assert!(error(&ours, &right) < limit, "{machine:?}, {}", error(&ours, &right));
        }
    }

    #[test]
    fn attention_agrees_with_f64(
        (batch, heads, head_dim) in (1usize..3, 1usize..4, up_to(50, 5)),
        (queries, keys) in (up_to(70, 12), up_to(70, 12)),
        causal in any::<bool>(),
        seed in any::<u64>(),
    ) {
        // Blocks of keys are too long for every case; 400 keys cross three borders.
        let keys = if seed % 10 == 0 && !cfg!(miri) { 400 } else if causal { queries } else { keys };
        let queries = if causal { keys } else { queries };
        let shape = Sequences { batch, heads, head_dim, queries, keys, causal };
        let width = heads * head_dim;
        let scaled = |mut values: Vec<f32>| { for v in &mut values {
                *v *= 4.0;
            } values };
        let (q, k, v) = (scaled(numbers(batch * queries * width, seed)), scaled(numbers(batch * keys * width, seed ^ 1)), numbers(batch * keys * width, seed ^ 2));
        let right = plain_attention(&q, &k, &v, shape);
        for machine in Machine::all() {
            let ours = attention(machine, &q, &k, &v, shape);
            // The relative error of a key's weight is the error of its score: scores are up to 40, with a relative error of 2^-17 or 2^-9.
            let limit = match machine.products.digits() {
                f32::MANTISSA_DIGITS => 1e-4,
                digits => 26.0 / f64::from(1_u32 << digits),
            };
            prop_assert!(error(&ours, &right) < limit, "{machine:?}: {}", error(&ours, &right));
        }
    }

    #[test]
    fn norms_agree_with_f64(batch in 1usize..4, pixels in up_to(600, 40), per_group in 1usize..9, groups in 1usize..9, seed in any::<u64>()) {
        let channels = groups * per_group;
        let values: Vec<f32> = numbers(batch * pixels * channels, seed).into_iter().map(|v| 3.0 * v + 2.0).collect();
        let (weight, bias) = (numbers(channels, seed ^ 1), numbers(channels, seed ^ 2));
        let right = plain_group_norm(&values, batch, groups, &weight, &bias, true);
        let right_rows = plain_layer_norm(&values, &weight, &bias);
        for machine in Machine::all() {
            let config = GroupNormConfig { groups, eps: EPS, weight: &weight, bias: &bias, activate: true, statistics: None };
            // Of one or two nearly equal numbers, the deviation is almost zero.
            if pixels * per_group > 2 {
                let ours = group_norm_with(machine.vectors, &values, batch, config);
                prop_assert!(error(&ours, &right) < 2e-5, "{machine:?}: {}", error(&ours, &right));
            }
            if channels > 2 {
                let ours = layer_norm_with(machine.vectors, &values, EPS as f32, &weight, &bias);
                prop_assert!(error(&ours, &right_rows) < 1e-3, "{machine:?}: {}", error(&ours, &right_rows));
            }
        }
    }

    #[test]
    fn functions_agree_with_f64(x in -100f32..100.0) {
        let wide = f64::from(x);
        let close = |ours: f32, right: f64| (f64::from(ours) - right).abs() <= 1e-6 * right.abs().max(0.3);
        prop_assert!(close(math::silu(x), wide / (1.0 + (-wide).exp())), "silu({x}) = {}", math::silu(x));
        prop_assert!(close(math::quick_gelu(x), wide / (1.0 + (-1.702 * wide).exp())), "quick_gelu({x}) = {}", math::quick_gelu(x));
        if x < 88.0 {
            let (ours, right) = (f64::from(math::exp(x)), wide.exp());
            // Below -87, `exp` is 0, and the right answer at most this.
            let smallest = (-87f64).exp();
            prop_assert!((ours - right).abs() <= 3e-7 * right + smallest, "exp({x}) = {ours}");
        }
        // Beyond -126, where `exp2` ends.
        let below = -1.3 * x.abs();
        let (ours, right) = (f64::from(math::exp2(below)), f64::from(below).exp2());
        prop_assert!((ours - right).abs() <= 3e-7 * right + (-126f64).exp2(), "exp2({below}) = {ours}");
    }
}

fn plain_attention(q: &[f32], k: &[f32], v: &[f32], shape: Sequences) -> Vec<f64> {
    let Sequences { batch, heads, head_dim, queries, keys, causal } = shape;
    let width = heads * head_dim;
    let mut out = vec![0.0; batch * queries * width];
    for (b, query, head) in (0..batch).flat_map(|b| (0..queries).flat_map(move |q| (0..heads).map(move |h| (b, q, h)))) {
        let at = |values: &[f32], token: usize, i: usize| f64::from(values[token * width + head * head_dim + i]);
        let seen = if causal { query + 1 } else { keys };
        let dot = |key: usize| (0..head_dim).map(|i| at(q, b * queries + query, i) * at(k, b * keys + key, i)).sum::<f64>();
        let scores: Vec<f64> = (0..seen).map(|key| dot(key) / (head_dim as f64).sqrt()).collect();
        let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - highest).exp()).collect();
        let total: f64 = weights.iter().sum();
        for i in 0..head_dim {
            let sum: f64 = weights.iter().enumerate().map(|(key, weight)| weight * at(v, b * keys + key, i)).sum();
            out[(b * queries + query) * width + head * head_dim + i] = sum / total;
        }
    }
    out
}

/// Against published values, for the standard library has no error function.
#[test]
fn gelu_is_the_exact_one() {
    for (x, right) in [
        (-3.0f32, -0.004_049_694),
        (-1.0, -0.158_655_25),
        (-0.5, -0.154_268_77),
        (0.0, 0.0),
        (0.5, 0.345_731_23),
        (1.0, 0.841_344_7),
        (3.0, 2.995_950_3),
    ] {
        assert!((math::gelu(x) - right).abs() < 5e-7, "gelu({x}) = {}", math::gelu(x));
    }
}

/// The engine looks for NaN in a picture, so no kernel may lose one.
#[test]
fn nan_is_not_lost() {
    let functions: [fn(f32) -> f32; 5] = [math::silu, math::gelu, math::quick_gelu, math::relu, math::exp2];
    assert!(functions.iter().all(|function| function(f32::NAN).is_nan()));
    let relu = |x: f32| math::relu(x).to_bits();
    assert_eq!([-2.0, 0.0, 3.0, f32::NEG_INFINITY, f32::INFINITY].map(relu), [0.0, 0.0, 3.0, 0.0, f32::INFINITY].map(f32::to_bits));
    assert!(math::silu(f32::INFINITY).is_infinite() && math::gelu(f32::INFINITY).is_infinite());
    let channels = if cfg!(miri) { 2 } else { 32 };
    let pixels = [vec![f32::NAN], numbers(16 * 16 * channels - 1, 1)].concat();
    let shape = Shape { batch: 1, height: 16, width: 16, seen: (16, 16) };
    let weight = numbers(16 * channels * 9, 2);
    for machine in Machine::all() {
        let packed = PackedConv::new(machine, DenseType::F32, &weight, channels, vec![0.0; 16], Conv2dConfig::SAME_3X3);
        for (algorithm, _) in algorithms(machine, Conv2dConfig::SAME_3X3, channels, shape) {
            assert!(packed.forward_by(algorithm, &pixels, shape, None, Epilogue::default())[0].is_nan(), "{machine:?}, {algorithm:?}");
        }
    }
}

/// On every machine, whatever the weight is kept in, and for ranks that take more than one stretch of the depth.
#[test]
#[cfg_attr(miri, ignore = "too much for an interpreter")]
fn a_matrix_of_low_rank_is_added_to_the_weight_of_its_rows_alone() {
    let (inputs, outputs, rows) = (70, 50, 9);
    let values = numbers(rows * inputs, 1);
    for machine in Machine::all() {
        for kept in ALL_TYPES {
            for (rank, is_gated) in [(3, false), (3, true), (700, false), (1300, true)] {
                let height = if is_gated { 2 * outputs } else { outputs };
                let weight = stored(kept, numbers(height * inputs, 2), inputs);
                let (down, up) = (numbers(rank * inputs, 3), numbers(height * rank, 4));
                let up: Vec<f32> = up.iter().map(|v| v / rank as f32).collect();
                let bias = numbers(height, 5);
                let product =
                    |row: usize, k: usize| (0..rank).map(|r| f64::from(up[row * rank + r]) * f64::from(down[r * inputs + k])).sum::<f64>();
                let merged: Vec<f32> =
                    (0..height * inputs).map(|i| (f64::from(weight[i]) + product(i / inputs, i % inputs)) as f32).collect();
                let pack = |kept, weight: &[f32]| {
                    if is_gated {
                        gated(machine, kept, weight, inputs, outputs, &bias)
                    } else {
                        linear(machine, kept, weight, inputs, &bias)
                    }
                };
                let (layer, right) = (pack(kept, &weight), pack(WeightType::F32, &merged));
                let low_rank = super::PackedLowRank::new(machine, (&down, &up), rank, is_gated);
                assert!(low_rank.fits(&layer));
                let found = layer.forward_adapted(&values, Epilogue::default(), &[(4, None), (3, Some(&low_rank)), (2, None)]);
                let (plain, right) = (layer.forward(&values, Epilogue::default()), right.forward(&values, Epilogue::default()));
                let part = |all: &[f32], rows: std::ops::Range<usize>| all[rows.start * outputs..rows.end * outputs].to_vec();
                assert_eq!(part(&found, 0..4), part(&plain, 0..4), "{machine:?} {kept:?} {rank}");
                assert_eq!(part(&found, 7..9), part(&plain, 7..9), "{machine:?} {kept:?} {rank}");
                let largest = right.iter().fold(0f32, |most, v| most.max(v.abs()));
                let off = part(&found, 4..7).iter().zip(part(&right, 4..7)).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
                assert!(f64::from(off / largest) < limit(machine, 1e-5), "{machine:?} {kept:?} {rank} {is_gated}: {off} of {largest}");
            }
        }
    }
}
