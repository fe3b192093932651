//! Attention that streams over the keys ([FlashAttention](https://arxiv.org/abs/2205.14135)): `softmax(q k^T / sqrt(head_dim)) v`, of
//! sequences `(batch, tokens, heads * head_dim)`. Of the scores, no more is kept at a time than those of a block of queries and keys.
//!
//! Everything is transposed: scores are `(keys, queries)` and sums `(head_dim, queries)`, so that a vector holds neighbouring queries.
//! Keys and values are then read where they are, the maximum and the total need no sums within a vector, and scores are in the order in
//! which the second product reads its weights. The speed is bound by the two products and, where heads are short, by the exponential.

#![allow(unsafe_code)]

use bytemuck::cast_slice_mut;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{
    epilogue::map,
    machine::Machine,
    math::exp2,
    matmul::tasks,
    memory::{odd_lines, with_scratch, written},
    output::Output,
    products::{Lines, Multiplier, Products, fma},
};

/// Panels of queries of a task, which read each block of keys and values together.
const PANELS: usize = 2;
/// Keys of a block: its scores stay in the first-level cache.
const KEYS: usize = 128;

/// Shape of sequences `(batch, tokens, heads * head_dim)`.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct Sequences {
    pub(in crate::ops) batch: usize,
    pub(in crate::ops) heads: usize,
    pub(in crate::ops) head_dim: usize,
    pub(in crate::ops) queries: usize,
    pub(in crate::ops) keys: usize,
    /// Whether a query sees no keys after its own token.
    pub(in crate::ops) causal: bool,
}

impl Sequences {
    /// Numbers of a token.
    fn width(self) -> usize {
        self.heads * self.head_dim
    }
}

/// `softmax(q k^T / sqrt(head_dim)) v` for each head. Where `q` has fewer samples than the batch, each stands for as many of it.
pub(in crate::ops) fn attention(machine: Machine, q: &[f32], k: &[f32], v: &[f32], shape: Sequences) -> Vec<f32> {
    let (machine, Sequences { batch, queries, keys, .. }) = (machine.floating(), shape);
    let (q_len, kv_len) = (queries * shape.width(), keys * shape.width());
    let samples = q.len() / q_len.max(1);
    assert!(batch.is_multiple_of(samples));
    assert!(q.len() == samples * q_len && k.len() == batch * kv_len && v.len() == k.len());
    let write = |out: &mut [_]| {
        let mut out = Output::new(out);
        if machine.products.is_plain() {
            return attend(machine, q, Keys::InPlace { k, v }, shape, &mut out);
        }
        // Sample by sample, for prepared keys and values take as much memory again.
        let shape = Sequences { batch: 1, ..shape };
        let prepared = Prepared::new(machine.products, shape);
        with_scratch(shape.heads * (prepared.k_len() + prepared.v_len()), |scratch| {
            let (prepared_k, prepared_v) = scratch.split_at_mut(shape.heads * prepared.k_len());
            for sample in 0..batch {
                let of_sample = sample * kv_len..(sample + 1) * kv_len;
                prepared.prepare(machine.products, &k[of_sample.clone()], &v[of_sample], shape, prepared_k, prepared_v);
                let q = &q[sample * samples / batch * q_len..][..q_len];
                let keys = Keys::Prepared { layout: prepared, k: prepared_k, v: prepared_v };
                attend(machine, q, keys, shape, &mut out.part(sample * q_len..(sample + 1) * q_len));
            }
        });
    };
    // SAFETY: the result of each query of each head is written.
    unsafe { written(batch * q_len, write) }
}

/// Writes the result of each query of each head.
fn attend(machine: Machine, q: &[f32], keys: Keys, shape: Sequences, out: &mut Output) {
    let out = &*out;
    let Sequences { batch, heads, head_dim, queries, .. } = shape;
    let width = shape.width();
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
        let keys = keys.of_head(head, shape);
        let cut = Cut::new(machine.products, head_dim, panel, count.div_ceil(panel));
        with_scratch(cut.numbers(), |scratch| {
            // SAFETY: a task writes the results of its queries of one head, which no other task has. Nobody reads.
            let out = unsafe { out.for_task() };
            machine.run(|multiplier| Task {
                multiplier,
                products: machine.products,
                q,
                keys,
                shape,
                first,
                count,
                out,
                start,
                cut,
                scratch,
            });
        });
    });
}

/// Keys and values.
#[derive(Clone, Copy)]
enum Keys<'a> {
    /// `(batch, keys, heads * head_dim)`
    InPlace { k: &'a [f32], v: &'a [f32] },
    /// As [`Prepared::prepare`] leaves them.
    Prepared { layout: Prepared, k: &'a [f32], v: &'a [f32] },
}

