//! Live bytes per segment, counted extent by extent as tree nodes come and go.
//!
//! Invariants:
//! 1. A segment's count is the sum over the extents of all distinct nodes. Two nodes that refer to
//!    the same bytes, as after a clone diverged, count them twice, so a count is an upper bound of
//!    the live bytes, and zero exactly when nothing refers to the segment.
//!    What has been given up and is not lost yet counts, too.
//! 2. Counts never go below zero; that would be a defect of the tree.
//! 3. The memory of the trees is that of all distinct leaves, which is told as they come, change
//!    and go; the few nodes above them are estimated with the leaves.

use super::extent::{Mapped, Zeroed};
use super::tree::{Account, Discarded, Entry, Tree};
use crate::types::SegmentId;
use foldhash::fast::FixedState;
use hashbrown::HashMap;

/// Live bytes of every segment that has any.
#[derive(Default)]
pub(crate) struct Live {
    segments: HashMap<SegmentId, u64, FixedState>,
    total: u64,
    extents: u64,
    lost: u64,
    memory: usize,
    extents_left: Discarded<Mapped>,
    zeroed_left: Discarded<Zeroed>,
}

impl Live {
    /// Bytes that extents refer to in a segment; 0: it can go.
    pub(crate) fn bytes(&self, segment: SegmentId) -> u64 {
        self.segments.get(&segment).copied().unwrap_or(0)
    }

    /// The newest segment that an extent refers to.
    pub(crate) fn newest(&self) -> Option<SegmentId> {
        let live = self.segments.iter().filter(|(_, bytes)| **bytes > 0);
        live.map(|(segment, _)| *segment).max()
    }

    /// Bytes that extents refer to in all segments.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Bytes that extents have ceased to refer to since the shard was opened.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// Extents of all distinct nodes.
    pub(crate) fn extents(&self) -> u64 {
        self.extents
    }

    /// Bytes of memory of all distinct nodes.
    pub(crate) fn memory(&self) -> u64 {
        self.memory as u64
    }

    /// Whether something that was given up is not lost yet.
    pub(crate) fn has_discarded(&self) -> bool {
        !self.extents_left.is_empty() || !self.zeroed_left.is_empty()
    }

    /// Loses up to `nodes_max` nodes of what was given up.
    pub(crate) fn lose_discarded(&mut self, nodes_max: usize) {
        let mut extents = std::mem::take(&mut self.extents_left);
        let left = extents.lose(nodes_max, self);
        self.extents_left = extents;
        let mut zeroed = std::mem::take(&mut self.zeroed_left);
        zeroed.lose(left, self);
        self.zeroed_left = zeroed;
    }

    fn resize(&mut self, from: usize, to: usize) {
        let rest = self.memory.checked_sub(from);
        self.memory = rest.expect("memory that was told of before") + to;
    }
}

impl Account<Mapped> for Live {
    fn gain(&mut self, entry: &Mapped) {
        let bytes = entry.end() - entry.start();
        self.total += bytes;
        self.extents += 1;
        *self.segments.entry(entry.at().segment()).or_insert(0) += bytes;
    }

    fn lose(&mut self, entry: &Mapped) {
        let bytes = entry.end() - entry.start();
        let segment = entry.at().segment();
        if crate::marks::planted("clone_without_reference") {
            self.segments.entry(segment).or_insert(0);
            self.total = self.total.max(bytes);
            self.extents = self.extents.max(1);
        }
        let count = self
            .segments
            .get_mut(&segment)
            .expect("lost bytes were gained before");
        *count = match crate::marks::planted("clone_without_reference") {
            true => Some(count.saturating_sub(bytes)),
            false => count.checked_sub(bytes),
        }
        .expect("lost bytes were gained before");
        if *count == 0 {
            self.segments.remove(&segment);
        }
        self.total -= bytes;
        self.lost += bytes;
        self.extents -= 1;
    }

    fn resize(&mut self, from: usize, to: usize) {
        Live::resize(self, from, to);
    }

    fn discard(&mut self, tree: Tree<Mapped>) {
        self.extents_left.push(tree);
    }
}

impl Account<Zeroed> for Live {
    fn gain(&mut self, _entry: &Zeroed) {}

    fn lose(&mut self, _entry: &Zeroed) {}

    fn resize(&mut self, from: usize, to: usize) {
        Live::resize(self, from, to);
    }

    fn discard(&mut self, tree: Tree<Zeroed>) {
        self.zeroed_left.push(tree);
    }
}
