//! The shard's side of the read buffer: what is put in, what makes room, what has become wrong.
//!
//! # Keys
//!
//! A page is found in two ways. Callers, on their own threads, find it by payload and page: that is
//! the [`Table`], and says why a hit is never wrong. The shard finds it by its place in the log:
//! bytes at a place never change, so a place can be asked for by any payload that the map sends
//! there. That is how a clone shares what its source has read, and how a read of which a part is
//! here reads only the rest from the device.
//!
//! # What is put in
//!
//! Whole pages of a payload, in the frame, the memory, that they were read into: nothing is copied.
//! Between the plan of a read and its end the payload may change, and an entry that was right when
//! the read was planned would be wrong for ever. So the flow that puts pages in looks at the map
//! again in the same step, and only what the map still says is put in; see `shard::cached`. A
//! count of changes would do, too, but the places themselves are the plainest proof: a place is
//! never given to other bytes.
//!
//! # What leaves
//!
//! SIEVE: frames stand in a ring in the order in which they came; a hand goes from the oldest to
//! the newest, spares what was used since it last came by, and takes the first that was not. A
//! frame that is passed once by a scan is not spared, so a scan evicts itself. What was read ahead
//! and then used once counts as not used.
//!
//! # Memory
//!
//! A frame counts against the budget from before it is read until the last reference to it is gone,
//! also after it was evicted: what callers pin is not forgotten. Where so much is pinned that
//! evicting does not help, nothing is put in; a read never waits for room here, which is made while
//! the device reads.
//!
//! Invariants:
//! 1. Only the shard's thread calls anything here.
//! 2. Every valid entry of the table is in `index`, and belongs to one frame.
//! 3. The memory of all frames, in here or pinned, is at most the budget.
//!
//! Deliberately not here: the map, I/O, and when to read ahead (`prefetch`).

use super::table::{Entry, Origin, Slot, Table};
use crate::marks::mark;
use crate::payload_id::PayloadId;
use crate::sync::Arc;
use crate::types::{Location, PAGE, PayloadNo};
use bytes::Bytes;
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use slab::Slab;
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};

/// Frames that the hand spares in a row before it takes the next, used or not: where everything is
/// hot, what goes matters little, and time matters.
const SPARED_MAX: usize = 64;

/// Frames that may go for one that comes, beside as many bytes as it needs. More would empty the
/// buffer for nothing where what goes is pinned.
const VICTIMS_MAX: usize = 8;

/// One page to be put in.
pub(crate) struct Page {
    /// Which page of the payload.
    pub(crate) number: u64,
    /// Where in the frame it begins.
    pub(crate) start: u32,
    pub(crate) len: u16,
    /// The payload ends in it.
    pub(crate) last: bool,
    /// Where in the log its bytes are, all of them, if they are in one place.
    pub(crate) at: Option<Location>,
}

/// A page that is in.
struct Kept {
    number: u64,
    slot: Slot,
    at: Option<Location>,
}

/// Memory that holds pages of one payload.
struct Frame {
    payload: PayloadNo,
    bytes: Bytes,
    pages: SmallVec<[(Kept, u32); 1]>,
    older: Option<usize>,
    newer: Option<usize>,
}

/// The shard's side of its read buffer.
pub(crate) struct ReadBuffer {
    table: Arc<Table>,
    /// Memory of frames that are alive, in here or pinned by callers.
    used: std::sync::Arc<AtomicU64>,
    bytes_max: u64,
    index: BTreeMap<(PayloadNo, u64), usize>,
    places: HashMap<Location, usize, FixedState>,
    frames: Slab<Frame>,
    oldest: Option<usize>,
    newest: Option<usize>,
    hand: Option<usize>,
    /// Which frame a slot's entry belongs to.
    owners: Vec<u32>,
    /// Slots whose memory could not be let go of, as a reader was in the way.
    stuck: Vec<Slot>,
}

impl ReadBuffer {
    /// An empty buffer of so many bytes, behind a table of as many.
    pub(crate) fn new(table: Arc<Table>, bytes_max: u64) -> ReadBuffer {
        ReadBuffer {
            owners: vec![u32::MAX; table.slots()],
            table,
            used: std::sync::Arc::default(),
            bytes_max,
            index: BTreeMap::new(),
            places: HashMap::with_hasher(FixedState::with_seed(0)),
            frames: Slab::new(),
            oldest: None,
            newest: None,
            hand: None,
            stuck: Vec::new(),
        }
    }

    /// Whether anything can ever be in it.
    pub(crate) fn is_on(&self) -> bool {
        self.table.is_on()
    }

    /// Pages in it.
    pub(crate) fn entries(&self) -> u64 {
        self.index.len() as u64
    }

