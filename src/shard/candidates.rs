//! Finding the log's tail: which files hold segments that the checkpoint does not know.
//!
//! A file is known by its segment's head, and where that is bad by its batches, each of which names
//! its segment. So a damaged page costs no more than what stands on it.
//!
//! Invariants:
//! 1. A file that cannot be looked at makes the opening fail: it may hold what was promised.
//! 2. Of two files with one segment, one was copied from the other. The one with more good batches
//!    counts; of two alike the copy, whose head was written when all else was durable.
//! 3. A file without use is free only if it is whole, durably so.

use super::files::{parse_segment_name, segment_name};
use super::recover::{Recovered, Recovery};
use super::replay::whole_batches;
use crate::error::Result;
use crate::io::{DirEntry, Driver, DriverFile, OpenMode};
use crate::log::segment::{BatchHead, SegmentHead};
use crate::marks::mark;
use crate::residency::Held;
use crate::types::{Lsn, PAGE, SegmentId};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// A segment file that may hold a part of the tail.
pub(super) struct Candidate {
    pub(super) head: SegmentHead,
    pub(super) file: u64,
    /// Where its footer is if it was sealed, as the next segment says.
    pub(super) footer_page: Option<u32>,
    /// The head was bad; what stands here was learnt from the batches.
    pub(super) damaged: bool,
}

/// Segments that the remote has, and whose files are gone: they were evicted after the checkpoint.
fn leave_missing(entries: &[DirEntry], recovered: &mut Recovered) {
    let files: BTreeSet<u64> = entries
        .iter()
        .filter_map(|entry| parse_segment_name(&entry.name))
        .collect();
    let segments = &mut recovered.segments;
    let gone = |held: &&Rc<Held>| {
        let there = held.file().is_none_or(|file| files.contains(&file));
        held.is_uploaded() && !there
    };
    let gone: Vec<Rc<Held>> = segments.iter().filter(gone).cloned().collect();
    for held in gone {
        mark("evicted after the checkpoint");
        segments.leave_file(&held);
    }
}

/// Segments by number.
pub(super) type Candidates = BTreeMap<SegmentId, Candidate>;

