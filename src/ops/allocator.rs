//! The process's memory: large blocks are kept for reuse, and some memory is kept back for when the system has no more.
//!
//! Every operation makes a new tensor, most of them of many megabytes. The system clears new pages before they are written, which took a
//! fifth of the time of a step. With this allocator, the blocks of one step serve the next, on huge pages.
//!
//! The code that asks for a large block can do without: a request that needs one ends in an error. Small blocks are asked for everywhere,
//! and without one the process ends. So a large block is refused unless there is a spare for small ones.

#![allow(unsafe_code)]

mod block;
mod room;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    ptr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI32, AtomicPtr, Ordering},
    },
};

use block::Block;
pub use room::with_room;
use room::{PROCESS, reserved};

/// Blocks from this size on are kept, in bytes.
const LARGE: usize = 256 << 10;
/// The most that is kept, in bytes: about what decoding a picture of 512 by 512 takes.
const KEPT_BYTES: usize = 768 << 20;
/// New blocks from this size on, in bytes, take the place of kept ones: to clear them is little beside the work that fills them, and the
/// process has its peak of memory where they are.
const HUGE: usize = 64 << 20;
/// The most blocks that are kept.
const KEPT_BLOCKS: usize = 256;
const PAGE: usize = 4096;
/// What is kept back for small blocks, in bytes of addresses: nothing is ever written there.
const SPARE: usize = 16 << 20;

/// The system's allocator, except that large blocks that were freed are handed out again.
#[derive(Debug)]
pub struct ReusingAllocator {
    kept: Mutex<Kept>,
    /// A block of [`SPARE`] bytes; null if there is none.
    spare: AtomicPtr<u8>,
}

thread_local! {
    /// Whether the last block that this thread asked for was refused.
    static REFUSED: Cell<bool> = const { Cell::new(false) };
}

/// The exit code of the process where memory that it cannot do without is refused.
static EXIT_CODE: AtomicI32 = AtomicI32::new(0);

#[derive(Debug)]
struct Kept {
    /// The first `count` of them, by address. No two of them touch.
    blocks: [Block; KEPT_BLOCKS],
    count: usize,
    bytes: usize,
}

impl Default for ReusingAllocator {
    fn default() -> Self {
        Self::new()
    }
}

impl ReusingAllocator {
    /// Keeps nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { kept: Mutex::new(Kept::new()), spare: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Returns all kept blocks to the system. The next step pays for new ones.
    pub fn give_back(&self) {
        while let Some(block) = self.with_kept(Kept::largest) {
            block.unmap();
        }
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        // SAFETY: it returns memory that is free.
        unsafe {
            libc::malloc_trim(0);
        }
    }

    /// Makes this the allocator that [`with_room`] reserves from. Where memory that the process cannot do without is refused, the process
    /// then ends with this code and the reason as the last line of stderr; by default it aborts, which looks like a bug.
    pub fn serve_process(&'static self, exit_code: u8) {
        let _ = PROCESS.set(self);
        EXIT_CODE.store(exit_code.into(), Ordering::Relaxed);
        let handler = exit_if_refused as extern "C" fn(libc::c_int);
        // SAFETY: the handler does nothing that a signal handler may not do.
        unsafe {
            libc::signal(libc::SIGABRT, handler as libc::sighandler_t);
        }
    }

    /// A small block from the system, which gets the spare and then kept blocks back where it has no other.
    ///
    /// # Safety
    /// That of `alloc`, which is a function of the system's allocator.
    unsafe fn small(&self, layout: Layout, alloc: unsafe fn(&System, Layout) -> *mut u8) -> *mut u8 {
        // SAFETY: by the caller's word.
        let address = unsafe { alloc(&System, layout) };
        if !address.is_null() {
            return address;
        }
        if let Some(spare) = self.take_spare() {
            spare.unmap();
        }
        loop {
            // SAFETY: by the caller's word.
            let address = unsafe { alloc(&System, layout) };
            if !address.is_null() {
                REFUSED.set(false);
                return address;
            }
            let Some(block) = self.with_kept(Kept::largest) else {
                REFUSED.set(true);
                return address;
            };
            block.unmap();
        }
    }

