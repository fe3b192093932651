//! The process's memory, with large blocks kept for reuse, and some kept back for when the system has no more.
//!
//! Every operation makes a new tensor, and most are many megabytes. Taken from the system each time, they are cleared page by page
//! before they are written: a fifth of the time of a step. Here the blocks that one step gave back serve the next, on huge pages.
//!
//! Large blocks are asked for by code that can do without: what needs one ends in an error. Small ones are asked for everywhere, and
//! without one the process ends. So a large block is refused while there is no spare for small ones.

#![allow(unsafe_code)]

mod room;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    ptr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI32, AtomicUsize, Ordering},
    },
};

pub use room::with_room;
use room::{PROCESS, reserved};

/// Blocks from this size on are kept, in bytes.
const LARGE: usize = 256 << 10;
/// What is kept at most, in bytes: about what decoding a picture of 512 by 512 takes.
const KEPT_BYTES: usize = 768 << 20;
/// New blocks from this size on, in bytes, take the place of kept ones: clearing them is little next to the work that fills them, and
/// the peak of the process is where they are.
const HUGE: usize = 64 << 20;
/// Blocks that are kept at most.
const KEPT_BLOCKS: usize = 256;
const PAGE: usize = 4096;
/// What is kept back for small blocks, in bytes of addresses: nothing is ever written there.
const SPARE: usize = 16 << 20;
/// No address.
const NONE: usize = 0;

/// The system's allocator, except that large blocks that were given back are handed out again.
#[derive(Debug)]
pub struct ReusingAllocator {
    kept: Mutex<Kept>,
    /// Where the spare is, if there is one.
    spare: AtomicUsize,
}

thread_local! {
    /// Whether this thread was refused a block last.
    static REFUSED: Cell<bool> = const { Cell::new(false) };
}

/// What the process ends with when memory that it cannot do without is refused.
static EXIT_CODE: AtomicI32 = AtomicI32::new(0);

#[derive(Debug)]
struct Kept {
    /// The first `count` of them, by address; none that follows another directly.
    blocks: [Block; KEPT_BLOCKS],
    count: usize,
    bytes: usize,
}

#[derive(Debug, Clone, Copy)]
struct Block {
    /// An address rather than a pointer, so that threads may share it.
    address: usize,
    size: usize,
}

impl Default for ReusingAllocator {
    fn default() -> Self {
        Self::new()
    }
}

impl ReusingAllocator {
    /// With nothing kept.
    #[must_use]
    pub const fn new() -> Self {
        let kept = Kept { blocks: [Block { address: NONE, size: 0 }; KEPT_BLOCKS], count: 0, bytes: 0 };
        Self { kept: Mutex::new(kept), spare: AtomicUsize::new(NONE) }
    }

    /// Gives everything that is kept back to the system. The next step takes it anew, which costs it some of its time.
    pub fn give_back(&self) {
        while let Some(block) = self.with_kept(Kept::largest) {
            unmap(block);
        }
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        // SAFETY: it takes what nobody uses.
        unsafe {
            libc::malloc_trim(0);
        }
    }

    /// Has [`with_room`] take its room from here, as the process's allocator, and the process end with this code, and the reason as the
    /// last line of stderr, when memory that it cannot do without is refused: else that is an abort, which looks like a bug.
    pub fn serve_process(&'static self, exit_code: u8) {
        let _ = PROCESS.set(self);
        EXIT_CODE.store(exit_code.into(), Ordering::Relaxed);
        let handler = exit_if_refused as extern "C" fn(libc::c_int);
        // SAFETY: the handler does nothing but what a signal handler may do.
        unsafe {
            libc::signal(libc::SIGABRT, handler as libc::sighandler_t);
        }
    }

