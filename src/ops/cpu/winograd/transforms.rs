//! The transforms along one side of a tile: `G`, `B^T` and `A^T` of [Lavin & Gray](https://arxiv.org/abs/1509.09308) for F(4, 3).

use pulp::Simd;

use super::{IN, OUT};

/// Short names for the operations of the transforms.
#[derive(Clone, Copy)]
pub(super) struct Arithmetic<S>(pub(super) S);

impl<S: Simd> Arithmetic<S> {
    #[inline(always)]
    fn add(self, a: S::f32s, b: S::f32s) -> S::f32s {
        self.0.add_f32s(a, b)
    }

    #[inline(always)]
    fn sub(self, a: S::f32s, b: S::f32s) -> S::f32s {
        self.0.sub_f32s(a, b)
    }

    /// `factor * a`
    #[inline(always)]
    fn times(self, factor: f32, a: S::f32s) -> S::f32s {
        self.0.mul_f32s(self.0.splat_f32s(factor), a)
    }

    /// `factor * a + b`
    #[inline(always)]
    fn times_add(self, factor: f32, a: S::f32s, b: S::f32s) -> S::f32s {
        self.0.mul_add_e_f32s(self.0.splat_f32s(factor), a, b)
    }

    /// `G g`
    #[inline(always)]
    pub(super) fn weights(self, g: [S::f32s; 3]) -> [S::f32s; IN] {
        let (outer, middle) = (self.times(-1. / 6., self.add(g[0], g[2])), self.times(1. / 6., g[1]));
        let (far, near) = (self.times_add(1. / 24., g[0], self.times(1. / 6., g[2])), self.times(1. / 12., g[1]));
        [self.times(0.25, g[0]), self.sub(outer, middle), self.add(outer, middle), self.add(far, near), self.sub(far, near), g[2]]
    }

    /// `B^T d`
    #[inline(always)]
    pub(super) fn input(self, d: [S::f32s; IN]) -> [S::f32s; IN] {
        let (even, odd) = (self.times_add(-4., d[2], d[4]), self.times_add(-4., d[1], d[3]));
        let (even_2, odd_2) = (self.sub(d[4], d[2]), self.times(2., self.sub(d[3], d[1])));
        [
            self.times_add(4., d[0], self.times_add(-5., d[2], d[4])),
            self.add(even, odd),
            self.sub(even, odd),
            self.add(even_2, odd_2),
            self.sub(even_2, odd_2),
            self.times_add(4., d[1], self.times_add(-5., d[3], d[5])),
        ]
    }

    /// `A^T m`
    #[inline(always)]
    pub(super) fn output(self, m: [S::f32s; IN]) -> [S::f32s; OUT] {
        let (sum_12, difference_12) = (self.add(m[1], m[2]), self.sub(m[1], m[2]));
        let (sum_34, difference_34) = (self.add(m[3], m[4]), self.sub(m[3], m[4]));
        [
            self.add(self.add(m[0], sum_12), sum_34),
            self.times_add(2., difference_34, difference_12),
            self.times_add(4., sum_34, sum_12),
            self.add(self.times_add(8., difference_34, difference_12), m[5]),
        ]
    }
}
