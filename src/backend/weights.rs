//! Weights read from a safetensors file one tensor at a time, as the networks are built: at no time is more of the file in memory
//! than the tensor at hand.

use std::{fs::File, io, os::unix::fs::FileExt, path::PathBuf};

use candle_core::{DType, Device, Error, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use safetensors::{
    SafeTensorError,
    tensor::{Metadata, TensorInfo},
};

use crate::ops::zeroed;

/// Bytes before the header, which say how long it is.
const LENGTH_BYTES: usize = 8;
/// No header is longer, as in the safetensors crate.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// A [safetensors](https://github.com/huggingface/safetensors) file whose header has been read and checked.
struct Weights {
    source: Source,
    header: Metadata,
    /// Where the tensors begin.
    start: u64,
}

enum Source {
    /// Read and not mapped: what is mapped counts as memory of this process until the network is built, and a file that is cut short
    /// meanwhile would end the process, where now it is an error.
    File(File),
    Slice(&'static [u8]),
}

impl Source {
    /// Fills `bytes` from `start` on.
    fn read_at(&self, start: u64, bytes: &mut [u8]) -> io::Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(bytes, start),
            Self::Slice(all) => {
                let rest = usize::try_from(start).ok().and_then(|start| all.get(start..));
                let part = rest.and_then(|rest| rest.get(..bytes.len())).ok_or(io::ErrorKind::UnexpectedEof)?;
                bytes.copy_from_slice(part);
                Ok(())
            }
        }
    }
}

/// The tensors of the files that a network is spread over, each in one of them.
struct Shards(Vec<Weights>);

/// The tensors of files, each in one of them.
///
/// # Errors
/// Names the file that cannot be read, or is no whole safetensors file.
pub(super) fn from_files(paths: &[PathBuf], dtype: DType, device: &Device) -> std::result::Result<VarBuilder<'static>, (PathBuf, Error)> {
    let open = |path: &PathBuf| -> Result<Weights> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Weights::new(Source::File(file), length)
    };
    let shards = paths.iter().map(|path| open(path).map_err(|error| (path.clone(), error))).collect::<std::result::Result<_, _>>()?;
    Ok(VarBuilder::from_backend(Box::new(Shards(shards)), dtype, device.clone()))
}

/// The tensors of a file in memory.
///
/// # Errors
/// When it is no whole safetensors file.
pub(super) fn from_slice(bytes: &'static [u8], dtype: DType, device: &Device) -> Result<VarBuilder<'static>> {
    let weights = Weights::new(Source::Slice(bytes), bytes.len() as u64)?;
    Ok(VarBuilder::from_backend(Box::new(Shards(vec![weights])), dtype, device.clone()))
}

impl Weights {
    fn new(source: Source, length: u64) -> Result<Self> {
        let mut header_length = [0; LENGTH_BYTES];
        source.read_at(0, &mut header_length).map_err(|_| SafeTensorError::HeaderTooSmall)?;
        let header_length = u64::from_le_bytes(header_length);
        let start = header_length.saturating_add(LENGTH_BYTES as u64);
        if header_length > MAX_HEADER_BYTES || start > length {
            return Err(SafeTensorError::InvalidHeaderLength.into());
        }
        let mut header = vec![0; header_length as usize];
        source.read_at(LENGTH_BYTES as u64, &mut header)?;
        // Which also checks that the tensors lie side by side, each as long as its shape and type say.
        let header: Metadata = serde_json::from_slice(&header).map_err(SafeTensorError::InvalidHeaderDeserialization)?;
        if start + header.data_len() as u64 != length {
            return Err(SafeTensorError::MetadataIncompleteBuffer.into());
        }
        Ok(Self { source, header, start })
    }

    fn read(&self, name: &str, info: &TensorInfo, dtype: DType, device: &Device) -> Result<Tensor> {
        let unreadable = |error: io::Error| Error::wrap(format!("{name} cannot be read: {error}"));
        let (begin, end) = info.data_offsets;
        let start = self.start + begin as u64;
        let stored = DType::try_from(info.dtype)?;
        let tensor = if stored == DType::F32 {
            // Straight to where they stay: most of a large model comes this way.
            let mut values: Vec<f32> = zeroed((end - begin) / size_of::<f32>())?;
            self.source.read_at(start, bytemuck::cast_slice_mut(&mut values)).map_err(unreadable)?;
            Tensor::from_vec(values, info.shape.as_slice(), &Device::Cpu)?
        } else {
            let mut bytes: Vec<u8> = zeroed(end - begin)?;
            self.source.read_at(start, &mut bytes).map_err(unreadable)?;
            Tensor::from_raw_buffer(&bytes, stored, &info.shape, &Device::Cpu)?
        };
        tensor.to_device(device)?.to_dtype(dtype)
    }
}

impl Shards {
    fn find(&self, name: &str) -> Result<(&Weights, &TensorInfo)> {
        let found = self.0.iter().find_map(|weights| Some((weights, weights.header.info(name)?)));
        found.ok_or_else(|| Error::CannotFindTensor { path: name.to_owned() }.bt())
    }
}

impl SimpleBackend for Shards {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let (weights, info) = self.find(name)?;
        if info.shape != shape.dims() {
            let (msg, got) = (format!("shape mismatch for {name}"), Shape::from(info.shape.as_slice()));
            return Err(Error::UnexpectedShape { msg, expected: shape, got }.bt());
        }
        weights.read(name, info, dtype, device)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let (weights, info) = self.find(name)?;
        weights.read(name, info, dtype, device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.find(name).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, fs, path::Path};

    use super::*;

    const CPU: &Device = &Device::Cpu;

    fn from_file(path: &Path, dtype: DType, device: &Device) -> Result<VarBuilder<'static>> {
        from_files(&[path.to_owned()], dtype, device).map_err(|(_, error)| error)
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
}
