use std::fs;

use candle_core::{DType, Device};
use candle_nn::VarBuilder;

use super::*;
use crate::{
    models::{AutoencoderKl, AutoencoderKlConfig},
    ops::{Storage, Weights},
};

fn tiny(dtype: DType) -> AutoencoderKl {
    let folder = "tests/parity/tiny/vae";
    let config = AutoencoderKlConfig::from_json(&fs::read(format!("{folder}/config.json")).unwrap()).unwrap();
    let weights = fs::read(format!("{folder}/diffusion_pytorch_model.safetensors")).unwrap();
    let vb = VarBuilder::from_buffered_safetensors(weights, dtype, &Device::Cpu).unwrap();
    AutoencoderKl::new(config, &Weights::new(vb, Storage::F32)).unwrap()
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
    for dtype in [DType::F32, DType::F64] {
        let vae = tiny(dtype);
        // Levels of odd heights among them.
        let coders = [(vae.decoder.layers(), image(32, 13, 6, dtype)), (vae.encoder.layers(), image(3, 104, 48, dtype))];
        for (layers, x) in coders {
            let whole = forward_whole(x.clone(), &layers).unwrap();
            let most = bytes_whole(&x, &layers).unwrap();
            // Nothing is held but what went in; some levels are; all of them are.
            let rooms = [(most / 5, most / 8), (0, most / 4), (0, most / 40), (most / 5, most / 40), (most, most / 40)];
            for (held, strip) in &rooms[..if dtype == DType::F32 { rooms.len() } else { 1 }] {
                let room = Room { whole: *held, strip: *strip };
                let off = error(&forward_in_strips(x.clone(), layers.clone(), room).unwrap(), &whole);
                assert!(off < 1e-5, "{dtype:?} {room:?}: {off}");
            }
        }
    }
}

#[test]
fn the_bytes_of_a_whole_image_are_those_of_its_largest_layer() {
    let vae = tiny(DType::F32);
    // From 16 channels to 16, at the size of the picture.
    assert_eq!(bytes_whole(&image(32, 13, 18, DType::F32), &vae.decoder.layers()).unwrap(), 2 * 16 * 4 * (8 * 13) * (8 * 18));
    assert_eq!(bytes_whole(&image(3, 104, 72, DType::F32), &vae.encoder.layers()).unwrap(), 2 * 16 * 4 * 104 * 72);
}

#[test]
fn what_takes_too_much_as_a_whole_is_cut() {
    let strips = |tiling, bytes| Room::of(tiling, bytes).map(|room| (room.whole, room.strip));
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
    assert!(error(&tiled.decode(&latents).unwrap(), &vae.decode(&latents).unwrap()) < 1e-5);
    assert!(error(&tiled.encode(&pictures).unwrap().mean, &vae.encode(&pictures).unwrap().mean) < 1e-5);
}
