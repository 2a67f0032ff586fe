//! Group commit: closed batches go to the device, and the durable prefix of the log grows.
//!
//! One task decides; it runs after whatever was ready, so that what arrived together is committed
//! together. While a durable write is under way, new records gather in the open batch and go with
//! the next: the device's latency is the clock.
//!
//! Invariants:
//! 1. A flush is answered when the durable prefix covers it, or with the error that poisoned the
//!    shard.
//! 2. A sync covers the batches whose writes had completed before it was submitted, nothing else.
//! 3. After a failed write or sync nothing more is written and nothing more becomes durable.

use super::{Shard, State};
use crate::Error;
use crate::error::Result;
use crate::io::{Driver, DriverFile, Durability};
use crate::marks::{mark, planted};
use crate::payload_id::PayloadId;
use crate::residency::Held;
use crate::stats::{Flushed, Stage};
use crate::types::{Lsn, Nanos, PAGE, SegmentId};
use bytes::Bytes;
use futures_util::future::join;
use std::rc::Rc;
use std::time::Duration;

/// Bytes of batches that are being written at once, at most: enough to keep a device streaming, few
/// enough that a small flush behind them waits milliseconds.
const WRITING_BYTES_MAX: usize = 4 << 20;

/// Written bytes that are synced without being asked: the dirty memory they hold is needed again.
const UNSYNCED_BYTES_MAX: usize = 8 << 20;

/// Shortest time after which recorded bytes are appended unasked: below it the timer would only
/// spin.
const FLUSH_AFTER_MIN: Duration = Duration::from_millis(1);

/// Quiet for this long is rest: time to give back what is not needed.
const REST_AFTER: Duration = Duration::from_secs(1);

/// Batches of which it is known when they were begun to be written: many more than are under way
/// when somebody waits, as what is recorded meanwhile gathers.
const BEGUN_KEPT: usize = 64;

/// A batch that was handed to the device: when, and whether to be durable when it is written.
#[derive(Clone, Copy, Default)]
struct Begun {
    lsn: Lsn,
    at: Nanos,
    synced: bool,
}

/// What the committer works on.
pub(super) struct Commit {
    /// Flushes wait for this batch.
    wanted: Option<Lsn>,
    syncing: bool,
    /// The timer that appends what has grown old is running.
    aging: bool,
    /// The last batches that were handed to the device, each at its number's place.
    begun: [Begun; BEGUN_KEPT],
    /// Nothing was recorded for `flush_after`, and everything is durable.
    pub(super) at_rest: bool,
    /// Why writes and flushes fail from now on.
    pub(super) poison: Option<Error>,
}

impl Default for Commit {
    fn default() -> Commit {
        Commit {
            wanted: None,
            syncing: false,
            aging: false,
            begun: [Begun::default(); BEGUN_KEPT],
            at_rest: true,
            poison: None,
        }
    }
}

impl Commit {
    fn note_begun(&mut self, begun: Begun) {
        self.begun[begun.lsn.0 as usize % BEGUN_KEPT] = begun;
    }

    /// How a batch was handed to the device, if that was not too long ago.
    fn begun(&self, lsn: Lsn) -> Option<Begun> {
        let begun = self.begun[lsn.0 as usize % BEGUN_KEPT];
        (begun.lsn == lsn).then_some(begun)
    }
}

impl State {
    /// Whether the open batch may be closed and written: the device has room for it.
    pub(super) fn may_close(&self) -> bool {
        let (count, bytes) = self.tail.writing();
        count == 0 || bytes + self.log.open_batch_pages() * PAGE <= WRITING_BYTES_MAX
    }

    /// Whether memory for one more batch is within the budget.
    pub(super) fn may_begin_batch(&self, dirty_bytes_max: u64) -> bool {
        // One batch may always be open, whatever the budget: without one nothing can move.
        self.tail.is_empty() || self.tail.bytes() + 2 * self.log.batch_bytes() <= dirty_bytes_max
    }

    fn wanted(&self) -> Option<Lsn> {
        self.commit
            .wanted
            .filter(|wanted| *wanted > self.tail.durable())
    }

    /// A flush waits for the open batch, and no durable write is under way to gather behind.
    fn commit_now(&self) -> bool {
        let waits = self
            .wanted()
            .is_some_and(|wanted| wanted >= self.log.next_lsn());
        waits && self.log.has_open_batch() && !self.tail.writing_synced() && self.may_close()
    }

    /// Written batches should be synced now.
    fn sync_now(&self, dirty_bytes_max: u64) -> bool {
        let unsynced = self.tail.unsynced_bytes();
        if self.commit.syncing || unsynced == 0 {
            return false;
        }
        let wanted = self
            .wanted()
            .is_some_and(|wanted| !self.tail.writing_through(wanted));
        let limit = UNSYNCED_BYTES_MAX.min(dirty_bytes_max as usize / 4);
        wanted || unsynced >= limit || !self.may_begin_batch(dirty_bytes_max)
    }

