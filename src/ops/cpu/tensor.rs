//! Between candle's tensors and slices.

use std::cell::Cell;

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Result, Storage, Tensor};

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

    /// The numbers themselves. What shares the tensor's memory is left with nothing.
    fn into_vec(self) -> Result<Vec<f32>> {
        let whole = {
            let (storage, layout) = self.tensor.storage_and_layout();
            matches!(&*storage, Storage::Cpu(CpuStorage::F32(values)) if values.len() == layout.shape().elem_count())
        };
        if !whole {
            return self.with(|values| Ok(values.to_vec()));
        }
        let take = Take(Cell::default());
        self.tensor.inplace_op1(&take)?;
        Ok(take.0.into_inner())
    }
}

/// Takes the numbers out of a storage.
struct Take(Cell<Vec<f32>>);

impl InplaceOp1 for Take {
    fn name(&self) -> &'static str {
        "take"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        if let CpuStorage::F32(values) = storage {
            self.0.set(std::mem::take(values));
        }
        Ok(())
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

    /// The numbers themselves. What shares the tensor's memory is left with nothing.
    pub(in crate::ops) fn into_pixels(self) -> Result<Vec<f32>> {
        self.rows.into_vec()
    }

    /// A tensor of pixels `(batch, height, width, channels)`, seen as `(batch, channels, height, width)`.
    pub(in crate::ops) fn tensor(pixels: Vec<f32>, batch: usize, height: usize, width: usize, channels: usize) -> Result<Tensor> {
        Tensor::from_vec(pixels, (batch, height, width, channels), &Device::Cpu)?.permute((0, 3, 1, 2))
    }
}
