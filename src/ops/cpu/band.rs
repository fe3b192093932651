//! Rows of an image, prepared for a convolution a few at a time. A whole image, normalized or split, would go through main memory and take
//! as much of it as the image does.

use std::ops::Range;

use rayon::prelude::*;

use super::{conv::Pixels, memory::with_scratch, norm::Normalization, output::Output, products::Products};

/// Bytes that are prepared at a time: a share of the last-level cache.
pub(super) const BAND: usize = 8 << 20;
/// Pixels of a task.
const PIXELS: usize = 64;

/// An image, and what is done to it before the convolution.
pub(super) struct Source<'a> {
    pub(super) image: Pixels<'a>,
    /// Is applied first.
    pub(super) norm: Option<&'a Normalization>,
    /// Each pixel's channels become a prepared line of this arithmetic.
    pub(super) products: Products,
}

impl Source<'_> {
    /// Whether the image can be used as it is.
    pub(super) fn is_prepared(&self) -> bool {
        self.norm.is_none() && self.products.is_plain()
    }

    /// Words of a prepared pixel.
    fn pitch(&self) -> usize {
        self.products.words(self.image.channels)
    }

    /// Bytes of a prepared row.
    pub(super) fn row_bytes(&self) -> usize {
        4 * self.image.shape.width * self.pitch()
    }

    /// Lends the prepared rows `rows`, counted over the whole batch. `work` reads no others.
    pub(super) fn with_rows<T>(&self, rows: Range<usize>, work: impl FnOnce(&Pixels) -> T) -> T {
        if self.is_prepared() {
            return work(&self.image);
        }
        let (width, height, pitch) = (self.image.shape.width, self.image.shape.height, self.pitch());
        with_scratch(rows.len() * width * pitch, |lines| {
            lines.par_chunks_mut((PIXELS * pitch).max(1)).enumerate().for_each(|(i, lines)| {
                let mut first = rows.start * width + i * PIXELS;
                for lines in pieces(lines, first, width, pitch) {
                    self.prepare(first / width / height, first, lines, pitch);
                    first += lines.len() / pitch;
                }
            });
            work(&Pixels { values: lines, first: rows.start * width, pitch, ..self.image })
        })
    }

    /// Prepares pixels of one sample, from `first` on.
    fn prepare(&self, sample: usize, first: usize, lines: &mut [f32], pitch: usize) {
        let channels = self.image.channels;
        let start = (first - self.image.first) * channels;
        let pixels = &self.image.values[start..start + lines.len() / pitch * channels];
        prepare_pixels(self.products, self.norm, sample, (pixels, channels), (lines, pitch));
    }
}

/// Prepares pixels of a sample. Their lines are `pitch` words apart.
pub(super) fn prepare_pixels(
    products: Products,
    norm: Option<&Normalization>,
    sample: usize,
    (pixels, channels): (&[f32], usize),
    (lines, pitch): (&mut [f32], usize),
) {
    match norm {
        None => products.prepare_rows(pixels, channels, lines, pitch),
        Some(norm) if products.is_plain() && pitch == channels => norm.apply(sample, pixels, &mut Output::over(lines)),
        Some(norm) => with_scratch(pixels.len(), |normed| {
            norm.apply(sample, pixels, &mut Output::over(normed));
            products.prepare_rows(normed, channels, lines, pitch);
        }),
    }
}

/// Cuts lines where rows of the image end, and with them samples.
fn pieces(mut lines: &mut [f32], first: usize, width: usize, pitch: usize) -> impl Iterator<Item = &mut [f32]> {
    let mut in_row = first % width;
    std::iter::from_fn(move || {
        let len = ((width - in_row) * pitch).min(lines.len());
        in_row = 0;
        let (piece, rest) = std::mem::take(&mut lines).split_at_mut(len);
        lines = rest;
        (!piece.is_empty()).then_some(piece)
    })
}