    /// A large block: from the thread's own room, from the kept ones, or a new one; null if there is none. The second value says whether it is
    /// new, and all zeros.
    fn large(&self, size: usize) -> (*mut u8, bool) {
        match reserved(size).or_else(|| self.with_kept(|kept| kept.take(size))) {
            Some(block) => (block.into_raw(), false),
            None => (self.map_beside_spare(size).map_or(ptr::null_mut(), Block::into_raw), true),
        }
    }

    /// A new block, unless it would leave no spare.
    fn map_beside_spare(&self, size: usize) -> Option<Block> {
        let block = if self.has_spare() { self.map(size) } else { None };
        REFUSED.set(block.is_none());
        block
    }

    /// Whether there is a spare. Makes one if there is none.
    fn has_spare(&self) -> bool {
        if !self.spare.load(Ordering::Relaxed).is_null() {
            return true;
        }
        let Some(spare) = self.map(SPARE) else { return false };
        let address = spare.into_raw();
        if self.spare.compare_exchange(ptr::null_mut(), address, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            // SAFETY: the block was made above, and no other thread saw it.
            unsafe { Block::from_raw(address, SPARE) }.unmap();
        }
        true
    }

    fn take_spare(&self) -> Option<Block> {
        let address = self.spare.swap(ptr::null_mut(), Ordering::AcqRel);
        // SAFETY: what is there came from a block of this size, and whoever takes it away owns it.
        (!address.is_null()).then(|| unsafe { Block::from_raw(address, SPARE) })
    }

    /// A new block.
    fn map(&self, size: usize) -> Option<Block> {
        let mut room = if size >= HUGE { 0 } else { size };
        while room < size
            && let Some(old) = self.with_kept(Kept::largest)
        {
            room += old.size();
            old.unmap();
        }
        if let Some(block) = Block::map(size) {
            return Some(block);
        }
        // The kept blocks may be what the system lacks.
        while let Some(old) = self.with_kept(Kept::largest) {
            old.unmap();
        }
        Block::map(size)
    }

    /// Keeps a block, or returns it to the system where there is no room for it.
    fn keep(&self, mut block: Block) {
        if block.size() > KEPT_BYTES {
            return block.unmap();
        }
        while let Err((old, back)) = self.with_kept(|kept| kept.keep(block)) {
            old.unmap();
            block = back;
        }
    }

