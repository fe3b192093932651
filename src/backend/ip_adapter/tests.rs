use std::fs;

use safetensors::{Dtype, tensor::TensorView};

use super::*;
use crate::common::error_chain;

/// Tensors of a file.
type Tensors = BTreeMap<String, Vec<usize>>;

fn tensors(projection: &[(&str, &[usize])], channels: &[usize]) -> Tensors {
    let projection = projection.iter().map(|(name, shape)| (format!("image_proj.{name}"), shape.to_vec()));
    let layers = channels.iter().enumerate().flat_map(|(i, channels)| {
        ["to_k_ip", "to_v_ip"].map(|part| (format!("ip_adapter.{}.{part}.weight", 2 * i + 1), vec![*channels, 8]))
    });
    projection.chain(layers).collect()
}

fn plain() -> Tensors {
    tensors(&[("proj.weight", &[16, 5]), ("proj.bias", &[16]), ("norm.weight", &[8]), ("norm.bias", &[8])], &[4, 6, 4])
}

fn plus() -> Tensors {
    let layer = [
        ("0.norm1.weight", &[16][..]),
        ("0.norm1.bias", &[16]),
        ("0.norm2.weight", &[16]),
        ("0.norm2.bias", &[16]),
        ("0.to_q.weight", &[64, 16]),
        ("0.to_kv.weight", &[128, 16]),
        ("0.to_out.weight", &[16, 64]),
        ("1.0.weight", &[16]),
        ("1.0.bias", &[16]),
        ("1.1.weight", &[32, 16]),
        ("1.3.weight", &[16, 32]),
    ];
    let rest = [
        ("latents", &[1, 4, 16][..]),
        ("proj_in.weight", &[16, 6]),
        ("proj_in.bias", &[16]),
        ("proj_out.weight", &[8, 16]),
        ("proj_out.bias", &[8]),
        ("norm_out.weight", &[8]),
        ("norm_out.bias", &[8]),
    ];
    let layers = (0..2).flat_map(|i| layer.map(|(name, shape)| (format!("image_proj.layers.{i}.{name}"), shape.to_vec())));
    tensors(&rest, &[4, 6, 4]).into_iter().chain(layers).collect()
}

fn write(path: &Path, tensors: &Tensors, value: f32) {
    let bytes: Vec<Vec<u8>> = tensors.values().map(|shape| value.to_le_bytes().repeat(shape.iter().product())).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape), bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// A file of such tensors, opened. The file is gone afterwards, and still open.
fn open(tensors: &Tensors) -> Result<IpAdapterFile, LoadError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    write(file.path(), tensors, 0.5);
    IpAdapterFile::open(file.path())
}

#[test]
fn both_kinds_are_read() {
    for tensors in [plain(), plus()] {
        let file = open(&tensors).unwrap();
        assert_eq!((file.layers(), file.projection().cross_attention_dim), (3, 8));
        let projection = file.load_projection(DType::F32, &Device::Cpu, WeightType::F32).unwrap();
        assert_eq!(projection.config(), file.projection());
        let weights = file.weights(DType::F32, &Device::Cpu, WeightType::F32);
        let keys = weights.pp("ip_adapter.3").get((6, 8), "to_k_ip.weight").unwrap();
        assert_eq!(keys.to_vec2::<f32>().unwrap(), vec![vec![0.5; 8]; 6]);
    }
}

#[test]
fn every_tensor_is_needed_and_of_one_shape() {
    for all in [plain(), plus()] {
        for (name, shape) in &all {
            let mut less = all.clone();
            less.remove(name);
            let error = error_chain(&open(&less).unwrap_err());
            let is_unknown = error.contains("it has neither image_proj.proj.weight (plain) nor image_proj.latents (Plus)");
            assert!(error.contains(name.as_str()) && (is_unknown || error.contains("missing")), "without {name}: {error}");
            let mut wrong = all.clone();
            wrong.insert(name.clone(), [&shape[..], &[2]].concat());
            let error = error_chain(&open(&wrong).expect_err(name));
            assert!(error.contains(name.trim_end_matches(".weight").trim_end_matches(".bias")), "{name} with one dimension more: {error}");
        }
    }
}

