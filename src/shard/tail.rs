//! The tail of the log that is not yet durable: the dirty memory.
//!
//! Invariants:
//! 1. Batches stand in the order of their numbers. A batch leaves when it and all before it are
//!    durable, so `durable` only grows and is always a prefix of the log.
//! 2. A batch's bytes stay in memory, readable, until it leaves.

use crate::log::writer::ClosedBatch;
use crate::types::{Location, Lsn, PAGE, SegmentId};
use bytes::Bytes;
use std::collections::VecDeque;

/// How far a batch has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Being written; durable when done if `synced`.
    Writing {
        synced: bool,
    },
    /// Written, not yet durable.
    Written,
    Durable,
}

struct Batch {
    closed: ClosedBatch,
    /// Memory that it holds.
    charge: u64,
    stage: Stage,
}

/// The closed batches that are not yet part of the durable prefix.
pub(crate) struct Tail {
    batches: VecDeque<Batch>,
    durable: Lsn,
    bytes: u64,
}

impl Tail {
    pub(crate) fn new(durable: Lsn) -> Tail {
        Tail {
            batches: VecDeque::new(),
            durable,
            bytes: 0,
        }
    }

    /// Every batch up to here is durable.
    pub(crate) fn durable(&self) -> Lsn {
        self.durable
    }

    /// Where the first of them begins.
    pub(crate) fn first_place(&self) -> Option<Location> {
        let closed = &self.batches.front()?.closed;
        Some(Location::new(closed.segment, closed.page * PAGE as u32))
    }

    /// Memory that all of them hold.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Takes a batch that is about to be written.
    pub(crate) fn push(&mut self, closed: ClosedBatch, charge: u64, synced: bool) {
        let last = self
            .batches
            .back()
            .map_or(self.durable, |batch| batch.closed.lsn);
        assert_eq!(closed.lsn, last.next(), "batches are consecutive");
        self.bytes += charge;
        self.batches.push_back(Batch {
            closed,
            charge,
            stage: Stage::Writing { synced },
        });
    }

    /// Whether every batch is durable, or will be when its write is done.
    pub(crate) fn all_synced(&self) -> bool {
        self.batches.iter().all(|batch| {
            matches!(
                batch.stage,
                Stage::Writing { synced: true } | Stage::Durable
            )
        })
    }

    /// Batches that are being written: how many, and their bytes.
    pub(crate) fn writing(&self) -> (usize, usize) {
        let writing = self
            .batches
            .iter()
            .filter(|b| matches!(b.stage, Stage::Writing { .. }));
        writing.fold((0, 0), |(count, bytes), b| {
            (count + 1, bytes + b.closed.bytes.len())
        })
    }

    /// Whether a batch that will be durable when written is on its way.
    pub(crate) fn writing_synced(&self) -> bool {
        self.batches
            .iter()
            .any(|batch| batch.stage == Stage::Writing { synced: true })
    }

    /// Whether a batch up to `lsn` is still being written.
    pub(crate) fn writing_through(&self, lsn: Lsn) -> bool {
        let through = self
            .batches
            .iter()
            .take_while(|batch| batch.closed.lsn <= lsn);
        through
            .into_iter()
            .any(|batch| matches!(batch.stage, Stage::Writing { .. }))
    }

    /// A batch's write is done. Returns whether the durable prefix grew.
    pub(crate) fn written(&mut self, lsn: Lsn) -> bool {
        let batch = self.find_lsn(lsn);
        batch.stage = match batch.stage {
            Stage::Writing { synced: true } => Stage::Durable,
            _ => Stage::Written,
        };
        self.advance()
    }

    /// The batches that a sync begun now will make durable, and the segments to sync for them.
    pub(crate) fn to_sync(&self) -> (Vec<Lsn>, Vec<SegmentId>) {
        let written = self
            .batches
            .iter()
            .filter(|batch| batch.stage == Stage::Written);
        let (lsns, mut segments): (Vec<Lsn>, Vec<SegmentId>) = written
            .map(|batch| (batch.closed.lsn, batch.closed.segment))
            .unzip();
        segments.dedup();
        (lsns, segments)
    }

    /// Bytes that are written and wait for a sync.
    pub(crate) fn unsynced_bytes(&self) -> usize {
        let written = self
            .batches
            .iter()
            .filter(|batch| batch.stage == Stage::Written);
        written.map(|batch| batch.closed.bytes.len()).sum()
    }

    /// A sync that was begun when these were written is done. Returns whether the prefix grew.
    pub(crate) fn synced(&mut self, lsns: &[Lsn]) -> bool {
        for &lsn in lsns {
            self.find_lsn(lsn).stage = Stage::Durable;
        }
        self.advance()
    }

    /// The bytes at a place, if they are here.
    pub(crate) fn read(&self, at: Location, len: u32) -> Option<Bytes> {
        let key = |closed: &ClosedBatch| (closed.segment, closed.page as usize * PAGE);
        let wanted = (at.segment(), at.offset() as usize);
        let index = self
            .batches
            .partition_point(|batch| key(&batch.closed) <= wanted);
        let closed = &self.batches.get(index.checked_sub(1)?)?.closed;
        if closed.segment != at.segment() {
            return None;
        }
        let start = at.offset() as usize - closed.page as usize * PAGE;
        let end = start + len as usize;
        (end <= closed.bytes.len()).then(|| closed.bytes.slice(start..end))
    }

    fn find_lsn(&mut self, lsn: Lsn) -> &mut Batch {
        let first = self
            .batches
            .front()
            .expect("a batch stays until it is durable")
            .closed
            .lsn;
        &mut self.batches[(lsn.0 - first.0) as usize]
    }

    fn advance(&mut self) -> bool {
        let before = self.durable;
        while self
            .batches
            .front()
            .is_some_and(|batch| batch.stage == Stage::Durable)
        {
            let batch = self.batches.pop_front().expect("there is a front");
            self.bytes -= batch.charge;
            self.durable = batch.closed.lsn;
        }
        self.durable > before
    }
}
