//! Which segments this shard holds, in which files, and when a file may be used again.
//!
//! Invariants:
//! 1. Every file is of exactly one kind: it holds a segment, or it is free.
//! 2. A segment's file is freed only when nothing refers to the segment, nobody reads it, and the
//!    two newest checkpoints were both begun after the last reference went: neither they nor the
//!    replay that starts from them can want it.
//! 3. Checksum tables are a cache of the segments' footers, bounded by `SUMS_BYTES_MAX`.
//!
//! Deliberately not here: the files themselves, and who refers to what (`map::live`).

use crate::log::checksum::Identity;
use crate::log::segment::SUM;
use crate::types::{Epoch, NUMBER_MAX, SegmentId};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

/// Memory of checksum tables per shard at most. A table is a thousandth of its segment, so this
/// covers 8 GiB without a reload, and a reload is one read.
const SUMS_BYTES_MAX: usize = 8 << 20;

/// Checkpoints that must be begun after a segment's last reference went, before its file is used
/// again. Two, so that either of the two newest checkpoints can be lost.
const CHECKPOINTS_TO_FREE: u8 = 2;

/// Files without a segment count only below this, so that a stray name cannot use the numbers up.
const STRAY_MAX: u64 = NUMBER_MAX / 2;

/// A segment that is held locally. Whoever reads it holds the `Rc`, which keeps its file.
pub(crate) struct Held {
    pub(crate) id: SegmentId,
    pub(crate) epoch: Epoch,
    pub(crate) file: u64,
    pub(crate) identity: Identity,
    /// Pages before its footer; 0 while it is open.
    pub(crate) pages: Cell<u32>,
    /// Whether its footer is durable, so that it can be read after a restart.
    pub(crate) footer_durable: Cell<bool>,
    sums: RefCell<Option<Rc<[u32]>>>,
    checkpoints_dead: Cell<u8>,
}

impl Held {
    pub(crate) fn new(id: SegmentId, epoch: Epoch, file: u64, identity: Identity) -> Held {
        Held {
            id,
            epoch,
            file,
            identity,
            pages: Cell::new(0),
            footer_durable: Cell::new(false),
            sums: RefCell::new(None),
            checkpoints_dead: Cell::new(0),
        }
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

    /// Files, free ones too.
    pub(crate) fn files(&self) -> usize {
        self.held.len() + self.free.len()
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
        self.next_file = self.next_file.max(held.file + 1);
        self.free.remove(&held.file);
        let held = Rc::new(held);
        let before = self.held.insert(held.id, held.clone());
        assert!(before.is_none(), "segment ids are never used twice");
        held
    }

    /// A segment's file turned out to be gone, or to hold another one: it is held no longer.
    pub(crate) fn forget(&mut self, id: SegmentId) {
        self.held.remove(&id);
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
            .filter(|held| Rc::strong_count(held) == 1)
            .map(|held| held.id)
            .collect()
    }

    /// A checkpoint that was begun when these were dead is durable: frees what may go.
    /// Returns the segments freed.
    pub(crate) fn checkpointed(&mut self, dead: &[SegmentId]) -> usize {
        for id in dead {
            if let Some(held) = self.held.get(id) {
                held.checkpoints_dead
                    .set(held.checkpoints_dead.get().saturating_add(1));
            }
        }
        self.free_dead()
    }

    /// Frees the files of segments that are dead for long enough and read by nobody.
    pub(crate) fn free_dead(&mut self) -> usize {
        let gone: Vec<SegmentId> = self
            .held
            .values()
            .filter(|held| held.checkpoints_dead.get() >= CHECKPOINTS_TO_FREE)
            .filter(|held| held.footer_durable.get() && Rc::strong_count(held) == 1)
            .map(|held| held.id)
            .collect();
        for id in &gone {
            let held = self.held.remove(id).expect("it was just listed");
            if let Some(sums) = held.sums.take() {
                self.sums_bytes -= sums.len() * SUM;
            }
            self.free.insert(held.file);
        }
        self.with_sums.retain(|id| !gone.contains(id));
        gone.len()
    }
}