#[test]
fn layers_that_cannot_be_are_named() {
    let changes: [(&str, Option<&[usize]>, &str); 9] = [
        ("ip_adapter.3.to_k_ip.weight", None, "ip_adapter.3.to_k_ip.weight is missing"),
        ("ip_adapter.5.to_v_ip.weight", None, "ip_adapter.5.to_v_ip.weight is missing"),
        ("ip_adapter.9.to_v_ip.weight", Some(&[4, 8]), "ip_adapter.7.to_k_ip.weight is missing, and the file has layers up to 9"),
        ("ip_adapter.18446744073709551615.to_v_ip.weight", Some(&[4, 8]), "ip_adapter.7.to_k_ip.weight is missing"),
        ("ip_adapter.2.to_k_ip.weight", Some(&[4, 8]), "ip_adapter.2.to_k_ip.weight is not supported"),
        ("ip_adapter.0.to_k_lora.down.weight", Some(&[4, 8]), "ip_adapter.0.to_k_lora.down.weight is not supported"),
        ("ip_adapter.1.to_k_ip.weight", Some(&[4, 9]), "is of the shape [4, 9], and image tokens are 8 wide"),
        ("ip_adapter.1.to_k_ip.weight", Some(&[0, 8]), "is of the shape [0, 8], and"),
        ("ip_adapter.1.to_k_ip.weight", Some(&[5, 8]), "ip_adapter.1 makes keys of the width 5 and values of the width 4"),
    ];
    for (name, shape, reason) in changes {
        let mut tensors = plain();
        tensors.remove(name);
        tensors.extend(shape.map(|shape| (name.to_owned(), shape.to_vec())));
        let error = error_chain(&open(&tensors).unwrap_err());
        assert!(error.contains(reason), "{name} {shape:?}: {error}");
    }
    let alone: Tensors = plain().into_iter().filter(|(name, _)| name.starts_with("image_proj")).collect();
    assert!(error_chain(&open(&alone).unwrap_err()).contains("there is a projection alone"));
}

#[test]
fn what_is_no_whole_file_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ip-adapter.safetensors");
    write(&path, &plain(), 0.5);
    let whole = fs::read(&path).unwrap();
    for cut in (0..whole.len()).step_by(101) {
        fs::write(&path, &whole[..cut]).unwrap();
        let error = error_chain(&IpAdapterFile::open(&path).unwrap_err());
        assert!(error.contains("ip-adapter.safetensors is no whole safetensors file"), "{error}");
    }
    fs::remove_file(&path).unwrap();
    let error = error_chain(&IpAdapterFile::open(&path).unwrap_err());
    assert!(error.contains("ip-adapter.safetensors cannot be read: No such file"), "{error}");
    let error = error_chain(&IpAdapterFile::open(folder.path()).unwrap_err());
    assert!(error.contains("it is a directory"), "{error}");
    let error = error_chain(&IpAdapterFile::open(&folder.path().join("ip-adapter_sd15.bin")).unwrap_err());
    assert!(error.contains("ip-adapter_sd15.bin: pickled weights are not read, since reading them runs code"), "{error}");
}

#[test]
fn values_that_are_not_finite_and_a_file_that_is_cut_later_are_errors() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let load = |adapter: &IpAdapterFile| error_chain(&adapter.load_projection(DType::F32, &Device::Cpu, WeightType::F32).unwrap_err());
    write(file.path(), &plain(), f32::NAN);
    let error = load(&IpAdapterFile::open(file.path()).unwrap());
    assert!(error.contains("weights that cannot be used") && error.contains("not a number (NaN)"), "{error}");
    write(file.path(), &plain(), 0.5);
    let adapter = IpAdapterFile::open(file.path()).unwrap();
    fs::write(file.path(), &fs::read(file.path()).unwrap()[..100]).unwrap();
    let error = load(&adapter);
    assert!(error.contains("cannot be read"), "{error}");
}

#[test]
fn layers_are_numbered_on_the_way_down_and_up_and_then_in_the_middle() {
    let names = [
        "mid_block.attentions.0.transformer_blocks.1.attn2",
        "up_blocks.1.attentions.2.transformer_blocks.0.attn2",
        "mid_block.attentions.0.transformer_blocks.0.attn2",
        "down_blocks.1.attentions.0.transformer_blocks.10.attn2",
        "down_blocks.1.attentions.0.transformer_blocks.9.attn2",
        "up_blocks.1.attentions.0.transformer_blocks.0.attn2",
        "down_blocks.2.attentions.0.transformer_blocks.0.attn2",
    ];
    let numbers: Vec<Option<usize>> = names.iter().map(|name| CrossAttentionLayer::number_of(name, names)).collect();
    assert_eq!(numbers, [13, 9, 11, 3, 1, 7, 5].map(Some));
    assert_eq!(CrossAttentionLayer::number_of("down_blocks.0.attentions.0.transformer_blocks.0.attn2", names), None);
}
