//! The transforms along one side of a tile: `G`, `B^T` and `A^T` of F(4, 3), for polynomials that are evaluated at 0, two numbers with both
//! signs, and infinity.

use std::marker::PhantomData;

use pulp::Simd;

use super::{IN, OUT};

/// The numbers, without their signs.
pub(super) trait At: Copy {
    const NEAR: f32;
    const FAR: f32;
    /// What the products of the weights are divided by.
    const BY_ZERO: f32 = Self::NEAR * Self::NEAR * Self::FAR * Self::FAR;
    const BY_NEAR: f32 = 2.0 * Self::NEAR * Self::NEAR * (Self::NEAR * Self::NEAR - Self::FAR * Self::FAR);
    const BY_FAR: f32 = 2.0 * Self::FAR * Self::FAR * (Self::FAR * Self::FAR - Self::NEAR * Self::NEAR);
}

/// Those of Lavin & Gray: most factors are powers of two, and half of them are one.
#[derive(Clone, Copy)]
pub(super) struct Whole;

impl At for Whole {
    const NEAR: f32 = 1.0;
    const FAR: f32 = 2.0;
}

/// Those with the least error where the points are in bf16, by search: 0.011 of the result, [`Whole`] has 0.024.
#[derive(Clone, Copy)]
pub(super) struct Even;

impl At for Even {
    const NEAR: f32 = 0.625;
    const FAR: f32 = 1.5;
}

/// The transforms on vectors.
#[derive(Clone, Copy)]
pub(super) struct Transforms<S, P> {
    pub(super) simd: S,
    at: PhantomData<P>,
}

#[allow(clippy::float_cmp, reason = "constants are compared with themselves")]
impl<S: Simd, P: At> Transforms<S, P> {
    #[inline(always)]
    pub(super) fn new(simd: S) -> Self {
        Self { simd, at: PhantomData }
    }

    #[inline(always)]
    fn add(self, a: S::f32s, b: S::f32s) -> S::f32s {
        self.simd.add_f32s(a, b)
    }

    #[inline(always)]
    fn sub(self, a: S::f32s, b: S::f32s) -> S::f32s {
        self.simd.sub_f32s(a, b)
    }

    /// `factor * a`
    #[inline(always)]
    fn times(self, factor: f32, a: S::f32s) -> S::f32s {
        if factor == 1.0 { a } else { self.simd.mul_f32s(self.simd.splat_f32s(factor), a) }
    }

    /// `factor * a + b`
    #[inline(always)]
    fn times_add(self, factor: f32, a: S::f32s, b: S::f32s) -> S::f32s {
        if factor == 1.0 { self.add(a, b) } else { self.simd.mul_add_e_f32s(self.simd.splat_f32s(factor), a, b) }
    }

    /// `G g`
    #[inline(always)]
    pub(super) fn weights(self, g: [S::f32s; 3]) -> [S::f32s; IN] {
        let (outer, middle) =
            (self.times(1.0 / P::BY_NEAR, self.times_add(P::NEAR * P::NEAR, g[2], g[0])), self.times(-P::NEAR / P::BY_NEAR, g[1]));
        let far = self.times_add(1.0 / P::BY_FAR, g[0], self.times(P::FAR * P::FAR / P::BY_FAR, g[2]));
        let near = self.times(P::FAR / P::BY_FAR, g[1]);
        [
            self.times(1.0 / P::BY_ZERO, g[0]),
            self.sub(outer, middle),
            self.add(outer, middle),
            self.add(far, near),
            self.sub(far, near),
            g[2],
        ]
    }

    /// `B^T d`
    #[inline(always)]
    pub(super) fn input(self, d: [S::f32s; IN]) -> [S::f32s; IN] {
        let (near, far) = (P::NEAR * P::NEAR, P::FAR * P::FAR);
        let (even, odd) = (self.times_add(-far, d[2], d[4]), self.times(P::NEAR, self.times_add(-far, d[1], d[3])));
        let (even_2, odd_2) = (self.times_add(-near, d[2], d[4]), self.times(P::FAR, self.times_add(-near, d[1], d[3])));
        [
            self.times_add(near * far, d[0], self.times_add(-(near + far), d[2], d[4])),
            self.add(even, odd),
            self.sub(even, odd),
            self.add(even_2, odd_2),
            self.sub(even_2, odd_2),
            self.times_add(near * far, d[1], self.times_add(-(near + far), d[3], d[5])),
        ]
    }

    /// `A^T m`
    #[inline(always)]
    pub(super) fn output(self, m: [S::f32s; IN]) -> [S::f32s; OUT] {
        let (near, far) = (P::NEAR, P::FAR);
        let (sum_12, difference_12) = (self.add(m[1], m[2]), self.times(near, self.sub(m[1], m[2])));
        let (sum_34, difference_34) = (self.add(m[3], m[4]), self.sub(m[3], m[4]));
        [
            self.add(self.add(m[0], sum_12), sum_34),
            self.times_add(far, difference_34, difference_12),
            self.times_add(far * far, sum_34, self.times(near * near, sum_12)),
            self.add(self.times_add(far * far * far, difference_34, self.times(near * near, difference_12)), m[5]),
        ]
    }
}
