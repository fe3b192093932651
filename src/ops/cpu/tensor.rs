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

    /// Lends the numbers for writing, and returns the tensor of what `f` wrote. Tensors that share the memory see it, too. Where there is no
    /// memory for what `f` needs beside, that is an error.
    pub(in crate::ops) fn with_mut(self, f: impl FnOnce(&mut [f32])) -> Result<Tensor> {
        self.tensor.inplace_op1(&Write(Cell::new(Some(f))))?;
        Ok(self.tensor)
    }
}

/// Runs a function once, on the numbers of a tensor.
struct Write<F>(Cell<Option<F>>);

impl<F: FnOnce(&mut [f32])> InplaceOp1 for Write<F> {
    fn name(&self) -> &'static str {
        "write"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(values), Some(f)) = (storage, self.0.take()) else { candle_core::bail!("the tensor is not f32 on a CPU") };
        let start = layout.start_offset();
        fallible(|| {
            f(&mut values[start..start + layout.shape().elem_count()]);
            Ok(())
        })
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

    /// Lends the numbers for writing, as [`Rows::with_mut`]. The tensor of what `f` wrote is `(batch, channels, height, width)` again.
    pub(in crate::ops) fn with_mut(self, f: impl FnOnce(&mut [f32])) -> Result<Tensor> {
        self.rows.with_mut(f)?.permute((0, 3, 1, 2))
    }

    /// A tensor of pixels `(batch, height, width, channels)`, seen as `(batch, channels, height, width)`.
    pub(in crate::ops) fn tensor(pixels: Vec<f32>, batch: usize, height: usize, width: usize, channels: usize) -> Result<Tensor> {
        Tensor::from_vec(pixels, (batch, height, width, channels), &Device::Cpu)?.permute((0, 3, 1, 2))
    }
}