    /// Memory of what is in it, and of what has left it and is still used.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    /// Whether a page of a payload is in it.
    pub(crate) fn holds(&self, payload: PayloadNo, page: u64) -> bool {
        self.index.contains_key(&(payload, page))
    }

    /// The page at a place in the log.
    pub(crate) fn find(&self, at: Location) -> Option<Bytes> {
        let (frame, _, start) = self.at(at)?;
        Some(frame.bytes.slice(start..start + PAGE))
    }

    /// Notes that the page at a place was used for a read that the shard served.
    pub(crate) fn note_use(&self, at: Location) {
        if let Some((_, slot, _)) = self.at(at) {
            self.table.note_use(slot);
        }
    }

    fn at(&self, at: Location) -> Option<(&Frame, Slot, usize)> {
        let frame = &self.frames[*self.places.get(&at)?];
        let (kept, start) = frame.pages.iter().find(|(kept, _)| kept.at == Some(at))?;
        Some((frame, kept.slot, *start as usize))
    }

    /// Makes room for frames that are to come, for as many as may be kept. It counts from here on,
    /// until it is given up, or the last reference to what has been put into it is gone.
    ///
    /// `frames`: what memory each takes, which may be more than what is read of it.
    pub(crate) fn reserve(&mut self, frames: &[u64]) -> Room {
        let mut room = Room {
            left: 0,
            used: self.used.clone(),
        };
        for memory in frames {
            // Nothing that is read once may take a large part of everything.
            let oversize = *memory > self.bytes_max / 4 && *memory > PAGE as u64;
            if oversize || *memory > self.bytes_max || !self.make_room(*memory) {
                mark("no room in the read buffer");
                continue;
            }
            self.used.fetch_add(*memory, Ordering::AcqRel);
            room.left += memory;
        }
        room
    }

    /// Evicts until so much more memory is within the budget, or it does not help.
    fn make_room(&mut self, memory: u64) -> bool {
        self.free_stuck();
        let mut freed = 0;
        let mut victims = 0;
        while self.used() + memory > self.bytes_max {
            if freed >= memory && victims >= VICTIMS_MAX {
                return false;
            }
            let Some(victim) = self.next_victim() else {
                return false;
            };
            mark("evicted from the read buffer");
            freed += self.frames[victim].bytes.len() as u64;
            victims += 1;
            self.remove_frame(victim);
        }
        true
    }

    /// Puts pages of a payload in, which lie in one frame.
    ///
    /// The caller has just made sure that they are what the payload holds, and that none is in.
    pub(crate) fn insert(
        &mut self,
        (payload, id): (PayloadNo, &PayloadId),
        bytes: &Bytes,
        pages: impl Iterator<Item = Page>,
        origin: Origin,
    ) {
        self.free_stuck();
        let key = self.frames.insert(Frame {
            payload,
            bytes: bytes.clone(),
            pages: SmallVec::new(),
            older: None,
            newer: None,
        });
        self.link(key);
        let mut origin = origin;
        for page in pages {
            let entry = Entry {
                id: id.clone(),
                page: page.number,
                frame: bytes.clone(),
                start: page.start,
                len: page.len,
                last: page.last,
            };
            let Some(slot) = self.fill(entry, origin, key) else {
                continue;
            };
            if let Origin::Ahead { edge } = &mut origin {
                *edge = false;
            }
            self.owners[Table::index(slot)] = key as u32;
            let before = self.index.insert((payload, page.number), key);
            assert!(before.is_none(), "a page is in once");
            let at = page.at.filter(|_| usize::from(page.len) == PAGE);
            if let Some(at) = at {
                self.places.insert(at, key);
            }
            let kept = Kept {
                number: page.number,
                slot,
                at,
            };
            self.frames[key].pages.push((kept, page.start));
        }
        if self.frames[key].pages.is_empty() {
            self.remove_frame(key);
        }
    }

    /// Puts an entry into one of its slots: a free one, or one whose frame is of less worth. Not at
    /// the cost of its own frame's other pages.
    fn fill(&mut self, entry: Entry, origin: Origin, own: usize) -> Option<Slot> {
        let slots = self.table.slots_of(&entry.id, entry.page);
        let table = self.table.clone();
        let free = |slot: &Slot| !table.is_valid(*slot) && table.clear(*slot);
        let slot = slots.into_iter().find(free).or_else(|| {
            let own = own as u32;
            let may_go = |slot: &Slot| {
                let other = self.owners[Table::index(*slot)] != own;
                other && table.is_valid(*slot) && table.is_idle(*slot)
            };
            let victim = slots.into_iter().find(may_go)?;
            mark("evicted from a full bucket");
            self.remove_frame(self.owners[Table::index(victim)] as usize);
            Some(victim)
        })?;
        table.fill(slot, entry, origin).then_some(slot)
    }

