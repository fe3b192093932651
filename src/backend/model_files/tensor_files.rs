//! Tensors of safetensors files, read one at a time as the networks are built: no more of a file is in memory than one tensor. Tensors of
//! 8 bits may have a tensor of factors beside them.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{DType, Device, Error, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use rayon::prelude::*;
use safetensors::{
    Dtype, SafeTensorError,
    tensor::{Metadata, TensorInfo},
};

use crate::{common::open_regular, ops::zeroed};

mod stored;

/// Bytes before the header, which hold its length.
const LENGTH_BYTES: usize = 8;
/// The longest header, as in the safetensors crate.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// A [safetensors](https://github.com/huggingface/safetensors) file with a valid header.
#[derive(Debug)]
struct TensorFile {
    source: Source,
    header: Metadata,
    /// Where the tensors begin.
    start: u64,
}

#[derive(Debug)]
enum Source {
    /// Read and not mapped: mapped pages count as memory of this process until the network is built, and a file that is truncated meanwhile
    /// would end the process.
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

/// The files of one or several networks. Each tensor is in one of them.
#[derive(Debug)]
pub(in crate::backend) struct TensorFiles {
    files: Vec<TensorFile>,
    /// The names of tensors that were read.
    read: Mutex<BTreeSet<String>>,
}

/// How a network's tensor is stored in files of another layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredTensor {
    /// Its name in the files.
    pub(super) name: String,
    /// Which third of the rows, if three tensors are stored as one.
    pub(super) third: Option<usize>,
    /// Whether rows are stored as columns.
    pub(super) is_transposed: bool,
}

impl From<String> for StoredTensor {
    fn from(name: String) -> Self {
        Self { name, third: None, is_transposed: false }
    }
}

impl StoredTensor {
    /// The stored shape of a tensor that has this shape in the network.
    pub(super) fn shape_of(&self, shape: &Shape) -> Vec<usize> {
        let mut kept = shape.dims().to_vec();
        if self.third.is_some() && !kept.is_empty() {
            kept[0] *= 3;
        }
        if self.is_transposed {
            kept.reverse();
        }
        kept
    }

    /// Whether a stored shape is the expected one. A 1 x 1 convolution is a linear layer: old checkpoints have one where newer ones have the
    /// other.
    pub(super) fn fits(shape: &[usize], expected: &[usize]) -> bool {
        without_kernel(shape) == without_kernel(expected)
    }
}

/// Maps diffusers' name of a tensor to the stored tensor.
pub(super) type Locate = Arc<dyn Fn(&str) -> StoredTensor + Send + Sync>;

impl TensorFiles {
    /// # Errors
    /// Names the file that cannot be read, or is no whole safetensors file.
    pub(in crate::backend) fn open(paths: &[PathBuf]) -> std::result::Result<Arc<Self>, (PathBuf, Error)> {
        let open = |path: &Path| -> Result<TensorFile> {
            let (file, length) = open_regular(path)?;
            TensorFile::new(Source::File(file), length)
        };
        let files = paths.iter().map(|path| open(path).map_err(|error| (path.clone(), error))).collect::<std::result::Result<_, _>>()?;
        Ok(Arc::new(Self { files, read: Mutex::default() }))
    }

    /// The tensors of a file in memory.
    ///
    /// # Errors
    /// When it is no whole safetensors file.
    pub(in crate::backend) fn from_slice(bytes: &'static [u8]) -> Result<Arc<Self>> {
        let file = TensorFile::new(Source::Slice(bytes), bytes.len() as u64)?;
        Ok(Arc::new(Self { files: vec![file], read: Mutex::default() }))
    }

