//! Operations on an NVIDIA GPU, one kernel each. candle does them in chains of small kernels, each of which reads and writes a whole tensor.
//!
//! `build.rs` compiles `kernels.cu` to PTX, as candle's build does with its own kernels; the driver compiles that for its GPU. NVRTC, which
//! compiles at run time, needs a library that it does not find beside the binary. Where the driver refuses these kernels, candle's chains
//! stay in use.

#![allow(unsafe_code)]

mod launch;

use std::sync::OnceLock;

use candle_core::{
    CudaDevice, DType, Device, Result, Tensor,
    cuda::{
        WrapErr,
        cudarc::driver::{result, sys::CUmemPool_attribute},
    },
};
use launch::{
    Argument::{self, Count, Number},
    Launch, THREADS,
};
use tracing::warn;

use super::{Activation, GroupStatistics};

/// The name of the kernels' module on a device.
const MODULE: &str = "sd-worker";
/// About how many numbers of a group a block takes.
const PART: usize = 1 << 14;
/// The most parts of a group.
const MOST_PARTS: usize = 1 << 10;
/// Rows and columns of a tile of a transposition, as in `kernels.cu`.
const TILE: usize = 32;

/// The compiled kernels.
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

/// Whether the driver takes the kernels.
static WORK: OnceLock<bool> = OnceLock::new();

/// Prepares a device, before there is a tensor on it.
pub(super) fn prepare(device: &Device) -> Result<()> {
    let Device::Cuda(device) = device else { return Ok(()) };
    // SAFETY: the device has one stream, on which work from all threads runs in order.
    unsafe { device.disable_event_tracking() };
    keep_memory(device)?;
    WORK.get_or_init(|| {
        let loaded = device.get_or_load_custom_func("add_f32", MODULE, PTX);
        loaded.inspect_err(|error| warn!(%error, "the worker's own kernels cannot be used, so candle's are")).is_ok()
    });
    Ok(())
}

/// Has the driver keep free memory. By default it unmaps free memory whenever the host waits for the device, and maps it again in the next
/// step.
fn keep_memory(device: &CudaDevice) -> Result<()> {
    let stream = device.cuda_stream();
    if !stream.context().has_async_alloc() {
        return Ok(());
    }
    let mut threshold = u64::MAX;
    // SAFETY: the pool is the device's, and the attribute's type is this.
    unsafe {
        let pool = result::device::get_default_mem_pool(stream.context().cu_device()).w()?;
        let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut threshold).cast()).w()
    }
}

/// Whether the kernels take a tensor.
pub(super) fn takes(x: &Tensor) -> bool {
    let of_type = matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16);
    // The kernels count in 32 bits.
    of_type && x.device().is_cuda() && (1..1 << 31).contains(&x.elem_count()) && WORK.get() == Some(&true)
}

/// How a group norm is computed.
#[derive(Debug, Clone, Copy)]
pub(super) struct GroupNormConfig<'a> {
    pub(super) groups: usize,
    pub(super) eps: f64,
    /// One for each channel.
    pub(super) weight: &'a Tensor,
    /// One for each channel.
    pub(super) bias: &'a Tensor,
    /// Whether `SiLU` follows.
    pub(super) activate: bool,
    /// In place of each image's own statistics.
    pub(super) statistics: Option<&'a GroupStatistics>,
}

