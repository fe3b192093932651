//! Attention that streams over the keys ([FlashAttention](https://arxiv.org/abs/2205.14135)): the scores of a block of queries and
//! a block of keys are all that is ever kept.
//!
//! Everything is turned on its side: scores are kept `(keys, queries)` and sums `(head_dim, queries)`, so that a vector holds
//! neighbouring queries. Then keys and values are read where they lie, the highest score and the total need no sums within a vector,
//! and the scores of a block are in just the order in which the second product reads its weights.

#![allow(unsafe_code)]

use bytemuck::{cast_slice, cast_slice_mut};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{
    amx::{Amx, BLOCK, Lines, TILE},
    epilogue::map,
    machine::Machine,
    math::exp2,
    matmul::{multiply, tasks},
    memory::{Shared, odd_lines, with_scratch, written},
};

/// Panels of queries of a task, which read each block of keys and values together.
const PANELS: usize = 2;
/// Keys of a block: its scores stay in the first-level cache.
const KEYS: usize = 128;

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

/// `softmax(q k^T / sqrt(head_dim)) v` for each head. Where `q` is of fewer samples, each is what as many of the batch are asked.
pub(in crate::ops) fn attention(q: &[f32], k: &[f32], v: &[f32], shape: Sequences) -> Vec<f32> {
    attention_on(Machine::best(), q, k, v, shape)
}

/// With a choice of instructions, for tests.
pub(super) fn attention_on(machine: Machine, q: &[f32], k: &[f32], v: &[f32], shape: Sequences) -> Vec<f32> {
    let Sequences { batch, heads, head_dim, queries, keys, .. } = shape;
    let width = heads * head_dim;
    let samples = q.len() / (queries * width).max(1);
    assert!(batch.is_multiple_of(samples));
    assert!(q.len() == samples * queries * width && k.len() == batch * keys * width && v.len() == k.len());
    let write = |out: &mut [_]| {
        let out = Shared::new(out);
        let Some(amx) = machine.amx else { return attend(machine, q, Keys::Plain { k, v }, shape, out) };
        // Sample by sample, for what is split takes as much memory as keys and values do.
        let shape = Sequences { batch: 1, ..shape };
        let lengths = Split::lengths(shape);
        with_scratch(lengths.0 + lengths.1, |scratch| {
            let (split_k, split_v) = scratch.split_at_mut(lengths.0);
            for (sample, (k, v)) in k.chunks_exact((keys * width).max(1)).zip(v.chunks_exact((keys * width).max(1))).enumerate() {
                Split::prepare(amx, k, v, shape, cast_slice_mut(split_k), cast_slice_mut(split_v));
                let q = &q[sample * samples / batch * queries * width..][..queries * width];
                let keys = Keys::Split { amx, k: cast_slice(split_k), v: cast_slice(split_v) };
                attend(machine, q, keys, shape, out.part(sample * queries * width..(sample + 1) * queries * width));
            }
        });
    };
    // SAFETY: each query of each head is written.
    unsafe { written(batch * queries * width, write) }
}

/// Writes the result for each query of each head.
fn attend(machine: Machine, q: &[f32], keys: Keys, shape: Sequences, out: Shared) {
    let Sequences { batch, heads, head_dim, queries, .. } = shape;
    let width = heads * head_dim;
    let samples = q.len() / (queries * width).max(1);
    let panel = 2 * machine.lanes();
    let per_task = PANELS * panel;
    let parts = queries.div_ceil(per_task);
    tasks(batch * heads * parts).for_each(|index| {
        let (head, first) = (index / parts, index % parts * per_task);
        let count = per_task.min(queries - first);
        let (sample, offset) = (head / heads, head % heads * head_dim);
        let start_of = |sample: usize| (sample * queries + first) * width + offset;
        let (q, start) = (&q[start_of(sample * samples / batch)..], start_of(sample));
        let panels = count.div_ceil(panel);
        let numbers = panel * (panels * (3 * head_dim.next_multiple_of(BLOCK) + 2) + 2 * KEYS.max(head_dim));
        let keys = keys.of_head(head, shape);
        with_scratch(numbers, |scratch| {
            machine.run(Task { q, keys, shape, first, count, out, start, scratch });
        });
    });
}

