use std::{collections::HashMap, fs};

use super::*;

const CPU: &Device = &Device::Cpu;

fn from_file(path: &Path, dtype: DType, device: &Device) -> Result<VarBuilder<'static>> {
    let files = TensorFiles::open(&[path.to_owned()]).map_err(|(_, error)| error)?;
    Ok(files.reader(dtype, device, Arc::new(|name| name.to_owned().into())))
}

fn from_slice(bytes: &'static [u8], dtype: DType, device: &Device) -> Result<VarBuilder<'static>> {
    Ok(TensorFiles::from_slice(bytes)?.reader(dtype, device, Arc::new(|name| name.to_owned().into())))
}

/// Numbers in three types, and one tensor without any.
fn tensors() -> HashMap<String, Tensor> {
    let numbers = (Tensor::arange(0f32, 24., CPU).unwrap() * 0.37).unwrap().sin().unwrap().reshape((2, 3, 4)).unwrap();
    let typed = [DType::F32, DType::F16, DType::BF16].map(|dtype| (dtype.as_str().to_owned(), numbers.to_dtype(dtype).unwrap()));
    let none = ("none".to_owned(), Tensor::zeros((0, 5), DType::F32, CPU).unwrap());
    typed.into_iter().chain([none]).collect()
}

fn file() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    candle_core::safetensors::save(&tensors(), file.path()).unwrap();
    file
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn tensors_come_in_the_type_asked_for_from_a_file_and_from_memory() {
    let file = file();
    // One byte off, where no number lies as its type would have it.
    let bytes = [vec![0], fs::read(file.path()).unwrap()].concat().leak();
    for dtype in [DType::F32, DType::F16] {
        for vb in [from_file(file.path(), dtype, CPU).unwrap(), from_slice(&bytes[1..], dtype, CPU).unwrap()] {
            for (name, right) in tensors() {
                let tensor = vb.get(right.shape(), &name).unwrap();
                assert_eq!(tensor.dtype(), dtype);
                assert_eq!(numbers(&tensor), numbers(&right.to_dtype(dtype).unwrap()), "{name} as {dtype:?}");
            }
            assert!(vb.contains_tensor("bf16") && !vb.contains_tensor("f64"));
        }
    }
}

/// Threads share the work on a large tensor. Every part of it is read, from its place, and looked at.
#[test]
fn large_tensors_are_read_in_parts() {
    let count = 3 * stored::PART - 7;
    let right = (Tensor::arange(0f32, count as f32, CPU).unwrap() * 0.37).unwrap().sin().unwrap();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let right = right.to_dtype(dtype).unwrap();
        let mut bytes = safetensors::serialize([("a", &right)], None).unwrap();
        let read = |bytes: &[u8]| from_slice(bytes.to_vec().leak(), DType::F32, CPU).unwrap().get(count, "a");
        assert_eq!(numbers(&read(&bytes).unwrap()), numbers(&right), "{dtype:?}");
        // The last number of the last part but one.
        let (size, place) = (dtype.size_in_bytes(), 2 * stored::PART - 1);
        let start = bytes.len() - count * size + place * size;
        bytes[start..start + size].fill(0xff);
        let error = read(&bytes).unwrap_err().to_string();
        assert!(
            error.contains(&format!("a has a value that is not a number (NaN) or is infinite, at place {place} of {count}")),
            "{error}"
        );
    }
}

/// A request reads the alphas of an adapter while the threads draw another's picture.
#[test]
fn small_tensors_do_not_wait_for_threads() {
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().unwrap();
    let waiting = Arc::clone(&gate);
    rayon::spawn_broadcast(move |_| drop(waiting.lock()));
    let (sender, read) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let bytes = safetensors::serialize([("a", &Tensor::ones(5, DType::F16, CPU).unwrap())], None).unwrap();
        sender.send(TensorFiles::from_slice(bytes.leak()).unwrap().tensor("a").is_ok())
    });
    let is_read = read.recv_timeout(std::time::Duration::from_secs(20));
    drop(closed);
    assert_eq!(is_read, Ok(true));
}

/// Whole numbers and factors such as `pack.py` writes them.
fn quantized() -> Vec<u8> {
    let numbers: Vec<u8> = [-128i8, -127, -1, 0, 1, 127].map(|n| n as u8).to_vec();
    let view = |dtype, shape: &[usize], bytes| safetensors::tensor::TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
    let scales: Vec<u8> = [0.000_976_562_5f32, 1.5, 7.0].iter().flat_map(|scale| scale.to_le_bytes()).collect();
    let few = &scales[..8];
    let tensors = [
        ("a.weight", view(Dtype::I8, &[3, 2, 1], &numbers)),
        ("a.weight_scale", view(Dtype::F32, &[3, 1], &scales)),
        ("b.weight", view(Dtype::I8, &[6], &numbers)),
        ("b.weight_scale", view(Dtype::F32, &[2], few)),
        ("c.weight", view(Dtype::I8, &[6], &numbers)),
        ("none", view(Dtype::I8, &[0, 2], &[])),
        ("none_scale", view(Dtype::F32, &[0], &[])),
        ("plain_scale", view(Dtype::F32, &[2], few)),
    ];
    safetensors::serialize(tensors, Some(HashMap::from([("format".to_owned(), "pt".to_owned())]))).unwrap()
}