    /// A `VarBuilder` that reads tensors in the type that networks ask for.
    pub(super) fn reader(self: &Arc<Self>, dtype: DType, device: &Device, locate: Locate) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(Reader { files: Arc::clone(self), locate }), dtype, device.clone())
    }

    /// The names of all tensors.
    pub(in crate::backend) fn names(&self) -> impl Iterator<Item = String> {
        self.files.iter().flat_map(|file| file.header.offset_keys())
    }

    /// Number of elements of the largest tensor.
    pub(in crate::backend) fn largest(&self) -> usize {
        let sizes = self.names().filter_map(|name| Some(self.shape(&name)?.iter().product()));
        sizes.max().unwrap_or_default()
    }

    /// The shape of a tensor, if there is one of that name.
    pub(in crate::backend) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.find(name).ok().map(|(_, info)| info.shape.as_slice())
    }

    /// A whole tensor, in f32.
    ///
    /// # Errors
    /// When there is none of that name, or it cannot be read.
    pub(in crate::backend) fn tensor(&self, name: &str) -> Result<Tensor> {
        self.read_f32(name, None)
    }

    /// [`TensorFiles::read`], in f32.
    fn read_f32(&self, name: &str, third: Option<usize>) -> Result<Tensor> {
        let (file, info) = self.find(name)?;
        if let Some(tensor) = file.read_f32(name, info, third)? {
            self.was_read(name);
            return Ok(tensor);
        }
        self.read(name, third)?.to_dtype(DType::F32)
    }

    fn was_read(&self, name: &str) {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
    }

    /// The only number of a tensor, in f64. Whole numbers are read too.
    ///
    /// # Errors
    /// When there is no tensor of that name, or it has another number of values, or its value is not finite.
    pub(in crate::backend) fn scalar(&self, name: &str) -> Result<f64> {
        let (file, info) = self.find(name)?;
        if info.shape.iter().product::<usize>() != 1 {
            return Err(Error::msg(format!("{name} is of the shape {:?}, and should be one number", info.shape)));
        }
        let number = match info.dtype {
            Dtype::I64 => file.numbers::<i64>(name, info.data_offsets)?.first().map(|number| *number as f64),
            Dtype::I32 => file.numbers::<i32>(name, info.data_offsets)?.first().copied().map(f64::from),
            Dtype::F64 => self.read(name, None)?.flatten_all()?.to_vec1()?.first().copied(),
            // candle's way from 8 bits to f64 does not end.
            _ => self.tensor(name)?.flatten_all()?.to_vec1::<f32>()?.first().copied().map(f64::from),
        };
        number.ok_or_else(|| Error::msg(format!("{name} is empty")))
    }

    /// A tensor, or a third of its rows, on the CPU, in its stored type, or in f32 if it has factors.
    fn read(&self, name: &str, third: Option<usize>) -> Result<Tensor> {
        let (file, info) = self.find(name)?;
        let tensor = if let Some(scales) = self.scales_of(name, info.dtype) {
            let whole = self.dequantize(name, &scales, file, info)?;
            third.map_or(Ok(whole.clone()), |third| whole.narrow(0, third * whole.dim(0)? / 3, whole.dim(0)? / 3))?
        } else {
            file.read(name, info, third)?
        };
        self.was_read(name);
        Ok(tensor)
    }

    /// The name of the factors of a tensor, if there are any: `…weight_scale` beside `…weight`, as in
    /// [compressed-tensors](https://github.com/vllm-project/compressed-tensors), where whole numbers always have them, or `scale_weight`
    /// beside `weight`, as `ComfyUI` had it first.
    fn scales_of(&self, name: &str, dtype: Dtype) -> Option<String> {
        let after = format!("{name}_scale");
        let before = name.strip_suffix("weight").map(|layer| format!("{layer}scale_weight"));
        match dtype {
            Dtype::I8 => Some(after),
            Dtype::F8_E4M3 | Dtype::F8_E5M2 => [Some(after), before].into_iter().flatten().find(|scales| self.shape(scales).is_some()),
            _ => None,
        }
    }

    /// Values times the factor of their output row, or one factor for all.
    fn dequantize(&self, name: &str, scales_name: &str, file: &TensorFile, info: &TensorInfo) -> Result<Tensor> {
        let scales: Vec<f32> = self.tensor(scales_name)?.flatten_all()?.to_vec1()?;
        let outputs = info.shape.first().copied().unwrap_or(1);
        if scales.len() != 1 && scales.len() != outputs {
            return Err(Error::msg(format!("{scales_name} has {} factors for the {outputs} outputs of {name}", scales.len())));
        }
        let numbers: Vec<f32> = if info.dtype == Dtype::I8 {
            file.numbers::<i8>(name, info.data_offsets)?.into_iter().map(f32::from).collect()
        } else {
            file.read(name, info, None)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?
        };
        let rows = numbers.chunks(numbers.len().div_ceil(scales.len().max(1)).max(1));
        let values: Vec<f32> = rows.zip(scales).flat_map(|(row, scale)| row.iter().map(move |n| n * scale)).collect();
        Tensor::from_vec(values, info.shape.as_slice(), &Device::Cpu)
    }

    /// An entry of the headers' metadata.
    pub(in crate::backend) fn metadata(&self, key: &str) -> Option<&str> {
        self.files.iter().find_map(|file| file.header.metadata().as_ref()?.get(key).map(String::as_str))
    }

    /// The names, in order, of tensors that no network read.
    pub(super) fn unread(&self) -> Vec<String> {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let mut names: Vec<String> = self.names().filter(|name| !read.contains(name)).collect();
        names.sort();
        names
    }

    fn find(&self, name: &str) -> Result<(&TensorFile, &TensorInfo)> {
        let found = self.files.iter().find_map(|file| Some((file, file.header.info(name)?)));
        found.ok_or_else(|| Error::CannotFindTensor { path: name.to_owned() }.bt())
    }
}

