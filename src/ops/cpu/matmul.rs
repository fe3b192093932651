//! Matrix products on all cores: `out (rows, columns) = epilogue(inputs (rows, depth) * weights (depth, columns))`.
//!
//! A task takes some rows and some panels of weights, a stretch of the depth at a time. It first prepares the rows of that stretch as
//! lines, which then stay in the second-level cache while the panels run by. Rows come from wherever [`Inputs`] has them: a 3 x 3
//! convolution reads nine pixels for each, and no image is ever unfolded. The speed is bound by multiplication, except for products of few
//! rows, which are bound by reading the weights from memory.

#![allow(unsafe_code)]

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{
    epilogue::Epilogue,
    memory::{odd_lines, with_scratch},
    output::Output,
    panels::Panels,
    products::{Lines, Multiplier, Products},
};

/// The most panels of a task.
const TASK_PANELS: usize = 16;
/// The fewest tasks for each thread, where a product is large enough. How it is cut changes no number.
const TASKS: usize = 8;
/// The longest stretch of the depth: the lines of a task take 250 KiB of the second-level cache, and their sums 200.
const STRETCH: usize = 640;

/// The rows of a matrix product's inputs.
pub(super) trait Inputs: Sync {
    /// Prepares numbers `from` of a row as a line.
    fn prepare(&self, products: Products, row: usize, from: Range<usize>, line: &mut [f32]);
}

/// The rows of a matrix `(rows, depth)`.
#[derive(Clone, Copy)]
pub(super) struct MatrixRows<'a> {
    pub(super) values: &'a [f32],
    pub(super) depth: usize,
}

impl Inputs for MatrixRows<'_> {
    #[inline(always)]
    fn prepare(&self, products: Products, row: usize, from: Range<usize>, line: &mut [f32]) {
        products.prepare(&self.values[row * self.depth..][from], line);
    }
}

/// A product of the same rows and columns that is added to another one, before its epilogue. It is packed for the same machine.
#[derive(Clone, Copy)]
pub(super) struct Addend<'a> {
    pub(super) inputs: MatrixRows<'a>,
    pub(super) weights: &'a Panels,
}

/// Writes rows `of` the product.
pub(super) fn matmul(inputs: &impl Inputs, of: Range<usize>, weights: &Panels, epilogue: &Epilogue, out: &mut Output) {
    matmul_add(inputs, of, weights, None, epilogue, out);
}

/// [`matmul`], with the same rows of another product added.
pub(super) fn matmul_add(
    inputs: &impl Inputs,
    of: Range<usize>,
    weights: &Panels,
    addend: Option<Addend>,
    epilogue: &Epilogue,
    out: &mut Output,
) {
    assert!(addend.is_none_or(|addend| (addend.weights.columns, addend.weights.width) == (weights.columns, weights.width)));
    let rows = of.len();
    if rows == 0 || weights.count() == 0 {
        return;
    }
    let out = &*out;
    let blocking = weights.machine.products.blocking();
    let blocks = rows.div_ceil(blocking.task_rows);
    let block = rows.div_ceil(blocks).next_multiple_of(blocking.task_row_step);
    let per_task = (blocks * weights.count() / (TASKS * rayon::current_num_threads())).clamp(1, TASK_PANELS);
    let chunks = weights.count().div_ceil(per_task);
    let per_task = weights.count().div_ceil(chunks);
    tasks(blocks * chunks).for_each(|task| {
        let (first_row, first_panel) = (task / chunks * block, task % chunks * per_task);
        let rows = (of.start + first_row).min(of.end)..(of.start + first_row + block).min(of.end);
        let panels = first_panel.min(weights.count())..(first_panel + per_task).min(weights.count());
        let cut = Cut::new(weights, rows.len());
        let decoded = weights.scratch(cut.stretch).max(addend.map_or(0, |addend| addend.weights.scratch(cut.stretch)));
        with_scratch(cut.lines() + panels.len() * cut.sums + decoded, |scratch| {
            // SAFETY: no two tasks have rows and panels in common, and a task writes its own numbers alone.
            let out = unsafe { out.for_task() };
            weights.machine.run(|multiplier| Task { multiplier, inputs, rows, weights, addend, panels, cut, epilogue, out, scratch });
        });
    });
}