/// Group normalisation of images `(batch, channels, height, width)`.
pub(super) fn group_norm(x: &Tensor, config: GroupNormConfig) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (batch, channels, height, width) = x.dims4()?;
    let count = group_size(&x, config.groups)?;
    let blocks = parts(count);
    let moments = match config.statistics {
        Some(statistics) => Some(given(statistics, batch, config.groups, x.device())?),
        // Each block computes them itself.
        None if blocks == 1 => None,
        None => Some(moments(&x, config.groups)?),
    };
    let (dtype, all_groups) = (x.dtype(), batch * config.groups);
    let n_parts = moments.as_ref().map_or(Ok(0), |moments| moments.dim(1))?;
    let arguments = vec![
        Argument::of(config.weight, dtype, &[channels])?,
        Argument::of(config.bias, dtype, &[channels])?,
        Argument::of_any(moments.as_ref(), DType::F32, &[all_groups, n_parts, 3])?,
        Count(count),
        Count(height * width),
        Count(config.groups),
        Count(n_parts),
        Number(config.eps as f32),
        function(config.activate.then_some(Activation::Silu)),
    ];
    let launch = Launch { kernel: "group_norm", blocks: (all_groups, blocks, 1), arguments };
    // SAFETY: `x` is contiguous, in `all_groups` groups of `count` numbers; the tensors of the arguments have the shapes that go with them, and
    // live here. Each group has blocks that write all of it.
    unsafe { launch.create(&x, x.shape(), dtype) }
}

/// Mean and variance of each group in images `(batch, channels, height, width)`, of all of them together.
pub(super) fn group_statistics(x: &Tensor, groups: usize) -> Result<GroupStatistics> {
    let moments = moments(&x.contiguous()?, groups)?.to_vec3::<f32>()?;
    let of_group = |group: usize| {
        let parts = moments.iter().skip(group).step_by(groups).flatten();
        let statistics = |part: &Vec<f32>| {
            let [count, mean, squares] = [part[0], part[1], part[2]].map(f64::from);
            // Of an empty part there is none.
            (GroupStatistics::new(vec![(mean, squares / count.max(1.0))]), count as usize)
        };
        GroupStatistics::joined(&parts.map(statistics).collect::<Vec<_>>()).of_groups()[0]
    };
    Ok(GroupStatistics::new((0..groups).map(of_group).collect()))
}

/// Numbers of a group in images.
fn group_size(x: &Tensor, groups: usize) -> Result<usize> {
    let (_, channels, height, width) = x.dims4()?;
    if groups == 0 || !channels.is_multiple_of(groups) {
        candle_core::bail!("{:?} do not fall into {groups} groups of channels", x.shape());
    }
    Ok(channels / groups * height * width)
}

/// The number of parts of a group. It does not depend on the batch, so that a picture does not, either.
fn parts(count: usize) -> usize {
    count.div_ceil(PART).clamp(1, MOST_PARTS)
}

/// Count, mean, and sum of squared distances from it, of parts of each group: `(batch * groups, parts, 3)` in f32.
fn moments(x: &Tensor, groups: usize) -> Result<Tensor> {
    let (all_groups, count) = (x.dim(0)? * groups, group_size(x, groups)?);
    let parts = parts(count);
    let launch = Launch { kernel: "group_norm_parts", blocks: (all_groups, parts, 1), arguments: vec![Count(count)] };
    // SAFETY: `x` is in `all_groups` groups of `count` numbers, and refused if it is not contiguous. Each block writes the three numbers of its
    // part.
    unsafe { launch.create(x, (all_groups, parts, 3), DType::F32) }
}

/// Given statistics in the same form: as if each group had one part of one number.
fn given(statistics: &GroupStatistics, batch: usize, groups: usize, device: &Device) -> Result<Tensor> {
    let of_sample: Vec<f32> = statistics.of_groups().iter().flat_map(|(mean, variance)| [1.0, *mean as f32, *variance as f32]).collect();
    Tensor::from_vec(of_sample.repeat(batch), (batch * groups, 1, 3), device)
}

/// What is added to images `(batch, channels, height, width)` or rows `(…, channels)`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Added<'a> {
    /// `channels` numbers.
    pub(super) bias: Option<&'a Tensor>,
    /// `(samples, channels)`, each sample's for as many of the batch.
    pub(super) sample_bias: Option<&'a Tensor>,
    /// Of the result's shape.
    pub(super) residual: Option<&'a Tensor>,
    /// What follows.
    pub(super) activation: Option<Activation>,
}

