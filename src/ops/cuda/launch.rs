//! From tensors to what a kernel is told, and back.

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

/// What a kernel is told.
#[derive(Debug, Clone, Copy)]
pub(super) enum Argument {
    /// Where a tensor is on the device; 0 for none.
    Address(u64),
    /// 32 bits of it are told.
    Count(usize),
    Number(f32),
}

impl Argument {
    /// Where a tensor of this type and shape is.
    pub(super) fn of(tensor: &Tensor, dtype: DType, shape: &[usize]) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) if storage.dtype() == dtype && layout.dims() == shape => Ok(Self::Address(address(storage, layout)?)),
            _ => candle_core::bail!("{:?} in {:?} where {shape:?} in {dtype:?} on the GPU belongs", layout.shape(), tensor.dtype()),
        }
    }

    /// The same of one that may be missing.
    pub(super) fn of_any(tensor: Option<&Tensor>, dtype: DType, shape: &[usize]) -> Result<Self> {
        tensor.map_or(Ok(Self::Address(0)), |tensor| Self::of(tensor, dtype, shape))
    }
}

/// A kernel on its way to the device.
#[derive(Debug)]
pub(super) struct Launch {
    /// Its name, without the type.
    pub(super) kernel: &'static str,
    /// How many there are along x, y and z.
    pub(super) blocks: (usize, usize, usize),
    /// After the tensor that it reads and the one that it writes, or the one that it changes.
    pub(super) arguments: Vec<Argument>,
}

impl Launch {
    /// Has the kernel make a tensor of `x`.
    pub(super) fn create(self, x: &Tensor, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        x.apply_op1_no_bwd(&Create { launch: self, shape: shape.into(), dtype })
    }

    /// Has the kernel change `x`, which nothing else must hold.
    pub(super) fn change(self, x: Tensor) -> Result<Tensor> {
        x.inplace_op1(&self)?;
        Ok(x)
    }

    fn run(&self, x: &CudaStorage, tensors: &[u64]) -> Result<()> {
        let name = format!("{}_{}", self.kernel, x.dtype().as_str());
        let function = x.device().get_or_load_custom_func(&name, super::MODULE, super::PTX)?;
        let counts = self.arguments.iter().map(|argument| match argument {
            Argument::Count(count) => u32::try_from(*count).map_err(candle_core::Error::wrap),
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
        // SAFETY: the arguments are those of the kernel, and tensors have the shapes that it is told: the functions of this module see to
        // both. What is freed before the kernel is done is freed in the order of the stream, after it.
        unsafe { builder.launch(config) }.w()?;
        Ok(())
    }
}

/// Where the first number of a tensor is, whose numbers are in their order.
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
        // SAFETY: the kernel writes all of it.
        let out = unsafe { x.device().alloc_uninit(&self.shape, self.dtype)? };
        self.launch.run(x, &[address(x, layout)?, address(&out, &Layout::contiguous(&self.shape))?])?;
        Ok((out, self.shape.clone()))
    }
}

impl InplaceOp1 for Launch {
    fn name(&self) -> &'static str {
        self.kernel
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        candle_core::bail!("{} is for GPUs", self.kernel)
    }

    fn cuda_fwd(&self, x: &mut CudaStorage, layout: &Layout) -> Result<()> {
        self.run(x, &[address(x, layout)?])
    }
}
