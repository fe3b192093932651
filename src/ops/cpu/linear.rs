//! Fully connected layers.

use super::{
    blocks::Blocks,
    epilogue::Epilogue,
    machine::Machine,
    matmul::{MatrixRows, matmul},
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
                Panels::new(machine, dtype, (inputs, columns), |k, n| row(n).map_or(0.0, |row| weight[row * inputs + k]))
            }
            Self::Blocks(blocks) => Panels::of_blocks(machine, blocks, columns, row),
        }
    }
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

    /// Packs a weight of `2 * outputs` rows, of which the second half gates the first: vectors of values and of gates take turns.
    pub(in crate::ops) fn gated(machine: Machine, weight: LinearWeight, outputs: usize, bias: &[f32]) -> Self {
        let lanes = machine.lanes();
        let row = |n: usize| {
            let column = n / (2 * lanes) * lanes + n % lanes;
            (column < outputs).then_some(n / lanes % 2 * outputs + column)
        };
        let columns = 2 * lanes * outputs.div_ceil(lanes);
        let bias = (0..columns).map(|n| row(n).map_or(0.0, |row| bias[row])).collect();
        Self { panels: weight.pack(machine, columns, row), bias: Some(bias), outputs, gated: true }
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
    #[allow(unsafe_code)]
    pub(in crate::ops) fn forward(&self, values: &[f32], epilogue: Epilogue) -> Vec<f32> {
        let rows = values.len() / self.panels.depth;
        let epilogue = Epilogue { columns: self.outputs, bias: self.bias.as_deref(), gated: self.gated, ..epilogue };
        let inputs = MatrixRows { values, depth: self.panels.depth };
        // SAFETY: a matrix product writes each of its rows, and the panels have a column, or two where it is gated, for each output.
        unsafe { written(rows * self.outputs, |out| matmul(&inputs, 0..rows, &self.panels, &epilogue, &mut Output::new(out))) }
    }
}
