//! Files of random names, shapes and bytes: none makes the reader panic, or merge what does not fit.

use std::fs;

use candle_core::Tensor;
use proptest::prelude::*;

use super::{golden, open_with, tensor};
use crate::backend::adapters::{AdaptedNetwork, AdapterFile, Layer};

const PREFIXES: [&str; 8] = ["", "lora_unet_", "lora_te_", "unet.", "base_model.model.", "text_encoder_2.", "lycoris_", "diffusion_model."];
const LAYERS: [&str; 6] = ["a", "out.2", "conv_out", "mid_block.attentions.0.proj_in", "attn1.processor.to_out", "é.ü"];
const ENDINGS: [&str; 26] = [
    ".lora_down.weight",
    ".lora_up.weight",
    ".lora_mid.weight",
    ".lora_A.weight",
    ".lora_B.weight",
    ".lora_B.bias",
    "_lora.down.weight",
    "_lora.up.weight",
    ".hada_w1_a",
    ".hada_w1_b",
    ".hada_w2_a",
    ".hada_w2_b",
    ".hada_t1",
    ".hada_t2",
    ".lokr_w1",
    ".lokr_w1_a",
    ".lokr_w1_b",
    ".lokr_w2",
    ".lokr_w2_a",
    ".lokr_w2_b",
    ".lokr_t2",
    ".diff",
    ".diff_b",
    ".w_norm",
    ".alpha",
    ".dora_scale",
];
/// Groups of endings that make a module, so that many files are whole.
const WHOLE: [&[usize]; 9] =
    [&[0, 1], &[0, 1, 2], &[3, 4, 24], &[3, 4, 5, 25], &[8, 9, 10, 11], &[8, 9, 10, 11, 12, 13], &[14, 17], &[14, 18, 19], &[21, 22]];

fn shape() -> impl Strategy<Value = Vec<usize>> {
    // Mostly sides of one length: other shapes seldom go together.
    let side = prop_oneof![40 => Just(2usize), 1 => 0usize..4];
    prop_oneof![20 => prop::collection::vec(side.clone(), 2), 1 => prop::collection::vec(side, 0..5)]
}

fn layer_tensors() -> impl Strategy<Value = Vec<(String, Vec<usize>)>> {
    let endings = prop_oneof![
        4 => prop::sample::select(WHOLE.to_vec()).prop_map(<[usize]>::to_vec),
        1 => prop::collection::vec(0..ENDINGS.len(), 1..4),
    ];
    (prop::sample::select(PREFIXES.to_vec()), prop::sample::select(LAYERS.to_vec()), endings).prop_flat_map(|(prefix, layer, endings)| {
        let names: Vec<String> = endings.iter().map(|i| format!("{prefix}{layer}{}", ENDINGS[*i])).collect();
        let count = names.len();
        prop::collection::vec(shape(), count).prop_map(move |shapes| names.clone().into_iter().zip(shapes).collect())
    })
}

/// Opens a file, fits it to layers, and merges what fits.
fn use_all(file: &AdapterFile) -> Result<(), TestCaseError> {
    let shapes: [&[usize]; 4] = [&[2, 2], &[2, 2, 1, 1], &[2], &[4, 4]];
    for shape in shapes {
        let layers: Vec<Layer<'_>> = LAYERS.iter().map(|name| Layer { network: AdaptedNetwork::Denoiser, name, shape }).collect();
        let fit = file.fit(&layers);
        for (_, module) in fit.modules {
            let base = tensor(shape, 3);
            if let Ok(weight) = module.weight(&base, 0.5) {
                prop_assert_eq!(weight.dims(), shape);
            }
            let _ = (module.bias(Some(&tensor(&[2], 1)), 0.5), module.bias(None, 2.0), module.low_rank());
        }
    }
    for module in file.modules() {
        if let Some(shape) = module.shape() {
            let zeros = Tensor::zeros(shape, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
            if let Ok(weight) = module.weight(&zeros, -1.0) {
                prop_assert_eq!(weight.dims(), shape);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn names_and_shapes_never_panic(
        groups in prop::collection::vec(layer_tensors(), 1..4),
        other in "\\PC{0,12}",
        metadata in "\\PC{0,60}",
    ) {
        let mut tensors: Vec<(String, Vec<usize>)> = groups.concat();
        tensors.push((other, vec![1]));
        tensors.sort();
        tensors.dedup_by(|a, b| a.0 == b.0);
        let tensors: Vec<(&str, &[usize])> = tensors.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
        let metadata = ["lora_adapter_metadata", "ss_tag_frequency", "sshs_model_hash", "ss_base_model_version"].map(|key| (key, metadata.as_str()));
        if let Ok(file) = open_with(&tensors, &metadata) {
            use_all(&file)?;
        }
    }

    #[test]
    fn changed_bytes_never_panic(place in 0usize..3000, byte: u8, case in prop::sample::select(vec!["lora-tucker", "lokr-dora", "diffusers"])) {
        let mut bytes = fs::read(golden(case)).unwrap();
        let place = place % bytes.len();
        bytes[place] = byte;
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        if let Ok(file) = AdapterFile::open(file.path()) {
            use_all(&file)?;
        }
    }
}