    /// A block of the system's, from the spare if there is no other.
    ///
    /// # Safety
    /// That of the system's allocator.
    unsafe fn small(&self, layout: Layout, alloc: unsafe fn(&System, Layout) -> *mut u8) -> *mut u8 {
        // SAFETY: by the caller's word.
        let address = unsafe { alloc(&System, layout) };
        if !address.is_null() {
            return address;
        }
        let spare = self.spare.swap(NONE, Ordering::Relaxed);
        if spare != NONE {
            unmap(Block { address: spare, size: SPARE });
        }
        loop {
            // SAFETY: by the caller's word.
            let address = unsafe { alloc(&System, layout) };
            if !address.is_null() {
                return told(address);
            }
            // What is kept may be what is missing.
            match self.with_kept(Kept::largest) {
                Some(block) => unmap(block),
                None => return told(address),
            }
        }
    }

    /// Whether there is a spare, or room for one.
    fn has_spare(&self) -> bool {
        if self.spare.load(Ordering::Relaxed) != NONE {
            return true;
        }
        let address = self.map(SPARE);
        if address.is_null() {
            return false;
        }
        let address = address.expose_provenance();
        if self.spare.compare_exchange(NONE, address, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            unmap(Block { address, size: SPARE });
        }
        true
    }

    /// A new block, unless that would leave nothing to spare.
    fn map_or_refuse(&self, size: usize) -> *mut u8 {
        told(if self.has_spare() { self.map(size) } else { ptr::null_mut() })
    }

    /// A new block.
    fn map(&self, size: usize) -> *mut u8 {
        let mut room = if size >= HUGE { 0 } else { size };
        while room < size
            && let Some(old) = self.with_kept(Kept::largest)
        {
            room += old.size;
            unmap(old);
        }
        let address = map(size);
        if !address.is_null() {
            return address;
        }
        // What is kept may be what is missing.
        while let Some(old) = self.with_kept(Kept::largest) {
            unmap(old);
        }
        map(size)
    }

    /// Keeps a block that nobody uses any more, or gives it back to the system where there is no room for it.
    fn give(&self, block: Block) {
        if block.size > KEPT_BYTES {
            return unmap(block);
        }
        let keep_or_evict = |kept: &mut Kept| {
            let old = kept.evict(block.size);
            if old.is_none() {
                kept.keep(block);
            }
            old
        };
        while let Some(old) = self.with_kept(keep_or_evict) {
            unmap(old);
        }
    }