    fn with_kept<T>(&self, f: impl FnOnce(&mut Kept) -> T) -> T {
        f(&mut self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Kept {
    const fn new() -> Self {
        Self { blocks: [const { Block::EMPTY }; KEPT_BLOCKS], count: 0, bytes: 0 }
    }

    fn blocks(&self) -> impl Iterator<Item = (usize, &Block)> {
        self.blocks[..self.count].iter().enumerate()
    }

    fn remove(&mut self, index: usize) -> Block {
        let block = std::mem::replace(&mut self.blocks[index], Block::EMPTY);
        self.blocks[index..self.count].rotate_left(1);
        self.count -= 1;
        self.bytes -= block.size();
        block
    }

    fn insert(&mut self, index: usize, block: Block) {
        self.bytes += block.size();
        self.blocks[index..=self.count].rotate_right(1);
        self.blocks[index] = block;
        self.count += 1;
    }

    /// The smallest block that is large enough, cut to size. The rest is kept; the pieces are joined when both are kept again.
    fn take(&mut self, size: usize) -> Option<Block> {
        let (index, _) = self.blocks().filter(|(_, block)| block.size() >= size).min_by_key(|(_, block)| block.size())?;
        let (block, rest) = self.remove(index).split(size);
        if rest.size() > 0 {
            self.insert(index, rest);
        }
        Some(block)
    }

    fn largest(&mut self) -> Option<Block> {
        let (index, _) = self.blocks().max_by_key(|(_, block)| block.size())?;
        Some(self.remove(index))
    }

    /// Keeps a block, joined with its neighbours.
    ///
    /// # Errors
    /// Where another block has to make room for it first: that one and the new one.
    fn keep(&mut self, mut block: Block) -> Result<(), (Block, Block)> {
        if self.count == KEPT_BLOCKS || self.bytes + block.size() > KEPT_BYTES {
            return self.largest().map_or(Ok(()), |old| Err((old, block)));
        }
        let mut index = self.blocks[..self.count].partition_point(|kept| kept.address() < block.address());
        if index < self.count && block.touches(&self.blocks[index]) {
            block = block.join(self.remove(index));
        }
        if index > 0 && self.blocks[index - 1].touches(&block) {
            index -= 1;
            block = self.remove(index).join(block);
        }
        self.insert(index, block);
        Ok(())
    }
}

/// Handles the signal of an abort: ends the process where refused memory is the reason.
extern "C" fn exit_if_refused(_: libc::c_int) {
    const WHY: &[u8] = b"error: out of memory\n";
    // The system's own library aborts, too, where it is refused memory.
    if REFUSED.get() || Block::map(SPARE).is_none() {
        // SAFETY: a signal handler may call both.
        unsafe {
            libc::write(libc::STDERR_FILENO, WHY.as_ptr().cast(), WHY.len());
            libc::_exit(EXIT_CODE.load(Ordering::Relaxed));
        }
    }
}

/// The size of the block for a request, which follows from the request alone: whole pages.
fn block_size(size: usize) -> usize {
    size.next_multiple_of(PAGE)
}

fn is_large(layout: Layout) -> bool {
    layout.size() >= LARGE && layout.align() <= PAGE
}

// SAFETY: a large request gets a block of the size that follows from its layout, which is its own until it is freed. A small one gets what
// the system's allocator gives. Both are told apart by the layout.
unsafe impl GlobalAlloc for ReusingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            return self.large(block_size(layout.size())).0;
        }
        // SAFETY: by the caller's word.
        unsafe { self.small(layout, System::alloc) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !is_large(layout) {
            // SAFETY: by the caller's word.
            return unsafe { self.small(layout, System::alloc_zeroed) };
        }
        let (address, is_zeroed) = self.large(block_size(layout.size()));
        if !is_zeroed {
            // SAFETY: a block that was taken, which is not null, and at least as large.
            unsafe { address.write_bytes(0, layout.size()) };
        }
        address
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        if !is_large(layout) {
            // SAFETY: by the caller's word.
            return unsafe { System.dealloc(address, layout) };
        }
        // SAFETY: by the caller's word, a large request with this layout got the address, and nothing uses it any more.
        self.keep(unsafe { Block::from_raw(address, block_size(layout.size())) });
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
        assert_ne!(allocator.spare.load(Ordering::Relaxed), ptr::null_mut());
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

    /// A block that nobody maps, reads or writes.
    fn block(page: usize, pages: usize) -> Block {
        // SAFETY: it is not used as memory.
        unsafe { Block::from_raw(ptr::without_provenance_mut(page * PAGE), pages * PAGE) }
    }

    #[test]
    fn a_kept_block_is_cut_to_size_and_put_together_again() {
        let mut kept = Kept::new();
        let pages = |kept: &Kept| kept.blocks().map(|(_, block)| (block.address() / PAGE, block.size() / PAGE)).collect::<Vec<_>>();
        kept.keep(block(90, 10)).unwrap();
        kept.keep(block(10, 40)).unwrap();
        assert!(kept.take(9 * PAGE).is_some_and(|block| block.address() == 90 * PAGE), "the smallest that is large enough");
        assert_eq!(pages(&kept), [(10, 40), (99, 1)]);
        assert!(kept.take(41 * PAGE).is_none(), "none is as large");
        assert!(kept.take(15 * PAGE).is_some_and(|block| (block.address(), block.size()) == (10 * PAGE, 15 * PAGE)));
        assert_eq!(pages(&kept), [(25, 25), (99, 1)]);
        kept.keep(block(90, 9)).unwrap();
        kept.keep(block(10, 15)).unwrap();
        assert_eq!(pages(&kept), [(10, 40), (90, 10)]);
        kept.keep(block(50, 40)).unwrap();
        assert_eq!(pages(&kept), [(10, 90)]);
        assert_eq!(kept.bytes, 90 * PAGE);
    }

    #[test]
    fn no_more_blocks_are_kept_than_there_is_room_for() {
        let mut kept = Kept::new();
        for i in 0..KEPT_BLOCKS {
            kept.keep(block(2 * i + 1, 1)).unwrap();
        }
        let (_, back) = kept.keep(block(2 * KEPT_BLOCKS + 1, 1)).unwrap_err();
        assert_eq!(kept.count, KEPT_BLOCKS - 1);
        kept.keep(back).unwrap();
        assert_eq!((kept.count, kept.bytes), (KEPT_BLOCKS, KEPT_BLOCKS * PAGE));
    }
}