    /// Pages of a payload are about to be wrong: from here on nobody finds them.
    pub(crate) fn invalidate(&mut self, payload: PayloadNo, pages: RangeInclusive<u64>) {
        let range = (payload, *pages.start())..=(payload, *pages.end());
        let gone: Vec<((PayloadNo, u64), usize)> = self
            .index
            .range(range)
            .map(|(key, frame)| (*key, *frame))
            .collect();
        if !gone.is_empty() {
            mark("invalidated in the read buffer");
        }
        for ((payload, number), key) in gone {
            self.index.remove(&(payload, number));
            let pages = &mut self.frames[key].pages;
            let place = pages.iter().position(|(kept, _)| kept.number == number);
            let (kept, _) = pages.swap_remove(place.expect("the index says so"));
            self.forget(key, &kept);
            if self.frames[key].pages.is_empty() {
                self.remove_frame(key);
            }
        }
        self.table.count_change();
    }

    /// Drops everything. Says how many pages there were.
    pub(crate) fn clear(&mut self) -> u64 {
        let entries = self.entries();
        while let Some(oldest) = self.oldest {
            self.remove_frame(oldest);
        }
        self.free_stuck();
        entries
    }

    /// A page leaves: the table, the places, and its slot's memory if nobody is looking.
    fn forget(&mut self, key: usize, kept: &Kept) {
        self.table.invalidate(kept.slot);
        self.owners[Table::index(kept.slot)] = u32::MAX;
        if let Some(at) = kept.at
            && self.places.get(&at) == Some(&key)
        {
            self.places.remove(&at);
        }
        if !self.table.clear(kept.slot) {
            self.stuck.push(kept.slot);
        }
    }

    fn free_stuck(&mut self) {
        let table = &self.table;
        // A slot that has been filled anew meanwhile let go of its old memory then.
        self.stuck
            .retain(|slot| !table.is_valid(*slot) && !table.clear(*slot));
    }

    fn remove_frame(&mut self, key: usize) {
        let pages = std::mem::take(&mut self.frames[key].pages);
        let payload = self.frames[key].payload;
        for (kept, _) in &pages {
            self.index.remove(&(payload, kept.number));
            self.forget(key, kept);
        }
        self.unlink(key);
        self.frames.remove(key);
    }

    /// Where the hand stops.
    fn next_victim(&mut self) -> Option<usize> {
        let mut at = self.hand.or(self.oldest)?;
        for _ in 0..SPARED_MAX {
            let mut used = false;
            for (kept, _) in &self.frames[at].pages {
                used |= self.table.take_used(kept.slot);
            }
            if !used {
                break;
            }
            at = self.frames[at].newer.or(self.oldest)?;
        }
        self.hand = self.frames[at].newer;
        Some(at)
    }

    /// A frame comes: it is the newest.
    fn link(&mut self, key: usize) {
        self.frames[key].older = self.newest;
        match self.newest {
            Some(newest) => self.frames[newest].newer = Some(key),
            None => self.oldest = Some(key),
        }
        self.newest = Some(key);
    }

    fn unlink(&mut self, key: usize) {
        let (older, newer) = (self.frames[key].older, self.frames[key].newer);
        match older {
            Some(older) => self.frames[older].newer = newer,
            None => self.oldest = newer,
        }
        match newer {
            Some(newer) => self.frames[newer].older = older,
            None => self.newest = older,
        }
        if self.hand == Some(key) {
            self.hand = newer;
        }
    }
}

impl Drop for ReadBuffer {
    /// However the shard ends, nobody reads from it any more.
    fn drop(&mut self) {
        self.table.close();
        self.clear();
    }
}

/// Memory within the budget that nothing is in yet.
pub(crate) struct Room {
    left: u64,
    used: std::sync::Arc<AtomicU64>,
}

impl Room {
    /// Puts a frame in. `Err`: there is no room for it, here are its bytes again.
    pub(crate) fn put(&mut self, bytes: Bytes, memory: u64) -> Result<Bytes, Bytes> {
        if self.left < memory {
            return Err(bytes);
        }
        self.left -= memory;
        let used = self.used.clone();
        Ok(Bytes::from_owner(Charged {
            bytes,
            memory,
            used,
        }))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.used.fetch_sub(self.left, Ordering::AcqRel);
    }
}

/// The memory of a frame, which counts for as long as it lives.
struct Charged {
    bytes: Bytes,
    memory: u64,
    used: std::sync::Arc<AtomicU64>,
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Charged {
    fn drop(&mut self) {
        self.used.fetch_sub(self.memory, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests;
