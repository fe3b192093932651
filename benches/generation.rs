//! The times of a picture's parts: text encoder, UNet step, VAE decoder, all of it, what the worker adds, and what batching saves.
//!
//! Each network is timed beside candle-transformers' own of the same kind and size.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a bench may panic")]

use std::{
    hint::black_box,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::Arc,
    time::Instant,
};

use candle_core::{DType, Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sd_worker::{
    backend::{
        self, Complete, Generation, GenerationEngine, GenerationRequest, GenerationResponse, InferencePipeline, Interrupt, LoadOptions,
        ModelFiles, Order, Pipeline, RequestQueue,
    },
    common::{SamplingConfig, SamplingOptions, Schedule, Seed, Steps},
    models::{Conditions, Residuals, TextNetwork},
    ops::{Adapters, ReusingAllocator},
};
use tokio::{runtime::Runtime, sync::mpsc};

#[global_allocator]
static ALLOCATOR: ReusingAllocator = ReusingAllocator::new();

fn pipeline() -> Arc<InferencePipeline> {
    Arc::new(backend::load(&ModelFiles::open("builtin").unwrap(), &LoadOptions::default()).unwrap())
}

fn request(pipeline: &InferencePipeline, steps: i64) -> (GenerationRequest, mpsc::UnboundedReceiver<GenerationResponse>) {
    let defaults = pipeline.info().defaults;
    let (response_tx, responses) = mpsc::unbounded_channel();
    let config = SamplingConfig {
        size: defaults.size,
        steps: Steps::try_from(steps).unwrap(),
        guidance_scale: defaults.guidance_scale,
        seed: Seed::from(1),
        sampler: defaults.sampler,
        schedule: Schedule::Default,
        options: SamplingOptions::default(),
    };
    let order = Order::of("a fox on a blue background", "", config, pipeline.info()).unwrap();
    let request = GenerationRequest { response_tx, ..GenerationRequest::unheard(order) };
    (request, responses)
}

fn networks(c: &mut Criterion) {
    let pipeline = pipeline();
    let networks = pipeline.networks();
    let TextNetwork::Clip(text_encoder) = pipeline.prompt_encoder().encoders()[0].network();
    let config = networks.denoiser.config();
    let side = config.sample_size();
    let latents = Tensor::randn(0f32, 1., (1, config.in_channels(), side, side), &Device::Cpu).unwrap();
    let both = Tensor::cat(&[&latents, &latents], 0).unwrap();
    let ids = Tensor::zeros((2, 77), DType::U32, &Device::Cpu).unwrap();
    let text = text_encoder.forward(&ids, 0, Adapters::NONE, Interrupt::NEVER).unwrap();
    let text = networks.denoiser.context(&Conditions::of_text(&text)).unwrap();

    c.bench_function("text_encode/batch 2", |b| {
        b.iter(|| text_encoder.forward(black_box(&ids), 0, Adapters::NONE, Interrupt::NEVER).unwrap());
    });
    c.bench_function("unet_step/batch 2", |b| {
        b.iter(|| networks.denoiser.forward(black_box(&both), &[500.0], &text, Residuals::NONE, Interrupt::NEVER).unwrap());
    });
    c.bench_function("vae_decode", |b| b.iter(|| networks.vae.decode(black_box(&latents), Interrupt::NEVER).unwrap()));
}

/// candle-transformers' VAE with the built-in model's weights. It is the only network to compare on equal terms: candle-transformers' UNet
/// fixes heads and levels that the model does not have, and its text encoder needs 49,408 tokens.
fn yardstick(c: &mut Criterion) {
    use candle_transformers::models::stable_diffusion::vae::{AutoEncoderKL, AutoEncoderKLConfig};
    let pipeline = pipeline();
    let ours = &pipeline.networks().vae;
    let config = ours.config().clone();
    let vb = ModelFiles::open("builtin").unwrap().weights("vae", DType::F32, &Device::Cpu).unwrap().vb;
    let theirs = AutoEncoderKLConfig {
        block_out_channels: config.block_out_channels.clone(),
        layers_per_block: config.layers_per_block,
        latent_channels: config.latent_channels,
        norm_num_groups: config.norm_num_groups,
        use_quant_conv: config.use_quant_conv,
        use_post_quant_conv: config.use_post_quant_conv,
    };
    let theirs = AutoEncoderKL::new(vb, config.in_channels, config.out_channels, theirs).unwrap();
    let side = pipeline.networks().denoiser.config().sample_size();
    let latents = Tensor::randn(0f32, 1., (1, config.latent_channels, side, side), &Device::Cpu).unwrap();
    let mut group = c.benchmark_group("vae_decode against candle-transformers");
    group.bench_function("sd-worker", |b| b.iter(|| ours.decode(black_box(&latents), Interrupt::NEVER).unwrap()));
    group.bench_function("candle-transformers", |b| b.iter(|| theirs.decode(black_box(&latents)).unwrap()));
    group.finish();
}

async fn picture(mut responses: mpsc::UnboundedReceiver<GenerationResponse>) -> Box<Complete> {
    loop {
        match responses.recv().await.unwrap() {
            GenerationResponse::Complete(complete) => break complete,
            GenerationResponse::Error(error) => panic!("{error}"),
            _ => {}
        }
    }
}

/// Pictures per second for `CLIENTS` concurrent clients.
fn throughput(c: &mut Criterion) {
    const CLIENTS: usize = 8;
    let pipeline = pipeline();
    let runtime = Runtime::new().unwrap();
    let mut group = c.benchmark_group("throughput");
    group.sample_size(10).throughput(Throughput::Elements(CLIENTS as u64));
    for max_batch in [1, 2, 4] {
        let (queue, requests) = RequestQueue::new();
        let inside = runtime.enter();
        let engine = GenerationEngine::new(Arc::clone(&pipeline), requests).with_max_batch(max_batch).start();
        drop(inside);
        group.bench_function(BenchmarkId::new("max-batch", max_batch), |b| {
            b.iter(|| {
                let requests = (0..CLIENTS).map(|_| request(&pipeline, 15));
                let clients: Vec<_> = requests
                    .map(|(request, responses)| {
                        queue.add_request(request).unwrap();
                        responses
                    })
                    .collect();
                clients.into_iter().map(|responses| runtime.block_on(picture(responses))).collect::<Vec<_>>()
            });
        });
        drop(queue);
        runtime.block_on(engine).unwrap();
    }
    group.finish();
}

fn whole(c: &mut Criterion) {
    let pipeline = pipeline();
    let runtime = Runtime::new().unwrap();
    let (queue, requests) = RequestQueue::new();
    let inside = runtime.enter();
    let engine = GenerationEngine::new(Arc::clone(&pipeline), requests).start();
    drop(inside);
    let mut group = c.benchmark_group("generation");
    group.sample_size(10);
    for steps in [1, 15] {
        group.bench_with_input(BenchmarkId::new("bare pipeline", steps), &steps, |b, &steps| {
            b.iter(|| {
                let (request, _responses) = request(&pipeline, steps);
                let mut generation = pipeline.begin(&request, Interrupt::NEVER).unwrap();
                (0..steps).for_each(|_| generation.step().unwrap());
                backend::encode(&generation.finish(Interrupt::NEVER).unwrap(), request.order.output, None).unwrap()
            });
        });
        group.bench_with_input(BenchmarkId::new("queue and engine", steps), &steps, |b, &steps| {
            b.iter(|| {
                let (request, responses) = request(&pipeline, steps);
                queue.add_request(request).unwrap();
                runtime.block_on(picture(responses))
            });
        });
    }
    group.finish();
    drop(queue);
    runtime.block_on(engine).unwrap();
}

/// The time of `/livez` while four clients send bodies of 49 MiB, which are parsed and refused. Percentiles are printed, since a mean hides
/// the pauses that an orchestrator would take for a stalled worker.
fn probes(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut worker = Command::new(env!("CARGO_BIN_EXE_sd-worker"));
    let mut worker = worker.args(["serve", "--port", "0"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut events = BufReader::new(worker.stdout.take().unwrap()).lines();
    let listening: serde_json::Value = serde_json::from_str(&events.next().unwrap().unwrap()).unwrap();
    events.next().unwrap().unwrap();
    let url = format!("http://127.0.0.1:{}", listening["port"]);
    let body = bytes::Bytes::from(format!("{{\"prompt\": \"a\", \"image\": \"{}\"}}", "A".repeat(49 << 20)));
    let uploads: Vec<_> = (0..4)
        .map(|_| {
            let (url, body) = (format!("{url}/v1/images/edits"), body.clone());
            runtime.spawn(async move {
                let client = reqwest::Client::new();
                loop {
                    client
                        .post(&url)
                        .header("content-type", "application/json")
                        .body(body.clone())
                        .send()
                        .await
                        .unwrap()
                        .bytes()
                        .await
                        .unwrap();
                }
            })
        })
        .collect();
    let client = reqwest::Client::new();
    let mut waits: Vec<std::time::Duration> = Vec::new();
    c.bench_function("livez beside uploads", |b| {
        b.iter_custom(|times| {
            let wait = |_| {
                let started = Instant::now();
                runtime.block_on(async { client.get(format!("{url}/livez")).send().await.unwrap().bytes().await.unwrap() });
                started.elapsed()
            };
            let more: Vec<_> = (0..times).map(wait).collect();
            waits.extend(&more);
            more.iter().sum()
        });
    });
    waits.sort();
    let percentile = |share: f64| waits[((waits.len() - 1) as f64 * share) as usize];
    println!(
        "livez beside uploads: {} probes, p50 {:?}, p99 {:?}, most {:?}",
        waits.len(),
        percentile(0.5),
        percentile(0.99),
        percentile(1.0)
    );
    uploads.iter().for_each(tokio::task::JoinHandle::abort);
    worker.kill().unwrap();
    worker.wait().unwrap();
}

criterion_group!(benches, networks, yardstick, whole, throughput, probes);
criterion_main!(benches);
