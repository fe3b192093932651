//! Kernel launches: from tensors to a kernel's arguments, and back.

#![allow(unsafe_code)]

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, DType, InplaceOp1, Layout, Result, Shape, Storage, Tensor,
    backend::{BackendDevice, BackendStorage},
    cuda::{
        CudaStorageSlice, WrapErr,
        cudarc::driver::{DevicePtr, LaunchConfig, PushKernelArg},
    },
};

/// Threads of every block, as in `kernels.cu`.
pub(super) const THREADS: usize = 512;

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub(super) enum Argument {
    /// A tensor's address on the device; 0 for none.
    Address(u64),
    /// Passed in 32 bits.
    Count(usize),
    Number(f32),
}

impl Argument {
    /// The address of a tensor, which must have this type and shape and be contiguous.
    pub(super) fn of(tensor: &Tensor, dtype: DType, shape: &[usize]) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) if storage.dtype() == dtype && layout.dims() == shape => Ok(Self::Address(address(storage, layout)?)),
            _ => candle_core::bail!("{:?} in {:?} where {shape:?} in {dtype:?} on the GPU belongs", layout.shape(), tensor.dtype()),
        }
    }

    /// The same of a tensor that may be missing.
    pub(super) fn of_any(tensor: Option<&Tensor>, dtype: DType, shape: &[usize]) -> Result<Self> {
        tensor.map_or(Ok(Self::Address(0)), |tensor| Self::of(tensor, dtype, shape))
    }
}

/// A kernel to run.
#[derive(Debug)]
pub(super) struct Launch {
    /// The kernel's name, without the type.
    pub(super) kernel: &'static str,
    /// Blocks along x, y and z.
    pub(super) blocks: (usize, usize, usize),
    /// Those that follow the tensor that the kernel reads and the one that it writes, or the one that it changes.
    pub(super) arguments: Vec<Argument>,
}

impl Launch {
    /// Runs the kernel on `x`, and returns a new tensor that it writes.
    ///
    /// # Safety
    /// `kernels.cu` has a kernel of this name with these arguments. The tensors of the arguments live until this returns, and the arguments
    /// describe them, `x` and the new tensor as the kernel takes them, so that it reads and writes nothing beside them. It writes all of the
    /// new tensor.
    pub(super) unsafe fn create(self, x: &Tensor, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        x.apply_op1_no_bwd(&Create { launch: self, shape: shape.into(), dtype })
    }

    /// Runs the kernel on `x`, which it changes. Tensors that share the memory see it, too.
    ///
    /// # Safety
    /// As [`Launch::create`], of `x` alone.
    pub(super) unsafe fn change(self, x: Tensor) -> Result<Tensor> {
        x.inplace_op1(&Change(self))?;
        Ok(x)
    }

    /// # Safety
    /// As [`Launch::create`], of `x` and the tensors.
    unsafe fn run(&self, x: &CudaStorage, tensors: &[u64]) -> Result<()> {
        let name = format!("{}_{}", self.kernel, x.dtype().as_str());
        let function = x.device().get_or_load_custom_func(&name, super::MODULE, super::PTX)?;
        let counts = self.arguments.iter().map(|argument| match argument {
            // The kernels count in 32 bits, and a step beyond the end must fit, too.
            Argument::Count(count @ 0..0x8000_0000) => Ok(*count as u32),
            Argument::Count(count) => candle_core::bail!("{count} numbers are too many for {name}"),
            Argument::Address(_) | Argument::Number(_) => Ok(0),
        });
        let counts = counts.collect::<Result<Vec<u32>>>()?;
        let mut builder = function.builder();
        for tensor in tensors {
            builder.arg(tensor);
        }
        for (argument, count) in self.arguments.iter().zip(&counts) {
            match argument {
                Argument::Address(address) => builder.arg(address),
                Argument::Count(_) => builder.arg(count),
                Argument::Number(number) => builder.arg(number),
            };
        }
        let (x, y, z) = self.blocks;
        let config = LaunchConfig { grid_dim: (x as u32, y as u32, z as u32), block_dim: (THREADS as u32, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: by the caller's word. Memory that is freed before the kernel has run is freed in the order of the stream, after it.
        unsafe { builder.launch(config) }.w()?;
        Ok(())
    }
}

/// The address of a contiguous tensor's first number.
fn address(storage: &CudaStorage, layout: &Layout) -> Result<u64> {
    let Some((start, _)) = layout.contiguous_offsets() else {
        candle_core::bail!("{:?} with strides {:?} is not in its order", layout.shape(), layout.stride())
    };
    let stream = storage.device().cuda_stream();
    let first = match &storage.slice {
        CudaStorageSlice::F32(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::F16(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::BF16(slice) => slice.device_ptr(&stream).0,
        _ => candle_core::bail!("there are no kernels for {:?}", storage.dtype()),
    };
    Ok(first + (start * storage.dtype().size_in_bytes()) as u64)
}

/// A launch whose caller made the promises of [`Launch::create`].
struct Create {
    launch: Launch,
    shape: Shape,
    dtype: DType,
}

impl CustomOp1 for Create {
    fn name(&self) -> &'static str {
        self.launch.kernel
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("{} is for GPUs", self.name())
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        // SAFETY: a `Create` is made by `Launch::create` alone, whose caller vouches that the kernel writes all of it.
        let out = unsafe { x.device().alloc_uninit(&self.shape, self.dtype)? };
        let tensors = [address(x, layout)?, address(&out, &Layout::contiguous(&self.shape))?];
        // SAFETY: the same caller vouches for the launch.
        unsafe { self.launch.run(x, &tensors)? };
        Ok((out, self.shape.clone()))
    }
}

/// A launch whose caller made the promises of [`Launch::change`].
struct Change(Launch);

impl InplaceOp1 for Change {
    fn name(&self) -> &'static str {
        self.0.kernel
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        candle_core::bail!("{} is for GPUs", self.name())
    }

    fn cuda_fwd(&self, x: &mut CudaStorage, layout: &Layout) -> Result<()> {
        let tensors = [address(x, layout)?];
        // SAFETY: a `Change` is made by `Launch::change` alone, whose caller vouches for the launch.
        unsafe { self.0.run(x, &tensors) }
    }
}