    /// Closes the open batch and puts it into the tail: where it goes, what, and how.
    fn take_open_batch(&mut self, now: Nanos) -> Option<(Rc<Held>, Job, bool)> {
        let closed = self.log.close_batch(self.tail.durable())?;
        // A flush that waits for this batch gets it durable in one step if all before it are, too.
        let wanted = self
            .commit
            .wanted
            .is_some_and(|wanted| wanted >= closed.lsn);
        let synced = wanted && self.tail.all_synced();
        self.commit.note_begun(Begun {
            lsn: closed.lsn,
            at: now,
            synced,
        });
        self.stats.batches += 1;
        self.stats.device_syncs += u64::from(synced);
        self.stats.device_written_bytes += closed.bytes.len() as u64;
        self.space.note_commit(closed.bytes.len(), synced);
        let held = self
            .segments
            .find(closed.segment)
            .expect("the open segment is held")
            .clone();
        let job = (closed.page, closed.bytes.clone(), closed.lsn);
        self.tail.push(closed, self.log.batch_bytes(), synced);
        Some((held, job, synced))
    }
}

/// A batch to be written: its first page, its bytes, its number.
type Job = (u32, Bytes, Lsn);

impl<D: Driver> Shard<D> {
    /// Waits until every operation on the payload that was applied before is durable, and keeps a
    /// small one for its readers meanwhile.
    pub(super) async fn flush(&self, id: &PayloadId) -> Result<Flushed> {
        let (flushed, ()) = join(self.flush_changes(id), self.keep_flushed(id)).await;
        let lsn = flushed?;
        let state = self.0.state.borrow();
        let tier = state.tier.as_ref();
        Ok(Flushed {
            finalized: tier.is_some_and(|tier| tier.published_next() > lsn),
            lsn: state.tail.durable().max(lsn).0,
        })
    }

    /// The same; says in which batch the last of those operations is.
    pub(super) async fn flush_changes(&self, id: &PayloadId) -> Result<Lsn> {
        let changed = self
            .0
            .state
            .borrow()
            .map
            .find(id)
            .map(|payload| payload.changed);
        let lsn = changed.ok_or_else(Error::not_found)?;
        self.durable(lsn).await?;
        Ok(lsn)
    }

    /// Waits until everything that was applied before is durable.
    pub(super) async fn flush_all(&self) -> Result<()> {
        let last = self.last_lsn();
        self.durable(last).await
    }

    /// The last batch that holds anything, open or closed.
    pub(super) fn last_lsn(&self) -> Lsn {
        let state = self.0.state.borrow();
        match state.log.has_open_batch() {
            true => state.log.next_lsn(),
            false => Lsn(state.log.next_lsn().0 - 1),
        }
    }

    /// Waits until the log is durable up to `lsn`.
    pub(super) async fn durable(&self, lsn: Lsn) -> Result<()> {
        if planted("ack_before_sync") {
            return Ok(());
        }
        {
            let mut state = self.state();
            if state.tail.durable() >= lsn {
                // What is durable stays so, but a poisoned shard can promise nothing.
                return state.commit.poison.clone().map_or(Ok(()), Err);
            }
            state.commit.wanted = state.commit.wanted.max(Some(lsn));
        }
        let from = self.pass();
        self.0.commit_due.notify();
        self.0
            .committed
            .until(|| {
                let state = self.0.state.borrow();
                let poison = state.commit.poison.clone().map(Err);
                poison.or_else(|| (state.tail.durable() >= lsn).then_some(Ok(())))
            })
            .await?;
        self.note_commit(lsn, from);
        Ok(())
    }

    /// A batch is durable that somebody has waited for: for its turn, and then for the device.
    fn note_commit(&self, lsn: Lsn, from: Nanos) {
        let Some(begun) = self.0.state.borrow().commit.begun(lsn) else {
            return;
        };
        let stage = Stage::GroupCommitWait;
        self.state().latencies.record_stage(stage, from, begun.at);
        self.spend(stage, begun.at.since(from));
        let device = match begun.synced {
            true => Stage::DeviceWrite,
            false => Stage::Sync,
        };
        self.spend(device, self.pass().since(begun.at.max(from)));
    }