/// Adds to a tensor. Tensors that share its memory see it, too.
pub(super) fn add(x: Tensor, added: Added) -> Result<Tensor> {
    if added.bias.is_none() && added.sample_bias.is_none() && added.residual.is_none() && added.activation.is_none() {
        return Ok(x);
    }
    let (channels, pixels) = match *x.dims() {
        [_, channels, height, width] => (channels, height * width),
        [.., channels] => (channels, 1),
        [] => candle_core::bail!("nothing can be added to a single number"),
    };
    let (count, samples) = (x.elem_count(), added.sample_bias.map_or(Ok(1), |bias| bias.dim(0))?);
    if samples == 0 || !x.dim(0)?.is_multiple_of(samples) {
        candle_core::bail!("{samples} samples cannot stand for a batch of {:?}", x.shape());
    }
    let bias = added.bias.map(Tensor::flatten_all).transpose()?;
    let sample_bias = added.sample_bias.map(Tensor::contiguous).transpose()?;
    let residual = added.residual.map(Tensor::contiguous).transpose()?;
    let arguments = vec![
        Argument::of_any(bias.as_ref(), x.dtype(), &[channels])?,
        Argument::of_any(sample_bias.as_ref(), x.dtype(), &[samples, channels])?,
        Argument::of_any(residual.as_ref(), x.dtype(), x.dims())?,
        Count(count),
        Count(channels),
        Count(pixels),
        Count(count / samples),
        function(added.activation),
    ];
    let launch = Launch { kernel: "add", blocks: (blocks(count), 1, 1), arguments };
    // SAFETY: `x` has `count` numbers, and is refused if it is not contiguous; the tensors of the arguments have the shapes that go with it, and
    // live here.
    unsafe { launch.change(x) }
}

/// `(…, 2 * channels)`, to which a bias is added, to `(…, channels)`: the first half times GELU of the second.
pub(super) fn geglu(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    let Some(last) = shape.last_mut() else { candle_core::bail!("a single number has no halves") };
    if !last.is_multiple_of(2) {
        candle_core::bail!("rows of {last} numbers have no halves");
    }
    let columns = *last / 2;
    *last = columns;
    let arguments = vec![Argument::of(bias, x.dtype(), &[2 * columns])?, Count(x.elem_count() / 2), Count(columns)];
    let launch = Launch { kernel: "geglu", blocks: (blocks(x.elem_count() / 2), 1, 1), arguments };
    // SAFETY: `x` is rows of `2 * columns` numbers, and refused if it is not contiguous; the bias has as many, and lives with the caller. The
    // blocks write all of the `x.elem_count() / 2` numbers of the result.
    unsafe { launch.create(x, shape, x.dtype()) }
}

/// Contiguous `(batch, rows, columns)` to contiguous `(batch, columns, rows)`.
pub(super) fn transpose(x: &Tensor) -> Result<Tensor> {
    let (batch, rows, columns) = x.dims3()?;
    let blocks = (columns.div_ceil(TILE), rows.div_ceil(TILE), batch);
    let launch = Launch { kernel: "transpose", blocks, arguments: vec![Count(rows), Count(columns)] };
    // SAFETY: `x` has these rows and columns, and is refused if it is not contiguous. There is a block for each tile of the result.
    unsafe { launch.create(x, (batch, columns, rows), x.dtype()) }
}

/// The number of blocks for so many numbers: with 16 bytes at a time, each thread has one or two turns.
fn blocks(count: usize) -> usize {
    count.div_ceil(THREADS * 8)
}

/// The number of an activation function in `kernels.cu`.
fn function(activation: Option<Activation>) -> Argument {
    Count(match activation {
        None => 0,
        Some(Activation::Silu) => 1,
        Some(Activation::Gelu) => 2,
        Some(Activation::QuickGelu) => 3,
        Some(Activation::Relu) => 4,
    })
}

#[cfg(test)]
mod tests;