/// Keys and values.
#[derive(Clone, Copy)]
enum Keys<'a> {
    /// `(batch, keys, heads * head_dim)`
    Plain { k: &'a [f32], v: &'a [f32] },
    /// As [`Split::prepare`] leaves them.
    Split { amx: Amx, k: &'a [u16], v: &'a [u16] },
}

impl Keys<'_> {
    /// From where those of a head are, counted over all samples.
    fn of_head(&self, head: usize, shape: Sequences) -> Self {
        let Sequences { heads, head_dim, keys, .. } = shape;
        match self {
            Self::Plain { k, v } => {
                let start = (head / heads * keys * heads + head % heads) * head_dim;
                Self::Plain { k: &k[start..], v: &v[start..] }
            }
            Self::Split { amx, k, v } => {
                let split = Split::of(shape);
                Self::Split { amx: *amx, k: &k[head * split.k_len()..], v: &v[head * split.v_len()..] }
            }
        }
    }

    /// `(keys, queries)` for `count` keys from `start` on.
    #[inline(always)]
    fn scores<S: Simd>(&self, simd: S, shape: Sequences, (start, count): (usize, usize), queries: &[f32], scores: &mut [f32]) {
        match self {
            Self::Plain { k, .. } => {
                let stride = shape.heads * shape.head_dim;
                multiply(simd, &k[start * stride..], (stride, 1), count, queries, 2 * S::F32_LANES, scores, false);
            }
            Self::Split { amx, k, .. } => {
                let split = Split::of(shape);
                let lines = Lines { halves: &k[start * split.k_pitch..], low: split.depth, pitch: split.k_pitch };
                amx.multiply(lines, count.next_multiple_of(TILE), cast_slice(queries), scores, false);
            }
        }
    }

    /// Adds the values of as many keys as there are weights `(keys, queries)`, to sums `(head_dim, queries)`.
    #[inline(always)]
    fn add<S: Simd>(&self, simd: S, shape: Sequences, start: usize, weights: &[f32], scratch: &mut [f32], sums: &mut [f32]) {
        match self {
            Self::Plain { v, .. } => {
                let stride = shape.heads * shape.head_dim;
                multiply(simd, &v[start * stride..], (1, stride), shape.head_dim, weights, 2 * S::F32_LANES, sums, true);
            }
            Self::Split { amx, v, .. } => {
                let split = Split::of(shape);
                let blocks = &mut cast_slice_mut(scratch)[..2 * weights.len()];
                amx.pack(weights, blocks);
                let lines = Lines { halves: &v[start / KEYS * split.v_block..], low: KEYS, pitch: V_PITCH };
                amx.multiply(lines, split.features, blocks, sums, true);
            }
        }
    }
}

