//! The same numbers as transformers and diffusers for IP-Adapters: image encoder, projections, and the picture that goes in.
//! `tests/parity/make_control_goldens.py` and `make_reference_goldens.py` make the goldens.

use std::{collections::HashMap, fs, path::Path};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use image::RgbImage;
use sd_worker::{
    backend::{self, CrossAttentionLayer, InferencePipeline, Interrupt, IpAdapterFile, LoadOptions, ModelFiles, preprocess},
    models::{ClipVisionConfig, ClipVisionModel, ImageProjectionKind},
    ops::{WeightType, Weights},
};

use crate::{
    made_up::{self, made_up},
    parity::{NETWORK_LIMIT, relative_error},
};

const CPU: &Device = &Device::Cpu;
/// Mean and deviation of each colour, as in `CLIPImageProcessor`.
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const DEVIATION: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// The tensors of a network of `tests/parity/controls`.
fn tensors(net: &str) -> HashMap<String, Tensor> {
    let shapes = fs::read(Path::new("tests/parity/controls").join(net).join("tensors.json")).unwrap();
    let shapes: HashMap<String, Vec<usize>> = serde_json::from_slice(&shapes).unwrap();
    let tensors = shapes.into_iter().map(|(name, shape)| {
        let tensor = made_up(&format!("{net}/{name}"), &shape);
        (name, tensor)
    });
    tensors.collect()
}

fn goldens(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(Path::new("tests/parity").join(name).with_extension("safetensors"), CPU).unwrap()
}

/// `control_picture` of `make_control_goldens.py`.
fn control_picture(name: &str, width: u32, height: u32) -> RgbImage {
    let numbers = made_up(&format!("control {name}"), &[height as usize, width as usize, 3]).flatten_all().unwrap();
    let numbers: Vec<f64> = numbers.to_dtype(DType::F64).unwrap().to_vec1().unwrap();
    let (least, greatest) = numbers.iter().fold((f64::MAX, f64::MIN), |(least, greatest), v| (least.min(*v), greatest.max(*v)));
    let colours = numbers.iter().map(|v| ((v - least) / (greatest - least) * 255.0).round() as u8);
    RgbImage::from_raw(width, height, colours.collect()).unwrap()
}

fn encoder() -> ClipVisionModel {
    encoder_in(DType::F32, WeightType::F32)
}

fn encoder_in(dtype: DType, weight_type: WeightType) -> ClipVisionModel {
    let config = ClipVisionConfig::from_json(&fs::read("tests/parity/controls/image-encoder/config.json").unwrap()).unwrap();
    let vb = VarBuilder::from_tensors(tensors("image-encoder"), dtype, CPU);
    ClipVisionModel::new(config, &Weights::new(vb, weight_type)).unwrap()
}

/// An adapter in a file. The file is gone afterwards, and still open.
fn adapter(net: &str) -> IpAdapterFile {
    let file = tempfile::Builder::new().suffix(".safetensors").tempfile().unwrap();
    candle_core::safetensors::save(&tensors(net), file.path()).unwrap();
    IpAdapterFile::open(file.path()).unwrap()
}

fn pipeline(model: &str) -> InferencePipeline {
    let folder = made_up::model(model);
    backend::load(&ModelFiles::open(folder.path().to_str().unwrap()).unwrap(), &LoadOptions::default()).unwrap()
}

fn check(ours: &Tensor, golden: &Tensor, what: &str) {
    let error = relative_error(ours, golden);
    println!("{what}: {error:.1e}");
    assert!(error < NETWORK_LIMIT, "{what} is off by {error}");
}

#[test]
fn image_encoder_and_projections_agree_with_diffusers() {
    let (goldens, encoder) = (goldens("controls"), encoder());
    let pixels = preprocess(&control_picture("a", 56, 56), 56, CPU).unwrap();
    let embeds = encoder.forward(&pixels, Interrupt::NEVER).unwrap();
    check(&embeds.projected, &goldens["image-encoder.embeds"], "embeds");
    check(&embeds.penultimate, &goldens["image-encoder.penultimate"], "penultimate");
    for (net, tokens, is_plain) in [("ip-adapter-sd1", 4, true), ("ip-adapter-plus-sd1", 16, false), ("ip-adapter-sdxl", 4, true)] {
        let file = adapter(net);
        assert_eq!((file.projection().tokens, file.projection().kind == ImageProjectionKind::Plain), (tokens, is_plain), "{net}");
        file.check_encoder(encoder.config()).unwrap();
        let projection = file.load_projection(DType::F32, CPU, WeightType::F32).unwrap();
        let found = projection.forward(&embeds, Interrupt::NEVER).unwrap();
        // diffusers keeps the pictures of one adapter apart in a dimension of their own.
        let golden = |part: &str| goldens[&format!("{net}.{part}")].squeeze(1).unwrap();
        check(&found, &golden("tokens"), &format!("{net}.tokens"));
        let nothing = projection.unconditional(&encoder, Interrupt::NEVER).unwrap();
        check(&nothing, &golden("negative"), &format!("{net}.negative"));
    }
}

