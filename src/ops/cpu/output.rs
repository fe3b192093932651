//! The memory of a result, which tasks write side by side.

#![allow(unsafe_code)]

use std::{marker::PhantomData, mem::MaybeUninit, ops::Range};

/// The right to write some f32 numbers, which its holder alone has. It shares out parts of it to tasks by [`Output::for_task`].
#[derive(Debug)]
pub(super) struct Output<'a> {
    start: *mut f32,
    len: usize,
    /// Whether all numbers hold a value already.
    initialized: bool,
    memory: PhantomData<&'a mut [f32]>,
}

// SAFETY: an output is a `&mut [f32]`, or one of several for which `for_task` demands that they keep apart.
unsafe impl Send for Output<'_> {}
// SAFETY: what is shared of an output can read, which the writers that `for_task` made keep away from.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    /// Over memory that holds nothing yet.
    pub(super) fn new(memory: &'a mut [MaybeUninit<f32>]) -> Self {
        Self { start: memory.as_mut_ptr().cast(), len: memory.len(), initialized: false, memory: PhantomData }
    }

    /// Over numbers, which may be read until they are written over.
    pub(super) fn over(numbers: &'a mut [f32]) -> Self {
        Self { start: numbers.as_mut_ptr(), len: numbers.len(), initialized: true, memory: PhantomData }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The same right to a part alone.
    pub(super) fn part(&mut self, range: Range<usize>) -> Output<'_> {
        assert!(range.start <= range.end && range.end <= self.len);
        Output { start: self.start.wrapping_add(range.start), len: range.len(), ..*self }
    }

    /// The same right for a task that runs beside others.
    ///
    /// # Safety
    /// As long as several outputs of the same memory are in use, what is written through one of them is neither written nor read through
    /// another.
    #[inline(always)]
    pub(super) unsafe fn for_task(&self) -> Output<'_> {
        Output { ..*self }
    }

    /// Writes numbers from `start` on.
    #[inline(always)]
    pub(super) fn write(&mut self, start: usize, numbers: &[f32]) {
        self.check(start, numbers.len());
        // SAFETY: in bounds, and nobody else uses this memory while `self` lives. `numbers` are other memory, for `self` is a `&mut`.
        unsafe { std::ptr::copy_nonoverlapping(numbers.as_ptr(), self.start.add(start), numbers.len()) }
    }

    /// Lends numbers that were there from the beginning, or what was written over them.
    #[inline(always)]
    pub(super) fn read(&self, start: usize, len: usize) -> &[f32] {
        assert!(self.initialized, "a result that holds nothing is read");
        self.check(start, len);
        // SAFETY: in bounds, initialized, and nobody writes there while it is lent: not through `self`, and not through another output by
        // the word of `for_task`'s caller.
        unsafe { std::slice::from_raw_parts(self.start.add(start), len) }
    }

    /// Exchanges numbers that were there from the beginning, from `start` on.
    pub(super) fn swap(&mut self, start: usize, numbers: &mut [f32]) {
        assert!(self.initialized, "a result that holds nothing is read");
        self.check(start, numbers.len());
        // SAFETY: in bounds, initialized, and as in `write`.
        unsafe { std::ptr::swap_nonoverlapping(numbers.as_mut_ptr(), self.start.add(start), numbers.len()) }
    }

    #[inline(always)]
    fn check(&self, start: usize, len: usize) {
        assert!(start <= self.len && len <= self.len - start, "a result is too short");
    }
}
