//! A LoRA whose numbers follow from its tensors' names, in several forms of file. `tests/parity/make_lora_goldens.py` makes the same.

use std::{collections::HashMap, fs, path::Path};

use candle_core::{DType, Device, Tensor};
use sd_worker::backend::InferencePipeline;

use crate::made_up::made_up;

/// The spellings of one LoRA.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Spelling {
    Kohya,
    Peft,
    /// The differences themselves, for which layers are merged.
    Differences,
}

/// The layers that the LoRA changes: part, name without `text_model.`, and shape of the weight.
fn layers(pipeline: &InferencePipeline) -> Vec<(&'static str, String, Vec<usize>)> {
    let encoders = pipeline.prompt_encoder().encoders().iter().zip(["text_encoder", "text_encoder_2"]);
    let text = encoders.flat_map(|(encoder, part)| {
        let layers = encoder.network().layer_names().with_weights().into_iter().filter(|layer| layer.name.contains(".layers."));
        layers.map(move |layer| (part, layer.name.trim_start_matches("text_model.").to_owned(), layer.shape))
    });
    let denoiser = pipeline.networks().denoiser.layer_names().with_weights().into_iter();
    let all = text.chain(denoiser.map(|layer| ("unet", layer.name, layer.shape))).filter(|(_, _, shape)| shape.len() > 1);
    // Kernels of 1 x 1 are left out of the shape.
    let is_pointwise = |shape: &[usize]| shape[2..].iter().all(|side| *side == 1);
    all.map(|(part, name, shape)| if is_pointwise(&shape) { (part, name, shape[..2].to_vec()) } else { (part, name, shape) }).collect()
}

/// The tensors of the LoRA, and how many layers it changes. `strength` is a factor of all that it does.
pub(crate) fn lora(pipeline: &InferencePipeline, spelling: Spelling, strength: f64) -> (HashMap<String, Tensor>, usize) {
    let is_xl = pipeline.prompt_encoder().encoders().len() > 1;
    let (mut tensors, layers) = (HashMap::new(), layers(pipeline));
    for (part, name, shape) in &layers {
        let key = format!("{part}/{name}");
        let rank = 1 + key.len() % 3;
        let alpha = [None, Some(0.5), Some(0.75), Some(1.0)][key.len() % 4];
        let down = made_up(&format!("{key}.down"), &[&[rank], &shape[1..]].concat());
        let up = (made_up(&format!("{key}.up"), &[shape[0], rank]) * (0.2 * strength)).unwrap();
        let long = if *part == "unet" { name.clone() } else { format!("text_model.{name}") };
        let kohya = match (*part, is_xl) {
            ("unet", _) => "lora_unet",
            ("text_encoder", true) => "lora_te1",
            ("text_encoder", false) => "lora_te",
            _ => "lora_te2",
        };
        let kohya = format!("{kohya}_{}", long.replace('.', "_"));
        let kernel = vec![1; shape.len() - 2];
        let mut put = |name: String, tensor: Tensor| tensors.insert(name, tensor.contiguous().unwrap());
        let scalar = |alpha: f64| Tensor::new(alpha as f32, &Device::Cpu).unwrap();
        match spelling {
            Spelling::Kohya => {
                put(format!("{kohya}.lora_down.weight"), down);
                put(format!("{kohya}.lora_up.weight"), up.reshape([&[shape[0], rank], &*kernel].concat()).unwrap());
                alpha.map(|alpha| put(format!("{kohya}.alpha"), scalar(alpha)));
            }
            Spelling::Peft => {
                put(format!("{part}.{long}.lora_A.weight"), down);
                put(format!("{part}.{long}.lora_B.weight"), up.reshape([&[shape[0], rank], &*kernel].concat()).unwrap());
                alpha.map(|alpha| put(format!("{part}.{long}.alpha"), scalar(alpha)));
            }
            Spelling::Differences => {
                let wide = |x: Tensor| x.to_dtype(DType::F64).unwrap();
                let product = wide(up).matmul(&wide(down).flatten_from(1).unwrap()).unwrap();
                let product = (product * alpha.map_or(1.0, |alpha| alpha / rank as f64)).unwrap();
                put(format!("{kohya}.diff"), product.reshape(&**shape).unwrap().to_dtype(DType::F32).unwrap());
            }
        }
    }
    (tensors, layers.len())
}

pub(crate) fn save(tensors: &HashMap<String, Tensor>, file: &Path) {
    candle_core::safetensors::save(tensors, file).unwrap();
}

/// Adds files that no request can use to a folder with the LoRA `one`.
pub(crate) fn save_what_cannot_be_used(folder: &Path) {
    let file = |name: &str| folder.join(format!("{name}.safetensors"));
    let whole = fs::read(file("one")).unwrap();
    fs::write(file("cut"), &whole[..whole.len() / 2]).unwrap();
    fs::write(file("text"), "no tensors").unwrap();
    fs::write(file("huge"), [&(4u64 << 30).to_le_bytes()[..], b"{}"].concat()).unwrap();
    let header = format!("{{\"__metadata__\":{{\"a\":\"{}\"}}}}", "b".repeat(9 << 20));
    fs::write(file("long"), [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
    let wide = HashMap::from([
        ("lora_unet_conv_in.lora_down.weight".to_owned(), made_up("a", &[2, 9, 3, 3])),
        ("lora_unet_conv_in.lora_up.weight".to_owned(), made_up("b", &[16, 2, 1, 1])),
    ]);
    save(&wide, &file("wide"));
    let strange = HashMap::from([
        ("lora_unet_nowhere.lora_down.weight".to_owned(), made_up("a", &[2, 9])),
        ("lora_unet_nowhere.lora_up.weight".to_owned(), made_up("b", &[16, 2])),
    ]);
    save(&strange, &file("strange"));
    let mut infinite = candle_core::safetensors::load(file("one"), &Device::Cpu).unwrap();
    let name = infinite.keys().find(|name| name.ends_with("lora_up.weight")).unwrap().clone();
    let numbers = (infinite[&name].clone() / 0.0).unwrap();
    infinite.insert(name, numbers);
    save(&infinite, &file("infinite"));
    let mut large = candle_core::safetensors::load(file("one"), &Device::Cpu).unwrap();
    let alpha = large.keys().find(|name| name.ends_with("alpha")).unwrap().clone();
    large.insert(alpha, Tensor::new(3e38f32, &Device::Cpu).unwrap());
    save(&large, &file("large"));
}
