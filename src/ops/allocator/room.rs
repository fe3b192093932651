//! Memory that one thread has to itself, for work that cannot do without.

use std::{cell::Cell, sync::OnceLock};

use super::{Block, LARGE, ReusingAllocator, block_size};

/// The allocator of the process, if it is one of these.
pub(super) static PROCESS: OnceLock<&ReusingAllocator> = OnceLock::new();

thread_local! {
    /// The thread's own room, from which it takes large blocks first.
    static RESERVED: Cell<Block> = const { Cell::new(Block::EMPTY) };
}

/// A block from the thread's own room, if it is large enough.
pub(super) fn reserved(size: usize) -> Option<Block> {
    let room = RESERVED.replace(Block::EMPTY);
    if room.size() < size {
        RESERVED.set(room);
        return None;
    }
    let (block, rest) = room.split(size);
    RESERVED.set(rest);
    Some(block)
}

/// Runs work that takes at most `bytes`, all on this thread, and during which running out of memory would end the process. No other thread
/// gets that memory meanwhile.
///
/// # Errors
/// When there is less memory.
pub fn with_room<T>(bytes: u64, work: impl FnOnce() -> T) -> candle_core::Result<T> {
    let Some(allocator) = PROCESS.get() else {
        crate::ops::cpu::check_free(bytes)?;
        return Ok(work());
    };
    let size = block_size(usize::try_from(bytes).unwrap_or(usize::MAX / 2).max(LARGE));
    let kept = allocator.with_kept(|kept| kept.take(size));
    let Some(block) = kept.or_else(|| allocator.map_beside_spare(size)) else {
        return Err(candle_core::Error::Msg(format!("out of memory: there is no room for {} MiB more", size >> 20)));
    };
    let _room = Room { allocator, before: RESERVED.replace(block) };
    Ok(work())
}

/// Keeps what is left of a thread's own room at the end, also when the work panics.
struct Room {
    allocator: &'static ReusingAllocator,
    /// The room of the work around this one.
    before: Block,
}

impl Drop for Room {
    fn drop(&mut self) {
        let rest = RESERVED.replace(std::mem::replace(&mut self.before, Block::EMPTY));
        if rest.size() > 0 {
            self.allocator.keep(rest);
        }
    }
}
