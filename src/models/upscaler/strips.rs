//! Strips of an image's rows, each with the rows around it that its result depends on.

use std::ops::Range;

use candle_core::{Result, Tensor};

/// About the most bytes of the largest image that is held for a strip, without the rows around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StripBytes(pub usize);

impl Default for StripBytes {
    /// All of 512 x 512 at the widest layer of most networks.
    fn default() -> Self {
        Self(128 << 20)
    }
}

/// What a function of an image depends on, and what it takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reach {
    /// The rows above and below a row that its result depends on.
    pub(super) rows: usize,
    /// Numbers of the largest image between, for each pixel of the input.
    pub(super) numbers: usize,
    /// Rows of the result for each row.
    pub(super) scale: usize,
}

/// Calls `each` with the results of `run` from top to bottom. `run` gets some rows of an image `(1, channels, height, width)` with those around
/// them, and gives [`scale`](Reach::scale) times as many.
pub(super) fn in_strips(
    x: &Tensor,
    StripBytes(most): StripBytes,
    reach: Reach,
    mut run: impl FnMut(&Tensor) -> Result<Tensor>,
    mut each: impl FnMut(Tensor) -> Result<()>,
) -> Result<()> {
    let (_, _, height, width) = x.dims4()?;
    let row = width.saturating_mul(reach.numbers).saturating_mul(size_of::<f32>());
    for rows in strips(height, (most / row.max(1)).max(1)) {
        let seen = rows.start.saturating_sub(reach.rows)..(rows.end + reach.rows).min(height);
        let result = run(&x.narrow(2, seen.start, seen.len())?)?;
        each(result.narrow(2, (rows.start - seen.start) * reach.scale, rows.len() * reach.scale)?)?;
    }
    Ok(())
}

/// Ranges of about the same length, at most `most`.
fn strips(height: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let length = height.div_ceil(height.div_ceil(most).max(1)).max(1);
    (0..height).step_by(length).map(move |start| start..(start + length).min(height))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strips_are_of_about_the_same_length() {
        let starts = |height, most| strips(height, most).map(|rows| (rows.start, rows.len())).collect::<Vec<_>>();
        assert_eq!(starts(10, 4), [(0, 4), (4, 4), (8, 2)]);
        assert_eq!(starts(9, 4), [(0, 3), (3, 3), (6, 3)]);
        assert_eq!((starts(4, 4), starts(2, 1)), (vec![(0, 4)], vec![(0, 1), (1, 1)]));
        assert_eq!(strips(0, 4).count(), 0);
    }
}
