//! Attention that streams over the keys ([FlashAttention](https://arxiv.org/abs/2205.14135)): the scores of a block of queries and
//! a block of keys are all that is ever kept.
//!
//! Everything is turned on its side: scores are kept `(keys, queries)` and sums `(head_dim, queries)`, so that a vector holds
//! neighbouring queries. Then keys and values are read where they lie, the highest score and the total need no sums within a vector,
//! and the scores of a block are in just the order in which the second product reads its weights.

#![allow(unsafe_code)]

use pulp::{Arch, Simd, WithSimd, bytemuck};
use rayon::prelude::*;

use super::{
    epilogue::map,
    math::exp,
    matmul::multiply,
    memory::{Shared, with_scratch, written},
    panels::lanes,
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

/// `softmax(q k^T / sqrt(head_dim)) v` for each head. Where `q` is of one sample, all samples are asked the same.
pub(in crate::ops) fn attention(q: &[f32], k: &[f32], v: &[f32], shape: Sequences) -> Vec<f32> {
    attention_with(Arch::new(), q, k, v, shape)
}

/// With a choice of instructions, for tests.
pub(super) fn attention_with(arch: Arch, q: &[f32], k: &[f32], v: &[f32], shape: Sequences) -> Vec<f32> {
    let Sequences { batch, heads, head_dim, queries, keys, .. } = shape;
    let width = heads * head_dim;
    let samples = q.len() / (queries * width).max(1);
    assert!(samples == 1 || samples == batch);
    assert!(q.len() == samples * queries * width && k.len() == batch * keys * width && v.len() == k.len());
    let panel = 2 * lanes(arch);
    let per_task = PANELS * panel;
    let tasks = queries.div_ceil(per_task);
    let write = |out: &mut [_]| {
        let out = Shared::new(out);
        (0..batch * heads * tasks).into_par_iter().for_each(|index| {
            let (head, first) = (index / tasks, index % tasks * per_task);
            let count = per_task.min(queries - first);
            let (batch, offset) = (head / heads, head % heads * head_dim);
            let start_of = |sample: usize| (sample * queries + first) * width + offset;
            let (q, start) = (&q[start_of(batch % samples)..], start_of(batch));
            let of_head = |values| -> &[f32] { &<&[f32]>::clone(&values)[batch * keys * width + offset..] };
            let panels = count.div_ceil(panel);
            let numbers = panel * (panels * 2 * (head_dim + 1) + KEYS.max(head_dim));
            with_scratch(numbers, |scratch| {
                arch.dispatch(Task { q, k: of_head(k), v: of_head(v), shape, first, count, out, start, scratch });
            });
        });
    };
    // SAFETY: the tasks write each query of each head.
    unsafe { written(batch * queries * width, write) }
}

/// Some queries of one head over all keys.
struct Task<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
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
        let square = head_dim * panel;
        let (queries, rest) = self.scratch.split_at_mut(panels * square);
        let (sums, rest) = rest.split_at_mut(panels * square);
        let (highest, rest) = rest.split_at_mut(panels * panel);
        let (totals, scores) = rest.split_at_mut(panels * panel);
        pack_queries(self.q, self.shape, self.count, queries, panel);
        sums.fill(0.0);
        highest.fill(f32::MIN);
        totals.fill(0.0);
        for start in (0..keys).step_by(KEYS) {
            let count = KEYS.min(keys - start);
            let scores = &mut scores[..count * panel];
            for p in 0..panels {
                multiply(simd, &self.k[start * stride..], (stride, 1), count, &queries[p * square..][..square], panel, scores, false);
                if causal {
                    hide(scores, panel, start, self.first + p * panel);
                }
                let sums = &mut sums[p * square..][..square];
                let of_panel = p * panel..(p + 1) * panel;
                soften(simd, scores, &mut highest[of_panel.clone()], &mut totals[of_panel], sums);
                multiply(simd, &self.v[start * stride..], (1, stride), head_dim, scores, panel, sums, true);
            }
        }
        for (query, total) in totals.iter().enumerate().take(self.count) {
            let (p, lane) = (query / panel, query % panel);
            let row = &mut scores[..head_dim];
            for (i, value) in row.iter_mut().enumerate() {
                *value = sums[p * square + i * panel + lane] / total;
            }
            // SAFETY: each task has queries of one head to itself.
            unsafe { self.out.write(self.start + query * stride, row) };
        }
    }
}

/// Panels `(head_dim, queries)`, multiplied with the scale. Past the last query they hold zeros.
#[inline(always)]
fn pack_queries(q: &[f32], shape: Sequences, count: usize, out: &mut [f32], panel: usize) {
    let Sequences { heads, head_dim, .. } = shape;
    let scale = 1.0 / (head_dim as f32).sqrt();
    out.fill(0.0);
    for query in 0..count {
        let row = &q[query * heads * head_dim..][..head_dim];
        for (i, value) in row.iter().enumerate() {
            out[(query / panel * head_dim + i) * panel + query % panel] = value * scale;
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
    let scores: &mut [[S::f32s; 2]] = bytemuck::cast_slice_mut(scores);
    let sums: &mut [[S::f32s; 2]] = bytemuck::cast_slice_mut(sums);
    let highest: &mut [S::f32s] = bytemuck::cast_slice_mut(highest);
    let totals: &mut [S::f32s] = bytemuck::cast_slice_mut(totals);
    for j in 0..2 {
        // A score that is no number does not win here; it is seen in the total.
        let mut now = highest[j];
        for score in scores.iter() {
            now = simd.max_f32s(score[j], now);
        }
        let shrink = map(simd.sub_f32s(highest[j], now), exp);
        let mut total = simd.mul_f32s(totals[j], shrink);
        for score in scores.iter_mut() {
            score[j] = map(simd.sub_f32s(score[j], now), exp);
            total = simd.add_f32s(total, score[j]);
        }
        for sum in sums.iter_mut() {
            sum[j] = simd.mul_f32s(sum[j], shrink);
        }
        (highest[j], totals[j]) = (now, total);
    }
}
