//! Each operation at the sizes of Stable Diffusion 1.5 (512 x 512, both halves of guidance), next to candle's own.
//!
//! Rates count the floating-point operations of the direct algorithm, so that a Winograd convolution may exceed `peak`, the rate of
//! multiplications and additions in registers on all threads.
#![allow(missing_docs, clippy::unwrap_used, reason = "a bench may panic")]

use std::{collections::HashMap, hint::black_box, time::Duration};

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::VarBuilder;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use sd_worker::ops::{ComputeType, Conv2d, Conv2dConfig, GroupNorm, LayerNorm, Linear, ReusingAllocator, WeightType, Weights, attention};

#[global_allocator]
static ALLOCATOR: ReusingAllocator = ReusingAllocator::new();

fn randn(shape: &[usize]) -> Tensor {
    Tensor::randn(0f32, 1., shape, &Device::Cpu).unwrap()
}

/// A layer's `weight`, of standard deviation 1 / sqrt(inputs), and `bias`.
fn weights(shape: &[usize]) -> (HashMap<String, Tensor>, Tensor, Tensor) {
    let inputs: usize = shape[1..].iter().product();
    let weight = (randn(shape) / (inputs as f64).sqrt()).unwrap();
    let bias = randn(&shape[..1]);
    (HashMap::from([("weight".to_owned(), weight.clone()), ("bias".to_owned(), bias.clone())]), weight, bias)
}

fn builder(tensors: HashMap<String, Tensor>) -> Weights {
    Weights::new(VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu), WeightType::F32)
}

fn group<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    group
}

/// 24 independent sums, which do not wait for each other.
struct Peak;

impl Peak {
    const ROUNDS: usize = 1 << 20;
    const SUMS: usize = 24;
}

impl WithSimd for Peak {
    type Output = f32;

    #[inline(always)]
    #[allow(clippy::inline_always, reason = "compiled once for each set of instructions")]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let (a, b) = (simd.splat_f32s(black_box(0.5)), simd.splat_f32s(black_box(0.25)));
        let mut sums = [simd.splat_f32s(0.0); Self::SUMS];
        for _ in 0..Self::ROUNDS {
            for sum in &mut sums {
                *sum = simd.mul_add_e_f32s(a, *sum, b);
            }
        }
        sums.iter().map(|sum| simd.reduce_sum_f32s(*sum)).sum()
    }
}

fn peak(c: &mut Criterion) {
    let threads = rayon::current_num_threads();
    let mut group = group(c, "peak");
    group.throughput(Throughput::Elements((threads * 2 * Arch::new().dispatch(Lanes) * Peak::SUMS * Peak::ROUNDS) as u64));
    group.bench_function("multiply and add", |b| {
        b.iter(|| (0..threads).into_par_iter().with_max_len(1).map(|_| Arch::new().dispatch(Peak)).sum::<f32>());
    });
    group.finish();
}

/// How many numbers a vector holds.
struct Lanes;

impl WithSimd for Lanes {
    type Output = usize;

    fn with_simd<S: Simd>(self, _: S) -> usize {
        S::F32_LANES
    }
}

fn convolution(c: &mut Criterion) {
    let mut group = group(c, "conv2d");
    for (batch, channels, outputs, side, kernel, stride) in [
        (2, 320, 320, 64, 3, 1),
        (2, 640, 640, 32, 3, 1),
        (2, 1280, 1280, 16, 3, 1),
        (2, 2560, 1280, 8, 3, 1),
        (1, 512, 512, 128, 3, 1),
        (1, 256, 256, 256, 3, 1),
        (1, 128, 128, 512, 3, 1),
        (1, 128, 3, 512, 3, 1),
        (2, 320, 320, 64, 3, 2),
        (2, 960, 320, 64, 1, 1),
    ] {
        let x = randn(&[batch, channels, side, side]);
        let (tensors, weight, bias) = weights(&[outputs, channels, kernel, kernel]);
        let config = Conv2dConfig { kernel, stride, padding: kernel / 2 };
        let ours = Conv2d::new(channels, outputs, config, &builder(tensors)).unwrap();
        let theirs = |x: &Tensor| {
            let y = x.conv2d(&weight, config.padding, stride, 1, 1).unwrap();
            y.broadcast_add(&bias.reshape((1, outputs, 1, 1)).unwrap()).unwrap()
        };
        // Our networks keep the channels last.
        let last = x.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap().permute((0, 3, 1, 2)).unwrap();
        let shape = format!("{batch}x{channels}x{side}x{side} to {outputs}, {kernel}x{kernel}/{stride}");
        let pixels = batch * (side / stride) * (side / stride);
        group.throughput(Throughput::Elements((2 * pixels * outputs * channels * kernel * kernel) as u64));
        group.bench_function(BenchmarkId::new("ours", &shape), |b| b.iter(|| ours.forward(black_box(&last)).unwrap()));
        group.bench_function(BenchmarkId::new("candle", &shape), |b| b.iter(|| theirs(black_box(&x))));
    }
    group.finish();
}

