//! Fully connected layers.

use std::mem::MaybeUninit;

use super::{
    blocks::Blocks,
    epilogue::Epilogue,
    machine::Machine,
    matmul::{Addend, MatrixRows, matmul_add},
    memory::written,
    output::Output,
    panels::Panels,
};
use crate::ops::weight_type::DenseType;

/// The weight of a linear layer `(outputs, inputs)`, before it is packed.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) enum LinearWeight<'a> {
    /// Every number, and how many inputs there are.
    Dense(DenseType, &'a [f32], usize),
    Blocks(&'a Blocks),
}

impl LinearWeight<'_> {
    /// A matrix whose column `n` is row `row(n)` of the weight, or zeros where there is none.
    fn pack(self, machine: Machine, columns: usize, row: impl Fn(usize) -> Option<usize> + Sync) -> Panels {
        match self {
            Self::Dense(dtype, weight, inputs) => {
                let column = |n| row(n).map(|row| &weight[row * inputs..][..inputs]);
                Panels::new(machine, dtype, columns, column, &(0..inputs).collect::<Vec<_>>())
            }
            Self::Blocks(blocks) => Panels::of_blocks(machine, blocks, columns, row),
        }
    }
}

/// A matrix of low rank that is added to the weight of a linear layer: the product of `up` `(outputs, rank)` and `down` `(rank, inputs)`.
#[derive(Debug, Clone)]
pub(in crate::ops) struct PackedLowRank {
    down: PackedLinear,
    /// Packed as the layer's own weight is.
    up: Panels,
}

/// A linear layer.
#[derive(Debug, Clone)]
pub(in crate::ops) struct PackedLinear {
    panels: Panels,
    bias: Option<Vec<f32>>,
    outputs: usize,
    gated: bool,
}

impl PackedLinear {
    /// Packs a weight of `outputs` rows.
    pub(in crate::ops) fn new(machine: Machine, weight: LinearWeight, outputs: usize, bias: Option<Vec<f32>>) -> Self {
        Self { panels: weight.pack(machine, outputs, Some), bias, outputs, gated: false }
    }

    /// Packs a weight of `2 * outputs` rows, of which the second half gates the first.
    pub(in crate::ops) fn gated(machine: Machine, weight: LinearWeight, outputs: usize, bias: &[f32]) -> Self {
        let (columns, row) = gated_columns(machine, outputs);
        let bias = (0..columns).map(|n| row(n).map_or(0.0, |row| bias[row])).collect();
        Self { panels: weight.pack(machine, columns, row), bias: Some(bias), outputs, gated: true }
    }

    /// The memory that the weight takes, in bytes.
    pub(in crate::ops) fn bytes(&self) -> usize {
        self.panels.bytes()
    }

    /// Number of outputs.
    pub(in crate::ops) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Number of inputs.
    pub(in crate::ops) fn inputs(&self) -> usize {
        self.panels.depth
    }

    /// `(rows, inputs)` to `(rows, outputs)`.
    pub(in crate::ops) fn forward(&self, values: &[f32], epilogue: Epilogue) -> Vec<f32> {
        let rows = values.len() / self.panels.depth;
        self.forward_adapted(&values[..rows * self.panels.depth], epilogue, &[(rows, None)])
    }

    /// [`PackedLinear::forward`] of parts of the rows, one after the other, each with a matrix of low rank added to the weight or with none.
    /// Where there are several, the epilogue adds nothing of each sample.
    #[allow(unsafe_code)]
    pub(in crate::ops) fn forward_adapted(
        &self,
        values: &[f32],
        epilogue: Epilogue,
        parts: &[(usize, Option<&PackedLowRank>)],
    ) -> Vec<f32> {
        let (depth, rows) = (self.panels.depth, parts.iter().map(|(rows, _)| rows).sum::<usize>());
        assert!(values.len() == rows * depth && (parts.len() == 1 || epilogue.sample_bias.is_none()), "parts of other rows");
        let write = |out: &mut [MaybeUninit<f32>]| {
            let mut first = 0;
            for &(rows, low_rank) in parts {
                let values = &values[first * depth..][..rows * depth];
                let (start, len) = (first * self.outputs, rows * self.outputs);
                let residual = epilogue.residual.map(|residual| &residual[start..][..len]);
                let epilogue = Epilogue { columns: self.outputs, bias: self.bias.as_deref(), gated: self.gated, residual, ..epilogue };
                let hidden = low_rank.map(|low_rank| low_rank.down.forward(values, Epilogue::default()));
                let addend = low_rank.zip(hidden.as_deref()).map(|(PackedLowRank { up, .. }, values)| {
                    let inputs = MatrixRows { values, depth: up.depth };
                    Addend { inputs, weights: up }
                });
                let inputs = MatrixRows { values, depth };
                matmul_add(&inputs, 0..rows, &self.panels, addend, &epilogue, &mut Output::new(&mut out[start..][..len]));
                first += rows;
            }
        };
        // SAFETY: the parts are all rows. A matrix product writes each of its rows, and the panels have a column, or two where it is gated, for
        // each output.
        unsafe { written(rows * self.outputs, write) }
    }
}

impl PackedLowRank {
    /// Packs `down` `(rank, inputs)` and `up` `(outputs, rank)`, for a layer that is `gated` or not. The `outputs` of a gated layer are two
    /// for each of its results.
    pub(in crate::ops) fn new(machine: Machine, (down, up): (&[f32], &[f32]), rank: usize, is_gated: bool) -> Self {
        let (inputs, outputs) = (down.len() / rank, up.len() / rank);
        let down = PackedLinear::new(machine, LinearWeight::Dense(DenseType::F32, down, inputs), rank, None);
        let up = LinearWeight::Dense(DenseType::F32, up, rank);
        let up = if is_gated {
            let (columns, row) = gated_columns(machine, outputs / 2);
            up.pack(machine, columns, row)
        } else {
            up.pack(machine, outputs, Some)
        };
        Self { down, up }
    }

    /// The memory that the factors take, in bytes.
    pub(in crate::ops) fn bytes(&self) -> usize {
        self.down.bytes() + self.up.bytes()
    }

    /// Whether it can be added to the weight of this layer.
    pub(in crate::ops) fn fits(&self, layer: &PackedLinear) -> bool {
        self.down.inputs() == layer.inputs() && self.up.columns == layer.panels.columns
    }
}

/// Columns of a packed gated layer, and which row of the weight each of them is: vectors of values and of gates take turns.
fn gated_columns(machine: Machine, outputs: usize) -> (usize, impl Fn(usize) -> Option<usize> + Copy + Sync) {
    let lanes = machine.lanes();
    let row = move |n: usize| {
        let column = n / (2 * lanes) * lanes + n % lanes;
        (column < outputs).then_some(n / lanes % 2 * outputs + column)
    };
    (2 * lanes * outputs.div_ceil(lanes), row)
}