#[test]
fn whole_numbers_are_multiplied_with_the_factors_beside_them() {
    let vb = from_slice(quantized().leak(), DType::F32, CPU).unwrap();
    let right = [-0.125, -127.0 / 1024.0, -1.5, 0.0, 7.0, 889.0];
    assert_eq!(numbers(&vb.get((3, 2, 1), "a.weight").unwrap()), right);
    assert_eq!(vb.get((0, 2), "none").unwrap().elem_count(), 0);
    let error = vb.get(6, "b.weight").unwrap_err().to_string();
    assert!(error.contains("b.weight_scale has 2 factors for the 6 outputs of b.weight"), "{error}");
    let error = vb.get(6, "c.weight").unwrap_err().to_string();
    assert!(error.contains("cannot find tensor c.weight_scale"), "{error}");
}

/// 8-bit floats of both kinds, as `ComfyUI` scales them: before and now, for all of a tensor or for each output, or not at all.
#[test]
fn floats_of_8_bits_are_multiplied_with_the_factors_beside_them() {
    let factors = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    // 1, -2, 0.5 and the largest number, in torch's float8_e4m3fn and float8_e5m2.
    for (dtype, bytes, largest) in [(Dtype::F8_E4M3, [0x38, 0xc0, 0x30, 0x7e], 448.0), (Dtype::F8_E5M2, [0x3c, 0xc0, 0x38, 0x7b], 57344.0)]
    {
        let view = |dtype, shape: &[usize], bytes| safetensors::tensor::TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
        let (one, two) = (factors(&[0.25]), factors(&[2.0, 3.0]));
        let tensors = [
            ("before.weight", view(dtype, &[2, 2], &bytes)),
            ("before.scale_weight", view(Dtype::F32, &[1], &one)),
            ("now.weight", view(dtype, &[2, 2], &bytes)),
            ("now.weight_scale", view(Dtype::F32, &[2, 1], &two)),
            ("plain.weight", view(dtype, &[2, 2], &bytes)),
        ];
        let vb = from_slice(safetensors::serialize(tensors, None).unwrap().leak(), DType::F32, CPU).unwrap();
        let names = ["before", "now", "plain"];
        for (name, [a, b]) in names.into_iter().zip([[0.25, 0.25], [2.0, 3.0], [1.0, 1.0f32]]) {
            let right = [a, -2.0 * a, 0.5 * b, largest * b];
            assert_eq!(self::numbers(&vb.get((2, 2), &format!("{name}.weight")).unwrap()), right, "{name} as {dtype:?}");
        }
    }
}

/// Weights in every type that safetensors knows: those that are none of weights are named, and so are numbers that are not finite.
#[test]
fn what_is_stored_is_finite_numbers_of_a_type_of_weights() {
    let load = |dtype: Dtype, bytes: &[u8]| {
        let view = safetensors::tensor::TensorView::new(dtype, vec![bytes.len() * 8 / dtype.bitsize()], bytes).unwrap();
        let file = safetensors::serialize([("a.weight", view)], None).unwrap();
        let vb = from_slice(file.leak(), DType::F32, CPU).unwrap();
        vb.get(bytes.len() * 8 / dtype.bitsize(), "a.weight").map(|tensor| numbers(&tensor)).map_err(|error| error.to_string())
    };
    let of_weights = [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F8_E4M3, Dtype::F8_E5M2];
    for dtype in [Dtype::BOOL, Dtype::U8, Dtype::I16, Dtype::U16, Dtype::I32, Dtype::U32, Dtype::I64, Dtype::U64] {
        let error = load(dtype, &[0; 16]).unwrap_err();
        assert!(error.contains(&format!("a.weight is stored as {dtype:?}, which is no type of weights")), "{error}");
    }
    for dtype in of_weights {
        assert!(load(dtype, &[0; 16]).unwrap().iter().all(|number| *number == 0.0), "{dtype:?}");
        // Zeros, and last a number of nothing but ones.
        let mut bytes = [0; 16];
        bytes[16 - dtype.bitsize() / 8..].fill(0xff);
        let error = load(dtype, &bytes).unwrap_err();
        let place = 16 * 8 / dtype.bitsize() - 1;
        assert!(error.contains(&format!("a.weight has a value that is not a number (NaN) or is infinite, at place {place} of")), "{error}");
    }
    for (dtype, infinite) in [(Dtype::F16, 0x7c00u16), (Dtype::F16, 0xfc00), (Dtype::BF16, 0x7f80), (Dtype::BF16, 0xff80)] {
        load(dtype, &infinite.to_le_bytes()).unwrap_err();
        load(dtype, &(infinite - 1).to_le_bytes()).unwrap();
    }
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    let file = file();
    let vb = from_file(file.path(), DType::F32, CPU).unwrap();
    let error = vb.pp("a").get(1, "b").unwrap_err().to_string();
    assert!(error.contains("cannot find tensor a.b"), "{error}");
    let error = vb.get((4, 3, 2), "f32").unwrap_err().to_string();
    assert!(error.contains("shape mismatch for f32") && error.contains("[2, 3, 4]"), "{error}");
}

