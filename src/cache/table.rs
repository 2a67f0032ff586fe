//! The table of what is in a shard's read buffer: any thread looks up, the shard alone writes.
//!
//! A caller has no map, so it cannot look bytes up by their place in the log. The table is keyed by
//! what it does have: a payload's name and a page of the payload. An entry holds the page's bytes,
//! all of them, and whether the payload ends with them; so a hit needs no size.
//!
//! # Why a hit is never wrong
//!
//! An entry is *valid* while its slot's tag is the hash of its key. Only the shard makes it so,
//! holding the cell; and it makes it invalid, without holding anything, before it acknowledges what
//! makes the bytes wrong. A reader holds the cell while it looks at the tag and takes the bytes, so
//! that the tag that it sees speaks of the entry that it sees. A read that begins after a change
//! was acknowledged therefore finds the slot invalid, or filled anew.
//!
//! A read of several pages could still see an old page and then, on another, the work of a *later*
//! change. So every change is counted: after it has made its entries invalid, and before anything
//! new is put in; also if it found none, for one may have been evicted just before. A reader of
//! several pages compares the count of before with that of after: if it is the same, nothing that
//! it took is the work of a change that came after what another page shows.
//!
//! # Why nobody waits
//!
//! Both sides only ever *try* to get a cell. A reader that does not get it has a miss and asks the
//! shard. A shard that does not get it, because a reader is in it, or was preempted there, has made
//! the tag invalid all the same, and takes the bytes out later.
//!
//! Invariants:
//! 1. A key is in one slot at most. The tag of a slot without valid entry is 0.
//! 2. A tag is set while the cell is held for writing, and only then.
//! 3. Names are compared, not only their hashes: hashes can be made to collide.
//!
//! Deliberately not here: what is put in, what leaves, and when (`read_buffer`).

use super::hits::Hits;
use crate::chunks::Chunks;
use crate::marks::mark;
use crate::payload_id::PayloadId;
use crate::sync::TryCell;
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use crate::types::PAGE;
use bytes::{Buf, Bytes};
use smallvec::SmallVec;

/// Slots of a bucket: their tags fill a cache line, so a look at all of them is one miss.
const WAYS: usize = 8;

/// Slots for each page of the budget, in quarters. A key has two buckets to stand in, and comes
/// into the emptier one: with so many slots practically none finds both full.
const SLOT_QUARTERS: usize = 5;

/// What has been done to an entry: nothing yet.
const FRESH: u8 = 0;
/// It was used, and is worth keeping.
const USED: u8 = 1;
/// It was read ahead, and nobody has asked for it yet.
const AHEAD: u8 = 2;
/// It was read ahead and a stream has passed over it: that is no reason to keep it.
const PASSED: u8 = 3;

/// Where an entry stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slot(u32);

/// A page of a payload.
pub(super) struct Entry {
    pub(super) id: PayloadId,
    pub(super) page: u64,
    /// The memory it is in, and where.
    pub(super) frame: Bytes,
    pub(super) start: u32,
    pub(super) len: u16,
    /// The payload ends where the entry does.
    pub(super) last: bool,
}

/// How an entry comes in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// Somebody asked for it.
    Demand,
    /// It was written and flushed.
    Flush,
    /// It was read ahead. `edge`: the first page of what was; whoever gets here needs more soon.
    Ahead { edge: bool },
}

/// A bucket's slots; the tags come first, and have a cache line of their own.
#[repr(align(64))]
struct Bucket {
    tags: [AtomicU64; WAYS],
    marks: [AtomicU8; WAYS],
    edges: [AtomicBool; WAYS],
    cells: [TryCell<Option<Entry>>; WAYS],
}

impl Bucket {
    fn new() -> Bucket {
        Bucket {
            tags: std::array::from_fn(|_| AtomicU64::new(0)),
            marks: std::array::from_fn(|_| AtomicU8::new(FRESH)),
            edges: std::array::from_fn(|_| AtomicBool::new(false)),
            cells: std::array::from_fn(|_| TryCell::new(None)),
        }
    }
}

/// What a hit gives.
#[derive(Debug)]
pub(crate) struct Hit {
    pub(crate) chunks: Chunks,
    /// The reader has come to the edge of what was read ahead.
    pub(crate) at_edge: bool,
}

/// The pages in one shard's read buffer.
pub(crate) struct Table {
    /// False when the shard is gone: then nothing is a hit.
    open: AtomicBool,
    /// Changes of payloads that may have had entries.
    changes: AtomicU64,
    buckets: Box<[Bucket]>,
    pub(crate) hits: Hits,
}

impl Table {
    /// A table for as many bytes of pages; for 0, one in which nothing is ever found.
    pub(crate) fn new(bytes: u64) -> Table {
        let pages = usize::try_from(bytes / PAGE as u64).unwrap_or(usize::MAX);
        let buckets = pages
            .div_ceil(4)
            .saturating_mul(SLOT_QUARTERS)
            .div_ceil(WAYS);
        Table {
            open: AtomicBool::new(true),
            changes: AtomicU64::new(0),
            // A slot is named by 32 bits: more would be a buffer of 13 TiB.
            buckets: (0..buckets.min(u32::MAX as usize / WAYS))
                .map(|_| Bucket::new())
                .collect(),
            hits: Hits::new(),
        }
    }

