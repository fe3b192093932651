//! Memory for results, whose lack is an error, and scratch memory, which each thread keeps.

#![allow(unsafe_code)]

use std::{
    alloc::{Layout, alloc_zeroed},
    cell::RefCell,
    mem::MaybeUninit,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

use bytemuck::Zeroable;
use candle_core::{Error, Result};

/// The panic of a kernel that gets no memory, in whatever task. [`fallible`] catches it.
struct OutOfMemory {
    bytes: usize,
}

/// Runs `work`. Where there is no memory for its results, that is an error; with `Vec` alone the process would end.
pub(in crate::ops) fn fallible<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    // Results that are half written are dropped on the way, so that nobody sees them.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|thrown| match thrown.downcast::<OutOfMemory>() {
        Ok(missing) => Err(missing.error()),
        Err(panic) => resume_unwind(panic),
    })
}

/// A vector of `len` zeros.
///
/// # Errors
/// When there is no memory for it.
pub fn zeroed<T: Zeroable>(len: usize) -> Result<Vec<T>> {
    try_zeroed(len).map_err(|missing| missing.error())
}

/// Checks that there is memory for a result of `len` numbers that candle makes next, for candle ends the process where there is none. The
/// allocator keeps the memory that this check frees, and hands it out again.
pub(in crate::ops) fn check_room(len: usize) -> Result<()> {
    room(len).map(drop).map_err(|missing| missing.error())
}

/// The same of bytes.
pub(in crate::ops) fn check_free(bytes: u64) -> Result<()> {
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    Vec::<u8>::new().try_reserve_exact(bytes).map_err(|_| OutOfMemory { bytes }.error())
}

fn room(len: usize) -> std::result::Result<Vec<f32>, OutOfMemory> {
    let mut values = Vec::new();
    let missing = |_| OutOfMemory { bytes: size_of::<f32>().saturating_mul(len) };
    values.try_reserve_exact(len).map(|()| values).map_err(missing)
}

/// [`zeroed`] for work that is [`fallible`].
pub(super) fn zeros<T: Zeroable>(len: usize) -> Vec<T> {
    try_zeroed(len).unwrap_or_else(|missing| missing.throw())
}

#[allow(clippy::same_length_and_capacity, reason = "the layout has room for so many and no more")]
fn try_zeroed<T: Zeroable>(len: usize) -> std::result::Result<Vec<T>, OutOfMemory> {
    let layout = Layout::array::<T>(len).map_err(|_| OutOfMemory { bytes: usize::MAX })?;
    if layout.size() == 0 {
        return Ok(std::iter::repeat_with(T::zeroed).take(len).collect());
    }
    // SAFETY: the size of the layout is not zero.
    let values = unsafe { alloc_zeroed(layout) }.cast::<T>();
    if values.is_null() {
        return Err(OutOfMemory { bytes: layout.size() });
    }
    // SAFETY: memory from the global allocator, with the layout of a slice of this length, whose elements may be zeros.
    Ok(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(values, len)) }.into_vec())
}

impl OutOfMemory {
    fn error(&self) -> Error {
        // Without a backtrace, which takes memory itself.
        Error::Msg(format!("out of memory: there is no room for {} MiB more", self.bytes >> 20))
    }

    fn throw(self) -> ! {
        resume_unwind(Box::new(self))
    }
}

/// A vector of `len` numbers that `write` writes. They are not zeros first, which would cost as much as writing them.
///
/// # Safety
/// `write` initializes every number, unless it panics.
pub(super) unsafe fn written(len: usize, write: impl FnOnce(&mut [MaybeUninit<f32>])) -> Vec<f32> {
    let mut values = room(len).unwrap_or_else(|missing| missing.throw());
    write(&mut values.spare_capacity_mut()[..len]);
    // SAFETY: there is room for so many, and `write` has initialized them by the caller's word.
    unsafe { values.set_len(len) };
    values
}

/// Numbers of a cache line.
const LINE: usize = 16;

/// Scratch memory of more numbers is not kept: that for the keys and values of a very large picture would never be freed.
const KEPT_NUMBERS: usize = 64 << 20;

thread_local! {
    /// Several, because a thread that waits for tasks may run one that needs scratch memory, too.
    static KEPT: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Lends memory of `len` numbers with any values, aligned to a cache line. Each thread keeps its scratch memory, so that after the first
/// step nothing is allocated.
pub(super) fn with_scratch<T>(len: usize, work: impl FnOnce(&mut [f32]) -> T) -> T {
    let best = |kept: &mut Vec<Vec<f32>>| {
        let fits = kept.iter().enumerate().filter(|(_, memory)| memory.len() >= len + LINE).min_by_key(|(_, memory)| memory.len());
        let index = fits.or_else(|| kept.iter().enumerate().max_by_key(|(_, memory)| memory.len()))?.0;
        Some(kept.swap_remove(index))
    };
    let mut memory = KEPT.with_borrow_mut(best).unwrap_or_default();
    if memory.len() < len + LINE {
        drop(memory);
        memory = zeros(len + LINE);
    }
    let start = memory.as_ptr().align_offset(LINE * size_of::<f32>());
    let result = work(&mut memory[start..start + len]);
    if memory.len() <= KEPT_NUMBERS {
        KEPT.with_borrow_mut(|kept| kept.push(memory));
    }
    result
}

/// Frees the scratch memory that the threads of rayon's pool keep. Waits for tasks that run on them.
pub fn free_scratch() {
    rayon::broadcast(|_| KEPT.take());
}

/// `len` rounded up to an odd number of cache lines, in numbers: rows at that distance do not compete for the same sets of a cache.
pub(super) const fn odd_lines(len: usize) -> usize {
    (len.div_ceil(LINE) | 1) * LINE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_memory_is_kept_until_it_is_freed() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        pool.install(|| {
            let kept = || rayon::broadcast(|_| KEPT.with_borrow(|kept| kept.iter().map(Vec::len).sum::<usize>()));
            rayon::broadcast(|_| with_scratch(1000, |memory| memory.fill(1.0)));
            assert!(kept().into_iter().all(|numbers| numbers >= 1000));
            free_scratch();
            assert_eq!(kept(), [0, 0]);
            with_scratch(10, |memory| assert_eq!(memory.len(), 10));
        });
    }
}
