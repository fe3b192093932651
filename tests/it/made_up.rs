//! Models of every family whose weights follow from their tensors' names. `tests/parity/make_family_goldens.py` makes the same in Python,
//! and writes everything else of them to `tests/parity/families`.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::Read,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use serde_json::json;

use crate::support::copy_folder;

/// Names and shapes of the tensors of each part.
pub(crate) type Shapes = BTreeMap<String, BTreeMap<String, Vec<usize>>>;

/// A model in diffusers' layout, in a temporary folder.
pub(crate) fn model(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&Path::new("tests/parity/families").join(name), folder.path());
    fs::remove_file(folder.path().join("tensors.json")).unwrap();
    for (part, tensors) in tensors(name) {
        let file = if part.starts_with("text_encoder") { "model" } else { "diffusion_pytorch_model" };
        candle_core::safetensors::save(&tensors, folder.path().join(part).join(file).with_extension("safetensors")).unwrap();
    }
    for tokenizer in ["tokenizer", "tokenizer_2"].map(|name| folder.path().join(name)).iter().filter(|path| path.exists()) {
        let (vocab, merges) = vocabulary();
        fs::write(tokenizer.join("vocab.json"), vocab).unwrap();
        fs::write(tokenizer.join("merges.txt"), merges).unwrap();
    }
    folder
}

/// A network of [`network_folder`] in diffusers' layout, in a temporary folder.
pub(crate) fn network(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(network_folder(name).join("config.json"), folder.path().join("config.json")).unwrap();
    candle_core::safetensors::save(&network_tensors(name), folder.path().join("diffusion_pytorch_model.safetensors")).unwrap();
    folder
}

/// An IP-Adapter of `tests/parity/controls`, with its image encoder beside it.
pub(crate) fn ip_adapter(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    candle_core::safetensors::save(&network_tensors(name), folder.path().join("ip-adapter.safetensors")).unwrap();
    let (encoder, beside) = (network("image-encoder"), folder.path().join("image_encoder"));
    copy_folder(encoder.path(), &beside);
    fs::rename(beside.join("diffusion_pytorch_model.safetensors"), beside.join("model.safetensors")).unwrap();
    folder
}

/// Its tensors.
pub(crate) fn network_tensors(name: &str) -> HashMap<String, Tensor> {
    let shapes = fs::read(network_folder(name).join("tensors.json")).unwrap();
    let shapes: BTreeMap<String, Vec<usize>> = serde_json::from_slice(&shapes).unwrap();
    let of_shape = |(tensor, shape): (String, Vec<usize>)| {
        let made_up = made_up(&format!("{name}/{tensor}"), &shape);
        (tensor, made_up)
    };
    shapes.into_iter().map(of_shape).collect()
}

/// The folder of a network that is no whole model.
fn network_folder(name: &str) -> PathBuf {
    Path::new(if name.starts_with("tiny-vae") { "tests/parity/tiny_vaes" } else { "tests/parity/controls" }).join(name)
}

/// The picture `name` of `tests/parity/make_control_goldens.py`.
pub(crate) fn control_picture(name: &str, width: u32, height: u32) -> RgbImage {
    let values = made_up(&format!("control {name}"), &[height as usize, width as usize, 3]);
    let values: Vec<f64> = values.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap();
    let (least, greatest) = values.iter().fold((f64::MAX, f64::MIN), |(least, greatest), v| (least.min(*v), greatest.max(*v)));
    let pixels = values.iter().map(|v| ((v - least) / (greatest - least) * 255.0).round() as u8).collect();
    RgbImage::from_raw(width, height, pixels).unwrap()
}

/// All tensors of a model, by part and name.
pub(crate) fn tensors(name: &str) -> BTreeMap<String, HashMap<String, Tensor>> {
    let shapes = fs::read(Path::new("tests/parity/families").join(name).join("tensors.json")).unwrap();
    let shapes: Shapes = serde_json::from_slice(&shapes).unwrap();
    let part = |(part, shapes): (String, BTreeMap<String, Vec<usize>>)| {
        let tensors = shapes.into_iter().map(|(name, shape)| {
            let tensor = made_up(&format!("{part}/{name}"), &shape);
            (name, tensor)
        });
        (part.clone(), tensors.collect())
    };
    shapes.into_iter().map(part).collect()
}

/// Numbers that follow from a tensor's name: splitmix64, seeded with the name's FNV-1a hash, scaled to a useful range.
pub(crate) fn made_up(name: &str, shape: &[usize]) -> Tensor {
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let count: usize = shape.iter().product();
    let (scale, shift) = match shape {
        [_] => (0.1, if name.ends_with("weight") { 1.0 } else { 0.0 }),
        _ if name.contains("embeddings") => (1.0, 0.0),
        _ => ((3.0 / (count / shape[0]) as f64).sqrt() as f32, 0.0),
    };
    let number = |i: u64| {
        let mut z = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let share = ((z ^ (z >> 31)) >> 40) as f32 / 8_388_608.0 - 1.0;
        share * scale + shift
    };
    Tensor::from_vec((1..=count as u64).map(number).collect(), shape, &Device::Cpu).unwrap()
}

/// CLIP's `vocab.json` and `merges.txt`, from its merges.
fn vocabulary() -> &'static (String, String) {
    static VOCABULARY: OnceLock<(String, String)> = OnceLock::new();
    VOCABULARY.get_or_init(|| {
        let mut merges = String::new();
        let file = fs::File::open("src/backend/model_files/clip_vocabulary/merges.txt.gz").unwrap();
        flate2::read::GzDecoder::new(file).read_to_string(&mut merges).unwrap();
        // Printable bytes stand for themselves and come first; the others become the letters after U+00FF.
        let is_printable = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let printable = (0..256).filter(is_printable);
        let others = (0..256).filter(|byte| !is_printable(byte)).enumerate().map(|(i, _)| 256 + i as u32);
        let letters: Vec<String> = printable.chain(others).map(|letter| char::from_u32(letter).unwrap().to_string()).collect();
        let ends = letters.iter().map(|letter| format!("{letter}</w>"));
        let merged = merges.lines().skip(1).map(|merge| merge.replace(' ', ""));
        let special = ["<|startoftext|>", "<|endoftext|>"].map(str::to_owned);
        let tokens: Vec<String> = letters.iter().cloned().chain(ends).chain(merged).chain(special).collect();
        assert_eq!(tokens.len(), 49_408);
        let vocab: BTreeMap<&String, usize> = tokens.iter().zip(0..).collect();
        (json!(vocab).to_string(), merges)
    })
}
