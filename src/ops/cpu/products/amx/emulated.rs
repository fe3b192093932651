//! What the tile units do, in plain Rust: same layouts, same order of sums. Products of bf16 numbers are exact in f32.

use half::bf16;

use super::{BLOCK, BLOCK_NUMBERS, TILE};

/// The nearest bf16 number, and the rest: zero for an infinity. Subnormal numbers count as zero.
fn halve(x: f32) -> (u16, u16) {
    let nearest = |x: f32| bf16::from_f32(if x.is_subnormal() { 0.0 } else { x });
    let high = nearest(x);
    let rest = if high.to_f32().abs() < f32::INFINITY { x - high.to_f32() } else { 0.0 };
    (high.to_bits(), nearest(rest).to_bits())
}

/// Keeps both halves of a number, or the high one.
fn keep(x: f32, i: usize, high: &mut [u16], low: &mut [u16]) {
    let (of_high, of_low) = halve(x);
    high[i] = of_high;
    if let Some(low) = low.get_mut(i) {
        *low = of_low;
    }
}

pub(super) fn split(numbers: &[f32], high: &mut [u16], low: &mut [u16]) {
    numbers.iter().enumerate().for_each(|(i, x)| keep(*x, i, high, low));
}

pub(super) fn pack(numbers: &[f32; BLOCK_NUMBERS], high: &mut [u16], low: &mut [u16]) {
    for (i, x) in numbers.iter().enumerate() {
        let (row, column) = (i / BLOCK, i % BLOCK);
        keep(*x, (column / TILE * TILE + row / 2) * BLOCK + column % TILE * 2 + row % 2, high, low);
    }
}

pub(super) fn multiply((lines, low, pitch): (&[u16], Option<usize>, usize), rows: usize, weights: &[u16], sums: &mut [f32], add: bool) {
    let block_halves = if low.is_some() { 2 } else { 1 } * BLOCK_NUMBERS;
    assert!(rows.is_multiple_of(TILE) && weights.len().is_multiple_of(block_halves));
    if !add && !weights.is_empty() {
        sums[..rows * BLOCK].fill(0.0);
    }
    for (block, halves) in weights.chunks_exact(block_halves).enumerate() {
        let parts: Vec<_> = halves.chunks_exact(BLOCK_NUMBERS).map(unpack).collect();
        for (row, sums) in sums[..rows * BLOCK].chunks_exact_mut(BLOCK).enumerate() {
            let line = &lines[row * pitch + block * BLOCK..];
            let products = match low {
                Some(low) => vec![(line, &parts[1]), (line, &parts[0]), (&line[low..], &parts[0])],
                None => vec![(line, &parts[0])],
            };
            for (numbers, weights) in products {
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