impl<D: Driver> Recovery<'_, D> {
    pub(super) async fn remove_leftovers(&self, entries: &[DirEntry]) {
        if entries.iter().any(|entry| entry.name == "checkpoint.new") {
            // A checkpoint that was not finished; nothing refers to it.
            let _ = self
                .driver
                .unlink(&self.params.path("checkpoint.new"))
                .await;
        }
    }

    /// The segments that may continue the log. Files that hold nothing of use are free.
    pub(super) async fn find_candidates(
        &self,
        entries: &[DirEntry],
        recovered: &mut Recovered,
    ) -> Result<Candidates> {
        self.forget_reused(recovered).await?;
        leave_missing(entries, recovered);
        let known: BTreeSet<u64> = recovered
            .segments
            .iter()
            .filter_map(|held| held.file())
            .collect();
        let mut candidates: Candidates = BTreeMap::new();
        for entry in entries {
            let Some(file) = parse_segment_name(&entry.name) else {
                continue;
            };
            if known.contains(&file) {
                continue;
            }
            let found = self.identify(file).await?;
            let head = found.as_ref().map(|candidate| candidate.head);
            let is_useful = head.is_some_and(|head| self.is_useful(&head, recovered));
            let Some(candidate) = found.filter(|_| is_useful) else {
                let held = head.and_then(|head| recovered.segments.find(head.segment));
                // An older checkpoint may say that an evicted segment is in it still.
                let was_evicted = held.is_some_and(|held| held.file().is_none());
                self.note_useless(file, entry, was_evicted, recovered).await;
                continue;
            };
            recovered.segments.note_file(file);
            if entry.len < self.params.segment_bytes() {
                mark("segment cut short");
                self.lengthen(&entry.name).await;
            }
            let segment = candidate.head.segment;
            let other = candidates.remove(&segment);
            let (kept, loser) = match other {
                Some(other) => self.better_of(candidate, other).await?,
                None => (candidate, None),
            };
            candidates.insert(segment, kept);
            if let Some(loser) = loser {
                self.remove_for_good(loser.file, recovered).await?;
            }
        }
        Ok(candidates)
    }

    /// Removes a file that another one has been preferred to. Should it look better at another
    /// time, it must not come back.
    async fn remove_for_good(&self, file: u64, recovered: &mut Recovered) -> Result<()> {
        recovered.segments.note_file(file);
        let removed = self.driver.unlink(&self.params.path(&segment_name(file)));
        removed
            .await
            .map_err(|error| self.failed("mended", error))?;
        let synced = self.driver.sync_dir(&self.params.dir());
        synced.await.map_err(|error| self.failed("mended", error))
    }

    /// Of two files with one segment, the one that counts first.
    async fn better_of(
        &self,
        a: Candidate,
        b: Candidate,
    ) -> Result<(Candidate, Option<Candidate>)> {
        let mut ranks = [(0, false, 0); 2];
        for (rank, candidate) in ranks.iter_mut().zip([&a, &b]) {
            let bytes = self.read_segment(candidate.file).await?;
            let good = whole_batches(&candidate.head, &bytes);
            *rank = (good, !candidate.damaged, candidate.file);
        }
        let later = a.head.epoch.cmp(&b.head.epoch);
        let (kept, loser) = match later.then(ranks[0].cmp(&ranks[1])).is_gt() {
            true => (a, b),
            false => (b, a),
        };
        Ok((kept, Some(loser)))
    }

    fn is_useful(&self, head: &SegmentHead, recovered: &Recovered) -> bool {
        self.is_ours(head)
            && head.epoch <= self.params.epoch
            && u64::from(head.pages) * PAGE as u64 == self.params.segment_bytes()
            && head.segment >= recovered.end.segment
            && head.segment.0 > 0
    }

    fn is_ours(&self, head: &SegmentHead) -> bool {
        head.store == self.params.store && head.shard == self.params.shard
    }

    /// Forgets segments that nothing refers to and whose files are gone or hold others by now.
    ///
    /// A checkpoint lists all segments that were held when it was begun. Those that were dead then
    /// may have been freed since, by that very checkpoint, and their files removed, or used for the
    /// tail.
    async fn forget_reused(&self, recovered: &mut Recovered) -> Result<()> {
        let live = &recovered.map.live;
        let dead = recovered
            .segments
            .iter()
            .filter(|held| live.bytes(held.id) == 0);
        let dead: Vec<_> = dead
            .filter_map(|held| Some((held.id, held.epoch, held.file()?)))
            .collect();
        for (segment, epoch, file) in dead {
            let found = self.identify(file).await?;
            let same = found.is_some_and(|Candidate { head, .. }| {
                self.is_ours(&head) && (head.segment, head.epoch) == (segment, epoch)
            });
            if !same {
                mark("listed segment was freed");
                recovered.segments.forget(segment);
            }
        }
        Ok(())
    }

    /// What a file holds: by its head, or if that is bad by the newest of its batches.
    async fn identify(&self, file: u64) -> Result<Option<Candidate>> {
        let Some(open) = self.open_existing(&segment_name(file)).await? else {
            return Ok(None);
        };
        let page = self.read_at(&open, 0, PAGE).await;
        let head = page.ok().and_then(|page| SegmentHead::parse(&page).ok());
        let (head, damaged) = match head {
            Some(head) => (Some(head), false),
            None => (
                self.head_from_batches(&self.read_segment(file).await?),
                true,
            ),
        };
        Ok(head.map(|head| Candidate {
            head,
            file,
            footer_page: None,
            damaged,
        }))
    }

    /// The head of a segment, from its batches. If the first of them is bad, too, it is taken to be
    /// the only one before the first good one; replay finds out if it was not.
    fn head_from_batches(&self, bytes: &[u8]) -> Option<SegmentHead> {
        let mut newest: Option<(u32, BatchHead)> = None;
        for (index, page) in (1u32..).zip(bytes.chunks_exact(PAGE).skip(1)) {
            let (store, shard) = (&self.params.store, self.params.shard);
            let Some((head, _)) = BatchHead::parse_as_named(store, shard, index, page) else {
                continue;
            };
            // A file that was recycled may hold older ones behind.
            let named = (head.segment, head.epoch);
            if newest.is_none_or(|(_, newest)| named > (newest.segment, newest.epoch)) {
                newest = Some((index, head));
            }
        }
        let (index, first) = newest?;
        let (first_lsn, chain) = match index {
            1 => (first.lsn, first.chain),
            _ => (Lsn(first.lsn.0.saturating_sub(1).max(1)), 0),
        };
        Some(SegmentHead {
            store: self.params.store,
            shard: self.params.shard,
            segment: first.segment,
            epoch: first.epoch,
            pages: (self.params.segment_bytes() / PAGE as u64) as u32,
            first_lsn,
            chain,
            previous_pages: u32::MAX,
        })
    }

    /// Gives a segment that was cut short its length back, so that its file can be used again.
    /// Where that fails it is read as it is.
    async fn lengthen(&self, name: &str) {
        let path = self.params.path(name);
        if let Ok(file) = self.driver.open(&path, OpenMode::Existing).await {
            let _ = file.allocate(self.params.segment_bytes()).await;
        }
    }

    /// A file that holds nothing of the log. Whoever made it may have been killed before its sync,
    /// and then a durable write into it would not keep its length.
    async fn note_useless(
        &self,
        number: u64,
        entry: &DirEntry,
        was_evicted: bool,
        recovered: &mut Recovered,
    ) {
        let path = self.params.path(&entry.name);
        let sync = async {
            let file = self.driver.open(&path, OpenMode::Existing).await?;
            file.sync().await
        };
        let is_whole = entry.len >= self.params.segment_bytes();
        if is_whole && !was_evicted && sync.await.is_ok() {
            recovered.segments.add_free(number);
            return;
        }
        recovered.segments.note_file(number);
        // One that cannot be removed is found again, at the next opening.
        let _ = self.driver.unlink(&path).await;
    }
}
