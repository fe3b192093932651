//! Fully connected layers.

use super::{
    epilogue::Epilogue,
    machine::Machine,
    matmul::{MatrixRows, matmul},
    memory::{Shared, written},
    panels::Panels,
};
use crate::ops::Storage;

/// The weights of a linear layer.
#[derive(Debug, Clone)]
pub(in crate::ops) struct PackedLinear {
    panels: Panels,
    bias: Option<Vec<f32>>,
    outputs: usize,
    gated: bool,
}

impl PackedLinear {
    /// Packs `weight` `(outputs, inputs)`.
    pub(in crate::ops) fn new(storage: Storage, weight: &[f32], inputs: usize, outputs: usize, bias: Option<Vec<f32>>) -> Self {
        Self::on(Machine::best(), storage, weight, inputs, outputs, bias)
    }

    /// With a choice of instructions, for tests.
    pub(super) fn on(machine: Machine, storage: Storage, weight: &[f32], inputs: usize, outputs: usize, bias: Option<Vec<f32>>) -> Self {
        let panels = Panels::new(machine, storage, inputs, outputs, |k, n| weight[n * inputs + k]);
        Self { panels, bias, outputs, gated: false }
    }

    /// Packs `weight` `(2 * outputs, inputs)`, whose second half gates the first: vectors of values and of gates take turns.
    pub(in crate::ops) fn gated(machine: Machine, storage: Storage, weight: &[f32], inputs: usize, outputs: usize, bias: &[f32]) -> Self {
        let lanes = machine.lanes();
        let source = |n: usize| {
            let column = n / (2 * lanes) * lanes + n % lanes;
            (column < outputs).then_some(n / lanes % 2 * outputs + column)
        };
        let columns = 2 * lanes * outputs.div_ceil(lanes);
        let panels = Panels::new(machine, storage, inputs, columns, |k, n| source(n).map_or(0.0, |row| weight[row * inputs + k]));
        let bias = (0..columns).map(|n| source(n).map_or(0.0, |row| bias[row])).collect();
        Self { panels, bias: Some(bias), outputs, gated: true }
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
        // SAFETY: a matrix product writes all of its result.
        unsafe { written(rows * self.outputs, |out| matmul(&inputs, 0..rows, &self.panels, &epilogue, Shared::new(out))) }
    }
}
