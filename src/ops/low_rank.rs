//! Matrices of low rank that are added to the weights of linear layers.

use candle_core::{Result, Tensor};

use super::{Weights, cpu};

/// The product of `up` `(outputs, rank)` and `down` `(rank, inputs)`, which is added to the weight of a linear layer.
#[derive(Debug, Clone)]
pub struct LowRank(pub(super) Factors);

/// The factors of a matrix of low rank.
#[derive(Debug, Clone)]
pub(super) enum Factors {
    /// For the kernels on a CPU.
    Packed(Box<cpu::PackedLowRank>),
    /// Transposed, for other devices.
    Candle {
        /// `(inputs, rank)`.
        down: Tensor,
        /// `(rank, outputs)`.
        up: Tensor,
    },
}

impl LowRank {
    /// Packs the factors, f32 on a CPU, for a layer that is gated or not. `vb` has the type and the device of the layer.
    ///
    /// # Errors
    /// When there is no memory.
    pub(super) fn new(down: &Tensor, up: &Tensor, is_gated: bool, vb: &Weights) -> Result<Self> {
        if !vb.are_packed() {
            let transposed = |x: &Tensor| x.to_dtype(vb.dtype())?.to_device(vb.device())?.t()?.contiguous();
            return Ok(Self(Factors::Candle { down: transposed(down)?, up: transposed(up)? }));
        }
        let (rank, up) = (down.dim(0)?, cpu::Rows::new(up)?);
        let pack = |down: &[f32]| up.with(|up| Ok(cpu::PackedLowRank::new(vb.machine(), (down, up), rank, is_gated)));
        Ok(Self(Factors::Packed(Box::new(cpu::Rows::new(down)?.with(pack)?))))
    }

    /// The memory that the factors take, in bytes.
    pub(super) fn bytes(&self) -> usize {
        match &self.0 {
            Factors::Packed(packed) => packed.bytes(),
            Factors::Candle { down, up } => [down, up].into_iter().map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes()).sum(),
        }
    }

    /// What is added to the product of a layer's weight and `x`, on other devices than a CPU.
    pub(super) fn addend(&self, x: &Tensor) -> Result<Tensor> {
        let Factors::Candle { down, up } = &self.0 else { candle_core::bail!("an adapter for a CPU in a layer of another device") };
        x.broadcast_matmul(down)?.broadcast_matmul(up)
    }
}
