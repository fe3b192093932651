//! Room that one thread has to itself, for work that cannot do without.

use std::{cell::Cell, sync::OnceLock};

use super::{Block, LARGE, NONE, ReusingAllocator, block_size};

/// The allocator of the process, if it is one of these.
pub(super) static PROCESS: OnceLock<&ReusingAllocator> = OnceLock::new();

thread_local! {
    /// Room that this thread alone has, from which it takes large blocks first.
    static RESERVED: Cell<Block> = const { Cell::new(Block { address: NONE, size: 0 }) };
}

/// A block out of the thread's own room.
pub(super) fn reserved(size: usize) -> Option<Block> {
    let room = RESERVED.get();
    let rest = room.size.checked_sub(size)?;
    RESERVED.set(Block { address: room.address + size, size: rest });
    Some(Block { address: room.address, size })
}

/// Does work for which running out of memory is the end of the process, and which takes at most so many bytes, all of them on this thread.
/// Nobody else is given that room meanwhile.
///
/// # Errors
/// When there is less.
pub fn with_room<T>(bytes: u64, work: impl FnOnce() -> T) -> candle_core::Result<T> {
    let Some(allocator) = PROCESS.get() else {
        crate::ops::cpu::check_free(bytes)?;
        return Ok(work());
    };
    let size = block_size(usize::try_from(bytes).unwrap_or(usize::MAX / 2).max(LARGE));
    let block = allocator.with_kept(|kept| kept.take(size));
    let address = block.map_or_else(|| allocator.map_or_refuse(size).expose_provenance(), |block| block.address);
    if address == NONE {
        return Err(candle_core::Error::Msg(format!("out of memory: there is no room for {} MiB more", size >> 20)));
    }
    let _room = Room { allocator, before: RESERVED.replace(Block { address, size }) };
    Ok(work())
}

/// What is left of a thread's own room goes back in the end, also when the work panics.
struct Room {
    allocator: &'static ReusingAllocator,
    before: Block,
}

impl Drop for Room {
    fn drop(&mut self) {
        let rest = RESERVED.replace(self.before);
        if rest.size > 0 {
            self.allocator.give(rest);
        }
    }
}
