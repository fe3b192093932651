//! Memory from the system, which the holder of a [`Block`] owns.

use std::ptr;

use super::PAGE;

/// A run of whole pages that nothing else uses. It is neither copied nor freed by itself.
#[derive(Debug)]
pub(super) struct Block {
    /// An address rather than a pointer, so that threads may hand it on.
    address: usize,
    size: usize,
}

impl Block {
    /// No memory.
    pub(super) const EMPTY: Self = Self { address: 0, size: 0 };

    /// New memory of `size` bytes, whole pages, all zeros, on huge pages where there are any; none if the system refuses.
    pub(super) fn map(size: usize) -> Option<Self> {
        assert!(size.is_multiple_of(PAGE));
        let (read_and_write, private) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, at an address where there is none.
        let address = unsafe { libc::mmap(ptr::null_mut(), size, read_and_write, private, -1, 0) };
        if address == libc::MAP_FAILED {
            return None;
        }
        #[cfg(target_os = "linux")]
        // SAFETY: advice on the mapping just made. Where it is refused, pages are small.
        unsafe {
            libc::madvise(address, size, libc::MADV_HUGEPAGE);
        }
        Some(Self { address: address.expose_provenance(), size })
    }

    /// Returns the memory to the system.
    pub(super) fn unmap(self) {
        if self.size > 0 {
            // SAFETY: whole pages that were mapped, and that `self` owned.
            unsafe {
                libc::munmap(ptr::with_exposed_provenance_mut(self.address), self.size);
            }
        }
    }

    /// Takes over memory that [`Block::into_raw`] gave away.
    ///
    /// # Safety
    /// The memory came from a block of this size, and nothing uses it any more.
    pub(super) unsafe fn from_raw(address: *mut u8, size: usize) -> Self {
        Self { address: address.expose_provenance(), size }
    }

    /// Gives the memory away.
    pub(super) fn into_raw(self) -> *mut u8 {
        ptr::with_exposed_provenance_mut(self.address)
    }

    pub(super) fn address(&self) -> usize {
        self.address
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Whether `next` begins where this block ends.
    pub(super) fn touches(&self, next: &Self) -> bool {
        self.address + self.size == next.address
    }

    /// The first `size` bytes, whole pages, and the rest.
    pub(super) fn split(self, size: usize) -> (Self, Self) {
        // The system unmaps whole pages.
        assert!(size <= self.size && size.is_multiple_of(PAGE));
        let rest = Self { address: self.address + size, size: self.size - size };
        (Self { size, ..self }, rest)
    }

    /// One block of two that touch.
    #[allow(clippy::needless_pass_by_value, reason = "the block is given up")]
    pub(super) fn join(self, next: Self) -> Self {
        assert!(self.touches(&next));
        Self { size: self.size + next.size, ..self }
    }
}
