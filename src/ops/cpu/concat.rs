//! Joining pixels.

use rayon::prelude::*;

use super::memory::written;

/// Numbers that a task writes, about.
const TASK: usize = 1 << 16;

/// Pixels of `left` and `right` channels to as many of both.
#[allow(unsafe_code)]
pub(in crate::ops) fn concat(a: &[f32], left: usize, b: &[f32], right: usize) -> Vec<f32> {
    let both = left + right;
    let pixels = a.len() / left.max(1);
    let per_task = (TASK / both.max(1)).max(1);
    let write = |out: &mut [std::mem::MaybeUninit<f32>]| {
        let inputs = a.par_chunks((per_task * left).max(1)).zip(b.par_chunks((per_task * right).max(1)));
        out.par_chunks_mut((per_task * both).max(1)).zip(inputs).for_each(|(out, (a, b))| {
            for ((pixel, a), b) in out.chunks_exact_mut(both).zip(a.chunks_exact(left)).zip(b.chunks_exact(right)) {
                pixel[..left].write_copy_of_slice(a);
                pixel[left..].write_copy_of_slice(b);
            }
        });
    };
    assert_eq!((a.len(), b.len()), (pixels * left, pixels * right));
    // SAFETY: there are as many pixels in each, and all of a pixel is written.
    unsafe { written(pixels * both, write) }
}