    fn with_kept<T>(&self, f: impl FnOnce(&mut Kept) -> T) -> T {
        f(&mut self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Kept {
    fn remove(&mut self, index: usize) -> Block {
        let block = self.blocks[index];
        self.blocks.copy_within(index + 1..self.count, index);
        self.count -= 1;
        self.bytes -= block.size;
        block
    }

    /// The smallest block that will do, cut to size; the rest is kept. Pieces come together again when they are given back.
    fn take(&mut self, size: usize) -> Option<Block> {
        let fits = |block: &Block| block.size >= size;
        let (index, _) =
            self.blocks[..self.count].iter().enumerate().filter(|(_, block)| fits(block)).min_by_key(|(_, block)| block.size)?;
        let Block { address, size: whole } = self.remove(index);
        if whole > size {
            self.insert(index, Block { address: address + size, size: whole - size });
        }
        Some(Block { address, size })
    }

    fn largest(&mut self) -> Option<Block> {
        let (index, _) = self.blocks[..self.count].iter().enumerate().max_by_key(|(_, block)| block.size)?;
        Some(self.remove(index))
    }

    /// A block that has to make room for another, if one has to.
    fn evict(&mut self, size: usize) -> Option<Block> {
        if self.count == KEPT_BLOCKS || self.bytes + size > KEPT_BYTES { self.largest() } else { None }
    }

    /// Together with its neighbours, if they are kept too.
    fn keep(&mut self, mut block: Block) {
        let mut index = self.blocks[..self.count].partition_point(|kept| kept.address < block.address);
        if index < self.count && block.address + block.size == self.blocks[index].address {
            block.size += self.remove(index).size;
        }
        if index > 0 && self.blocks[index - 1].address + self.blocks[index - 1].size == block.address {
            index -= 1;
            let before = self.remove(index);
            block = Block { address: before.address, size: before.size + block.size };
        }
        self.insert(index, block);
    }

    fn insert(&mut self, index: usize, block: Block) {
        self.blocks.copy_within(index..self.count, index + 1);
        self.blocks[index] = block;
        self.count += 1;
        self.bytes += block.size;
    }
}

/// Takes note of whether a block is refused.
fn told(address: *mut u8) -> *mut u8 {
    REFUSED.set(address.is_null());
    address
}

/// Handles the signal of an abort. Where memory was refused, that is the reason.
extern "C" fn exit_if_refused(_: libc::c_int) {
    const WHY: &[u8] = b"error: out of memory\n";
    // The system's own library ends the process, too, when it is refused memory.
    if REFUSED.get() || map(SPARE).is_null() {
        // SAFETY: both may be called while a signal is handled.
        unsafe {
            libc::write(libc::STDERR_FILENO, WHY.as_ptr().cast(), WHY.len());
            libc::_exit(EXIT_CODE.load(Ordering::Relaxed));
        }
    }
}

/// The size of the block for a request, which depends on nothing else: whole pages.
fn block_size(size: usize) -> usize {
    size.next_multiple_of(PAGE)
}

fn is_large(layout: Layout) -> bool {
    layout.size() >= LARGE && layout.align() <= PAGE
}

/// New memory from the system, all zeros; null if there is none.
fn map(size: usize) -> *mut u8 {
    // SAFETY: a new mapping that overlaps none.
    let address =
        unsafe { libc::mmap(ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
    if address == libc::MAP_FAILED {
        return ptr::null_mut();
    }
    #[cfg(target_os = "linux")]
    // SAFETY: advice on the mapping just made; where it is not taken, pages are small.
    unsafe {
        libc::madvise(address, size, libc::MADV_HUGEPAGE);
    }
    address.cast()
}

fn unmap(block: Block) {
    // SAFETY: a mapping made by `map`, of this size, that nobody uses any more.
    unsafe {
        libc::munmap(ptr::with_exposed_provenance_mut(block.address), block.size);
    }
}

// SAFETY: a block is either in use or kept, and its size follows from that of the request; the rest is the system's.
unsafe impl GlobalAlloc for ReusingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !is_large(layout) {
            // SAFETY: by the caller's word.
            return unsafe { self.small(layout, System::alloc) };
        }
        let size = block_size(layout.size());
        match reserved(size).or_else(|| self.with_kept(|kept| kept.take(size))) {
            Some(block) => ptr::with_exposed_provenance_mut(block.address),
            None => self.map_or_refuse(size),
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !is_large(layout) {
            // SAFETY: by the caller's word.
            return unsafe { self.small(layout, System::alloc_zeroed) };
        }
        let size = block_size(layout.size());
        let Some(block) = reserved(size).or_else(|| self.with_kept(|kept| kept.take(size))) else { return self.map_or_refuse(size) };
        let address = ptr::with_exposed_provenance_mut::<u8>(block.address);
        // SAFETY: the block is at least as large.
        unsafe { address.write_bytes(0, layout.size()) };
        address
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        if !is_large(layout) {
            // SAFETY: by the caller's word.
            return unsafe { System.dealloc(address, layout) };
        }
        self.give(Block { address: address.expose_provenance(), size: block_size(layout.size()) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "it maps no memory")]
    fn a_block_given_back_is_handed_out_again() {
        let allocator = ReusingAllocator::new();
        let layout = Layout::from_size_align(LARGE + 1, 64).unwrap();
        // SAFETY: each block is given back once, with its layout.
        unsafe {
            let first = allocator.alloc(layout);
            first.write_bytes(7, layout.size());
            let second = allocator.alloc(layout);
            assert!(!first.is_null() && !second.is_null() && first != second);
            allocator.dealloc(first, layout);
            let again = allocator.alloc_zeroed(layout);
            assert_eq!(again, first);
            assert!(std::slice::from_raw_parts(again, layout.size()).iter().all(|byte| *byte == 0));
            allocator.dealloc(again, layout);
            allocator.dealloc(second, layout);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "it maps no memory")]
    fn everything_that_is_kept_is_given_back() {
        let allocator = ReusingAllocator::new();
        let layout = Layout::from_size_align(LARGE, 64).unwrap();
        // SAFETY: the block is given back once, with its layout.
        unsafe {
            let block = allocator.alloc(layout);
            allocator.dealloc(block, layout);
        }
        assert_eq!(allocator.with_kept(|kept| kept.bytes), LARGE);
        assert_ne!(allocator.spare.load(Ordering::Relaxed), NONE);
        allocator.give_back();
        assert_eq!(allocator.with_kept(|kept| (kept.count, kept.bytes)), (0, 0));
    }

    #[test]
    #[cfg_attr(miri, ignore = "it maps no memory")]
    fn no_more_is_kept_than_may_be() {
        let allocator = ReusingAllocator::new();
        let layout = |size| Layout::from_size_align(size, 4).unwrap();
        let state = || allocator.with_kept(|kept| (kept.count, kept.bytes));
        // SAFETY: as above; none is written to.
        unsafe {
            let large = allocator.alloc(layout(KEPT_BYTES));
            allocator.dealloc(large, layout(KEPT_BYTES));
            assert_eq!(state(), (1, KEPT_BYTES));
            let part = allocator.alloc(layout(HUGE));
            assert_eq!((part, state()), (large, (1, KEPT_BYTES - HUGE)), "a part of what is kept will do");
            let all = allocator.alloc(layout(KEPT_BYTES));
            assert_eq!(state(), (0, 0), "a new block of this size takes the place of kept ones");
            allocator.dealloc(part, layout(HUGE));
            assert_eq!(state(), (1, HUGE));
            allocator.dealloc(all, layout(KEPT_BYTES));
            assert_eq!(state(), (1, KEPT_BYTES));
            let too_large = allocator.alloc(layout(KEPT_BYTES + 1));
            allocator.dealloc(too_large, layout(KEPT_BYTES + 1));
            assert_eq!(state(), (0, 0));
        }
    }

    #[test]
    fn a_kept_block_is_cut_to_size_and_put_together_again() {
        let mut kept = Kept { blocks: [Block { address: NONE, size: 0 }; KEPT_BLOCKS], count: 0, bytes: 0 };
        let addresses = |kept: &Kept| kept.blocks[..kept.count].iter().map(|block| (block.address, block.size)).collect::<Vec<_>>();
        kept.keep(Block { address: 90 * PAGE, size: 10 * PAGE });
        kept.keep(Block { address: 10 * PAGE, size: 40 * PAGE });
        assert!(kept.take(9 * PAGE).is_some_and(|block| block.address == 90 * PAGE), "the smallest that will do");
        assert_eq!(addresses(&kept), [(10 * PAGE, 40 * PAGE), (99 * PAGE, PAGE)]);
        assert!(kept.take(41 * PAGE).is_none(), "none is as large");
        assert!(kept.take(15 * PAGE).is_some_and(|block| (block.address, block.size) == (10 * PAGE, 15 * PAGE)));
        assert_eq!(addresses(&kept), [(25 * PAGE, 25 * PAGE), (99 * PAGE, PAGE)]);
        kept.keep(Block { address: 90 * PAGE, size: 9 * PAGE });
        kept.keep(Block { address: 10 * PAGE, size: 15 * PAGE });
        assert_eq!(addresses(&kept), [(10 * PAGE, 40 * PAGE), (90 * PAGE, 10 * PAGE)]);
        kept.keep(Block { address: 50 * PAGE, size: 40 * PAGE });
        assert_eq!(addresses(&kept), [(10 * PAGE, 90 * PAGE)]);
        assert_eq!(kept.bytes, 90 * PAGE);
    }

    #[test]
    fn no_more_blocks_are_kept_than_there_is_room_for() {
        let mut kept = Kept { blocks: [Block { address: NONE, size: 0 }; KEPT_BLOCKS], count: 0, bytes: 0 };
        for i in 0..KEPT_BLOCKS {
            assert!(kept.evict(PAGE).is_none());
            kept.keep(Block { address: 2 * i * LARGE, size: LARGE });
        }
        assert!(kept.evict(PAGE).is_some() && kept.count == KEPT_BLOCKS - 1);
    }
}