/// Tasks by number, each of which any thread can take: a thread with nothing left to do waits no longer than one task takes. By default
/// rayon hands out several at a time, and in small products a thread waited for a tenth of the time.
pub(super) fn tasks(count: usize) -> impl IndexedParallelIterator<Item = usize> {
    (0..count).into_par_iter().with_max_len(1)
}

/// How a task cuts its part of the product.
#[derive(Clone, Copy)]
struct Cut {
    /// Rows of lines and sums.
    height: usize,
    /// Numbers of the depth that are multiplied at a time: equal parts of it.
    stretch: usize,
    /// Words from line to line.
    pitch: usize,
    /// Sums of a panel.
    sums: usize,
}

impl Cut {
    fn new(weights: &Panels, rows: usize) -> Self {
        let products = weights.machine.products;
        let height = rows.next_multiple_of(products.blocking().rows);
        let stretch = products.padded(weights.depth.div_ceil(weights.depth.div_ceil(STRETCH)));
        Self { height, stretch, pitch: odd_lines(products.words(stretch)), sums: height * weights.width }
    }

    /// Words of all lines.
    fn lines(self) -> usize {
        self.height * self.pitch
    }
}

/// Some rows times some panels.
struct Task<'a, I> {
    multiplier: Multiplier,
    inputs: &'a I,
    rows: Range<usize>,
    weights: &'a Panels,
    addend: Option<Addend<'a>>,
    panels: Range<usize>,
    cut: Cut,
    epilogue: &'a Epilogue<'a>,
    out: Output<'a>,
    scratch: &'a mut [f32],
}

impl<I: Inputs> WithSimd for Task<'_, I> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { multiplier, inputs, rows, weights, addend, panels, cut, epilogue, mut out, scratch } = self;
        let mut sums = Sums { multiplier, rows, panels, cut, scratch };
        match addend {
            None => sums.add(simd, inputs, weights, (true, true), epilogue, &mut out),
            Some(addend) => {
                sums.add(simd, inputs, weights, (true, false), epilogue, &mut out);
                sums.add(simd, &addend.inputs, addend.weights, (false, true), epilogue, &mut out);
            }
        }
    }
}

/// The sums of a task's rows and panels.
struct Sums<'a> {
    multiplier: Multiplier,
    rows: Range<usize>,
    panels: Range<usize>,
    cut: Cut,
    /// Lines, sums, and weights as they are multiplied.
    scratch: &'a mut [f32],
}

impl Sums<'_> {
    /// Adds the products of all of a depth, the first of a task or the last one or both. The last one's sums are finished and written.
    #[inline(always)]
    fn add<S: Simd>(
        &mut self,
        simd: S,
        inputs: &impl Inputs,
        weights: &Panels,
        (is_first, is_last): (bool, bool),
        epilogue: &Epilogue,
        out: &mut Output,
    ) {
        let Self { multiplier, rows, panels, cut, scratch } = self;
        let (products, depth, width) = (weights.machine.products, weights.depth, weights.width);
        let Cut { height, stretch, pitch, sums } = *cut;
        let (words, rest) = scratch.split_at_mut(cut.lines());
        let (all_sums, decoded) = rest.split_at_mut(panels.len() * sums);
        // Where one stretch is all there is, the sums of a panel need not outlast it.
        let spacing = if is_first && is_last && stretch >= depth { 0 } else { sums };
        for first in (0..depth).step_by(stretch) {
            let count = stretch.min(depth - first);
            for (line, row) in words.chunks_exact_mut(pitch).zip(rows.clone()) {
                inputs.prepare(products, row, first..first + count, &mut line[..products.words(count)]);
            }
            let lines = Lines { words, pitch, numbers: products.padded(count) };
            for (i, panel) in panels.clone().enumerate() {
                let sums = &mut all_sums[i * spacing..][..sums];
                let soon = weights.stored((panel + 1) % weights.count(), first, count);
                let packed = weights.packed(panel, first, count, decoded);
                multiplier.multiply(simd, lines, height, (packed, soon), width, sums, first > 0 || !is_first);
                if is_last && first + count == depth {
                    for (sums, row) in sums.chunks_exact(width).zip(rows.clone()) {
                        epilogue.write(simd, row, panel * width, sums, out);
                    }
                }
            }
        }
    }
}
