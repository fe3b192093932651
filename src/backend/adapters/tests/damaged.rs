//! Damaged files, and tensors that do not go together.

use std::fs;

use candle_core::{Device, Tensor};
use safetensors::{Dtype, tensor::TensorView};

use super::{error_of, open, write};
use crate::{
    backend::adapters::{AdapterError, AdapterFile},
    common::error_chain,
};

/// Tensors of a module, and what is wrong with them.
type Case<'a> = (&'a [(&'a str, &'a [usize])], &'a str);

const MISMATCHES: [Case<'_>; 26] = [
    (
        &[("a.lora_A.weight", &[2, 4]), ("a.lora_B.weight", &[6, 2]), ("a.dora_scale", &[6, 1]), ("a.lora_magnitude_vector", &[6])],
        "a.lora_magnitude_vector is another spelling of a.dora_scale; a file should have one of them",
    ),
    (
        &[("a.lora_down.weight", &[1, 20000]), ("a.lora_mid.weight", &[20000, 1]), ("a.lora_up.weight", &[1, 20000])],
        "a.lora_mid.weight would make a matrix of [20000, 20000] numbers; at most 268435456 are supported",
    ),
    (&[("a.lora_down.weight", &[2, 4])], "a has a.lora_down.weight, and no lora_up.weight"),
    (&[("a.lora_up.weight", &[2, 4])], "a has a.lora_up.weight, and no lora_down.weight"),
    (
        &[("a.lora_down.weight", &[2, 4]), ("a.lora_up.weight", &[6, 3])],
        "a.lora_up.weight has a rank of 3, and a.lora_down.weight one of 2",
    ),
    (&[("a.lora_down.weight", &[0, 4]), ("a.lora_up.weight", &[6, 0])], "a.lora_down.weight is empty: its shape is [0, 4]"),
    (&[("a.lora_down.weight", &[4]), ("a.lora_up.weight", &[6, 4])], "a.lora_down.weight is of the shape [4], and should be a matrix"),
    (&[("a.lora_down.weight", &[2, 4]), ("a.lora_up.weight", &[])], "a.lora_up.weight is of the shape [], and should be a matrix"),
    (
        &[("a.lora_down.weight", &[2, 4, 3, 3]), ("a.lora_up.weight", &[6, 2, 3, 3])],
        "a.lora_up.weight is of the shape [6, 2, 3, 3], and should be a matrix",
    ),
    (
        &[("a.lora_down.weight", &[2, 4, 1, 1]), ("a.lora_mid.weight", &[2, 3, 3, 3]), ("a.lora_up.weight", &[6, 2, 1, 1])],
        "a.lora_mid.weight has a rank of 3, and a.lora_down.weight one of 2",
    ),
    (
        &[("a.lora_down.weight", &[2, 4]), ("a.lora_up.weight", &[6, 2]), ("a.lokr_w1", &[2, 2])],
        "a.lokr_w1 is of another kind than a.lora_up.weight, and a layer can have but one",
    ),
    (
        &[("a.lora_down.weight", &[2, 4]), ("a.lora_A.weight", &[2, 4]), ("a.lora_up.weight", &[6, 2])],
        "a.lora_down.weight is another spelling of a.lora_A.weight; a file should have one of them",
    ),
    (
        &[("a.hada_w1_a", &[6, 2]), ("a.hada_w1_b", &[2, 4]), ("a.hada_w2_a", &[6, 2])],
        "a has a.hada_w1_a, a.hada_w1_b, a.hada_w2_a, and no hada_w2_b",
    ),
    (
        &[("a.hada_w1_a", &[6, 2]), ("a.hada_w1_b", &[2, 4]), ("a.hada_w2_a", &[6, 2]), ("a.hada_w2_b", &[2, 5])],
        "a.hada_w2_a makes a factor of the shape [6, 5], and hada_w1 one of [6, 4]",
    ),
    (
        &[("a.hada_w1_a", &[6, 2]), ("a.hada_w1_b", &[2, 4]), ("a.hada_w2_a", &[6, 2]), ("a.hada_w2_b", &[3, 4])],
        "a.hada_w2_a has a rank of 2, and a.hada_w2_b one of 3",
    ),
    (
        &[
            ("a.hada_w1_a", &[3, 6]),
            ("a.hada_w1_b", &[2, 4]),
            ("a.hada_t1", &[2, 2, 3, 3]),
            ("a.hada_w2_a", &[2, 6]),
            ("a.hada_w2_b", &[2, 4]),
        ],
        "a.hada_w1_a has a rank of 3, and a.hada_t1 one of 2",
    ),
    (&[("a.lokr_w1", &[2, 2])], "a has a.lokr_w1, and no lokr_w2_a"),
    (&[("a.lokr_w2", &[2, 2]), ("a.lokr_w1_a", &[2, 2])], "a has a.lokr_w1_a, a.lokr_w2, and no lokr_w1_b"),
    (
        &[("a.lokr_w1", &[2, 2]), ("a.lokr_w2", &[3, 2]), ("a.lokr_w2_a", &[3, 2])],
        "a.lokr_w2_a is a factor of a.lokr_w2, which is stored whole",
    ),
    (&[("a.lokr_w1", &[2, 2, 3, 3]), ("a.lokr_w2", &[3, 2])], "a has a first factor of the shape [2, 2, 3, 3], and it should be a matrix"),
    (
        &[("a.lokr_w1", &[20000, 1]), ("a.lokr_w2", &[20000, 1])],
        "a would change a weight of the shape [400000000, 1]; at most 268435456 weights are supported",
    ),
    (&[("a.diff", &[0, 4])], "a.diff is empty: its shape is [0, 4]"),
    (&[("a.diff", &[6, 4]), ("a.diff_b", &[4])], "a.diff_b is of the shape [4], and should be 6 numbers"),
    (&[("a.diff_b", &[6, 1])], "a.diff_b is of the shape [6, 1], and should be one number for each output"),
    (&[("a.diff", &[6, 4]), ("a.dora_scale", &[6, 1])], "a.dora_scale goes with factors of low rank, and this layer has none"),
    (
        &[("a.lora_down.weight", &[2, 4]), ("a.lora_up.weight", &[6, 2]), ("a.alpha", &[2])],
        "values that cannot be used: a.alpha is of the shape [2], and should be one number",
    ),
];

