//! Page-aligned memory and its pool: what the kernel writes into and reads from.
//!
//! Invariants:
//! 1. An [`AlignedBuf`] is exclusively owned, a whole number of pages, and initialised: fresh
//!    memory is zeroed, used memory holds old bytes of this store, and no caller hands it out
//!    unfilled.
//! 2. Memory is given back to its pool by any thread, and freed only with the pool's last handle
//!    and its last buffer.
//!
//! One of the two files with `unsafe`. Deliberately not here: budgets; who may hold how much is
//! decided where it is held.

use crate::types::{PAGE, page_ceil};
use bytes::Bytes;
use crossbeam_queue::ArrayQueue;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Sizes in bytes that are kept for reuse; anything larger is allocated and freed. The largest is a
/// batch of the log: 1 MiB of data, its head page, and the head of the segment that it may begin.
///
/// Steps of two where the read buffer keeps frames, for it pays for what a class leaves unused.
const CLASSES: [usize; 8] = [
    4 << 10,
    8 << 10,
    16 << 10,
    32 << 10,
    64 << 10,
    128 << 10,
    256 << 10,
    (1 << 20) + 2 * PAGE,
];

/// Buffers of one class that are kept at most: 64 MiB of the largest.
const KEPT_MAX: usize = 64;

/// Smallest class that is cut from the arena.
///
/// Measured: registered memory halves the CPU of transfers from 128 KiB on and huge pages double
/// their rate; at 4 KiB neither shows.
const ARENA_CLASS_MIN: usize = 64 << 10;

/// What an arena is aligned to and made of: a huge page of x86-64, and of arm64 with 4 KiB pages.
const HUGE_PAGE: usize = 2 << 20;

/// Largest arena: the kernel registers no buffer of more than 1 GiB.
const ARENA_BYTES_MAX: usize = 1 << 30;

/// A pool of page-aligned buffers; clones share it.
#[derive(Clone)]
pub(crate) struct BufPool(Arc<Shared>);

struct Shared {
    free: [ArrayQueue<Memory>; CLASSES.len()],
    arena: Option<Arc<Arena>>,
}

impl BufPool {
    /// A pool on the heap.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn new() -> BufPool {
        BufPool::with_arena(0)
    }

    /// A pool that cuts its larger buffers from `bytes` of huge pages, and then goes on on the
    /// heap.
    pub(crate) fn with_arena(bytes: usize) -> BufPool {
        let arena = match bytes {
            0 => None,
            _ => Arena::map(bytes).map(Arc::new),
        };
        let arena_len = arena.as_ref().map_or(0, |arena| arena.len);
        // All of the arena must fit beside the others, as what is turned away is lost to it.
        let kept_max = |class: usize| match CLASSES[class] {
            size if size < ARENA_CLASS_MIN => KEPT_MAX,
            size => KEPT_MAX + arena_len / size,
        };
        BufPool(Arc::new(Shared {
            free: std::array::from_fn(|class| ArrayQueue::new(kept_max(class))),
            arena,
        }))
    }

    /// Its arena, for the driver that registers it.
    pub(crate) fn arena(&self) -> Option<&Arena> {
        self.0.arena.as_deref()
    }

    /// Memory that a buffer of so many bytes takes.
    pub(crate) fn memory_of(len: usize) -> usize {
        let len = page_ceil(len);
        CLASSES.into_iter().find(|&size| size >= len).unwrap_or(len)
    }

    /// Memory of a class that was not there before.
    fn make(&self, size: usize) -> Memory {
        let arena = self.0.arena.as_ref().filter(|_| size >= ARENA_CLASS_MIN);
        let cut = arena.and_then(|arena| arena.cut(size));
        cut.unwrap_or_else(|| Memory::zeroed(size))
    }

    /// A buffer of at least `len` bytes, cut to `len` rounded up to pages. Its content is
    /// arbitrary.
    pub(crate) fn take(&self, len: usize) -> AlignedBuf {
        assert!(len > 0, "an empty buffer");
        let len = page_ceil(len);
        let class = CLASSES.iter().position(|&size| size >= len);
        let memory = match class {
            None => Memory::zeroed(len),
            Some(class) => {
                let kept = self.0.free[class].pop();
                kept.unwrap_or_else(|| self.make(CLASSES[class]))
            }
        };
        AlignedBuf {
            memory: Some(memory),
            len,
            class,
            pool: self.clone(),
        }
    }
}

