use std::collections::HashMap;

use candle_core::{DType, Device};
use candle_nn::VarBuilder;

use super::*;
use crate::{models::vae::strips::bytes_whole, ops::WeightType};

const CHANNELS: usize = 16;

/// Numbers that are not the same anywhere.
fn made_up(shape: &[usize], scale: f64) -> Tensor {
    let count = shape.iter().product::<usize>() as f64;
    let numbers = (Tensor::arange(0f64, count, &Device::Cpu).unwrap().sqr().unwrap() * 0.37).unwrap().sin().unwrap();
    (numbers * scale).unwrap().to_dtype(DType::F32).unwrap().reshape(shape).unwrap()
}

fn config(json: &str) -> std::result::Result<AutoencoderTinyConfig, String> {
    AutoencoderTinyConfig::from_json(json.as_bytes()).map_err(|error| error.to_string())
}

/// Two stages, without and with blocks.
fn tiny(dtype: DType) -> AutoencoderTiny {
    let config = config(r#"{"decoder_block_out_channels": [16, 16, 16], "num_decoder_blocks": [0, 2, 1]}"#).unwrap();
    let mut tensors = HashMap::new();
    let mut conv = |name: &str, outputs: usize, inputs: usize, has_bias: bool| {
        let deviation = (2.0 / (9 * inputs) as f64).sqrt();
        tensors.insert(format!("decoder.layers.{name}.weight"), made_up(&[outputs, inputs, 3, 3], deviation));
        if has_bias {
            tensors.insert(format!("decoder.layers.{name}.bias"), made_up(&[outputs], 0.1));
        }
    };
    conv("0", CHANNELS, 4, true);
    for (name, has_bias) in [("3", false), ("7", false)] {
        conv(name, CHANNELS, CHANNELS, has_bias);
    }
    for block in [4, 5, 8] {
        for number in [0, 2, 4] {
            conv(&format!("{block}.conv.{number}"), CHANNELS, CHANNELS, true);
        }
    }
    conv("9", 3, CHANNELS, true);
    let vb = VarBuilder::from_tensors(tensors, dtype, &Device::Cpu);
    AutoencoderTiny::new(&config, &Weights::new(vb, WeightType::F32)).unwrap()
}

/// The largest difference, of the largest value.
fn error(ours: &Tensor, theirs: &Tensor) -> f64 {
    assert_eq!(ours.dims(), theirs.dims());
    let largest = |x: &Tensor| x.abs().unwrap().max_all().unwrap().to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap();
    largest(&(ours - theirs).unwrap()) / largest(theirs)
}

/// In f64 everything goes through candle's own operations, as it does on other devices.
#[test]
#[cfg_attr(miri, ignore = "too much for an interpreter")]
fn strips_are_parts_of_the_whole() {
    for dtype in [DType::F32, DType::F64] {
        let latents = (made_up(&[2, 4, 13, 9], 4.0).to_dtype(dtype).unwrap() + 0.1).unwrap();
        let whole = tiny(dtype).with_tiling(Tiling::Off).decode(&latents, Interrupt::NEVER).unwrap();
        assert_eq!(whole.dims(), [2, 3, 52, 36]);
        let strips = tiny(dtype).with_tiling(Tiling::On).decode(&latents, Interrupt::NEVER).unwrap();
        // Where products are not exact, strips and the whole may be summed by different kernels.
        let limit = if dtype == DType::F64 { 1e-12 } else { 6e-5 };
        assert!(error(&strips, &whole) < limit, "{dtype:?}: {}", error(&strips, &whole));
        // The second picture alone.
        let second = tiny(dtype).with_tiling(Tiling::Off).decode(&latents.narrow(0, 1, 1).unwrap(), Interrupt::NEVER).unwrap();
        assert!(error(&whole.narrow(0, 1, 1).unwrap(), &second) < 1e-12);
    }
}

#[test]
#[cfg_attr(miri, ignore = "too much for an interpreter")]
fn a_block_takes_no_more_than_its_image_and_its_result() {
    let tiny = tiny(DType::F32);
    // From 16 channels to 16, at the size of the picture.
    assert_eq!(bytes_whole(&made_up(&[1, 4, 13, 9], 1.0), &tiny.decoder.layers()).unwrap(), 2 * CHANNELS * 4 * (4 * 13) * (4 * 9));
}

#[test]
#[cfg_attr(miri, ignore = "too much for an interpreter")]
fn nobody_waits_for_an_interrupted_picture() {
    let error = tiny(DType::F32).decode(&made_up(&[1, 4, 8, 8], 1.0), Interrupt::when(&|| true)).unwrap_err();
    assert!(error.to_string().contains("interrupted"), "{error}");
}

/// The sums of a NaN are NaN, and stay so through every ReLU. An infinity, which tanh would hide, becomes one.
#[test]
#[cfg_attr(miri, ignore = "too much for an interpreter")]
fn a_nan_is_not_hidden() {
    for dtype in [DType::F32, DType::F64] {
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut numbers = vec![0.5; 4 * 8 * 8];
            numbers[70] = wrong;
            let latents = Tensor::from_vec(numbers, (1, 4, 8, 8), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            let picture = tiny(dtype).decode(&latents, Interrupt::NEVER).unwrap();
            assert!(picture.sum_all().unwrap().to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap().is_nan(), "{dtype:?}, {wrong}");
        }
    }
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (json, reason) in [
        (r#"{"act_fn": "mish"}"#, "act_fn"),
        (r#"{"act_fn": "silu"}"#, "act_fn must be relu"),
        (r#"{"upsample_fn": "bilinear"}"#, "upsample_fn must be nearest, not bilinear"),
        (r#"{"upsampling_scaling_factor": 3}"#, "upsampling_scaling_factor must be 2, not 3"),
        (r#"{"out_channels": 4}"#, "pictures of 3 channels"),
        (r#"{"decoder_block_out_channels": [64, 32, 64, 64]}"#, "must all be the same and not 0, not [64, 32, 64, 64]"),
        (r#"{"decoder_block_out_channels": [0, 0, 0, 0]}"#, "must all be the same and not 0"),
        (r#"{"decoder_block_out_channels": []}"#, "must have 1 to 6 entries"),
        (r#"{"num_decoder_blocks": [1, 1]}"#, "num_decoder_blocks has 2 entries, but there are 4"),
        (r#"{"num_decoder_blocks": [3, 3, 3, 1000000]}"#, "at most 64 each"),
        (r#"{"scaling_factor": 0}"#, "scaling_factor must not be 0"),
        (r#"{"shift_factor": 0.1}"#, "a shift_factor of 0.1 is not supported"),
        ("[]", "invalid type"),
    ] {
        let error = config(json).unwrap_err();
        assert!(error.contains(reason), "{json}: {error}");
    }
    // What diffusers writes, null among it.
    config(r#"{"_class_name": "AutoencoderTiny", "encoder_block_out_channels": [64], "force_upcast": false, "latent_shift": 0.5, "shift_factor": null}"#).unwrap();
}

#[test]
fn it_must_fit_the_model() {
    let vae = AutoencoderKlConfig::from_json(br#"{"block_out_channels": [1, 2, 3, 4], "latent_channels": 4}"#).unwrap();
    let fits = |json: &str| config(json).unwrap().check_fits(&vae).map_err(|error| error.to_string());
    fits("{}").unwrap();
    assert!(fits(r#"{"latent_channels": 16}"#).unwrap_err().contains("latents of 16 channels, but the model's have 4"));
    let short = r#"{"decoder_block_out_channels": [8, 8], "num_decoder_blocks": [1, 1]}"#;
    assert!(fits(short).unwrap_err().contains("it makes 2 pixels of a latent along each side, but the model's VAE makes 8"));
}
