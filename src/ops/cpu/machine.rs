//! What the kernels use of the processor, found when the process runs.

use pulp::{Arch, Simd, WithSimd};

use super::products::{Multiplier, Products};
use crate::ops::ComputeType;

/// Instructions that the processor has.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct Machine {
    /// For vectors.
    pub(super) vectors: Arch,
    /// For products of matrices.
    pub(super) products: Products,
}

impl Machine {
    /// The fastest that there are.
    pub(in crate::ops) fn best() -> Self {
        Self { vectors: Arch::new(), products: Products::best() }
    }

    /// The fastest for a type. Where the processor has no units for it, the type is f32.
    pub(in crate::ops) fn of(compute: ComputeType) -> Self {
        let best = Self::best();
        match compute {
            ComputeType::F32 => None,
            ComputeType::Bf16 => Products::bf16(best.lanes()),
            ComputeType::Int8 => Products::int8(best.lanes()),
        }
        .map_or(best, |products| Self { products, ..best })
    }

    /// Whether the processor has units for a type.
    pub(in crate::ops) fn has(compute: ComputeType) -> bool {
        let lanes = Self::best().lanes();
        match compute {
            ComputeType::F32 => true,
            ComputeType::Bf16 => Products::bf16(lanes).is_some(),
            ComputeType::Int8 => Products::int8(lanes).is_some(),
        }
    }

    /// The same with products of floating-point numbers.
    pub(super) fn floating(self) -> Self {
        Self { products: self.products.floating(self.lanes()), ..self }
    }

    /// The same for 3 x 3 convolutions.
    pub(super) fn of_3x3(self) -> Self {
        Self { products: self.products.of_3x3(), ..self }
    }

    /// Runs work that multiplies matrices.
    #[inline]
    pub(super) fn run<W: WithSimd>(self, work: impl FnOnce(Multiplier) -> W) -> W::Output {
        self.vectors.dispatch(work(self.products.multiplier()))
    }

    /// Numbers of a vector.
    pub(super) fn lanes(self) -> usize {
        struct Lanes;
        impl WithSimd for Lanes {
            type Output = usize;

            #[inline(always)]
            fn with_simd<S: Simd>(self, _: S) -> usize {
                S::F32_LANES
            }
        }
        self.vectors.dispatch(Lanes)
    }

    /// Columns of a panel of weights, in a matrix of so many columns.
    pub(super) fn panel_width(self, columns: usize) -> usize {
        self.products.panel_width(self.lanes(), columns)
    }
}

#[cfg(test)]
impl Machine {
    /// All sets of instructions that can be tested here, the portable one first.
    pub(super) fn all() -> Vec<Self> {
        let mut all = vec![Arch::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(pulp::x86::V3::try_new().map(Arch::V3));
            all.extend(pulp::x86::V4::try_new().map(Arch::V4));
        }
        #[cfg(target_arch = "aarch64")]
        all.push(Arch::new());
        let with_products = |vectors| {
            let lanes = Self { vectors, products: Products::Fma }.lanes();
            Products::all(lanes).into_iter().map(move |products| Self { vectors, products })
        };
        all.into_iter().flat_map(with_products).collect()
    }

    /// Whether products of matrices are those of f32.
    pub(in crate::ops) fn has_exact_products(self) -> bool {
        self.products.digits() == f32::MANTISSA_DIGITS
    }
}
