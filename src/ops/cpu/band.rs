//! Rows of an image, made ready for a convolution a few at a time: what a norm or the tile units make of a whole image would go through
//! the memory, and take as much of it as the image does.

#![allow(unsafe_code)]

use std::{mem::MaybeUninit, ops::Range};

use bytemuck::cast_slice_mut;
use rayon::prelude::*;

use super::{
    amx::{Amx, TILE},
    conv::Pixels,
    memory::{Shared, with_scratch},
    norm::Normalization,
};

/// Bytes that are ready at a time: a share of the last-level cache.
pub(super) const BAND: usize = 8 << 20;
/// Pixels of a task.
const PIXELS: usize = 64;

/// An image, and what is to be done to it first.
pub(super) struct Source<'a> {
    pub(super) image: Pixels<'a>,
    /// A norm.
    pub(super) norm: Option<&'a Normalization>,
    /// Splitting: the channels of a pixel become so many high halves, padded to whole tiles, and as many low ones.
    pub(super) amx: Option<Amx>,
}

impl Source<'_> {
    /// Whether rows must be made ready at all.
    pub(super) fn is_ready(&self) -> bool {
        self.norm.is_none() && self.amx.is_none()
    }

    /// Numbers that a pixel takes once it is ready.
    fn pitch(&self) -> usize {
        if self.amx.is_some() { self.image.channels.next_multiple_of(TILE) } else { self.image.channels }
    }

    /// Bytes that a row takes once it is ready.
    pub(super) fn row_bytes(&self) -> usize {
        4 * self.image.shape.width * self.pitch()
    }

    /// Lends rows of the image, counted over all of the batch, to who asks for no others.
    pub(super) fn with_rows<T>(&self, rows: Range<usize>, work: impl FnOnce(&Pixels) -> T) -> T {
        if self.is_ready() {
            return work(&self.image);
        }
        let (width, height, pitch) = (self.image.shape.width, self.image.shape.height, self.pitch());
        with_scratch(rows.len() * width * pitch, |ready| {
            ready.par_chunks_mut((PIXELS * pitch).max(1)).enumerate().for_each(|(i, ready)| {
                // Of one row, so that all are of one sample.
                let mut first = rows.start * width + i * PIXELS;
                for ready in pieces(ready, first, width, pitch) {
                    self.prepare(first / width / height, first, ready, pitch);
                    first += ready.len() / pitch;
                }
            });
            work(&Pixels { values: ready, first: rows.start * width, pitch, ..self.image })
        })
    }

    /// Pixels from `first` on, all of one sample.
    fn prepare(&self, sample: usize, first: usize, ready: &mut [f32], pitch: usize) {
        let channels = self.image.channels;
        let start = (first - self.image.first) * channels;
        let pixels = &self.image.values[start..start + ready.len() / pitch * channels];
        match (self.norm, self.amx) {
            (None, None) => ready.copy_from_slice(pixels),
            (Some(norm), None) => normalize(norm, sample, pixels, ready),
            (None, Some(amx)) => split(amx, pixels, channels, ready, (pitch, pitch)),
            (Some(norm), Some(amx)) => with_scratch(pixels.len(), |normed| {
                normalize(norm, sample, pixels, normed);
                split(amx, normed, channels, ready, (pitch, pitch));
            }),
        }
    }
}

/// Cut where samples and rows end.
fn pieces(mut ready: &mut [f32], first: usize, width: usize, pitch: usize) -> impl Iterator<Item = &mut [f32]> {
    let mut in_row = first % width;
    std::iter::from_fn(move || {
        let len = ((width - in_row) * pitch).min(ready.len());
        in_row = 0;
        let (piece, rest) = std::mem::take(&mut ready).split_at_mut(len);
        ready = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

pub(super) fn normalize(norm: &Normalization, sample: usize, pixels: &[f32], out: &mut [f32]) {
    // SAFETY: the same in memory, and a norm writes nothing but numbers.
    let out = Shared::new(unsafe { &mut *(std::ptr::from_mut(out) as *mut [MaybeUninit<f32>]) });
    // SAFETY: nobody else writes there.
    unsafe { norm.apply(sample, pixels, 0, out) };
}

/// `pitch` numbers from pixel to pixel; from a high half to its low one `low` halves, whole tiles.
pub(super) fn split(amx: Amx, pixels: &[f32], channels: usize, ready: &mut [f32], (pitch, low): (usize, usize)) {
    for (pixel, ready) in pixels.chunks_exact(channels).zip(ready.chunks_exact_mut(pitch)) {
        let (high, rest) = cast_slice_mut(ready).split_at_mut(low);
        let low = &mut rest[..low];
        let whole = channels / TILE * TILE;
        amx.split(&pixel[..whole], &mut high[..whole], &mut low[..whole]);
        if whole < channels {
            let mut rest = [0.0; TILE];
            rest[..channels - whole].copy_from_slice(&pixel[whole..]);
            amx.split(&rest, &mut high[whole..], &mut low[whole..]);
        }
    }
}
