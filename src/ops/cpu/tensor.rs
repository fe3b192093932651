//! The way from candle's tensors to slices, and back.

use std::cell::Cell;

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Result, Storage, Tensor};

use super::memory::{check_room, fallible};

/// Whether the kernels here take a tensor: f32 on a CPU.
pub(in crate::ops) fn is_fast(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// A tensor's numbers, in the order of its shape.
#[derive(Debug)]
pub(in crate::ops) struct Rows {
    tensor: Tensor,
}

impl Rows {
    /// Copies the numbers only where they are in another order.
    pub(in crate::ops) fn new(tensor: &Tensor) -> Result<Self> {
        if !tensor.is_contiguous() {
            check_room(tensor.elem_count())?;
        }
        Ok(Self { tensor: tensor.contiguous()? })
    }

    /// Lends the numbers. Where there is no memory for what `f` makes of them, that is an error.
    pub(in crate::ops) fn with<T>(&self, f: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
        let (storage, layout) = self.tensor.storage_and_layout();
        let Storage::Cpu(CpuStorage::F32(values)) = &*storage else { candle_core::bail!("the tensor is not f32 on a CPU") };
        let start = layout.start_offset();
        fallible(|| f(&values[start..start + layout.shape().elem_count()]))
    }

    /// Lends the numbers for writing; returns the result of `f` and the tensor of what it wrote. Tensors that share the memory see it, too.
    pub(in crate::ops) fn with_mut<T>(self, f: impl FnOnce(&mut [f32]) -> Result<T>) -> Result<(T, Tensor)> {
        let write = Write { f: Cell::new(Some(f)), result: Cell::new(None) };
        self.tensor.inplace_op1(&write)?;
        let result = write.result.into_inner();
        result.map(|result| (result, self.tensor)).ok_or_else(|| candle_core::Error::Msg("nothing was written".to_owned()))
    }
}

/// Runs `f` once, on the numbers of a tensor.
struct Write<F, T> {
    f: Cell<Option<F>>,
    result: Cell<Option<T>>,
}

impl<T, F: FnOnce(&mut [f32]) -> Result<T>> InplaceOp1 for Write<F, T> {
    fn name(&self) -> &'static str {
        "write"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(values), Some(f)) = (storage, self.f.take()) else { candle_core::bail!("the tensor is not f32 on a CPU") };
        let start = layout.start_offset();
        let result = fallible(|| f(&mut values[start..start + layout.shape().elem_count()]))?;
        self.result.set(Some(result));
        Ok(())
    }
}

/// An image `(batch, channels, height, width)` with its channels last in memory.
#[derive(Debug)]
pub(in crate::ops) struct Image {
    rows: Rows,
    pub(in crate::ops) batch: usize,
    pub(in crate::ops) channels: usize,
    pub(in crate::ops) height: usize,
    pub(in crate::ops) width: usize,
}

impl Image {
    /// Copies the numbers only where the channels are not last already.
    pub(in crate::ops) fn new(tensor: &Tensor) -> Result<Self> {
        let (batch, channels, height, width) = tensor.dims4()?;
        Ok(Self { rows: Rows::new(&tensor.permute((0, 2, 3, 1))?)?, batch, channels, height, width })
    }

    /// Lends the numbers, pixel by pixel.
    pub(in crate::ops) fn with<T>(&self, f: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
        self.rows.with(f)
    }

    /// Lends the numbers for writing, as [`Rows::with_mut`]. The tensor of what was written is `(batch, channels, height, width)` again.
    pub(in crate::ops) fn with_mut<T>(self, f: impl FnOnce(&mut [f32]) -> Result<T>) -> Result<(T, Tensor)> {
        let (result, written) = self.rows.with_mut(f)?;
        Ok((result, written.permute((0, 3, 1, 2))?))
    }

    /// A tensor of pixels `(batch, height, width, channels)`, seen as `(batch, channels, height, width)`.
    pub(in crate::ops) fn tensor(pixels: Vec<f32>, batch: usize, height: usize, width: usize, channels: usize) -> Result<Tensor> {
        Tensor::from_vec(pixels, (batch, height, width, channels), &Device::Cpu)?.permute((0, 3, 1, 2))
    }
}
