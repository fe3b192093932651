//! The kernel under everything: rows of numbers times packed weights.
//!
//! A tile of `MR` rows and `NV` vectors of columns is kept in registers while the whole depth runs by. Rows are read where they lie,
//! through one pointer each and *tap*: a linear layer has one tap, a 3 x 3 convolution nine, so that no image is ever unfolded. Weights
//! are stored panel by panel in the order in which the kernel reads them, once, when the model is loaded.

#![allow(unsafe_code)]

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::math::{gelu, quick_gelu, silu};
use crate::ops::Activation;

/// Rows of a task. Its inputs stay in the second-level cache while the panels run by.
const TASK_ROWS: usize = 96;
/// Panels of a task.
const TASK_PANELS: usize = 8;
/// The widest panel: two vectors of AVX-512.
const MAX_WIDTH: usize = 32;
/// The tallest tile.
const MAX_ROWS: usize = 12;

/// A matrix `(depth, columns)` in panels of as many columns as two vectors hold, each panel row by row.
#[derive(Debug, Clone)]
pub(super) struct Panels {
    values: Vec<f32>,
    pub(super) depth: usize,
    pub(super) columns: usize,
    width: usize,
    arch: Arch,
}

impl Panels {
    /// Packs the matrix whose element at `(k, n)` is `at(k, n)`.
    pub(super) fn new(arch: Arch, depth: usize, columns: usize, at: impl Fn(usize, usize) -> f32) -> Self {
        let width = arch.dispatch(Width);
        let mut values = vec![0.0; columns.div_ceil(width) * depth * width];
        for (panel, values) in values.chunks_exact_mut(depth * width).enumerate() {
            for (k, row) in values.chunks_exact_mut(width).enumerate() {
                for (n, value) in row.iter_mut().enumerate().take(columns - panel * width) {
                    *value = at(k, panel * width + n);
                }
            }
        }
        Self { values, depth, columns, width, arch }
    }

    pub(super) fn count(&self) -> usize {
        self.columns.div_ceil(self.width)
    }

    fn panel(&self, index: usize) -> &[f32] {
        let len = self.depth * self.width;
        &self.values[index * len..(index + 1) * len]
    }
}

/// What happens to a result before it is written.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::ops) struct Epilogue<'a> {
    /// Added to each row.
    pub(in crate::ops) bias: Option<&'a [f32]>,
    /// Added to each row of a sample: one row of numbers a sample, and the number of rows that a sample has.
    pub(in crate::ops) sample_bias: Option<(&'a [f32], usize)>,
    /// Of the shape of the result, added to it.
    pub(in crate::ops) residual: Option<&'a [f32]>,
    /// Applied at last.
    pub(in crate::ops) activation: Option<Activation>,
}

impl Epilogue<'_> {
    /// Finishes the numbers of one row from `column` on.
    #[inline(always)]
    pub(super) fn apply(&self, row: usize, column: usize, columns: usize, values: &mut [f32]) {
        let n = values.len();
        let mut add = |other: &[f32]| values.iter_mut().zip(other).for_each(|(v, o)| *v += o);
        if let Some(bias) = self.bias {
            add(&bias[column..column + n]);
        }
        if let Some((bias, rows)) = self.sample_bias {
            let start = row / rows * columns + column;
            add(&bias[start..start + n]);
        }
        if let Some(residual) = self.residual {
            let start = row * columns + column;
            add(&residual[start..start + n]);
        }
        match self.activation {
            None => {}
            Some(Activation::Silu) => values.iter_mut().for_each(|v| *v = silu(*v)),
            Some(Activation::Gelu) => values.iter_mut().for_each(|v| *v = gelu(*v)),
            Some(Activation::QuickGelu) => values.iter_mut().for_each(|v| *v = quick_gelu(*v)),
        }
    }
}

/// Where the inputs of each row lie: `taps` runs of `depth / taps` numbers.
pub(super) trait Inputs: Sync {
    /// Runs of numbers that make a row.
    fn taps(&self) -> usize;
    /// Where a run begins.
    fn run(&self, row: usize, tap: usize) -> &[f32];
}

/// The rows of a matrix.
pub(super) struct MatrixRows<'a> {
    pub(super) values: &'a [f32],
    pub(super) depth: usize,
}

impl Inputs for MatrixRows<'_> {
    fn taps(&self) -> usize {
        1
    }

    #[inline(always)]
    fn run(&self, row: usize, _: usize) -> &[f32] {
        &self.values[row * self.depth..(row + 1) * self.depth]
    }
}

/// Parts of the output that tasks write side by side.
#[derive(Clone, Copy)]
pub(super) struct Shared(*mut f32, usize);

// SAFETY: tasks write disjoint parts, and nobody reads before all of them are done.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl Shared {
    pub(super) fn new(values: &mut [f32]) -> Self {
        Self(values.as_mut_ptr(), values.len())
    }

    /// A part of the output.
    ///
    /// # Safety
    /// No two parts that overlap may be alive at a time.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub(super) unsafe fn part(&self, start: usize, len: usize) -> &mut [f32] {
        assert!(start + len <= self.1);
        // SAFETY: in bounds; apart from others by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

/// `out = epilogue(inputs * weights)`, `(rows, columns)`, on all cores.
pub(super) fn matmul(inputs: &impl Inputs, rows: usize, weights: &Panels, epilogue: &Epilogue, out: &mut [f32]) {
    assert_eq!(out.len(), rows * weights.columns);
    let out = Shared::new(out);
    let chunks = weights.count().div_ceil(TASK_PANELS);
    (0..rows.div_ceil(TASK_ROWS) * chunks).into_par_iter().for_each(|task| {
        let (block, chunk) = (task / chunks, task % chunks);
        let rows = block * TASK_ROWS..((block + 1) * TASK_ROWS).min(rows);
        let panels = chunk * TASK_PANELS..((chunk + 1) * TASK_PANELS).min(weights.count());
        weights.arch.dispatch(Block { inputs, rows, weights, panels, epilogue, out });
    });
}