impl Keys<'_> {
    /// Those of one head and all that follow. Heads are counted over all samples.
    fn of_head(&self, head: usize, shape: Sequences) -> Self {
        let Sequences { heads, head_dim, keys, .. } = shape;
        match *self {
            Self::InPlace { k, v } => {
                let start = (head / heads * keys * heads + head % heads) * head_dim;
                Self::InPlace { k: &k[start..], v: &v[start..] }
            }
            Self::Prepared { layout, k, v } => Self::Prepared { layout, k: &k[head * layout.k_len()..], v: &v[head * layout.v_len()..] },
        }
    }
}

/// How a task cuts its scratch memory.
#[derive(Clone, Copy)]
struct Cut {
    /// Queries of a panel.
    panel: usize,
    panels: usize,
    /// Numbers of a panel of queries or sums, whose rows are padded as weights are.
    square: usize,
    /// The most rows of a panel that are written at a time.
    rows: usize,
}

impl Cut {
    fn new(products: Products, head_dim: usize, panel: usize, panels: usize) -> Self {
        Self { panel, panels, square: products.padded(head_dim) * panel, rows: KEYS.max(head_dim) }
    }

    /// Queries, sums, maxima, totals, scores and what they are packed into.
    fn numbers(self) -> usize {
        self.panels * (2 * self.square + 2 * self.panel) + 2 * self.rows * self.panel
    }
}

/// Some queries of one head over all keys.
struct Task<'a> {
    multiplier: Multiplier,
    products: Products,
    q: &'a [f32],
    keys: Keys<'a>,
    shape: Sequences,
    /// The first query, and how many there are.
    first: usize,
    count: usize,
    out: Output<'a>,
    /// Where the result begins.
    start: usize,
    cut: Cut,
    scratch: &'a mut [f32],
}

impl Task<'_> {
    /// Scores `(keys, queries)` of `count` keys from `start` on.
    #[inline(always)]
    fn score<S: Simd>(&self, simd: S, start: usize, count: usize, queries: &[f32], scores: &mut [f32]) {
        let width = 2 * S::F32_LANES;
        match self.keys {
            Keys::InPlace { k, .. } => {
                let stride = self.shape.width();
                fma::multiply(simd, &k[start * stride..], (stride, 1), count, queries, width, scores, false);
            }
            Keys::Prepared { layout, k, .. } => {
                let lines = Lines { words: &k[start * layout.k_pitch..], pitch: layout.k_pitch, numbers: layout.depth };
                let rows = count.next_multiple_of(self.products.blocking().rows);
                self.multiplier.multiply(simd, lines, rows, (queries, &[]), width, scores, false);
            }
        }
    }

    /// Adds the values from key `start` on, as many as there are weights `(keys, queries)`, to sums `(head_dim, queries)`.
    #[inline(always)]
    fn add_values<S: Simd>(&self, simd: S, start: usize, weights: &[f32], packed: &mut [f32], sums: &mut [f32]) {
        let width = 2 * S::F32_LANES;
        match self.keys {
            Keys::InPlace { v, .. } => {
                let stride = self.shape.width();
                fma::multiply(simd, &v[start * stride..], (1, stride), self.shape.head_dim, weights, width, sums, true);
            }
            Keys::Prepared { layout, v, .. } => {
                let packed = &mut packed[..self.products.packed_words(weights.len())];
                self.products.pack(weights, width, packed);
                let lines = Lines { words: &v[start / KEYS * layout.v_block..], pitch: layout.v_pitch, numbers: KEYS };
                self.multiplier.multiply(simd, lines, layout.features, (packed, &[]), width, sums, true);
            }
        }
    }
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let Sequences { head_dim, keys, causal, .. } = self.shape;
        let Cut { panel, panels, square, rows } = self.cut;
        let keys = if causal { keys.min(self.first + self.count) } else { keys };
        let (queries, rest) = std::mem::take(&mut self.scratch).split_at_mut(panels * square);
        let (sums, rest) = rest.split_at_mut(panels * square);
        let (highest, rest) = rest.split_at_mut(panels * panel);
        let (totals, rest) = rest.split_at_mut(panels * panel);
        let (scores, packed) = rest.split_at_mut(rows * panel);
        pack_queries(self.q, self.shape, self.count, sums, panel, square);
        let words = self.products.packed_words(square);
        self.products.pack(sums, panel, &mut queries[..panels * words]);
        sums.fill(0.0);
        highest.fill(f32::MIN);
        totals.fill(0.0);
        for start in (0..keys).step_by(KEYS) {
            let count = KEYS.min(keys - start);
            for p in 0..panels {
                self.score(simd, start, count, &queries[p * words..][..words], scores);
                let (seen, rest) = scores.split_at_mut(count * panel);
                if causal {
                    hide(seen, panel, start, self.first + p * panel);
                }
                let sums = &mut sums[p * square..][..square];
                let of_panel = p * panel..(p + 1) * panel;
                soften(simd, seen, &mut highest[of_panel.clone()], &mut totals[of_panel], sums);
                let padded = self.products.padded(count);
                rest[..(padded - count) * panel].fill(0.0);
                self.add_values(simd, start, &scores[..padded * panel], packed, sums);
            }
        }
        for (query, total) in totals.iter().enumerate().take(self.count) {
            let (p, lane) = (query / panel, query % panel);
            // The highest score weighs 1. Where the total is less, all scores were -infinity, and there is no answer.
            let total = if *total < 0.5 { f32::NAN } else { *total };
            let row = &mut scores[..head_dim];
            for (i, value) in row.iter_mut().enumerate() {
                *value = sums[p * square + i * panel + lane] / total;
            }
            self.out.write(self.start + query * self.shape.width(), row);
        }
    }
}

