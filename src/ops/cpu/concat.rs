//! Joining the channels of images. The speed is bound by memory.

use rayon::prelude::*;

use super::memory::written;

/// Numbers that a task writes, about.
const TASK: usize = 1 << 16;

/// Pixels `a` of `left` channels and `b` of `right` channels to pixels of `left + right` channels.
#[allow(unsafe_code)]
pub(in crate::ops) fn concat(a: &[f32], left: usize, b: &[f32], right: usize) -> Vec<f32> {
    let both = left + right;
    let pixels = a.len() / left.max(1);
    assert!(left > 0 && right > 0 && a.len() == pixels * left && b.len() == pixels * right);
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
    // SAFETY: by the assertion, both sides have as many pixels as the result, and all of a pixel is written.
    unsafe { written(pixels * both, write) }
}
