//! Which segments this shard holds, in which files, and when a file may be used again.
//!
//! Invariants:
//! 1. Every file is of exactly one kind: it holds a segment, or it is free.
//! 2. A segment's file is freed only when nothing refers to the segment, nobody reads it, and the
//!    two newest checkpoints were both begun after the last reference went: neither they nor the
//!    replay that starts from them can want it. A checkpoint for the remote may want it still.
//! 3. Checksum tables are a cache of the segments' footers, bounded by `SUMS_BYTES_MAX`.
//!
//! Deliberately not here: the files themselves, and who refers to what (`map::live`).

use crate::log::checksum::Identity;
use crate::log::segment::SUM;
use crate::types::{Epoch, Lsn, NUMBER_MAX, Nanos, SegmentId};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Deref;
use std::rc::Rc;

/// Memory of checksum tables per shard at most. A table is a thousandth of its segment, so this
/// covers 8 GiB without a reload, and a reload is one read.
const SUMS_BYTES_MAX: usize = 8 << 20;

/// Checkpoints that must be begun after a segment's last reference went, before its file is used
/// again. Two, so that either of the two newest checkpoints can be lost.
pub(crate) const CHECKPOINTS_TO_FREE: u8 = 2;

/// Files without a segment count only below this, so that a stray name cannot use the numbers up.
const STRAY_MAX: u64 = NUMBER_MAX / 2;

/// A segment that is held locally. Whoever reads it holds the `Rc`, which keeps its file.
pub(crate) struct Held {
    pub(crate) id: SegmentId,
    pub(crate) epoch: Epoch,
    /// `None`: it is in the remote only.
    file: Cell<Option<u64>>,
    pub(crate) identity: Identity,
    /// Its first batch, and the one behind its last once it is sealed.
    pub(crate) lsns: Cell<(Lsn, Lsn)>,
    /// Pages before its footer; 0 while it is open.
    pub(crate) pages: Cell<u32>,
    /// Whether its footer is durable, so that it can be read after a restart.
    pub(crate) footer_durable: Cell<bool>,
    /// Whether the remote has it, whole.
    uploaded: Cell<bool>,
    /// The first checkpoint that surely says so.
    recorded_from: Cell<u64>,
    /// When it was begun, or found at an opening.
    pub(crate) began: Cell<Nanos>,
    /// When it was last read or written.
    pub(crate) used: Cell<Nanos>,
    sums: RefCell<Option<Rc<[u32]>>>,
    checkpoints_dead: Cell<u8>,
    /// How many [`Needed`] there are of it.
    needed: Cell<usize>,
}

/// A segment that a checkpoint for the remote needs. Who wants to free it can, and makes the
/// checkpoint useless with that.
pub(crate) struct Needed(Rc<Held>);

impl Needed {
    pub(crate) fn new(held: &Rc<Held>) -> Needed {
        held.needed.set(held.needed.get() + 1);
        Needed(held.clone())
    }
}

impl Deref for Needed {
    type Target = Held;

    fn deref(&self) -> &Held {
        &self.0
    }
}

impl Drop for Needed {
    fn drop(&mut self) {
        self.0.needed.set(self.0.needed.get() - 1);
    }
}

impl Held {
    /// A segment whose first batch is `first`.
    pub(crate) fn new(
        id: SegmentId,
        epoch: Epoch,
        file: Option<u64>,
        identity: Identity,
        first: Lsn,
    ) -> Held {
        Held {
            id,
            epoch,
            file: Cell::new(file),
            identity,
            lsns: Cell::new((first, first)),
            pages: Cell::new(0),
            footer_durable: Cell::new(false),
            uploaded: Cell::new(false),
            recorded_from: Cell::new(0),
            began: Cell::new(Nanos(0)),
            used: Cell::new(Nanos(0)),
            sums: RefCell::new(None),
            checkpoints_dead: Cell::new(0),
            needed: Cell::new(0),
        }
    }

    /// Whether nobody reads it.
    pub(crate) fn is_unread(self: &Rc<Held>) -> bool {
        Rc::strong_count(self) == 1 + self.needed.get()
    }

    /// Whether a checkpoint for the remote needs it.
    pub(crate) fn is_needed(&self) -> bool {
        self.needed.get() > 0
    }

    /// The file that it is in, if it is in one.
    pub(crate) fn file(&self) -> Option<u64> {
        self.file.get()
    }

    /// Whether the remote has it, whole.
    pub(crate) fn is_uploaded(&self) -> bool {
        self.uploaded.get()
    }

    /// The remote has it; checkpoints from this one on say so.
    pub(crate) fn set_uploaded(&self, recorded_from: u64) {
        if !self.uploaded.replace(true) {
            self.recorded_from.set(recorded_from);
        }
    }

    /// Whether all checkpoints from this one on say that the remote has it.
    pub(crate) fn is_recorded_by(&self, sequence: u64) -> bool {
        self.uploaded.get() && self.recorded_from.get() <= sequence
    }

    /// Whether it takes no more batches.
    pub(crate) fn is_sealed(&self) -> bool {
        self.pages.get() > 0
    }

    /// The sum of every page before the footer, if they are at hand.
    pub(crate) fn sums(&self) -> Option<Rc<[u32]>> {
        self.sums.borrow().clone()
    }
}

/// The segments and files of one shard.
#[derive(Default)]
pub(crate) struct Segments {
    held: BTreeMap<SegmentId, Rc<Held>>,
    /// How many of them are in a file.
    local: usize,
    /// How often one of them came into a file, or left one.
    changes: u64,
    free: BTreeSet<u64>,
    next_file: u64,
    with_sums: VecDeque<SegmentId>,
    sums_bytes: usize,
}