impl TensorFile {
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
        // This also checks that the tensors lie side by side, with the lengths of their shapes and types.
        let header: Metadata = serde_json::from_slice(&header).map_err(SafeTensorError::InvalidHeaderDeserialization)?;
        if start + header.data_len() as u64 != length {
            return Err(SafeTensorError::MetadataIncompleteBuffer.into());
        }
        Ok(Self { source, header, start })
    }

    /// A tensor, or a third of its rows, on the CPU, in its stored type.
    fn read(&self, name: &str, info: &TensorInfo, third: Option<usize>) -> Result<Tensor> {
        let ((begin, end), shape) = part(info, third);
        if info.dtype == Dtype::F32 {
            // Straight to the final memory.
            let numbers = self.numbers::<f32>(name, (begin, end))?;
            stored::check(name, &numbers, |number| number.is_finite())?;
            return Tensor::from_vec(numbers, shape, &Device::Cpu);
        }
        stored::tensor(name, info.dtype, &self.numbers::<u8>(name, (begin, end))?, &shape)
    }

    /// The same in f32. `None` for a type of few files, or where a value is not finite. All threads read a large tensor. One of a
    /// single part does not wait for them: requests read the alphas of an adapter while pictures are drawn.
    fn read_f32(&self, name: &str, info: &TensorInfo, third: Option<usize>) -> Result<Option<Tensor>> {
        let Some(size) = stored::size_of_frequent(info.dtype) else { return Ok(None) };
        let ((begin, end), shape) = part(info, third);
        let mut numbers: Vec<f32> = zeroed((end - begin) / size)?;
        let of_part = |(i, numbers): (usize, &mut [f32])| -> io::Result<bool> {
            let start = self.start + (begin + i * stored::PART * size) as u64;
            stored::fill(info.dtype, numbers, |bytes| self.source.read_at(start, bytes))?;
            // Without a branch for each number: nearly all files pass.
            Ok(numbers.iter().fold(true, |all, number| all & number.is_finite()))
        };
        let parts = numbers.par_chunks_mut(stored::PART).enumerate().map(of_part);
        let are_finite = parts.try_reduce(|| true, |one, other| Ok(one && other));
        let are_finite = are_finite.map_err(|error| Error::wrap(format!("{name} cannot be read: {error}")))?;
        are_finite.then(|| Tensor::from_vec(numbers, shape, &Device::Cpu)).transpose()
    }

    fn numbers<T: bytemuck::Pod>(&self, name: &str, (begin, end): (usize, usize)) -> Result<Vec<T>> {
        let mut numbers: Vec<T> = zeroed((end - begin) / size_of::<T>())?;
        let read = self.source.read_at(self.start + begin as u64, bytemuck::cast_slice_mut(&mut numbers));
        read.map_err(|error| Error::wrap(format!("{name} cannot be read: {error}")))?;
        Ok(numbers)
    }
}

/// Where the bytes of a tensor, or of a third of its rows, are, and its shape.
fn part(info: &TensorInfo, third: Option<usize>) -> ((usize, usize), Vec<usize>) {
    let (mut shape, (begin, end)) = (info.shape.clone(), info.data_offsets);
    let (Some(third), Some(rows)) = (third, shape.first_mut()) else { return ((begin, end), shape) };
    *rows /= 3;
    let length = (end - begin) / 3;
    ((begin + third * length, begin + (third + 1) * length), shape)
}

/// A safetensors file in memory with quantized tensors and their factors replaced by f16, for programs that do not know them.
///
/// # Errors
/// When it is no whole safetensors file.
pub fn dequantized(bytes: &'static [u8]) -> Result<Vec<u8>> {
    let files = TensorFiles::from_slice(bytes)?;
    let header = &files.files[0].header;
    let is_quantized = |name: &str| header.info(name).is_some_and(|info| info.dtype == Dtype::I8);
    let names = header.offset_keys();
    let names = names.iter().filter(|name| !name.strip_suffix("_scale").is_some_and(is_quantized));
    let tensors = names.map(|name| {
        let tensor = files.read(name, None)?;
        Ok((name, if is_quantized(name) { tensor.to_dtype(DType::F16)? } else { tensor }))
    });
    Ok(safetensors::serialize(tensors.collect::<Result<Vec<_>>>()?, header.metadata().clone())?)
}

/// The reader behind a network's `VarBuilder`.
struct Reader {
    files: Arc<TensorFiles>,
    locate: Locate,
}

impl Reader {
    fn read(&self, place: &StoredTensor, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = match dtype {
            DType::F32 => self.files.read_f32(&place.name, place.third)?.to_device(device)?,
            _ => self.files.read(&place.name, place.third)?.to_device(device)?.to_dtype(dtype)?,
        };
        if place.is_transposed { tensor.t()?.contiguous() } else { Ok(tensor) }
    }
}

impl SimpleBackend for Reader {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let place = (self.locate)(name);
        let expected = place.shape_of(&shape);
        let (_, info) = self.files.find(&place.name)?;
        if !StoredTensor::fits(&info.shape, &expected) {
            let (msg, got) = (format!("shape mismatch for {}", place.name), Shape::from(info.shape.as_slice()));
            return Err(Error::UnexpectedShape { msg, expected: Shape::from(expected), got }.bt());
        }
        self.read(&place, dtype, device)?.reshape(shape)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.read(&(self.locate)(name), dtype, device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.files.find(&(self.locate)(name).name).is_ok()
    }
}

/// A weight's shape without the sides of a 1 x 1 kernel.
fn without_kernel(shape: &[usize]) -> &[usize] {
    match shape {
        [_, _, 1, 1] => &shape[..2],
        _ => shape,
    }
}

#[cfg(test)]
mod tests;
