//! Memory for results, which tasks write side by side, and scratch memory, which each thread keeps.

#![allow(unsafe_code)]

use std::{
    alloc::{Layout, alloc_zeroed},
    cell::RefCell,
    mem::MaybeUninit,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

use bytemuck::Zeroable;
use candle_core::{Error, Result};

/// What is thrown where there is no memory, from any depth and any task, and caught by [`fallible`].
struct OutOfMemory {
    bytes: usize,
}

/// Does `work`. That there is no memory for its results is an error, where `Vec` would end the process.
pub(in crate::ops) fn fallible<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    // What was being written is dropped on the way, so nobody sees it half done.
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

/// Makes sure that candle, for which it is the end of the process, does not run out of memory at its next result of `len` numbers: the
/// allocator hands the same room out again.
pub(in crate::ops) fn check_room(len: usize) -> Result<()> {
    room(len).map(drop).map_err(|missing| missing.error())
}

/// The same for so many bytes.
pub(in crate::ops) fn check_free(bytes: u64) -> Result<()> {
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    Vec::<u8>::new().try_reserve_exact(bytes).map_err(|_| OutOfMemory { bytes }.error())
}

fn room(len: usize) -> std::result::Result<Vec<f32>, OutOfMemory> {
    let mut values = Vec::new();
    let missing = |_| OutOfMemory { bytes: size_of::<f32>().saturating_mul(len) };
    values.try_reserve_exact(len).map(|()| values).map_err(missing)
}

/// The same as [`zeroed`] for work that is [`fallible`].
pub(super) fn zeros<T: Zeroable>(len: usize) -> Vec<T> {
    try_zeroed(len).unwrap_or_else(|missing| missing.throw())
}

#[allow(clippy::same_length_and_capacity, reason = "the layout has room for so many and no more")]
fn try_zeroed<T: Zeroable>(len: usize) -> std::result::Result<Vec<T>, OutOfMemory> {
    let layout = Layout::array::<T>(len).map_err(|_| OutOfMemory { bytes: usize::MAX })?;
    if layout.size() == 0 {
        return Ok(std::iter::repeat_with(T::zeroed).take(len).collect());
    }
    // SAFETY: the layout has a size.
    let values = unsafe { alloc_zeroed(layout) }.cast::<T>();
    if values.is_null() {
        return Err(OutOfMemory { bytes: layout.size() });
    }
    // SAFETY: from the global allocator, with the layout of a slice of this length, and all of it is valid as zeros.
    Ok(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(values, len)) }.into_vec())
}

impl OutOfMemory {
    fn error(&self) -> Error {
        // Without a backtrace: to write one out takes memory.
        Error::Msg(format!("out of memory: there is no room for {} MiB more", self.bytes >> 20))
    }

    fn throw(self) -> ! {
        resume_unwind(Box::new(self))
    }
}

/// A vector of `len` numbers, as `write` leaves them: results are not filled with zeros first, which costs as much as writing them.
///
/// # Safety
/// `write` leaves no number unwritten.
pub(super) unsafe fn written(len: usize, write: impl FnOnce(&mut [MaybeUninit<f32>])) -> Vec<f32> {
    let mut values = room(len).unwrap_or_else(|missing| missing.throw());
    write(&mut values.spare_capacity_mut()[..len]);
    // SAFETY: by the caller's word.
    unsafe { values.set_len(len) };
    values
}

/// Numbers of a cache line.
const LINE: usize = 16;

/// More numbers than this are not kept: the keys and values of a very large picture would be held for ever.
const KEPT_NUMBERS: usize = 64 << 20;

/// Lends `len` numbers of memory, whatever they are, from the beginning of a cache line on. Each thread keeps what it once needed, so that the steady state allocates nothing.
pub(super) fn with_scratch<T>(len: usize, work: impl FnOnce(&mut [f32]) -> T) -> T {
    // Several, because a thread that waits for other tasks may be given one that needs scratch memory of its own.
    thread_local!(static KEPT: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) });
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

/// The next odd number of cache lines, in numbers: rows that far apart do not compete for the same places in a cache.
pub(super) const fn odd_lines(len: usize) -> usize {
    (len.div_ceil(LINE) | 1) * LINE
}
