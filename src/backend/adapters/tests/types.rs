//! Types of tensors.

use candle_core::{DType, Device, Tensor};
use safetensors::{Dtype, tensor::TensorView};

use crate::backend::adapters::AdapterFile;

/// 0.5 and -2 in each type.
const NUMBERS: [(Dtype, [&[u8]; 2]); 6] = [
    (Dtype::F64, [&[0, 0, 0, 0, 0, 0, 0xe0, 0x3f], &[0, 0, 0, 0, 0, 0, 0, 0xc0]]),
    (Dtype::F32, [&[0, 0, 0, 0x3f], &[0, 0, 0, 0xc0]]),
    (Dtype::F16, [&[0, 0x38], &[0, 0xc0]]),
    (Dtype::BF16, [&[0, 0x3f], &[0, 0xc0]]),
    (Dtype::F8_E4M3, [&[0x30], &[0xc0]]),
    (Dtype::F8_E5M2, [&[0x38], &[0xc0]]),
];

fn weight(tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) -> Vec<f32> {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| (*name, TensorView::new(*dtype, shape.to_vec(), bytes).unwrap()));
    let file = tempfile::NamedTempFile::new().unwrap();
    safetensors::serialize_to_file(views, None, file.path()).unwrap();
    let adapter = AdapterFile::open(file.path()).unwrap();
    assert!(adapter.unknown().is_empty());
    let base = Tensor::ones((2, 2), DType::F32, &Device::Cpu).unwrap();
    adapter.modules()[0].weight(&base, 0.5).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn all_types_of_weights_are_read() {
    for (dtype, [half, minus_two]) in NUMBERS {
        let both = [half, minus_two].concat();
        let found = weight(&[
            ("a.lora_down.weight", dtype, &[1, 2], both.clone()),
            ("a.lora_up.weight", dtype, &[2, 1], both),
            ("a.alpha", dtype, &[], minus_two.to_vec()),
        ]);
        // 1 - 2 * 0.5 * [0.5, -2]ᵀ [0.5, -2]
        assert_eq!(found, [0.75, 2.0, 2.0, -3.0], "{dtype:?}");
    }
}

/// `LyCORIS` writes an alpha without a fraction as a whole number.
#[test]
fn alphas_may_be_whole_numbers() {
    for (dtype, bytes, shape) in [(Dtype::I64, 3i64.to_le_bytes().to_vec(), &[1][..]), (Dtype::I32, 3i32.to_le_bytes().to_vec(), &[])] {
        let one = 1f32.to_le_bytes().repeat(2);
        let found = weight(&[
            ("a.lora_down.weight", Dtype::F32, &[1, 2], one.clone()),
            ("a.lora_up.weight", Dtype::F32, &[2, 1], one),
            ("a.alpha", dtype, shape, bytes),
        ]);
        assert_eq!(found, [2.5; 4]);
    }
}

#[test]
fn tensors_of_8_bits_may_have_factors_beside_them() {
    let found = weight(&[
        ("a.lora_down.weight", Dtype::F8_E4M3, &[1, 2], vec![0x30, 0xc0]),
        ("a.lora_down.weight_scale", Dtype::F32, &[1], 4f32.to_le_bytes().to_vec()),
        ("a.lora_up.weight", Dtype::F8_E4M3, &[2, 1], vec![0x30, 0xc0]),
        ("a.lora_up.scale_weight", Dtype::F32, &[1], 0.5f32.to_le_bytes().to_vec()),
    ]);
    assert_eq!(found, [1.25, 0.0, 0.0, 5.0]);
}