/// Some queries of one head over all keys.
struct Task<'a> {
    q: &'a [f32],
    keys: Keys<'a>,
    shape: Sequences,
    /// The first query, and how many there are.
    first: usize,
    count: usize,
    out: Shared,
    /// Where the result begins.
    start: usize,
    scratch: &'a mut [f32],
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Sequences { heads, head_dim, keys, causal, .. } = self.shape;
        let (panel, stride) = (2 * S::F32_LANES, heads * head_dim);
        let keys = if causal { keys.min(self.first + self.count) } else { keys };
        let panels = self.count.div_ceil(panel);
        // Whole blocks for tile units; where there are none, whole numbers of vectors.
        let (rows, whole) = match self.keys {
            Keys::Plain { .. } => (head_dim, 1),
            Keys::Split { .. } => (head_dim.next_multiple_of(BLOCK), BLOCK),
        };
        let square = rows * panel;
        let (queries, rest) = self.scratch.split_at_mut(panels * square);
        let (sums, rest) = rest.split_at_mut(panels * square);
        let (highest, rest) = rest.split_at_mut(panels * panel);
        let (totals, rest) = rest.split_at_mut(panels * panel);
        let (scores, spare) = rest.split_at_mut(KEYS.max(head_dim) * panel);
        pack_queries(self.q, self.shape, self.count, sums, panel, square);
        match self.keys {
            Keys::Plain { .. } => queries.copy_from_slice(sums),
            Keys::Split { amx, .. } => amx.pack(sums, cast_slice_mut(queries)),
        }
        sums.fill(0.0);
        highest.fill(f32::MIN);
        totals.fill(0.0);
        for start in (0..keys).step_by(KEYS) {
            let count = KEYS.min(keys - start);
            for p in 0..panels {
                self.keys.scores(simd, self.shape, (start, count), &queries[p * square..][..square], scores);
                let (seen, rest) = scores.split_at_mut(count * panel);
                if causal {
                    hide(seen, panel, start, self.first + p * panel);
                }
                let sums = &mut sums[p * square..][..square];
                let of_panel = p * panel..(p + 1) * panel;
                soften(simd, seen, &mut highest[of_panel.clone()], &mut totals[of_panel], sums);
                let filled = count.next_multiple_of(whole);
                rest[..(filled - count) * panel].fill(0.0);
                self.keys.add(simd, self.shape, start, &scores[..filled * panel], spare, sums);
            }
        }
        for (query, total) in totals.iter().enumerate().take(self.count) {
            let (p, lane) = (query / panel, query % panel);
            // The highest score weighs 1. Where nothing does, all scores were -infinity, and there is no answer.
            let total = if *total < 0.5 { f32::NAN } else { *total };
            let row = &mut scores[..head_dim];
            for (i, value) in row.iter_mut().enumerate() {
                *value = sums[p * square + i * panel + lane] / total;
            }
            // SAFETY: each task has queries of one head to itself.
            unsafe { self.out.write(self.start + query * stride, row) };
        }
    }
}

/// Panels `(head_dim, queries)`, `square` numbers apart, multiplied with the scale, and so that powers of 2 serve for those of e. Past the last query and number they hold zeros.
#[inline(always)]
fn pack_queries(q: &[f32], shape: Sequences, count: usize, out: &mut [f32], panel: usize, square: usize) {
    let Sequences { heads, head_dim, .. } = shape;
    let scale = std::f32::consts::LOG2_E / (head_dim as f32).sqrt();
    out.fill(0.0);
    for query in 0..count {
        let row = &q[query * heads * head_dim..][..head_dim];
        for (i, value) in row.iter().enumerate() {
            out[query / panel * square + i * panel + query % panel] = value * scale;
        }
    }
}

/// Takes away what a query must not see: the keys after it.
fn hide(scores: &mut [f32], panel: usize, first_key: usize, first_query: usize) {
    for (key, scores) in scores.chunks_exact_mut(panel).enumerate() {
        let hidden = (first_key + key).saturating_sub(first_query).min(panel);
        scores[..hidden].fill(f32::NEG_INFINITY);
    }
}