impl Segments {
    pub(crate) fn find(&self, id: SegmentId) -> Option<&Rc<Held>> {
        self.held.get(&id)
    }

    /// All of them, oldest first.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Rc<Held>> {
        self.held.values()
    }

    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether any of them is said to be in the remote.
    pub(crate) fn any_uploaded(&self) -> bool {
        self.held.values().any(|held| held.is_uploaded())
    }

    /// Segments that are in a file.
    pub(crate) fn local(&self) -> usize {
        self.local
    }

    /// Changes with every segment that comes into a file or leaves one.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    fn enter(&mut self) {
        self.local += 1;
        self.changes += 1;
    }

    fn leave(&mut self, file: Option<u64>) {
        self.local -= usize::from(file.is_some());
        self.changes += 1;
    }

    /// Files, free ones too.
    pub(crate) fn files(&self) -> usize {
        self.local + self.free.len()
    }

    pub(crate) fn files_free(&self) -> usize {
        self.free.len()
    }

    /// The free files.
    pub(crate) fn free_files(&self) -> impl Iterator<Item = u64> + '_ {
        self.free.iter().copied()
    }

    /// Takes a file over: it holds this segment now.
    pub(crate) fn hold(&mut self, held: Held) -> Rc<Held> {
        if let Some(file) = held.file() {
            self.next_file = self.next_file.max(file + 1);
            self.free.remove(&file);
            self.enter();
        }
        let held = Rc::new(held);
        let before = self.held.insert(held.id, held.clone());
        assert!(before.is_none(), "segment ids are never used twice");
        held
    }

    /// A segment's file turned out to be gone, or to hold another one: it is held no longer.
    pub(crate) fn forget(&mut self, id: SegmentId) {
        if let Some(held) = self.held.remove(&id) {
            self.leave(held.file());
        }
    }

    /// A segment is in the remote only from now on. The file that it was in is nobody's, and is
    /// not to be used again: an older checkpoint may say that the segment is there.
    pub(crate) fn leave_file(&mut self, held: &Held) -> Option<u64> {
        let file = held.file.take();
        self.leave(file);
        file
    }

    /// The number of the next new file.
    pub(crate) fn next_file(&self) -> u64 {
        self.next_file
    }

    /// New files have this number at least.
    pub(crate) fn number_files_from(&mut self, first: u64) {
        self.next_file = self.next_file.max(first);
    }

    /// A file of this number exists, or has just been removed: new ones are numbered behind it.
    pub(crate) fn note_file(&mut self, file: u64) {
        if file >= STRAY_MAX {
            return;
        }
        self.next_file = self.next_file.max(file + 1);
    }

    /// A file that nothing needs: free from now on.
    pub(crate) fn add_free(&mut self, file: u64) {
        if file >= STRAY_MAX {
            return;
        }
        self.next_file = self.next_file.max(file + 1);
        self.free.insert(file);
    }

    /// Takes a free file out, to hold a segment or to be removed.
    pub(crate) fn take_free(&mut self) -> Option<u64> {
        self.free.pop_first()
    }

    /// The number of a file that does not exist yet.
    pub(crate) fn new_file(&mut self) -> u64 {
        self.next_file += 1;
        self.next_file - 1
    }

    /// Keeps a sealed segment's sums at hand, as long as there is room.
    pub(crate) fn keep_sums(&mut self, held: &Held, sums: Rc<[u32]>) {
        if held.sums.borrow().is_some() {
            return;
        }
        self.sums_bytes += sums.len() * SUM;
        *held.sums.borrow_mut() = Some(sums);
        self.with_sums.push_back(held.id);
        while self.sums_bytes > SUMS_BYTES_MAX {
            let Some(oldest) = self.with_sums.pop_front() else {
                break;
            };
            // Sums that no footer has yet cannot be dropped: they would be lost.
            let Some(oldest) = self.held.get(&oldest) else {
                continue;
            };
            if !oldest.footer_durable.get() {
                self.with_sums.push_back(oldest.id);
                break;
            }
            if let Some(sums) = oldest.sums.take() {
                self.sums_bytes -= sums.len() * SUM;
            }
        }
    }

    /// Segments that nothing refers to and nobody reads, as a checkpoint begins.
    pub(crate) fn dead(&self, is_dead: impl Fn(SegmentId) -> bool) -> Vec<SegmentId> {
        let sealed = self
            .held
            .values()
            .filter(|held| held.is_sealed() && is_dead(held.id));
        sealed
            .filter(|held| held.is_unread())
            .map(|held| held.id)
            .collect()
    }

    /// A checkpoint that was begun when these were dead is durable: frees what may go.
    /// Returns the segments freed.
    pub(crate) fn checkpointed(&mut self, dead: &[SegmentId]) -> Vec<Rc<Held>> {
        for id in dead {
            if let Some(held) = self.held.get(id) {
                held.checkpoints_dead
                    .set(held.checkpoints_dead.get().saturating_add(1));
            }
        }
        self.free_dead()
    }

    /// Frees the files of segments that are dead for long enough and read by nobody.
    pub(crate) fn free_dead(&mut self) -> Vec<Rc<Held>> {
        let gone: Vec<SegmentId> = self
            .held
            .values()
            .filter(|held| held.checkpoints_dead.get() >= CHECKPOINTS_TO_FREE)
            .filter(|held| held.footer_durable.get() && held.is_unread())
            .map(|held| held.id)
            .collect();
        let mut freed = Vec::new();
        for id in &gone {
            let held = self.held.remove(id).expect("it was just listed");
            if let Some(sums) = held.sums.take() {
                self.sums_bytes -= sums.len() * SUM;
            }
            self.leave(held.file());
            self.free.extend(held.file());
            freed.push(held);
        }
        self.with_sums.retain(|id| !gone.contains(id));
        freed
    }
}
