//! Attention that streams over the keys ([FlashAttention](https://arxiv.org/abs/2205.14135)): the scores of a block of queries and
//! a block of keys are all that is ever kept.

use pulp::Arch;
use rayon::prelude::*;

use super::{
    math::exp,
    matmul::{Block, Epilogue, Inputs, MatrixRows, Panels, Shared},
};

/// Queries of a task.
const QUERIES: usize = 48;
/// Keys of a block: scores and values of a block stay in the second-level cache.
const KEYS: usize = 512;
/// Sums that are kept apart, so that they fill a vector.
const LANES: usize = 16;

/// Sequences `(batch, tokens, heads * head_dim)`.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct Sequences {
    pub(in crate::ops) batch: usize,
    pub(in crate::ops) heads: usize,
    pub(in crate::ops) head_dim: usize,
    pub(in crate::ops) queries: usize,
    pub(in crate::ops) keys: usize,
    /// Whether a query sees only the keys up to its own place.
    pub(in crate::ops) causal: bool,
}

/// Keys and values of one block of one head.
struct KeyBlock {
    keys: Panels,
    values: Panels,
}

/// `softmax(q k^T / sqrt(head_dim)) v` for each head.
pub(in crate::ops) fn attention(q: &[f32], k: &[f32], v: &[f32], shape: Sequences) -> Vec<f32> {
    attention_with(Arch::new(), q, k, v, shape)
}

/// With a choice of instructions, for tests.
pub(super) fn attention_with(arch: Arch, q: &[f32], k: &[f32], v: &[f32], shape: Sequences) -> Vec<f32> {
    let Sequences { batch, heads, head_dim, queries, keys, .. } = shape;
    let width = heads * head_dim;
    let blocks = keys.div_ceil(KEYS);
    let pack = |index: usize| {
        let (head, block) = (index / blocks, index % blocks);
        let start = block * KEYS;
        let count = KEYS.min(keys - start);
        let at = |values: &[f32], key: usize, i: usize| values[(head / heads * keys + start + key) * width + head % heads * head_dim + i];
        KeyBlock {
            keys: Panels::new(arch, head_dim, count, |i, key| at(k, key, i)),
            values: Panels::new(arch, count, head_dim, |key, i| at(v, key, i)),
        }
    };
    let packed: Vec<KeyBlock> = (0..batch * heads * blocks).into_par_iter().map(pack).collect();

    let mut out = vec![0.0; batch * queries * width];
    let shared = Shared::new(&mut out);
    let tasks = queries.div_ceil(QUERIES);
    (0..batch * heads * tasks).into_par_iter().for_each(|index| {
        let (head, start) = (index / tasks, index % tasks * QUERIES);
        let count = QUERIES.min(queries - start);
        let offset = (head / heads * queries + start) * width + head % heads * head_dim;
        let rows = HeadRows { values: &q[offset..], stride: width, head_dim };
        let result = task(arch, &rows, count, start, &packed[head * blocks..(head + 1) * blocks], shape);
        for (i, row) in result.chunks_exact(head_dim).enumerate() {
            write(shared, offset + i * width, row);
        }
    });
    out
}

#[allow(unsafe_code)]
fn write(out: Shared, start: usize, row: &[f32]) {
    // SAFETY: each task has queries of one head to itself.
    unsafe { out.part(start, row.len()) }.copy_from_slice(row);
}

/// The queries of one head.
struct HeadRows<'a> {
    values: &'a [f32],
    stride: usize,
    head_dim: usize,
}

impl Inputs for HeadRows<'_> {
    fn taps(&self) -> usize {
        1
    }

    fn run(&self, row: usize, _: usize) -> &[f32] {
        &self.values[row * self.stride..][..self.head_dim]
    }
}

/// Some queries of one head over all keys: `(count, head_dim)`.
fn task(arch: Arch, rows: &HeadRows, count: usize, first_query: usize, blocks: &[KeyBlock], shape: Sequences) -> Vec<f32> {
    let head_dim = shape.head_dim;
    let scale = 1.0 / (head_dim as f32).sqrt();
    let mut scores = vec![0.0; count * KEYS];
    let mut sums = vec![0.0; count * head_dim];
    let mut added = vec![0.0; count * head_dim];
    let mut highest = [f32::NEG_INFINITY; QUERIES];
    let mut totals = [0.0f32; QUERIES];
    let plain = Epilogue::default();
    for (b, block) in blocks.iter().enumerate() {
        let keys = block.keys.columns;
        let scores = &mut scores[..count * keys];
        let all = |weights: &Panels| 0..weights.count();
        let out = Shared::new(scores);
        arch.dispatch(Block { inputs: rows, rows: 0..count, weights: &block.keys, panels: all(&block.keys), epilogue: &plain, out });
        arch.dispatch(|| {
            for (i, scores) in scores.chunks_exact_mut(keys).enumerate() {
                let seen = if shape.causal { (first_query + i + 1).saturating_sub(b * KEYS).min(keys) } else { keys };
                let shrink = soften(scores, seen, scale, &mut highest[i], &mut totals[i]);
                sums[i * head_dim..(i + 1) * head_dim].iter_mut().for_each(|v| *v *= shrink);
            }
        });
        let (inputs, out) = (MatrixRows { values: scores, depth: keys }, Shared::new(&mut added));
        arch.dispatch(Block { inputs: &inputs, rows: 0..count, weights: &block.values, panels: all(&block.values), epilogue: &plain, out });
        sums.iter_mut().zip(&added).for_each(|(sum, added)| *sum += added);
    }
    for (sums, total) in sums.chunks_exact_mut(head_dim).zip(totals) {
        for v in sums {
            *v /= total;
        }
    }
    sums
}

/// Scores become weights relative to the highest score so far; gives back what earlier sums have to be multiplied with.
#[inline(always)]
fn soften(scores: &mut [f32], seen: usize, scale: f32, highest: &mut f32, total: &mut f32) -> f32 {
    let (visible, hidden) = scores.split_at_mut(seen);
    hidden.fill(0.0);
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in visible.chunks(LANES) {
        lanes.iter_mut().zip(chunk).for_each(|(lane, score)| *lane = lane.max(*score));
    }
    let now = lanes.iter().fold(*highest, |a, b| a.max(b * scale));
    if now == f32::NEG_INFINITY {
        return 1.0;
    }
    let mut lanes = [0.0; LANES];
    for chunk in visible.chunks_mut(LANES) {
        for (lane, score) in lanes.iter_mut().zip(chunk) {
            *score = exp(*score * scale - now);
            *lane += *score;
        }
    }
    let shrink = exp(*highest - now);
    *total = *total * shrink + lanes.iter().sum::<f32>();
    *highest = now;
    shrink
}
