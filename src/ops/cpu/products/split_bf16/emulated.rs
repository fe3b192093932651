//! What the tile units do, in plain Rust: same layouts, same order of sums. Products of bf16 numbers are exact in f32.

use half::bf16;

use super::{BLOCK, BLOCK_HALVES, TILE};

/// The nearest bf16 number, and the rest: zero for an infinity. Subnormal numbers count as zero.
fn halve(x: f32) -> (u16, u16) {
    let nearest = |x: f32| bf16::from_f32(if x.is_subnormal() { 0.0 } else { x });
    let high = nearest(x);
    let rest = if high.to_f32().abs() < f32::INFINITY { x - high.to_f32() } else { 0.0 };
    (high.to_bits(), nearest(rest).to_bits())
}

pub(super) fn split(numbers: &[f32], high: &mut [u16], low: &mut [u16]) {
    for ((x, high), low) in numbers.iter().zip(high).zip(low) {
        (*high, *low) = halve(*x);
    }
}

pub(super) fn pack(numbers: &[f32], blocks: &mut [u16]) {
    for (numbers, halves) in numbers.chunks_exact(BLOCK * BLOCK).zip(blocks.chunks_exact_mut(BLOCK_HALVES)) {
        for (i, x) in numbers.iter().enumerate() {
            let (row, column) = (i / BLOCK, i % BLOCK);
            let at = (column / TILE * TILE + row / 2) * BLOCK + column % TILE * 2 + row % 2;
            (halves[at], halves[at + BLOCK * BLOCK]) = halve(*x);
        }
    }
}

pub(super) fn multiply((lines, low, pitch): (&[u16], usize, usize), rows: usize, weights: &[u16], sums: &mut [f32], add: bool) {
    assert!(rows.is_multiple_of(TILE) && weights.len().is_multiple_of(BLOCK_HALVES));
    if !add && !weights.is_empty() {
        sums[..rows * BLOCK].fill(0.0);
    }
    for (block, halves) in weights.chunks_exact(BLOCK_HALVES).enumerate() {
        let [weights_high, weights_low] = [0, BLOCK * BLOCK].map(|half| unpack(&halves[half..half + BLOCK * BLOCK]));
        for (row, sums) in sums[..rows * BLOCK].chunks_exact_mut(BLOCK).enumerate() {
            let line = &lines[row * pitch + block * BLOCK..];
            for (numbers, weights) in [(line, &weights_low), (line, &weights_high), (&line[low..], &weights_high)] {
                for (number, weights) in numbers[..BLOCK].iter().zip(weights) {
                    let number = bf16::from_bits(*number).to_f32();
                    sums.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += number * weight);
                }
            }
        }
    }
}

/// `(depth, columns)` of a block, out of two tiles.
fn unpack(halves: &[u16]) -> [[f32; BLOCK]; BLOCK] {
    std::array::from_fn(|k| {
        std::array::from_fn(|n| bf16::from_bits(halves[(n / TILE * TILE + k / 2) * BLOCK + n % TILE * 2 + k % 2]).to_f32())
    })
}
