//! Page-aligned memory and its pool: what the kernel writes into and reads from.
//!
//! Invariants:
//! 1. An [`AlignedBuf`] is exclusively owned, a whole number of pages, and initialised: fresh memory
//!    is zeroed, used memory holds old bytes of this store, and no caller hands it out unfilled.
//! 2. Memory is given back to its pool by any thread, and freed only with the pool's last handle and
//!    its last buffer.
//!
//! One of the two files with `unsafe`. Deliberately not here: budgets; who may hold how much is
//! decided where it is held.

use crate::types::{PAGE, page_ceil};
use bytes::Bytes;
use crossbeam_queue::ArrayQueue;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

/// Sizes in bytes that are kept for reuse; anything larger is allocated and freed. The largest is a
/// batch of the log: 1 MiB of data, its head page, and the head of the segment that it may begin.
const CLASSES: [usize; 5] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, (1 << 20) + 2 * PAGE];

/// Buffers of one class that are kept at most: 64 MiB of the largest.
const KEPT_MAX: usize = 64;

/// A pool of page-aligned buffers; clones share it.
#[derive(Clone)]
pub(crate) struct BufPool(Arc<Shared>);

struct Shared {
    free: [ArrayQueue<Memory>; CLASSES.len()],
}

impl BufPool {
    pub(crate) fn new() -> BufPool {
        BufPool(Arc::new(Shared {
            free: std::array::from_fn(|_| ArrayQueue::new(KEPT_MAX)),
        }))
    }

    /// A buffer of at least `len` bytes, cut to `len` rounded up to pages. Its content is arbitrary.
    pub(crate) fn take(&self, len: usize) -> AlignedBuf {
        assert!(len > 0, "an empty buffer");
        let len = page_ceil(len);
        let class = CLASSES.iter().position(|&size| size >= len);
        let memory = class.and_then(|class| self.0.free[class].pop());
        let memory =
            memory.unwrap_or_else(|| Memory::zeroed(class.map_or(len, |class| CLASSES[class])));
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

    /// First byte, for the driver that hands it to the kernel.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.memory().start.as_ptr()
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
        if let (Some(class), Some(memory)) = (self.class, self.memory.take()) {
            // A full free list drops it, which frees it.
            let _ = self.pool.0.free[class].push(memory);
        }
    }
}

/// An allocation. Frees itself.
struct Memory {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it owns its allocation, and nothing about it is bound to a thread.
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
        Memory { start, layout }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `start` was allocated with this layout in `zeroed` and is freed only here.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}
