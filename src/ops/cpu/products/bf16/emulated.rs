//! What the vectors do, in plain Rust: same layouts. Products of bf16 numbers are exact in f32.

use half::bf16;

use super::PAIR;

/// The nearest bf16 number. Subnormal numbers count as zero.
fn nearest(x: f32) -> u16 {
    bf16::from_f32(if x.is_subnormal() { 0.0 } else { x }).to_bits()
}

pub(super) fn round(numbers: &[f32], halves: &mut [u16]) {
    halves.iter_mut().zip(numbers).for_each(|(half, x)| *half = nearest(*x));
}

pub(super) fn pack(numbers: &[f32], width: usize, words: &mut [u32]) {
    for (rows, words) in numbers.chunks_exact(PAIR * width).zip(words.chunks_exact_mut(width)) {
        let (even, odd) = rows.split_at(width);
        for (word, (even, odd)) in words.iter_mut().zip(even.iter().zip(odd)) {
            *word = u32::from(nearest(*even)) | u32::from(nearest(*odd)) << 16;
        }
    }
}

pub(super) fn multiply((lines, pitch): (&[u16], usize), rows: usize, weights: &[u32], width: usize, sums: &mut [f32], add: bool) {
    for (row, sums) in sums.chunks_exact_mut(width).enumerate().take(rows) {
        if !add && !weights.is_empty() {
            sums.fill(0.0);
        }
        for (k, words) in weights.chunks_exact(width).enumerate() {
            let [even, odd] = [0, 1].map(|i| bf16::from_bits(lines[row * pitch + PAIR * k + i]).to_f32());
            for (sum, word) in sums.iter_mut().zip(words) {
                let [low, high] = [*word as u16, (*word >> 16) as u16].map(|bits| bf16::from_bits(bits).to_f32());
                *sum += odd * high;
                *sum += even * low;
            }
        }
    }
}