    /// Whether anything can ever be in it.
    pub(crate) fn is_on(&self) -> bool {
        !self.buckets.is_empty()
    }

    /// The bytes of `[offset, min(offset + len, size))`, if all of them are here.
    ///
    /// On the caller's thread: it waits for nobody, and allocates nothing for one page.
    pub(crate) fn read(&self, id: &PayloadId, offset: u64, len: usize) -> Option<Hit> {
        if self.buckets.is_empty() || !self.open.load(Ordering::Acquire) {
            return None;
        }
        let changes = self.changes.load(Ordering::Acquire);
        let end = offset + len as u64;
        let first = offset / PAGE as u64;
        let mut taken = Taken::default();
        let mut page = first;
        loop {
            let start = page * PAGE as u64;
            let from = offset.saturating_sub(start) as usize;
            let to = (end - start).min(PAGE as u64) as usize;
            let ends = self.take(id, page, from, to, &mut taken)?;
            if ends || start + PAGE as u64 >= end {
                break;
            }
            page += 1;
        }
        if page > first && self.changes.load(Ordering::Acquire) != changes {
            return None;
        }
        let mut at_edge = false;
        for touched in &taken.touched {
            at_edge |= self.touch(touched);
        }
        Some(Hit {
            chunks: taken.finish(),
            at_edge,
        })
    }

    /// Adds `[from, to)` of a page to what is taken; says whether the payload ends in it. `None`:
    /// the page is not here.
    fn take(
        &self,
        id: &PayloadId,
        page: u64,
        from: usize,
        to: usize,
        taken: &mut Taken,
    ) -> Option<bool> {
        let (buckets, tag) = self.place(id, page);
        for (index, way) in buckets
            .into_iter()
            .flat_map(|it| (0..WAYS).map(move |way| (it, way)))
        {
            let bucket = &self.buckets[index];
            if bucket.tags[way].load(Ordering::Acquire) != tag {
                continue;
            }
            let cell = bucket.cells[way].try_read()?;
            // Again, now that the cell cannot change: is the entry that is in it valid?
            if bucket.tags[way].load(Ordering::Acquire) != tag {
                return None;
            }
            let entry = cell.as_ref()?;
            if entry.page != page || entry.id != *id {
                continue;
            }
            let to = to.min(usize::from(entry.len));
            let from = from.min(to);
            taken.push(&entry.frame, entry.start as usize + from, to - from);
            taken.touched.push(Touched {
                slot: Slot((index * WAYS + way) as u32),
                from: from as u16,
                len: entry.len,
            });
            return Some(entry.last);
        }
        None
    }

    /// Notes that an entry was used, from a byte on; says whether it is an edge, the first time.
    /// Relaxed: it steers what is kept, nothing more.
    fn touch(&self, touched: &Touched) -> bool {
        let (bucket, way) = self.bucket(touched.slot);
        let state = &bucket.marks[way];
        match state.load(Ordering::Relaxed) {
            USED => false,
            AHEAD => {
                let (done, failed) = (Ordering::Relaxed, Ordering::Relaxed);
                let first = state.compare_exchange(AHEAD, PASSED, done, failed);
                if first.is_err() {
                    return false;
                }
                mark("used what was read ahead");
                self.hits.note_prefetched(usize::from(touched.len));
                bucket.edges[way].load(Ordering::Relaxed)
            }
            // The rest of a page that is read in parts is the same pass; its beginning is another.
            PASSED if touched.from > 0 => false,
            _ => {
                state.store(USED, Ordering::Relaxed);
                false
            }
        }
    }

    /// The shard: a page was served from here to a read that it had to serve.
    pub(super) fn note_use(&self, slot: Slot) {
        let (from, len) = (0, PAGE as u16);
        self.touch(&Touched { slot, from, len });
    }

    /// The buckets of a key, and its tag, which is never 0.
    fn place(&self, id: &PayloadId, page: u64) -> ([usize; 2], u64) {
        let hash = mix(id.hash_bits() ^ mix(page.wrapping_add(1)));
        let bucket = |bits: u64| ((u128::from(bits) * self.buckets.len() as u128) >> 64) as usize;
        ([bucket(hash), bucket(hash.rotate_left(32))], hash | 1)
    }

    fn bucket(&self, Slot(slot): Slot) -> (&Bucket, usize) {
        (&self.buckets[slot as usize / WAYS], slot as usize % WAYS)
    }

    /// How many slots there are. Slots are numbered from 0.
    pub(super) fn slots(&self) -> usize {
        self.buckets.len() * WAYS
    }

    /// The number of a slot.
    pub(super) fn index(Slot(slot): Slot) -> usize {
        slot as usize
    }