#[test]
fn tensors_that_do_not_go_together_are_named() {
    for (tensors, problem) in MISMATCHES {
        let error = error_of(tensors);
        assert!(error.ends_with(problem), "{error}\n{problem}");
    }
}

#[test]
fn a_file_without_adapters_says_what_is_in_it() {
    let error = error_of(&[("model.diffusion_model.out.2.weight", &[4, 4]), ("emb_params", &[1, 4])]);
    assert!(error.contains("among its 2 tensors (emb_params, model.diffusion_model.out.2.weight)"), "{error}");
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), [&2u64.to_le_bytes()[..], b"{}"].concat()).unwrap();
    let error = AdapterFile::open(file.path()).unwrap_err().to_string();
    assert!(error.contains("no adapter of a known kind") && error.contains("among its 0 tensors"), "{error}");
}

/// A file with tensors of these values.
fn with_values(tensors: &[(&str, &[usize], f32)]) -> Result<AdapterFile, AdapterError> {
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|(_, shape, value)| value.to_le_bytes().repeat(shape.iter().product())).collect();
    let views =
        tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap()));
    let file = tempfile::NamedTempFile::new().unwrap();
    safetensors::serialize_to_file(views, None, file.path()).unwrap();
    AdapterFile::open(file.path())
}

#[test]
fn values_that_are_not_finite_are_named() {
    let base = Tensor::zeros((6, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let error =
            with_values(&[("a.lora_A.weight", &[2, 4], 1.0), ("a.lora_B.weight", &[6, 2], 1.0), ("a.alpha", &[], value)]).unwrap_err();
        assert!(error_chain(&error).contains("a.alpha has a value that is not a number (NaN) or is infinite"), "{error:?}");
        let file =
            with_values(&[("a.lora_A.weight", &[2, 4], 1.0), ("a.lora_B.weight", &[6, 2], value), ("a.dora_scale", &[6, 1], 1.0)]).unwrap();
        let error = file.modules()[0].weight(&base, 1.0).unwrap_err();
        assert!(
            error_chain(&error).contains("a.lora_B.weight has a value that is not a number (NaN) or is infinite, at place 0 of 12"),
            "{error:?}"
        );
        let file = with_values(&[("a.diff", &[6, 4], 1.0), ("a.diff_b", &[6], value)]).unwrap();
        file.modules()[0].weight(&base, 1.0).unwrap();
        assert!(error_chain(&file.modules()[0].bias(None, 1.0).unwrap_err()).contains("a.diff_b has a value"));
        for strength in [f64::from(value), 1e300] {
            let error = file.modules()[0].weight(&base, strength).unwrap_err().to_string();
            assert!(error.contains(&format!("a strength of {strength} is no number")), "{error}");
        }
    }
}

#[test]
fn what_is_no_whole_file_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("style.safetensors");
    write(&path, &[("a.lora_A.weight", &[2, 4]), ("a.lora_B.weight", &[6, 2])], &[("ss_output_name", "style")]);
    let whole = fs::read(&path).unwrap();
    AdapterFile::open(&path).unwrap();
    let refuse = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let error = error_chain(&AdapterFile::open(&path).unwrap_err());
        assert!(error.contains("style.safetensors is no whole safetensors file; get it again: "), "{error}");
    };
    for cut in (0..whole.len()).step_by(5) {
        refuse(&whole[..cut]);
    }
    refuse(&[&whole[..], &[0]].concat());
    for length in [u64::MAX, 1 << 62, 99_000_000, whole.len() as u64] {
        refuse(&[&length.to_le_bytes()[..], &whole[8..]].concat());
    }
    let header = |json: &str| [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &[0; 8]].concat();
    let tensor = |shape: &str, begin: u64, end: u64| format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}"#);
    for (a, b) in [
        (tensor("[1]", 0, 4), tensor("[2]", 0, 8)),
        (tensor("[3]", 0, 4), tensor("[1]", 4, 8)),
        (tensor("[4611686018427387905]", 0, 4), tensor("[1]", 4, 8)),
        (tensor("[1]", 4, 0), tensor("[1]", 4, 8)),
    ] {
        refuse(&header(&format!(r#"{{"a.diff":{a},"b.diff":{b}}}"#)));
    }
    fs::remove_file(&path).unwrap();
    let error = error_chain(&AdapterFile::open(&path).unwrap_err());
    assert!(error.contains("style.safetensors cannot be read: No such file"), "{error}");
    let error = error_chain(&AdapterFile::open(folder.path()).unwrap_err());
    assert!(error.contains("it is a directory"), "{error}");
}

#[test]
fn a_file_that_is_cut_while_it_is_used_is_an_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    write(file.path(), &[("a.lora_A.weight", &[2, 4]), ("a.lora_B.weight", &[6, 2])], &[]);
    let adapter = AdapterFile::open(file.path()).unwrap();
    fs::write(file.path(), &fs::read(file.path()).unwrap()[..100]).unwrap();
    let error = error_chain(&adapter.modules()[0].low_rank().unwrap_err());
    assert!(error.contains("cannot be read"), "{error}");
}

#[test]
fn the_shape_of_a_huge_empty_tensor_is_never_multiplied() {
    let huge = r#"{"a.diff":{"dtype":"F32","shape":[0,4611686018427387904,4611686018427387904],"data_offsets":[0,0]}}"#;
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), [&(huge.len() as u64).to_le_bytes()[..], huge.as_bytes()].concat()).unwrap();
    let error = error_chain(&AdapterFile::open(file.path()).unwrap_err());
    assert!(error.contains("a.diff is empty"), "{error}");
    open(&[("a.diff", &[2, 2])]).unwrap();
}
