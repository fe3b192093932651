//! `DoRA` ([Liu et al.](https://arxiv.org/abs/2402.09353)): the changed weight is brought to magnitudes that were learned apart from its
//! direction.

use candle_core::{Result, Tensor};

use super::{
    key::Part,
    parts::{Parts, Wrong},
};

/// Added to norms, as in `LyCORIS`: a row of zeros stays zeros.
const EPSILON: f64 = f32::EPSILON as f64;

/// What a magnitude belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Axis {
    /// One for each output: a row of the weight.
    Output,
    /// One for each input channel, over all outputs and the kernel.
    Input,
}

/// Which magnitudes a module has, for a layer of the shape `(outputs, inputs, kernel…)`. PEFT's are always by output; `LyCORIS`'s shape tells.
///
/// # Errors
/// When there are as many as neither outputs nor inputs.
pub(super) fn axis(parts: &Parts, layer: &[usize]) -> std::result::Result<Option<Axis>, Wrong> {
    let Some(part) = parts.magnitude() else { return Ok(None) };
    let count: usize = part.shape.iter().product();
    let (outputs, inputs) = (layer.first().copied().unwrap_or_default(), layer.get(1).copied().unwrap_or_default());
    let is_row = part.shape.len() > 1 && part.shape[0] == 1 && !parts.has(Part::Magnitude);
    match () {
        () if is_row && count == inputs => Ok(Some(Axis::Input)),
        () if count == outputs => Ok(Some(Axis::Output)),
        () => Err(part.wrong(format!("has {count} magnitudes, of the shape {:?}, for {outputs} outputs and {inputs} inputs", part.shape))),
    }
}

/// A weight `(outputs, inputs, kernel…)` brought to magnitudes.
pub(super) fn with_magnitude(weight: &Tensor, magnitude: &Tensor, axis: Axis) -> Result<Tensor> {
    let (outputs, inputs) = (weight.dim(0)?, weight.dim(1)?);
    let kernel = weight.elem_count() / (outputs * inputs).max(1);
    let flat = weight.reshape((outputs, inputs, kernel))?;
    let squares = flat.sqr()?.sum_keepdim(2)?;
    let (norm, shape) = match axis {
        Axis::Output => (squares.sum_keepdim(1)?.sqrt()?, (outputs, 1, 1)),
        Axis::Input => (squares.sum_keepdim(0)?.sqrt()?, (1, inputs, 1)),
    };
    let scale = magnitude.reshape(shape)?.div(&(norm + EPSILON)?)?;
    flat.broadcast_mul(&scale)?.reshape(weight.shape())
}