/// Scores `(keys, queries)` become weights relative to the highest so far, and earlier sums are brought to the same measure.
#[inline(always)]
fn soften<S: Simd>(simd: S, scores: &mut [f32], highest: &mut [f32], totals: &mut [f32], sums: &mut [f32]) {
    let scores: &mut [[S::f32s; 2]] = cast_slice_mut(scores);
    let sums: &mut [[S::f32s; 2]] = cast_slice_mut(sums);
    let highest: &mut [S::f32s] = cast_slice_mut(highest);
    let totals: &mut [S::f32s] = cast_slice_mut(totals);
    for j in 0..2 {
        // A score that is no number does not win here; it is seen in the total.
        let mut now = highest[j];
        for score in scores.iter() {
            now = simd.max_f32s(score[j], now);
        }
        let shrink = map(simd.sub_f32s(highest[j], now), exp2);
        let mut total = simd.mul_f32s(totals[j], shrink);
        for score in scores.iter_mut() {
            score[j] = map(simd.sub_f32s(score[j], now), exp2);
            total = simd.add_f32s(total, score[j]);
        }
        for sum in sums.iter_mut() {
            sum[j] = simd.mul_f32s(sum[j], shrink);
        }
        (highest[j], totals[j]) = (now, total);
    }
}

/// Keys and values of each head, split for tile units: keys `(keys, head_dim)`, values in blocks of [`KEYS`] and turned on their side,
/// `(head_dim, KEYS)`, with zeros up to whole blocks of theirs.
#[derive(Clone, Copy)]
struct Split {
    /// Keys of a head.
    keys: usize,
    /// Numbers of a key.
    depth: usize,
    /// Rows of values.
    features: usize,
    /// Halves from key to key.
    k_pitch: usize,
    /// Halves of a block of values.
    v_block: usize,
}

/// Halves from row to row of values.
const V_PITCH: usize = 2 * odd_lines(KEYS);

impl Split {
    fn of(shape: Sequences) -> Self {
        let (depth, features) = (shape.head_dim.next_multiple_of(BLOCK), shape.head_dim.next_multiple_of(TILE));
        Self { keys: shape.keys.next_multiple_of(BLOCK), depth, features, k_pitch: 2 * odd_lines(depth), v_block: features * V_PITCH }
    }

    /// Halves of the keys of a head.
    fn k_len(self) -> usize {
        self.keys * self.k_pitch
    }

    /// Halves of the values of a head.
    fn v_len(self) -> usize {
        self.keys.div_ceil(KEYS) * self.v_block
    }

    /// In f32 numbers, of the keys and of the values of all heads.
    fn lengths(shape: Sequences) -> (usize, usize) {
        let (split, heads) = (Self::of(shape), shape.batch * shape.heads);
        (heads * split.k_len() / 2, heads * split.v_len() / 2)
    }

    fn prepare(amx: Amx, k: &[f32], v: &[f32], shape: Sequences, split_k: &mut [u16], split_v: &mut [u16]) {
        let Sequences { heads, head_dim, keys, .. } = shape;
        let (split, width) = (Self::of(shape), heads * head_dim);
        let of_heads = split_k.par_chunks_exact_mut(split.k_len()).zip(split_v.par_chunks_exact_mut(split.v_len()));
        of_heads.enumerate().for_each(|(head, (split_k, split_v))| {
            let start = head / heads * keys * width + head % heads * head_dim;
            let (k, v) = (&k[start..], &v[start..]);
            with_scratch(split.depth.max(KEYS), |row| {
                for (key, line) in split_k.chunks_exact_mut(split.k_pitch).enumerate() {
                    let row = &mut row[..split.depth];
                    row.fill(0.0);
                    if key < keys {
                        row[..head_dim].copy_from_slice(&k[key * width..][..head_dim]);
                    }
                    let (high, low) = line.split_at_mut(split.depth);
                    amx.split(row, high, &mut low[..split.depth]);
                }
                for (block, split_v) in split_v.chunks_exact_mut(split.v_block).enumerate() {
                    for (feature, line) in split_v.chunks_exact_mut(V_PITCH).enumerate() {
                        for (key, value) in (block * KEYS..).zip(&mut row[..KEYS]) {
                            *value = if key < keys && feature < head_dim { v[key * width + feature] } else { 0.0 };
                        }
                        let (high, low) = line.split_at_mut(KEYS);
                        amx.split(&row[..KEYS], high, &mut low[..KEYS]);
                    }
                }
            });
        });
    }
}