/// Page-aligned, exclusively owned memory; returns to its pool when dropped.
pub(crate) struct AlignedBuf {
    memory: Option<Memory>,
    len: usize,
    class: Option<usize>,
    pool: BufPool,
}

impl AlignedBuf {
    fn memory(&self) -> &Memory {
        self.memory.as_ref().expect("present until dropped")
    }

    /// Makes it immutable and shared; the memory comes home with the last reference.
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }

    /// Drops the pages behind the first `len` bytes.
    pub(crate) fn shorten(&mut self, len: usize) {
        let len = page_ceil(len);
        assert!(len <= self.len, "a buffer cannot grow");
        self.len = len;
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` points to at least `len` initialised bytes (invariant 1, `take`).
        unsafe { std::slice::from_raw_parts(self.memory().start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` is the only owner (invariant 1).
        unsafe { std::slice::from_raw_parts_mut(self.memory().start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        let (Some(class), Some(memory)) = (self.class, self.memory.take()) else {
            return;
        };
        let free = &self.pool.0.free[class];
        // A part of the arena is always kept; on the heap, what is too many is freed.
        if matches!(memory.home, Home::Arena { .. }) || free.len() < KEPT_MAX {
            let _ = free.push(memory);
        }
    }
}

/// A piece of memory: an allocation of its own, which frees itself, or a part of the arena.
struct Memory {
    start: NonNull<u8>,
    home: Home,
}

/// Who frees a piece of memory.
enum Home {
    Heap(Layout),
    /// The arena is freed as a whole, with the last piece and the pool.
    Arena {
        _keeps: Arc<Arena>,
    },
}

// SAFETY: it owns its bytes alone, and nothing about them is bound to a thread.
unsafe impl Send for Memory {}

// SAFETY: a shared reference gives no access to the bytes; `AlignedBuf` guards them by borrow.
unsafe impl Sync for Memory {}

impl Memory {
    fn zeroed(len: usize) -> Memory {
        let layout = Layout::from_size_align(len, PAGE).expect("lengths are far below isize::MAX");
        // SAFETY: the layout's size is not zero (`take` refuses an empty buffer).
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else {
            handle_alloc_error(layout)
        };
        let home = Home::Heap(layout);
        Memory { start, home }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Home::Heap(layout) = self.home {
            // SAFETY: `start` was allocated with this layout in `zeroed` and is freed only here.
            unsafe { dealloc(self.start.as_ptr(), layout) }
        }
    }
}

/// One mapping of huge pages, cut into buffers from its start on; no part is ever cut twice.
pub(crate) struct Arena {
    /// The mapping, which is longer than `len` by what aligning cost.
    mapping: NonNull<c_void>,
    mapping_len: usize,
    start: NonNull<u8>,
    len: usize,
    /// Bytes that have been cut off; they may go beyond the end, where nothing is cut.
    used: AtomicUsize,
}

// SAFETY: it is a range of addresses and a counter; the bytes belong to the `Memory` cut from it.
unsafe impl Send for Arena {}

// SAFETY: all that changes behind a shared reference is the atomic counter.
unsafe impl Sync for Arena {}

impl Arena {
    /// An arena of about `bytes`, or none where the memory cannot be had.
    fn map(bytes: usize) -> Option<Arena> {
        let len = bytes.min(ARENA_BYTES_MAX).next_multiple_of(HUGE_PAGE);
        let mapping_len = len + HUGE_PAGE;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        let size = NonZeroUsize::new(mapping_len)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let mapping = unsafe { mmap_anonymous(None, size, protection, flags) }.ok()?;
        let gap = mapping.addr().get().next_multiple_of(HUGE_PAGE) - mapping.addr().get();
        // SAFETY: the gap is less than a huge page, by which the mapping is longer than `len`.
        let start = unsafe { mapping.cast::<u8>().add(gap) };
        // SAFETY: the range lies in the mapping, and this advice changes no content.
        let advised = unsafe { madvise(start.cast(), len, MmapAdvise::MADV_HUGEPAGE) };
        if let Err(error) = advised {
            tracing::debug!(%error, "no huge pages");
        }
        Some(Arena {
            mapping,
            mapping_len,
            start,
            len,
            used: AtomicUsize::new(0),
        })
    }

    /// Cuts `len` bytes off, while there are as many.
    fn cut(self: &Arc<Arena>, len: usize) -> Option<Memory> {
        // Looking first keeps the counter from wandering off, and from ever wrapping.
        if self.used.load(Ordering::Relaxed) + len > self.len {
            return None;
        }
        let offset = self.used.fetch_add(len, Ordering::Relaxed);
        if offset + len > self.len {
            return None;
        }
        // SAFETY: the offset lies in the mapping, as was just checked.
        let start = unsafe { self.start.add(offset) };
        let home = Home::Arena {
            _keeps: Arc::clone(self),
        };
        Some(Memory { start, home })
    }

    /// First byte, for the ring that registers it.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether all of `bytes` lies in it.
    pub(crate) fn contains(&self, bytes: &[u8]) -> bool {
        let (start, inner) = (self.start.addr().get(), bytes.as_ptr().addr());
        inner >= start && inner + bytes.len() <= start + self.len
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length; each `Memory` in it holds the arena, so none is
        // left, and a ring that has it registered holds the pool, which holds the arena.
        let unmapped = unsafe { munmap(self.mapping, self.mapping_len) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes through a buffer and reads it back.
    fn use_up(buf: &mut AlignedBuf, byte: u8) {
        buf.fill(byte);
        assert!(buf.iter().all(|&it| it == byte));
        assert!(buf.as_ptr().addr().is_multiple_of(PAGE));
    }

    #[test]
    fn buffers_are_whole_pages_and_reused() {
        let pool = BufPool::new();
        let mut kept = Vec::new();
        for (len, rounded) in [(1, PAGE), (PAGE + 1, 2 * PAGE), (3 << 20, 3 << 20)] {
            let mut buf = pool.take(len);
            assert_eq!(buf.len(), rounded);
            assert!(buf.iter().all(|&byte| byte == 0), "fresh memory is zeroed");
            use_up(&mut buf, 7);
            // It is kept, so that the next one is not this one again.
            kept.push(buf);
        }
        drop(kept);
        let first = pool.take(PAGE).as_ptr();
        assert_eq!(pool.take(PAGE).as_ptr(), first);
    }

    #[test]
    fn arena_serves_large_buffers_until_it_is_used_up() {
        let pool = BufPool::with_arena(3 << 20);
        let arena = pool.arena().unwrap();
        assert_eq!(arena.len(), 4 << 20, "whole huge pages");
        assert!(arena.start().addr().get().is_multiple_of(HUGE_PAGE));
        assert!(!arena.contains(&pool.take(PAGE)), "small ones gain nothing");
        let mut bufs: Vec<AlignedBuf> = (0..6).map(|_| pool.take(1 << 20)).collect();
        let inside = bufs.iter().filter(|buf| arena.contains(buf)).count();
        assert_eq!(inside, 3, "each takes its class's 1 MiB + 4 KiB");
        for (byte, buf) in bufs.iter_mut().enumerate() {
            use_up(buf, byte as u8);
        }
        for (byte, buf) in bufs.iter().enumerate() {
            assert!(
                buf.iter().all(|&it| it == byte as u8),
                "they do not overlap"
            );
        }
        drop(bufs);
        let bufs: Vec<AlignedBuf> = (0..6).map(|_| pool.take(1 << 20)).collect();
        let inside = bufs.iter().filter(|buf| arena.contains(buf)).count();
        assert_eq!(inside, 3, "they come back");
    }

    #[test]
    fn buffers_outlive_their_pool() {
        let pool = BufPool::with_arena(HUGE_PAGE);
        let mut buf = pool.take(64 << 10);
        drop(pool);
        use_up(&mut buf, 9);
        let bytes = buf.freeze();
        let part = bytes.slice(PAGE..2 * PAGE);
        drop(bytes);
        assert!(part.iter().all(|&byte| byte == 9));
    }

    #[test]
    fn no_arena_is_asked_for_or_to_be_had() {
        assert!(BufPool::new().arena().is_none());
        assert!(BufPool::with_arena(0).arena().is_none());
    }
}
