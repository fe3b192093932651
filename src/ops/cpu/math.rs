//! Functions of one number without branches, so that the compiler turns loops over them into vector code. A multiplication and an addition
//! are one fused operation, which all machines but the oldest have an instruction for.

/// `e^x`, with a relative error of at most 2e-7; 0 below -87, and as at 88 above it.
#[inline(always)]
pub(in crate::ops) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, SHIFT);
    let n = shifted - SHIFT;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, clamped));
    // Cephes' expf.
    let p: f32 = 1.987_569_1e-4;
    let p = p.mul_add(r, 1.398_2e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_6e-1);
    let p = p.mul_add(r, 0.5);
    let value = (p.mul_add(r * r, r) + 1.0) * power_of_two(shifted);
    if x < -87.0 { 0.0 } else { value }
}

/// `2^x` for numbers up to 0, with a relative error of at most 3e-7; as at -126 below it. Two thirds of the work of [`exp`].
#[inline(always)]
pub(in crate::ops) fn exp2(x: f32) -> f32 {
    // `f32::max` would return -126 for a NaN, which must stay one.
    let clamped = if x < -126.0 { -126.0 } else { x };
    let shifted = clamped + SHIFT;
    let r = clamped - (shifted - SHIFT);
    // The polynomial with the least relative error on [-1/2, 1/2].
    let p: f32 = 1.327_647_1e-3;
    let p = p.mul_add(r, 9.675_541e-3);
    let p = p.mul_add(r, 5.550_713e-2);
    let p = p.mul_add(r, 2.402_212e-1);
    let p = p.mul_add(r, 6.931_469_4e-1);
    let p = p.mul_add(r, 1.0);
    p * power_of_two(shifted)
}

/// Adding it to a number leaves the nearest whole number in the low bits.
const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23

/// `2^n` for a whole number `n` with [`SHIFT`] added to it.
#[inline(always)]
fn power_of_two(shifted: f32) -> f32 {
    f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000))
}

/// The error function, with an absolute error of at most 2e-7: Abramowitz & Stegun, 7.1.26.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let t = 1.0 / x.abs().mul_add(0.327_591_1, 1.0);
    let p: f32 = 1.061_405_4;
    let p = p.mul_add(t, -1.453_152_1);
    let p = p.mul_add(t, 1.421_413_8);
    let p = p.mul_add(t, -0.284_496_72);
    let p = p.mul_add(t, 0.254_829_6);
    (1.0 - p * t * exp(-x * x)).copysign(x)
}

/// `x * sigmoid(x)`
#[inline(always)]
pub(in crate::ops) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// GELU with the error function.
#[inline(always)]
pub(in crate::ops) fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// `x * sigmoid(1.702 x)`
#[inline(always)]
pub(in crate::ops) fn quick_gelu(x: f32) -> f32 {
    x / (1.0 + exp(-1.702 * x))
}

/// `max(x, 0)`, where a NaN stays one.
#[inline(always)]
pub(in crate::ops) fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}