    /// The slots in which a key may stand, those of the emptier bucket first.
    pub(super) fn slots_of(&self, id: &PayloadId, page: u64) -> [Slot; 2 * WAYS] {
        let (mut buckets, _) = self.place(id, page);
        let valid = |bucket: usize| {
            let tags = self.buckets[bucket].tags.iter();
            tags.filter(|tag| tag.load(Ordering::Relaxed) != 0).count()
        };
        if valid(buckets[1]) < valid(buckets[0]) {
            buckets.swap(0, 1);
        }
        std::array::from_fn(|n| Slot((buckets[n / WAYS] * WAYS + n % WAYS) as u32))
    }

    /// The shard: whether there is a valid entry in a slot.
    pub(super) fn is_valid(&self, slot: Slot) -> bool {
        let (bucket, way) = self.bucket(slot);
        bucket.tags[way].load(Ordering::Relaxed) != 0
    }

    /// The shard: puts an entry into a slot without a valid one. False: a reader is in the way.
    ///
    /// What was there before goes; the key must be in no other slot.
    pub(super) fn fill(&self, slot: Slot, entry: Entry, origin: Origin) -> bool {
        let (bucket, way) = self.bucket(slot);
        assert!(
            !self.is_valid(slot),
            "a slot is emptied before it is filled"
        );
        let (_, tag) = self.place(&entry.id, entry.page);
        let Some(mut cell) = bucket.cells[way].try_write() else {
            return false;
        };
        let before = cell.replace(entry);
        let (mark, edge) = match origin {
            Origin::Demand | Origin::Flush => (FRESH, false),
            Origin::Ahead { edge } => (AHEAD, edge),
        };
        bucket.marks[way].store(mark, Ordering::Relaxed);
        bucket.edges[way].store(edge, Ordering::Relaxed);
        bucket.tags[way].store(tag, Ordering::Release);
        drop(cell);
        drop(before);
        true
    }

    /// The shard: makes an entry invalid. From here on no read that begins finds it.
    pub(super) fn invalidate(&self, slot: Slot) {
        let (bucket, way) = self.bucket(slot);
        bucket.tags[way].store(0, Ordering::Release);
    }

    /// The shard: a payload changes, and entries that it makes wrong are invalid. Before any other
    /// is put in.
    pub(super) fn count_change(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// The shard: lets go of the memory of an invalid entry. False: a reader is in the way.
    pub(super) fn clear(&self, slot: Slot) -> bool {
        let (bucket, way) = self.bucket(slot);
        assert!(!self.is_valid(slot), "a valid entry is not cleared");
        let Some(mut cell) = bucket.cells[way].try_write() else {
            return false;
        };
        let before = cell.take();
        drop(cell);
        drop(before);
        true
    }

    /// The shard: whether an entry is of less worth than one that comes: nobody has used it since
    /// that was last forgotten, and it is not there for somebody who is on his way.
    pub(super) fn is_idle(&self, slot: Slot) -> bool {
        let (bucket, way) = self.bucket(slot);
        matches!(bucket.marks[way].load(Ordering::Relaxed), FRESH | PASSED)
    }

    /// The shard: whether an entry was used since it was last asked.
    pub(super) fn take_used(&self, slot: Slot) -> bool {
        let (bucket, way) = self.bucket(slot);
        let used = bucket.marks[way].load(Ordering::Relaxed) == USED;
        if used {
            bucket.marks[way].store(FRESH, Ordering::Relaxed);
        }
        used
    }

    /// The shard is gone, or about to be: from here on nothing is a hit.
    pub(crate) fn close(&self) {
        self.open.store(false, Ordering::Release);
    }
}

/// An entry that a read has used, from a byte of it on.
struct Touched {
    slot: Slot,
    from: u16,
    len: u16,
}

/// What a read has taken so far; adjacent pages of one frame become one piece.
#[derive(Default)]
struct Taken {
    chunks: Chunks,
    frame: Bytes,
    start: usize,
    len: usize,
    /// Counted as used when all of the read was here: else the shard, which serves it then, counts
    /// them, and twice used is worth keeping. Inline for as much as streams are read by.
    touched: SmallVec<[Touched; 32]>,
}

impl Taken {
    fn push(&mut self, frame: &Bytes, start: usize, len: usize) {
        // The same memory, which cannot be any other's while it is held here.
        let same = frame.as_ptr() == self.frame.as_ptr() && start == self.start + self.len;
        if same && self.len > 0 && start + len <= self.frame.len() {
            self.len += len;
            return;
        }
        self.cut();
        (self.frame, self.start, self.len) = (frame.clone(), start, len);
    }

    fn cut(&mut self) {
        let mut piece = std::mem::take(&mut self.frame);
        if self.len > 0 {
            piece.advance(self.start);
            piece.truncate(self.len);
            self.chunks.push(piece);
        }
    }

    fn finish(mut self) -> Chunks {
        self.cut();
        self.chunks
    }
}

/// Spreads bits: the finalizer of MurmurHash3.
fn mix(mut bits: u64) -> u64 {
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    bits ^ (bits >> 33)
}

#[cfg(all(test, loom))]
mod loom_tests;