#[test]
fn what_is_no_whole_file_is_refused() {
    let whole = fs::read(file().path()).unwrap();
    let open = |bytes: Vec<u8>| from_slice(bytes.leak(), DType::F32, CPU).map(drop);
    open(whole.clone()).unwrap();
    for cut in (0..whole.len()).step_by(7) {
        open(whole[..cut].to_vec()).unwrap_err();
    }
    open([whole.clone(), vec![0]].concat()).unwrap_err();
    for length in [u64::MAX, u64::MAX - 7, 1 << 62, MAX_HEADER_BYTES, whole.len() as u64] {
        open([length.to_le_bytes().to_vec(), whole[8..].to_vec()].concat()).unwrap_err();
    }
    let header = |json: &str| [(json.len() as u64).to_le_bytes().to_vec(), json.as_bytes().to_vec(), vec![0; 8]].concat();
    let tensor = |shape: &str, begin: u64, end: u64| format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}"#);
    open(header(&format!(r#"{{"a":{},"b":{}}}"#, tensor("[1]", 0, 4), tensor("[1]", 4, 8)))).unwrap();
    for (a, b) in [
        (tensor("[1]", 0, 4), tensor("[2]", 0, 8)),
        (tensor("[1]", 0, 4), tensor("[1]", 4, 12)),
        (tensor("[3]", 0, 4), tensor("[1]", 4, 8)),
        (tensor("[4611686018427387905]", 0, 4), tensor("[1]", 4, 8)),
        (tensor("[1]", 4, 0), tensor("[1]", 4, 8)),
    ] {
        open(header(&format!(r#"{{"a":{a},"b":{b}}}"#))).unwrap_err();
    }
}

#[test]
fn a_file_that_is_cut_while_it_is_read_is_an_error() {
    let file = file();
    let vb = from_file(file.path(), DType::F32, CPU).unwrap();
    vb.get((2, 3, 4), "bf16").unwrap();
    fs::write(file.path(), &fs::read(file.path()).unwrap()[..100]).unwrap();
    let error = ["f32", "f16", "bf16"].iter().find_map(|name| vb.get((2, 3, 4), name).err()).unwrap().to_string();
    assert!(error.contains("cannot be read"), "{error}");
}

#[test]
fn tensors_of_another_layout_are_found_in_their_places() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let rows = Tensor::arange(0f32, 24., CPU).unwrap().reshape((6, 4)).unwrap();
    let all = [("fused", rows.clone()), ("turned", rows.t().unwrap().contiguous().unwrap()), ("conv", rows.reshape((6, 4, 1, 1)).unwrap())];
    candle_core::safetensors::save(&all.map(|(name, tensor)| (name.to_owned(), tensor)).into_iter().collect(), file.path()).unwrap();
    let files = TensorFiles::open(&[file.path().to_owned()]).unwrap();
    let locate = |name: &str| match name.split_once('.') {
        Some(("third", i)) => StoredTensor { name: "fused".to_owned(), third: i.parse().ok(), is_transposed: false },
        _ => StoredTensor { name: name.to_owned(), third: None, is_transposed: name == "turned" },
    };
    let vb = files.reader(DType::F32, CPU, Arc::new(locate));
    for i in 0..3 {
        let third = vb.get((2, 4), &format!("third.{i}")).unwrap();
        assert_eq!(numbers(&third), numbers(&rows.narrow(0, 2 * i, 2).unwrap()));
    }
    assert_eq!(files.unread(), ["conv", "turned"]);
    assert_eq!(numbers(&vb.get((6, 4), "turned").unwrap()), numbers(&rows));
    assert_eq!(vb.get((6, 4), "conv").unwrap().dims(), [6, 4]);
    assert!(files.unread().is_empty());
    let error = vb.get((3, 4), "third.0").unwrap_err().to_string();
    assert!(error.contains("shape mismatch for fused") && error.contains("[9, 4]"), "{error}");
}

/// So it is not in memory while the network is built.
#[cfg(target_os = "linux")]
#[test]
fn a_file_is_not_mapped() {
    let file = file();
    let vb = from_file(file.path(), DType::F32, CPU).unwrap();
    let tensor = vb.get((2, 3, 4), "f32").unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!maps.contains(file.path().to_str().unwrap()));
    drop((vb, tensor));
}
