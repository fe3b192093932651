//! What the kernels may use of the processor, found when the process runs.

use std::fmt;

use pulp::{Arch, Simd, WithSimd};

use super::amx::Amx;

/// Instructions.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Machine {
    /// For vectors.
    pub(super) vectors: Arch,
    /// For matrices, if there are any.
    pub(super) amx: Option<Amx>,
}

impl Machine {
    /// All that there is.
    pub(in crate::ops) fn best() -> Self {
        Self { vectors: Arch::new(), amx: Amx::try_new() }
    }

    /// Runs what multiplies matrices.
    #[inline]
    pub(super) fn run<W: WithSimd>(self, work: W) -> W::Output {
        match self.amx {
            Some(amx) => amx.with_tiles(|| self.vectors.dispatch(work)),
            None => self.vectors.dispatch(work),
        }
    }

    /// Whether matrices are multiplied by units for them, in halves of 8 bits.
    #[cfg(test)]
    pub(in crate::ops) fn has_tiles(self) -> bool {
        self.amx.is_some()
    }

    /// Numbers of a vector.
    pub(super) fn lanes(self) -> usize {
        self.vectors.dispatch(Lanes)
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vectors of {}{}", self.lanes(), if self.amx.is_some() { " and tiles" } else { "" })
    }
}

struct Lanes;

impl WithSimd for Lanes {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        S::F32_LANES
    }
}
