//! Between candle's tensors and slices.

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor};

use super::memory::{check_room, fallible};

/// Whether the kernels here take a tensor: f32 on a CPU.
pub(in crate::ops) fn is_fast(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// A tensor's numbers in their order.
#[derive(Debug)]
pub(in crate::ops) struct Rows {
    tensor: Tensor,
}

impl Rows {
    /// Copies only what is not in order already.
    pub(in crate::ops) fn new(tensor: &Tensor) -> Result<Self> {
        if !tensor.is_contiguous() {
            check_room(tensor.elem_count())?;
        }
        Ok(Self { tensor: tensor.contiguous()? })
    }

    /// Lends the numbers. That there is no memory for what is made of them is an error like any other.
    pub(in crate::ops) fn with<T>(&self, f: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
        let (storage, layout) = self.tensor.storage_and_layout();
        let Storage::Cpu(CpuStorage::F32(values)) = &*storage else { candle_core::bail!("the tensor is not f32 on a CPU") };
        let start = layout.start_offset();
        fallible(|| f(&values[start..start + layout.shape().elem_count()]))
    }
}

/// An image `(batch, channels, height, width)` with its channels last in memory.
#[derive(Debug)]
pub(in crate::ops) struct Image {
    rows: Rows,
    /// Batch.
    pub(in crate::ops) batch: usize,
    /// Channels.
    pub(in crate::ops) channels: usize,
    /// Height.
    pub(in crate::ops) height: usize,
    /// Width.
    pub(in crate::ops) width: usize,
}

impl Image {
    /// Copies only where the channels are not last already.
    pub(in crate::ops) fn new(tensor: &Tensor) -> Result<Self> {
        let (batch, channels, height, width) = tensor.dims4()?;
        Ok(Self { rows: Rows::new(&tensor.permute((0, 2, 3, 1))?)?, batch, channels, height, width })
    }

    /// Lends the numbers, pixel by pixel.
    pub(in crate::ops) fn with<T>(&self, f: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
        self.rows.with(f)
    }

    /// A tensor of pixels `(batch, height, width, channels)`, seen as `(batch, channels, height, width)`.
    pub(in crate::ops) fn tensor(pixels: Vec<f32>, batch: usize, height: usize, width: usize, channels: usize) -> Result<Tensor> {
        Tensor::from_vec(pixels, (batch, height, width, channels), &Device::Cpu)?.permute((0, 3, 1, 2))
    }
}