/// Panels `(head_dim, queries)`, `square` numbers apart, of queries times the scale and log2(e), so that `exp2` serves for `exp`. Padding
/// is zeros.
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

/// Hides the keys after each query from it.
fn hide(scores: &mut [f32], panel: usize, first_key: usize, first_query: usize) {
    for (key, scores) in scores.chunks_exact_mut(panel).enumerate() {
        let hidden = (first_key + key).saturating_sub(first_query).min(panel);
        scores[..hidden].fill(f32::NEG_INFINITY);
    }
}

/// The streaming softmax: turns scores `(keys, queries)` into weights relative to the highest score so far, and scales the totals and sums
/// of earlier blocks to it.
#[inline(always)]
fn soften<S: Simd>(simd: S, scores: &mut [f32], highest: &mut [f32], totals: &mut [f32], sums: &mut [f32]) {
    let scores: &mut [[S::f32s; 2]] = cast_slice_mut(scores);
    let sums: &mut [[S::f32s; 2]] = cast_slice_mut(sums);
    let highest: &mut [S::f32s] = cast_slice_mut(highest);
    let totals: &mut [S::f32s] = cast_slice_mut(totals);
    for j in 0..2 {
        // A NaN does not become the maximum, but the total.
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

/// How keys and values are prepared, for each head: keys as lines of `head_dim` numbers; values transposed, in blocks of [`KEYS`] keys, as
/// lines of as many numbers. Whole blocks and lines are filled up with zeros.
#[derive(Clone, Copy)]
struct Prepared {
    /// Lines of the keys of a head.
    keys: usize,
    /// Numbers of a key's line.
    depth: usize,
    /// Words from key to key.
    k_pitch: usize,
    /// Blocks of the values of a head.
    blocks: usize,
    /// Lines of a block of values.
    features: usize,
    /// Words from line to line of values.
    v_pitch: usize,
    /// Words of a block of values.
    v_block: usize,
}

impl Prepared {
    fn new(products: Products, shape: Sequences) -> Self {
        let (depth, features) = (products.padded(shape.head_dim), shape.head_dim.next_multiple_of(products.blocking().rows));
        let (k_pitch, v_pitch) = (odd_lines(products.words(depth)), odd_lines(products.words(KEYS)));
        let keys = shape.keys.next_multiple_of(products.blocking().rows);
        Self { keys, depth, k_pitch, blocks: shape.keys.div_ceil(KEYS), features, v_pitch, v_block: features * v_pitch }
    }

    /// Words of the keys of a head.
    fn k_len(self) -> usize {
        self.keys * self.k_pitch
    }

    /// Words of the values of a head.
    fn v_len(self) -> usize {
        self.blocks * self.v_block
    }

    /// Prepares the keys and values of all heads of one sample.
    fn prepare(self, products: Products, k: &[f32], v: &[f32], shape: Sequences, prepared_k: &mut [f32], prepared_v: &mut [f32]) {
        let Sequences { head_dim, keys, .. } = shape;
        let width = shape.width();
        let of_heads = prepared_k.par_chunks_exact_mut(self.k_len().max(1)).zip(prepared_v.par_chunks_exact_mut(self.v_len().max(1)));
        of_heads.enumerate().for_each(|(head, (prepared_k, prepared_v))| {
            let (k, v) = (&k[head * head_dim..], &v[head * head_dim..]);
            with_scratch(self.depth.max(KEYS), |row| {
                for (key, line) in prepared_k.chunks_exact_mut(self.k_pitch).enumerate() {
                    let row = &mut row[..self.depth];
                    row.fill(0.0);
                    if key < keys {
                        row[..head_dim].copy_from_slice(&k[key * width..][..head_dim]);
                    }
                    products.prepare(row, &mut line[..products.words(self.depth)]);
                }
                for (block, prepared_v) in prepared_v.chunks_exact_mut(self.v_block).enumerate() {
                    for (feature, line) in prepared_v.chunks_exact_mut(self.v_pitch).enumerate() {
                        for (key, value) in (block * KEYS..).zip(&mut row[..KEYS]) {
                            *value = if key < keys && feature < head_dim { v[key * width + feature] } else { 0.0 };
                        }
                        products.prepare(&row[..KEYS], &mut line[..products.words(KEYS)]);
                    }
                }
            });
        });
    }
}