/// One task: some rows times some panels.
pub(super) struct Block<'a, I> {
    pub(super) inputs: &'a I,
    pub(super) rows: std::ops::Range<usize>,
    pub(super) weights: &'a Panels,
    pub(super) panels: std::ops::Range<usize>,
    pub(super) epilogue: &'a Epilogue<'a>,
    pub(super) out: Shared,
}

impl<I: Inputs> WithSimd for Block<'_, I> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // 24 sums, 2 weights and an input fit 32 registers; 12 sums, 2 weights and an input fit 16.
        if S::REGISTER_COUNT >= 32 { self.run::<S, 12>(simd) } else { self.run::<S, 6>(simd) }
    }
}

impl<I: Inputs> Block<'_, I> {
    #[inline(always)]
    fn run<S: Simd, const MR: usize>(self, simd: S) {
        let (taps, columns, width) = (self.inputs.taps(), self.weights.columns, 2 * S::F32_LANES);
        let run_len = self.weights.depth / taps;
        let tiles = self.rows.len().div_ceil(MR);
        // Rows past the end read the last one again; what comes of them is not written.
        let last = self.rows.end - 1;
        let mut pointers = Vec::with_capacity(tiles * taps * MR);
        for tile in 0..tiles {
            for tap in 0..taps {
                pointers.extend((0..MR).map(|i| {
                    let run = self.inputs.run((self.rows.start + tile * MR + i).min(last), tap);
                    assert!(run.len() >= run_len);
                    run.as_ptr()
                }));
            }
        }
        for panel in self.panels {
            let column = panel * width;
            let n = width.min(columns - column);
            for (tile, pointers) in pointers.chunks_exact(taps * MR).enumerate() {
                let first = self.rows.start + tile * MR;
                // SAFETY: each pointer leads to `run_len` numbers (asserted above), and the panel holds `taps * run_len` rows of `width`.
                let sums = unsafe { tile_sums::<S, MR>(simd, pointers, run_len, self.weights.panel(panel)) };
                for (i, sums) in sums.iter().enumerate().take(self.rows.end - first) {
                    let row = first + i;
                    let mut buffer = [0.0; MAX_WIDTH];
                    pulp::bytemuck::cast_slice_mut::<f32, S::f32s>(&mut buffer[..width]).copy_from_slice(sums);
                    let values = &mut buffer[..n];
                    self.epilogue.apply(row, column, columns, values);
                    // SAFETY: this task alone writes these rows of these panels.
                    unsafe { self.out.part(row * columns + column, n) }.copy_from_slice(values);
                }
            }
        }
    }
}

/// The sums of `MR` rows and two vectors of columns.
///
/// # Safety
/// `pointers` are a multiple of `MR`, each to `run_len` numbers; `panel` holds two vectors for each number of a row.
#[inline(always)]
unsafe fn tile_sums<S: Simd, const MR: usize>(simd: S, pointers: &[*const f32], run_len: usize, panel: &[f32]) -> [[S::f32s; 2]; MR] {
    let mut sums = [[simd.splat_f32s(0.0); 2]; MR];
    let mut weights = panel.as_ptr().cast::<S::f32s>();
    for tap in pointers.chunks_exact(MR) {
        let mut inputs = [std::ptr::null(); MR];
        inputs.copy_from_slice(tap);
        for k in 0..run_len {
            // SAFETY: by the caller's word.
            unsafe {
                let (first, second) = (weights.read_unaligned(), weights.add(1).read_unaligned());
                weights = weights.add(2);
                for i in 0..MR {
                    let input = simd.splat_f32s(*inputs[i].add(k));
                    sums[i][0] = simd.mul_add_e_f32s(input, first, sums[i][0]);
                    sums[i][1] = simd.mul_add_e_f32s(input, second, sums[i][1]);
                }
            }
        }
    }
    sums
}

/// Columns of a panel.
struct Width;

impl WithSimd for Width {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        const { assert!(2 * S::F32_LANES <= MAX_WIDTH && MAX_ROWS <= TASK_ROWS) };
        2 * S::F32_LANES
    }
}

/// The weights of a linear layer.
#[derive(Debug, Clone)]
pub(in crate::ops) struct PackedLinear {
    panels: Panels,
    bias: Option<Vec<f32>>,
}

impl PackedLinear {
    /// Packs `weight` `(outputs, inputs)`.
    pub(in crate::ops) fn new(weight: &[f32], inputs: usize, outputs: usize, bias: Option<Vec<f32>>) -> Self {
        Self { panels: Panels::new(Arch::new(), inputs, outputs, |k, n| weight[n * inputs + k]), bias }
    }

    /// Number of outputs.
    pub(in crate::ops) fn outputs(&self) -> usize {
        self.panels.columns
    }

    /// Number of inputs.
    pub(in crate::ops) fn inputs(&self) -> usize {
        self.panels.depth
    }

    /// `(rows, inputs)` to `(rows, outputs)`.
    pub(in crate::ops) fn forward(&self, values: &[f32], epilogue: Epilogue) -> Vec<f32> {
        let rows = values.len() / self.panels.depth;
        let mut out = vec![0.0; rows * self.panels.columns];
        let epilogue = Epilogue { bias: self.bias.as_deref(), ..epilogue };
        matmul(&MatrixRows { values, depth: self.panels.depth }, rows, &self.panels, &epilogue, &mut out);
        out
    }
}
