use std::fs;

use candle_core::{DType, Device};
use candle_nn::VarBuilder;

use super::*;
use crate::{
    models::{AutoencoderKl, AutoencoderKlConfig, Interrupt},
    ops::{WeightType, Weights, has_exact_products},
};

const PASS: Pass = Pass {
    temb: None,
    text: None,
    images: crate::models::image_prompt::ImageContext::NONE,
    adapters: crate::ops::Adapters::NONE,
    interrupt: Interrupt::NEVER,
};

fn tiny(dtype: DType) -> AutoencoderKl {
    load("tests/parity/tiny/vae", dtype)
}

fn load(folder: &str, dtype: DType) -> AutoencoderKl {
    let config = AutoencoderKlConfig::from_json(&fs::read(format!("{folder}/config.json")).unwrap()).unwrap();
    let weights = fs::read(format!("{folder}/diffusion_pytorch_model.safetensors")).unwrap();
    let vb = VarBuilder::from_buffered_safetensors(weights, dtype, &Device::Cpu).unwrap();
    AutoencoderKl::new(config, &Weights::new(vb, WeightType::F32)).unwrap()
}

/// Colours and noise that are not the same anywhere, `(1, channels, height, width)`.
fn image(channels: usize, height: usize, width: usize, dtype: DType) -> Tensor {
    let value = |i: usize| {
        let (c, y, x) = (i / (height * width), i / width % height, i % width);
        (y as f32 / height as f32 * 5.0 + c as f32).sin() + (x as f32 / 9.0).cos() + ((i * i) as f32 * 0.37).sin() / 2.0
    };
    let values: Vec<f32> = (0..channels * height * width).map(value).collect();
    Tensor::from_vec(values, (1, channels, height, width), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// The largest difference, of the largest value.
fn error(ours: &Tensor, theirs: &Tensor) -> f64 {
    let largest = |x: &Tensor| x.to_dtype(DType::F64).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
    assert_eq!(ours.dims(), theirs.dims());
    largest(&(ours - theirs).unwrap()) / largest(theirs)
}

/// In f64 everything goes through candle's own operations, as it does on other devices.
#[test]
fn strips_are_parts_of_the_whole() {
    // Where products are not exact, strips and the whole may be summed by different kernels.
    let of_f32 = if has_exact_products() { 1e-5 } else { 6e-5 };
    for (dtype, limit) in [(DType::F32, of_f32), (DType::F64, 1e-5)] {
        let vae = tiny(dtype);
        let check = |layers: Vec<StripLayer>, x: Tensor| {
            let whole = forward_whole(x.clone(), &layers, &PASS).unwrap();
            let most = bytes_whole(&x, &layers).unwrap();
            // Nothing is held but what went in; some levels are; all of them are.
            let rooms = [(most / 5, most / 8), (0, most / 4), (0, most / 40), (most / 5, most / 40), (most, most / 40)];
            for (held, strip) in &rooms[..if dtype == DType::F32 { rooms.len() } else { 1 }] {
                let limits = StripLimits { whole: *held, strip: *strip };
                let off = error(&forward_in_strips(x.clone(), layers.clone(), limits, &PASS).unwrap(), &whole);
                assert!(off < limit, "{dtype:?} {limits:?}: {off}");
            }
            Ok(())
        };
        // Levels of odd heights among them.
        check(vae.decoder.layers(), image(32, 13, 6, dtype)).unwrap();
        vae.encoder.with(|encoder| check(encoder.layers(), image(3, 104, 48, dtype))).unwrap();
    }
}

#[test]
fn the_bytes_of_a_whole_image_are_those_of_its_largest_layer() {
    let vae = tiny(DType::F32);
    // From 16 channels to 16, at the size of the picture.
    assert_eq!(bytes_whole(&image(32, 13, 18, DType::F32), &vae.decoder.layers()).unwrap(), 2 * 16 * 4 * (8 * 13) * (8 * 18));
    let of_encoder = vae.encoder.with(|encoder| bytes_whole(&image(3, 104, 72, DType::F32), &encoder.layers())).unwrap();
    assert_eq!(of_encoder, 2 * 16 * 4 * 104 * 72);
}

#[test]
fn what_takes_too_much_as_a_whole_is_cut() {
    let strips = |tiling, bytes| StripLimits::of(tiling, bytes).map(|limits| (limits.whole, limits.strip));
    assert_eq!([4 << 30, (4 << 30) + 1].map(|bytes| strips(Tiling::Auto, bytes)), [None, Some((4 << 30, 256 << 20))]);
    assert_eq!([0, 1 << 30, 1 << 40].map(|bytes| strips(Tiling::Off, bytes)), [None; 3]);
    assert_eq!([0, 3 << 30, 1 << 40].map(|bytes| strips(Tiling::On, bytes).unwrap()), [(0, 1), (1 << 30, 192 << 20), (4 << 30, 256 << 20)]);
}

/// Each picture of a batch has its own statistics, and what is asked for is done.
#[test]
fn a_tiled_vae_makes_the_same_of_each() {
    let vae = tiny(DType::F32);
    let tiled = vae.clone().with_tiling(Tiling::On);
    let batch = |channels, height, width| {
        let one = image(channels, height, width, DType::F32);
        Tensor::cat(&[&one, &(&one * 3.0).unwrap()], 0).unwrap()
    };
    let (latents, pictures) = (batch(4, 9, 8), batch(3, 72, 64));
    assert!(error(&tiled.decode(&latents, Interrupt::NEVER).unwrap(), &vae.decode(&latents, Interrupt::NEVER).unwrap()) < 1e-5);
    assert!(error(&tiled.encode(&pictures, Interrupt::NEVER).unwrap().mean, &vae.encode(&pictures, Interrupt::NEVER).unwrap().mean) < 1e-5);
}

/// `VAE=FOLDER SIDE=PIXELS cargo test --release --lib strips_in_true_size -- --ignored --nocapture`: the limits are in the same proportion to the
/// picture as those of 4096 x 4096, so what is taken beside the weights is too.
#[test]
#[ignore = "takes minutes, and a VAE in its true size"]
fn strips_in_true_size() {
    let side: usize = std::env::var("SIDE").unwrap().parse().unwrap();
    let peak = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim();
        line.trim_end_matches(" kB").parse::<f64>().unwrap() / f64::from(1 << 20)
    };
    let decoder = load(&std::env::var("VAE").unwrap(), DType::F32).decoder;
    let of_4096 = |bytes: usize| bytes * side * side / (4096 * 4096);
    let limits = StripLimits { whole: of_4096(StripLimits::LARGEST.whole), strip: of_4096(StripLimits::LARGEST.strip) };
    let weights = peak();
    let x = decoder.conv_in.forward(&image(4, side / 8, side / 8, DType::F32)).unwrap();
    let x = decoder.mid_block.forward(&x, &PASS).unwrap();
    let middle = peak();
    let started = std::time::Instant::now();
    let strips = forward_in_strips(x.clone(), decoder.layers(), limits, &PASS).unwrap();
    let (in_strips, strips_time) = (peak(), started.elapsed());
    let started = std::time::Instant::now();
    let whole = forward_whole(x, &decoder.layers(), &PASS).unwrap();
    println!(
        "off by {:.1e} of the largest value; GiB at most: weights {weights:.2}, with the middle block {middle:.2}, in strips {in_strips:.2} \
         ({strips_time:.0?}), whole {:.2} ({:.0?})",
        error(&strips, &whole),
        peak(),
        started.elapsed()
    );
}