    /// Starts the task that submits and syncs.
    pub(super) fn spawn_committer(&self) {
        let shard = self.clone();
        self.0.driver.spawn(async move {
            let dirty_max = shard.0.params.dirty_bytes_max();
            loop {
                let due = || {
                    let state = shard.0.state.borrow();
                    let due = state.commit_now() || state.sync_now(dirty_max);
                    (due && state.commit.poison.is_none()).then_some(())
                };
                shard.0.commit_due.until(due).await;
                if shard.0.state.borrow().commit_now() {
                    shard.close_batch();
                }
                if shard.0.state.borrow().sync_now(dirty_max) {
                    shard.begin_sync();
                }
            }
        });
    }

    /// Closes the open batch, if there is one, and starts writing it.
    pub(super) fn close_batch(&self) {
        let Some((held, job, synced)) = self.state().take_open_batch(self.pass()) else {
            return;
        };
        let shard = self.clone();
        self.0
            .driver
            .spawn(async move { shard.write_batch(held, job, synced).await });
        let used = u64::from(self.state().log.end().pages) * PAGE as u64;
        if used * 2 > self.0.params.segment_bytes() {
            self.make_ahead();
        }
    }

    async fn write_batch(&self, held: Rc<Held>, (page, bytes, lsn): Job, synced: bool) {
        let durability = if synced {
            Durability::Synced
        } else {
            Durability::Visible
        };
        let offset = u64::from(page) * PAGE as u64;
        let from = self.pass();
        let result = match self.0.files.open_segment(&held).await {
            Ok(file) => file.write(offset, bytes, durability).await,
            Err(error) => Err(error),
        };
        self.note_stage(Stage::DeviceWrite, from);
        match result {
            Ok(()) => {
                let grew = self.state().tail.written(lsn);
                self.after_progress(grew);
            }
            Err(error) => self.poison("a write of the log", error),
        }
    }

    fn begin_sync(&self) {
        let (lsns, held) = {
            let mut state = self.state();
            let (lsns, segments) = state.tail.to_sync();
            state.commit.syncing = true;
            state.stats.device_syncs += segments.len() as u64;
            let find = |id: &SegmentId| state.segments.find(*id).expect("the tail is held").clone();
            let held: Vec<Rc<Held>> = segments.iter().map(find).collect();
            (lsns, held)
        };
        let shard = self.clone();
        self.0.driver.spawn(async move {
            let from = shard.pass();
            let result = shard.sync_files(&held).await;
            shard.note_stage(Stage::Sync, from);
            shard.state().commit.syncing = false;
            match result {
                Ok(()) => {
                    // Planted bug: a sync is believed to cover what completed while it ran.
                    let lsns = match planted("sync_covers_later_writes") {
                        true => shard.state().tail.to_sync().0,
                        false => lsns,
                    };
                    let grew = shard.state().tail.synced(&lsns);
                    shard.after_progress(grew);
                }
                Err(error) => shard.poison("a sync of the log", error),
            }
        });
    }

    async fn sync_files(&self, held: &[Rc<Held>]) -> std::io::Result<()> {
        for held in held {
            let file = self.0.files.open_segment(held).await?;
            let result = file.sync().await;
            if result.is_err() && planted("believe_retried_sync") {
                return file.sync().await;
            }
            result?;
        }
        Ok(())
    }

    fn after_progress(&self, grew: bool) {
        if grew {
            self.0.committed.notify();
        }
        self.0.room.notify();
        self.0.commit_due.notify();
    }

    /// Makes sure that what was just recorded does not stay in memory for long.
    pub(super) fn start_aging(&self) {
        self.state().commit.at_rest = false;
        if std::mem::replace(&mut self.state().commit.aging, true) {
            return;
        }
        let shard = self.clone();
        self.0.driver.spawn(async move { shard.age().await });
    }

    /// Appends what has grown old, until everything is durable and nothing more is recorded.
    async fn age(&self) {
        let flush_after = self.0.params.config.flush_after.max(FLUSH_AFTER_MIN);
        let (mut old, mut since) = (self.last_lsn(), self.now());
        loop {
            let before = self.last_lsn();
            self.0.driver.sleep(flush_after.min(REST_AFTER)).await;
            let now = self.now();
            let mut state = self.state();
            if state.commit.poison.is_some() {
                return;
            }
            let idle = state.tail.is_empty() && !state.log.has_open_batch();
            if idle && state.log.next_lsn() == before.next() {
                (state.commit.aging, state.commit.at_rest) = (false, true);
                drop(state);
                self.0.upkeep_due.notify();
                self.0.tier_changed.notify();
                return;
            }
            if state.tail.durable() >= old {
                drop(state);
                (old, since) = (self.last_lsn(), now);
            } else if now.since(since) >= flush_after {
                mark("aged batch appended");
                state.commit.wanted = state.commit.wanted.max(Some(old));
                drop(state);
                self.0.commit_due.notify();
            }
        }
    }
}