fn linear(c: &mut Criterion) {
    let mut group = group(c, "linear");
    for (rows, inputs, outputs) in [
        (8192, 320, 320),
        (8192, 320, 2560),
        (8192, 1280, 320),
        (2048, 640, 5120),
        (512, 1280, 10240),
        (512, 5120, 1280),
        (154, 768, 3072),
        (2, 1280, 1280),
    ] {
        let x = randn(&[1, rows, inputs]);
        let (tensors, weight, bias) = weights(&[outputs, inputs]);
        let ours = Linear::new(inputs, outputs, &builder(tensors)).unwrap();
        let theirs = candle_nn::Linear::new(weight, Some(bias));
        let shape = format!("{rows}x{inputs} to {outputs}");
        group.throughput(Throughput::Elements((2 * rows * inputs * outputs) as u64));
        group.bench_function(BenchmarkId::new("ours", &shape), |b| b.iter(|| ours.forward(black_box(&x)).unwrap()));
        group.bench_function(BenchmarkId::new("candle", &shape), |b| b.iter(|| theirs.forward(black_box(&x)).unwrap()));
    }
    group.finish();
}

fn attentions(c: &mut Criterion) {
    let mut group = group(c, "attention");
    for (batch, heads, head_dim, queries, keys) in
        [(2, 8, 40, 4096, 4096), (2, 8, 80, 1024, 1024), (2, 8, 160, 256, 256), (2, 8, 40, 4096, 77), (1, 1, 512, 4096, 4096)]
    {
        let width = heads * head_dim;
        let (q, k, v) = (randn(&[batch, queries, width]), randn(&[batch, keys, width]), randn(&[batch, keys, width]));
        let by_head = |x: &Tensor| x.reshape((batch, (), heads, head_dim)).unwrap().transpose(1, 2).unwrap().contiguous().unwrap();
        let theirs = || {
            let scores = (by_head(&q).matmul(&by_head(&k).t().unwrap()).unwrap() / (head_dim as f64).sqrt()).unwrap();
            candle_nn::ops::softmax_last_dim(&scores).unwrap().matmul(&by_head(&v)).unwrap()
        };
        let shape = format!("{batch}x{heads} heads of {head_dim}, {queries} queries, {keys} keys");
        group.throughput(Throughput::Elements((4 * batch * heads * head_dim * queries * keys) as u64));
        group.bench_function(BenchmarkId::new("ours", &shape), |b| {
            b.iter(|| attention(ComputeType::F32, black_box(&q), &k, &v, heads, false).unwrap());
        });
        group.bench_function(BenchmarkId::new("candle", &shape), |b| b.iter(theirs));
    }
    group.finish();
}

/// Rates are in bytes read and written: memory bounds all of these.
fn norms(c: &mut Criterion) {
    let mut group = group(c, "norms and gates");
    for (batch, channels, side) in [(2, 320, 64), (2, 1280, 16), (1, 128, 512)] {
        let x = randn(&[batch, channels, side, side]);
        let last = x.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap().permute((0, 3, 1, 2)).unwrap();
        let (tensors, weight, bias) = weights(&[channels, 1]);
        let tensors = tensors.into_iter().map(|(name, tensor)| (name, tensor.flatten_all().unwrap())).collect();
        let ours = GroupNorm::new(32, channels, 1e-5, &builder(tensors)).unwrap();
        let theirs = candle_nn::GroupNorm::new(weight.flatten_all().unwrap(), bias, channels, 32, 1e-5).unwrap();
        let shape = format!("group norm and SiLU {batch}x{channels}x{side}x{side}");
        group.throughput(Throughput::Bytes((8 * batch * channels * side * side) as u64));
        group.bench_function(BenchmarkId::new("ours", &shape), |b| b.iter(|| ours.forward_silu(black_box(&last)).unwrap()));
        group.bench_function(BenchmarkId::new("candle", &shape), |b| b.iter(|| theirs.forward(black_box(&x)).unwrap().silu().unwrap()));
    }
    let x = randn(&[2, 4096, 320]);
    let (tensors, weight, bias) = weights(&[320, 1]);
    let tensors = tensors.into_iter().map(|(name, tensor)| (name, tensor.flatten_all().unwrap())).collect();
    let ours = LayerNorm::new(320, 1e-5, &builder(tensors)).unwrap();
    let theirs = candle_nn::LayerNorm::new(weight.flatten_all().unwrap(), bias, 1e-5);
    group.throughput(Throughput::Bytes(8 * 2 * 4096 * 320));
    group.bench_function(BenchmarkId::new("ours", "layer norm 8192x320"), |b| b.iter(|| ours.forward(black_box(&x)).unwrap()));
    group.bench_function(BenchmarkId::new("candle", "layer norm 8192x320"), |b| b.iter(|| theirs.forward(black_box(&x)).unwrap()));
    group.finish();
}

criterion_group!(benches, peak, convolution, linear, attentions, norms);
criterion_main!(benches);
