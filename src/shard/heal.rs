//! Objects of the bucket whose bytes are here, too: each is read and compared, and what is bad is
//! made anew from what is here.
//!
//! An object is never replaced. What is live in its segment is moved to the end of the log, and is
//! uploaded as part of another one; the bad object goes as those of all freed segments go.
//!
//! Invariant: moving is upkeep's. Who verifies asks for it, and waits.

use super::cold::again;
use super::read::Interest;
use super::{Shard, State};
use crate::error::{ErrorKind, Result};
use crate::io::Driver;
use crate::marks::mark;
use crate::residency::Held;
use crate::stats::VerifyReport;
use crate::types::{PAGE, SegmentId};
use crate::upload::within;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

/// Pages that are compared at once, and how many such pieces are on their way.
const PIECE_PAGES: u32 = 256;
const PIECES_MAX: usize = 8;

/// Segments that somebody wants to have moved, and those that were, when it is over.
pub(super) struct Heal {
    segments: BTreeSet<SegmentId>,
    moved: Rc<RefCell<Option<BTreeSet<SegmentId>>>>,
}

impl State {
    /// The segments that are here and count in the bucket, and have live bytes.
    fn in_both_tiers(&self) -> Vec<SegmentId> {
        let both = |held: &&Rc<Held>| {
            let live = self.map.live.bytes(held.id) > 0;
            live && held.file().is_some() && held.is_sealed() && self.is_published(held)
        };
        self.segments.iter().filter(both).map(|it| it.id).collect()
    }
}

impl<D: Driver> Shard<D> {
    /// Compares what the bucket has of the segments that are here, and mends what is bad there.
    pub(super) async fn verify_objects(&self, report: &mut VerifyReport) -> Result<()> {
        let segments = self.0.state.borrow().in_both_tiers();
        let mut bad = BTreeSet::new();
        for id in segments {
            let held = self.0.state.borrow().segments.find(id).cloned();
            let Some(held) = held else { continue };
            let bytes = u64::from(held.pages.get()) * PAGE as u64;
            if self.has_ended() {
                // Another engine's, by now: it may have deleted what it does not need.
                report.remote_bytes_unreachable += bytes;
                continue;
            }
            match self.compare_object(&held).await {
                Ok(()) => report.remote_bytes_checked += bytes,
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    report.remote_bytes_unreachable += bytes;
                }
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    tracing::warn!(segment = id.0, %error, "a bad object in the remote");
                    bad.insert(id);
                }
                Err(error) => return Err(error),
            }
        }
        if bad.is_empty() {
            return Ok(());
        }
        let live = |id: &SegmentId| self.0.state.borrow().map.live.bytes(*id);
        let repairs: Vec<(SegmentId, u64)> = bad.iter().map(|id| (*id, live(id))).collect();
        let moved = self.ask_to_move(bad).await;
        let repaired = repairs.iter().filter(|(id, _)| moved.contains(id));
        let repaired: u64 = repaired.map(|(_, bytes)| bytes).sum();
        if repaired > 0 {
            self.drain().await?;
            self.leave_behind(moved).await;
            mark("bad objects mended from here");
            report.bytes_repaired += repaired;
            self.state().stats.bytes_repaired += repaired;
        }
        Ok(())
    }

    fn has_ended(&self) -> bool {
        let state = self.0.state.borrow();
        state.tier.as_ref().is_some_and(|tier| tier.ended.is_some())
    }

    /// Waits until who rebuilds from the bucket does not ask for segments any more, as long as
    /// anybody waits for anything.
    async fn leave_behind(&self, segments: BTreeSet<SegmentId>) {
        let shard = self.clone();
        self.0.driver.spawn(async move {
            if let Err(error) = shard.leave_checkpoint().await {
                tracing::warn!(%error, "bad objects are still asked for by who rebuilds");
            }
        });
        let left = || {
            let state = self.0.state.borrow();
            let asked_for = state
                .tier
                .as_ref()
                .is_some_and(|tier| tier.asks_for(&segments));
            (!asked_for).then_some(())
        };
        let stall_timeout = self.0.params.config.stall_timeout;
        within(
            &self.0.driver,
            stall_timeout,
            self.0.tier_changed.until(left),
        )
        .await;
    }

    /// Whether the object of a segment is what was uploaded.
    async fn compare_object(&self, held: &Rc<Held>) -> Result<()> {
        again(async || self.fetch_sums(held).await).await?;
        let pages = held.pages.get();
        let pieces = (0..pages).step_by(PIECE_PAGES as usize);
        let compare = |first: u32| async move {
            let count = PIECE_PAGES.min(pages - first);
            let fetched = self.fetch_pages(held, first, count, Interest::Passing);
            fetched.await.map(drop)
        };
        let compared = stream::iter(pieces.map(compare)).buffer_unordered(PIECES_MAX);
        compared.try_collect().await
    }

    /// Has what is live in segments moved; which of them were. None, once the shard takes no more
    /// writes.
    async fn ask_to_move(&self, segments: BTreeSet<SegmentId>) -> BTreeSet<SegmentId> {
        let moved = Rc::new(RefCell::new(None));
        self.state().upkeep.heals.push(Heal {
            segments,
            moved: moved.clone(),
        });
        self.0.upkeep_due.notify();
        let over = || {
            let state = self.0.state.borrow();
            let never = state.closing || state.commit.poison.is_some();
            moved.take().or_else(|| never.then(BTreeSet::new))
        };
        self.0.upkeep_due.until(over).await
    }

    /// Moves what was asked for.
    pub(super) async fn heal(&self) -> Result<()> {
        let heals = std::mem::take(&mut self.state().upkeep.heals);
        let all = heals.iter().flat_map(|heal| &heal.segments).copied();
        let result = self.move_out(all.collect()).await;
        let moved = result.as_ref().cloned().unwrap_or_default();
        for heal in heals {
            let its = heal.segments.intersection(&moved).copied().collect();
            *heal.moved.borrow_mut() = Some(its);
        }
        self.0.upkeep_due.notify();
        result.map(drop)
    }
}