/// In f16 everything goes through candle's own operations, as it does on other devices.
#[test]
fn other_types_of_numbers_and_weights_give_nearly_the_same() {
    let (goldens, pixels) = (goldens("controls"), preprocess(&control_picture("a", 56, 56), 56, CPU).unwrap());
    let types = [(DType::F16, WeightType::F16, 1e-2), (DType::F32, WeightType::F16, 2e-3), (DType::F32, WeightType::Q8_0, 3e-2)];
    for (dtype, weight_type, limit) in types {
        let encoder = encoder_in(dtype, weight_type);
        let embeds = encoder.forward(&pixels, Interrupt::NEVER).unwrap();
        for net in ["ip-adapter-sd1", "ip-adapter-plus-sd1"] {
            let projection = adapter(net).load_projection(dtype, CPU, weight_type).unwrap();
            let sides = [projection.forward(&embeds, Interrupt::NEVER), projection.unconditional(&encoder, Interrupt::NEVER)];
            for (side, part) in sides.into_iter().zip(["tokens", "negative"]) {
                let golden = goldens[&format!("{net}.{part}")].squeeze(1).unwrap();
                let error = relative_error(&side.unwrap().to_dtype(DType::F32).unwrap(), &golden);
                println!("{net}.{part} in {dtype:?} of {weight_type}: {error:.1e}");
                assert!(error < limit, "{net}.{part} in {dtype:?} of {weight_type} is off by {error}");
            }
        }
    }
}

/// A batch is as its pictures are one by one.
#[test]
fn pictures_do_not_see_each_other() {
    let (encoder, file) = (encoder(), adapter("ip-adapter-plus-sd1"));
    let projection = file.load_projection(DType::F32, CPU, WeightType::F32).unwrap();
    let pixels = ["a", "b"].map(|name| preprocess(&control_picture(name, 56, 56), 56, CPU).unwrap());
    let tokens = |pixels: &Tensor| projection.forward(&encoder.forward(pixels, Interrupt::NEVER).unwrap(), Interrupt::NEVER).unwrap();
    let together = tokens(&Tensor::cat(&pixels, 0).unwrap());
    for (i, pixels) in pixels.iter().enumerate() {
        check(&together.narrow(0, i, 1).unwrap(), &tokens(pixels), "one of two");
    }
}

#[test]
fn an_adapter_fits_the_models_that_it_is_for() {
    let layers = ["sd1", "sd2", "sdxl", "ssd-1b"].map(|model| CrossAttentionLayer::all(pipeline(model).networks().denoiser.layer_names()));
    let [sd1, sd2, sdxl, ssd] = &layers;
    for (net, fitting) in [("ip-adapter-sd1", sd1), ("ip-adapter-plus-sd1", sd1), ("ip-adapter-sdxl", sdxl)] {
        let file = adapter(net);
        assert_eq!(file.layers(), fitting.len());
        file.check_denoiser(fitting).unwrap();
        let weights = file.weights(DType::F32, CPU, WeightType::F32);
        for CrossAttentionLayer { number, channels, cross_attention_dim, .. } in fitting {
            for part in ["to_k_ip", "to_v_ip"] {
                weights.pp("ip_adapter").pp(number).get((*channels, *cross_attention_dim), &format!("{part}.weight")).unwrap();
            }
        }
    }
    let error = |net: &str, layers: &[CrossAttentionLayer]| adapter(net).check_denoiser(layers).unwrap_err().to_string();
    for (net, layers, reason) in [
        ("ip-adapter-sd1", sd2, "image tokens are 64 wide, and the model looks at a text 128 wide; use an IP-Adapter for this family"),
        ("ip-adapter-sdxl", sd1, "image tokens are 192 wide, and the model looks at a text 64 wide"),
        ("ip-adapter-sdxl", ssd, "it is for 12 layers of cross-attention, and the model has 11"),
    ] {
        let error = error(net, layers);
        assert!(error.contains(reason), "{error}");
    }
    let mut wider = sd1.clone();
    wider[2].channels += 8;
    let wide = error("ip-adapter-sd1", &wider);
    assert!(
        wide.contains("ip_adapter.5 is for a layer 64 wide, and down_blocks.1.attentions.0.transformer_blocks.0.attn2 is 72"),
        "{wide}"
    );
    let names: Vec<&str> = sd1.iter().rev().map(|layer| layer.name.as_str()).collect();
    for (place, layer) in sd1.iter().enumerate() {
        assert_eq!(CrossAttentionLayer::number_of(&layer.name, names.iter().copied()), Some(2 * place + 1));
        assert_eq!(layer.number, 2 * place + 1);
    }
    assert_eq!(sd1.last().unwrap().name, "mid_block.attentions.0.transformer_blocks.0.attn2", "the middle comes last");
}

#[test]
fn pictures_are_scaled_as_transformers_scales_them() {
    let goldens = goldens("references");
    let noise: Vec<f32> = made_up("reference", &[50, 131, 3]).flatten_all().unwrap().to_vec1().unwrap();
    let noise = RgbImage::from_raw(131, 50, noise.iter().map(|v| if *v > 0.0 { 255 } else { 0 }).collect()).unwrap();
    let picture = image::open("tests/parity/picture.png").unwrap().to_rgb8();
    for (name, picture) in [("picture", &picture), ("noise", &noise)] {
        for side in [24, 56, 100] {
            let right: Vec<u8> = goldens[&format!("{name}.{side}")].flatten_all().unwrap().to_vec1().unwrap();
            let found = preprocess(picture, side, CPU).unwrap().permute((0, 2, 3, 1)).unwrap().flatten_all().unwrap();
            let found: Vec<f32> = found.to_vec1().unwrap();
            let colours = found.iter().enumerate().map(|(i, v)| ((v * DEVIATION[i % 3] + MEAN[i % 3]) * 255.0).round() as i32);
            let off: Vec<i32> = colours.zip(right).map(|(ours, theirs)| (ours - i32::from(theirs)).abs()).collect();
            let (worst, many) = (off.iter().max().unwrap(), off.iter().filter(|off| **off > 0).count() as f64 / off.len() as f64);
            println!("{name} to {side}: {worst} of 255 at most, {:.1} % of colours differ", many * 100.0);
            assert!(*worst <= 2 && many < 0.05, "{name} to {side}: a colour is off by {worst}, and {many} of them are off");
        }
    }
}
