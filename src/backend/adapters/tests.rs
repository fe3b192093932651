//! Adapter files made here, and by the programs that train them.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor};
use safetensors::{Dtype, tensor::TensorView};

use super::{AdapterError, AdapterFile};
use crate::common::error_chain;

mod damaged;
mod families;
mod folders;
mod goldens;
mod infos;
mod random;
mod spellings;
mod types;

/// Small numbers that follow from a tensor's place.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7 + seed * 13) as f32).sin()).collect()
}

/// A file of tensors in f32 with made-up numbers.
fn write(path: &Path, tensors: &[(&str, &[usize])], metadata: &[(&str, &str)]) {
    let bytes = tensors.iter().enumerate().map(|(i, (_, shape))| {
        let numbers = numbers(shape.iter().product(), i);
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>()
    });
    let bytes: Vec<Vec<u8>> = bytes.collect();
    let views =
        tensors.iter().zip(&bytes).map(|((name, shape), bytes)| (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap()));
    let metadata: HashMap<String, String> = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    safetensors::serialize_to_file(views, Some(metadata), path).unwrap();
}

/// Such a file, opened. The file is gone afterwards, and still open.
fn open(tensors: &[(&str, &[usize])]) -> Result<AdapterFile, AdapterError> {
    open_with(tensors, &[])
}

fn open_with(tensors: &[(&str, &[usize])], metadata: &[(&str, &str)]) -> Result<AdapterFile, AdapterError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    write(file.path(), tensors, metadata);
    AdapterFile::open(file.path())
}

/// The error of such a file, with its causes.
fn error_of(tensors: &[(&str, &[usize])]) -> String {
    error_chain(&open(tensors).expect_err(&format!("{tensors:?}")))
}

/// A file of the goldens.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/adapters").join(name).with_extension("safetensors")
}

/// A tensor in f32 of made-up numbers.
fn tensor(shape: &[usize], seed: usize) -> Tensor {
    Tensor::from_vec(numbers(shape.iter().product(), seed), shape, &Device::Cpu).unwrap()
}

/// The values of a tensor in f32.
fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest difference between two tensors of one shape, by the largest number of the second.
fn error(found: &Tensor, right: &Tensor) -> f64 {
    assert_eq!(found.dims(), right.dims());
    let most = |tensor: &Tensor| f64::from(tensor.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap());
    most(&(found - right).unwrap()) / most(right)
}
