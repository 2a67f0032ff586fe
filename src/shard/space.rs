//! Room in the log: batches, segments and their files, and what happens when there is none.
//!
//! Whoever records something asks for room first, and waits for it: for memory, for the device, for
//! a segment file. Payload data waits in line; deletes, truncates and the cleaner's own writes do
//! not, and may use the last file, so that a full store can always be emptied.
//!
//! Invariants:
//! 1. Nothing is placed before there is room for all of it.
//! 2. A write fails with `Full` only when no room came for `stall_timeout`, and has then changed
//!    nothing.
//! 3. Of the segments that the limit allows, payload data leaves the last one to deletes and the
//!    like, and those leave one beyond the limit to the cleaner. A segment that was begun beyond
//!    somebody's share is not filled by them either: what the cleaner begins, it can finish.
//! 4. With room running out, payload data is held back to the pace at which room comes back.
//! 5. As many free files are kept in reserve as there are segments left to others, so that a full
//!    file system keeps nobody from emptying the store.

use super::pace::Pace;
use super::{Shard, State};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Driver, DriverFile, Durability};
use crate::log::writer::Fit;
use crate::marks::mark;
use crate::mutation::Mutation;
use crate::residency::Held;
use crate::types::{Location, Lsn, Nanos, PAGE, SegmentId};
use crate::upload::within;
use bytes::Bytes;
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

/// Pause before a file that could not be made is tried again, while somebody waits for it.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// Copies of a checkpoint that may exist at once: two that are kept, one that is being written.
const CHECKPOINT_COPIES_MAX: u64 = 3;

/// What room is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// Payload bytes.
    Data,
    /// Deletes, truncates and the like: they free more than they take.
    Meta,
    /// What the cleaner moves.
    Clean,
}

impl Purpose {
    /// Segments, and free files, that are left to more pressing purposes.
    pub(super) fn reserve(self) -> usize {
        match self {
            Purpose::Data => 2,
            Purpose::Meta => 1,
            Purpose::Clean => 0,
        }
    }
}

/// Share of the segments that may be held below which room is short, as a divisor, and its limits.
const MARGIN_DIVISOR: usize = 8;
const MARGIN_MAX: usize = 8;

/// Segments that may still be begun when cleaning becomes urgent and writers are slowed, at most.
pub(super) const SEGMENTS_LOW: usize = 4;

/// Shorter waits than this are not worth a timer; the next one is longer by them.
const PACE_MIN: Duration = Duration::from_micros(100);

/// Segments that a shard may always have: with fewer nothing can be cleaned.
const SEGMENTS_MIN: usize = 4;

/// Segments that are kept for what is to come.
fn margin(most: usize) -> usize {
    (most / MARGIN_DIVISOR).clamp(1, MARGIN_MAX)
}

/// Share of the segments that may be held, as a divisor, and its limit, that may still wait for the
/// remote when writers begin to be slowed.
const PACED_DIVISOR: usize = 4;
const PACED_MAX: usize = 16;

fn paced(most: usize) -> usize {
    (most / PACED_DIVISOR).clamp(1, PACED_MAX)
}

/// Why there is no file, and since when.
struct Refusal {
    why: String,
    since: Nanos,
    /// Somebody has waited for half of the time after which he gives up.
    is_pressing: bool,
}

/// The files that are ready, and who waits for one.
#[derive(Default)]
pub(super) struct Space {
    /// The next segment's file.
    pub(super) spare: Option<u64>,
    pub(super) making: bool,
    /// Why no file can be had; `None` as soon as one was freed or given.
    refusal: Option<Refusal>,
    /// The file system had no room for the last file that was to be made.
    pub(super) disk_full: bool,
    /// Writers of payload data, in the order in which they came.
    line: VecDeque<u64>,
    next_ticket: u64,
    /// How fast they may go when room is short.
    pace: Pace,
    /// How many wait for room, of all purposes.
    waiting: usize,
    /// Sealed segments whose footers are not yet durable.
    sealing: BTreeSet<SegmentId>,
    /// Bytes of the current segment that were written in durable and in other batches.
    pub(super) synced_bytes: usize,
    pub(super) other_bytes: usize,
}

impl Space {
    /// Notes how a batch is written: commits profit from files that were zeroed ahead.
    pub(super) fn note_commit(&mut self, bytes: usize, synced: bool) {
        match synced {
            true => self.synced_bytes += bytes,
            false => self.other_bytes += bytes,
        }
    }

    pub(super) fn stalled(&self) -> usize {
        self.line.len()
    }

    /// Whether a file was wanted and could not be had.
    pub(super) fn wants_file(&self) -> bool {
        self.refusal.is_some()
    }

    /// Whether somebody will fail soon if nothing comes.
    pub(super) fn is_pressing(&self) -> bool {
        self.refusal.as_ref().is_some_and(|it| it.is_pressing)
    }

    /// Something was freed, or given: whoever waits may wait on.
    pub(super) fn note_progress(&mut self) {
        self.refusal = None;
    }

    /// Files were given up or became free.
    pub(super) fn note_freed(&mut self, bytes: u64, now: Nanos) {
        self.note_progress();
        self.pace.note_freed(bytes, now);
    }

    pub(super) fn refuse(&mut self, why: String, now: Nanos) {
        let fresh = Refusal {
            why: String::new(),
            since: now,
            is_pressing: false,
        };
        self.refusal.get_or_insert(fresh).why = why;
    }

    /// Somebody has been waiting since `came` for what is refused, for `limit` at most. Says
    /// whether he has waited that long and nothing was freed or given.
    fn note_wait(&mut self, came: Nanos, now: Nanos, limit: Duration) -> bool {
        let Some(refusal) = &mut self.refusal else {
            return false;
        };
        let since = refusal.since.max(came);
        refusal.is_pressing |= now >= since.after(limit / 2);
        now >= since.after(limit)
    }

    /// The oldest sealed segment whose footer is not yet durable.
    pub(super) fn first_sealing(&self) -> Option<SegmentId> {
        self.sealing.first().copied()
    }

    /// Whether somebody waits for what is being made, or was made just now.
    pub(super) fn is_wanted(&self) -> bool {
        self.making || self.waiting > 0
    }

    pub(super) fn has_spare(&self) -> bool {
        self.spare.is_some()
    }

    /// The spare file, to be removed at rest.
    pub(super) fn take_spare(&mut self) -> Option<u64> {
        self.spare.take()
    }
}

impl State {
    /// Whether, on a full file system, fewer free files are left than others may need. Without them
    /// deletes go on in the open segment, but for its last quarter, which is the cleaner's.
    pub(super) fn lacks_reserve(&self, purpose: Purpose) -> bool {
        if !self.space.disk_full || self.segments.files_free() >= purpose.reserve() {
            return false;
        }
        purpose == Purpose::Data || self.is_nearly_full()
    }

    /// Whether only the last quarter of the open segment is left, or there is none.
    fn is_nearly_full(&self) -> bool {
        self.log.pages_left() * 4 < self.log.segment_bytes() / PAGE as u64
    }

    /// Pages that the cleaner can fill on a full file system.
    pub(super) fn pages_in_reserve(&self) -> u64 {
        let whole = self.log.segment_bytes() / PAGE as u64;
        let files = self.segments.files_free() + usize::from(self.space.has_spare());
        files as u64 * whole + self.log.pages_left().min(whole / 4)
    }
}

impl<D: Driver> Shard<D> {
    /// Records mutations and the bytes they refer to, in one batch, and applies them.
    ///
    /// `plan` is asked when there is room for `records_len` bytes of records and for `data`, and
    /// told where the data is; what it answers is recorded and applied before anything else
    /// happens.
    pub(super) async fn record<T>(
        &self,
        purpose: Purpose,
        records_len: usize,
        data: &[u8],
        plan: impl FnOnce(&State, Option<Location>) -> Result<(Vec<Mutation>, T)>,
    ) -> Result<(T, Lsn)> {
        self.make_room(purpose, records_len, data.len()).await?;
        let mut state = self.state();
        let state = &mut *state;
        let at = (!data.is_empty()).then(|| state.log.place(data, records_len));
        let (mutations, value) = plan(state, at)?;
        state.upkeep.changes += u64::from(purpose != Purpose::Clean);
        let lsn = state.log.next_lsn();
        for mutation in &mutations {
            state.log.record(mutation);
            state.drop_stale(mutation);
            state
                .map
                .apply(mutation, lsn)
                .expect("a plan fits the map it was made for");
        }
        if state.map.live.has_discarded() {
            self.0.upkeep_due.notify();
        }
        Ok((value, lsn))
    }

    /// Waits until the open batch has room.
    async fn make_room(&self, purpose: Purpose, records: usize, data: usize) -> Result<()> {
        let since = self.now();
        let ticket = match purpose {
            Purpose::Data => Some(self.line_up().await),
            Purpose::Meta | Purpose::Clean => None,
        };
        if ticket.is_some() {
            self.keep_pace(records + data).await;
        }
        let result = self.make_room_in_turn(purpose, records, data, since).await;
        drop(ticket);
        result
    }

    /// Holds the first writer in line back, if room is running out.
    async fn keep_pace(&self, bytes: usize) {
        let wait = {
            let mut state = self.state();
            let left = self.share_left(&mut state);
            state.space.pace.wait(bytes, left, self.now())
        };
        if wait >= PACE_MIN {
            mark("writer held back");
            self.0.driver.sleep(wait).await;
        }
    }

    /// How much is left of the last room for payload data; more than 1 while there is enough. With
    /// a remote, what could be given up counts, and more of it is looked at: uploads that go side
    /// by side end side by side, so that room comes back in heaps.
    fn share_left(&self, state: &mut State) -> f64 {
        let most = self.segments_max(state, Purpose::Data);
        let files = most.saturating_sub(state.segments.local());
        let (last, stock) = match state.tier.is_some() {
            true if files < PACED_MAX => (paced(most), state.stock() + self.kept_segments(state)),
            true => (paced(most), 0),
            false => (margin(most).min(SEGMENTS_LOW), 0),
        };
        let open = state.log.pages_left() as f64 * PAGE as f64 / state.log.segment_bytes() as f64;
        ((files + stock) as f64 + open) / last as f64
    }

    /// Whether so few segments may still be begun that files should be given up.
    pub(super) fn is_short_of_files(&self, state: &State) -> bool {
        state.space.wants_file() || self.margins_left(state) < 1
    }

    /// Whether they are as few as when files have just been given up, or fewer.
    pub(super) fn is_nearly_short_of_files(&self, state: &State) -> bool {
        state.space.wants_file() || self.margins_left(state) < 2
    }

    /// How many times the margin may still be begun.
    fn margins_left(&self, state: &State) -> usize {
        let most = self.segments_max(state, Purpose::Data);
        most.saturating_sub(state.segments.local()) / margin(most)
    }

    /// Takes a place in the line of writers and waits until it is the first.
    async fn line_up(&self) -> Ticket<D> {
        let number = {
            let mut state = self.state();
            let number = state.space.next_ticket;
            state.space.next_ticket += 1;
            state.space.line.push_back(number);
            number
        };
        let ticket = Ticket {
            number,
            shard: self.clone(),
        };
        let first = || (self.0.state.borrow().space.line.front() == Some(&number)).then_some(());
        self.0.room.until(first).await;
        ticket
    }

    /// `since`: when the caller came, from which its patience counts if nothing has moved later.
    async fn make_room_in_turn(
        &self,
        purpose: Purpose,
        records: usize,
        data: usize,
        since: Nanos,
    ) -> Result<()> {
        loop {
            self.check_poison()?;
            let fit = self.fit(&self.0.state.borrow(), purpose, records, data);
            let moved = match fit {
                Fit::Now => return Ok(()),
                Fit::BeginBatch => self.try_begin_batch(),
                Fit::CloseBatch => self.try_close_batch(),
                Fit::BeginSegment => self.try_begin_segment(purpose),
            };
            if moved {
                continue;
            }
            self.state().space.waiting += 1;
            let waited = self.wait_for_room(purpose, records, data, since).await;
            self.state().space.waiting -= 1;
            waited?;
        }
    }

    /// Waits until a step may succeed, or fails when nothing has moved for too long.
    async fn wait_for_room(
        &self,
        purpose: Purpose,
        records: usize,
        data: usize,
        since: Nanos,
    ) -> Result<()> {
        self.0.commit_due.notify();
        self.0.upkeep_due.notify();
        let may_move = || {
            let state = self.0.state.borrow();
            let dirty_max = self.0.params.dirty_bytes_max();
            let moves = match self.fit(&state, purpose, records, data) {
                Fit::Now => true,
                Fit::BeginBatch => state.may_begin_batch(dirty_max),
                Fit::CloseBatch => state.may_close(),
                Fit::BeginSegment => self.may_begin_segment(&state, purpose),
            };
            (moves || state.commit.poison.is_some()).then_some(())
        };
        if within(&self.0.driver, RETRY_DELAY, self.0.room.until(may_move))
            .await
            .is_some()
        {
            return Ok(());
        }
        // Only a want of files is a stall. The device takes what it was given, or fails.
        let fit = self.fit(&self.0.state.borrow(), purpose, records, data);
        if fit == Fit::BeginSegment {
            self.start_making(purpose);
            let stall = self.0.params.config.stall_timeout;
            if self.state().space.note_wait(since, self.now(), stall) {
                mark("full after stall");
                return Err(self.full());
            }
        }
        Ok(())
    }

    fn full(&self) -> Error {
        let state = self.0.state.borrow();
        let why = state
            .space
            .refusal
            .as_ref()
            .map_or("", |refusal| &refusal.why);
        let files = state.segments.files();
        let message = format!(
            "no room for {:?}, delete payloads or raise the limit: {why}; segments={files}",
            self.0.params.config.stall_timeout
        );
        Error::new(ErrorKind::Full, message)
    }

    fn try_begin_batch(&self) -> bool {
        let mut state = self.state();
        if !state.may_begin_batch(self.0.params.dirty_bytes_max()) {
            return false;
        }
        state.log.begin_batch(self.0.driver.pool());
        drop(state);
        self.start_aging();
        true
    }

    fn try_close_batch(&self) -> bool {
        if !self.0.state.borrow().may_close() {
            return false;
        }
        self.close_batch();
        true
    }

    /// What has to happen before something can be recorded for this purpose.
    fn fit(&self, state: &State, purpose: Purpose, records: usize, data: usize) -> Fit {
        let beyond = state.segments.local() > self.segments_max(state, purpose);
        let theirs = match purpose {
            Purpose::Data => true,
            // Beyond the limit deletes go on, but never in the cleaner's way.
            Purpose::Meta => state.upkeep.moving || state.is_nearly_full(),
            Purpose::Clean => false,
        };
        match beyond && theirs || state.lacks_reserve(purpose) {
            true => Fit::BeginSegment,
            false => state.log.fit(records, data),
        }
    }

    /// How many segments may be held for this purpose: fewer when one is begun, no more when the
    /// open one is filled.
    pub(super) fn segments_max(&self, state: &State, purpose: Purpose) -> usize {
        let files_max = match purpose {
            // Checkpoints count, but they must not keep a store from being emptied.
            Purpose::Data => {
                let bytes = CHECKPOINT_COPIES_MAX * state.last_checkpoint_bytes();
                let checkpoints = self.0.params.segments_of(bytes);
                self.0.params.files_max().saturating_sub(checkpoints)
            }
            Purpose::Meta | Purpose::Clean => self.0.params.files_max(),
        };
        // What is kept of evicted segments takes their room.
        let files_max = files_max.saturating_sub(self.kept_segments(state));
        let most = files_max.saturating_add(1).max(SEGMENTS_MIN);
        let (most, held) = (most - purpose.reserve(), state.segments.local());
        match (purpose, state.log.open_segment()) {
            (Purpose::Data, _) => most,
            // The first segment after an opening may always be begun: without one nothing can be
            // deleted or cleaned. And a limit that was lowered must not end all cleaning.
            (_, None) => most.max(held + 1),
            (Purpose::Clean, Some(_)) if held > most => held + 1,
            (_, Some(_)) => most,
        }
    }

    fn may_begin_segment(&self, state: &State, purpose: Purpose) -> bool {
        let allowed = state.segments.local() < self.segments_max(state, purpose);
        let reserved = purpose != Purpose::Data || !state.lacks_reserve(purpose);
        allowed && reserved && state.space.spare.is_some() && state.may_close()
    }

    /// Seals the full segment and begins the next, if its file is ready.
    fn try_begin_segment(&self, purpose: Purpose) -> bool {
        if !self.may_begin_segment(&self.0.state.borrow(), purpose) {
            self.start_making(purpose);
            return false;
        }
        let file = self
            .0
            .state
            .borrow_mut()
            .space
            .spare
            .take()
            .expect("there is a spare");
        self.close_batch();
        self.seal();
        let mut guard = self.state();
        let state = &mut *guard;
        let first = state.log.next_lsn();
        let id = state.log.begin_segment();
        let params = &self.0.params;
        let identity =
            crate::log::checksum::Identity::new(&params.store, params.shard, id, params.epoch);
        let held = Held::new(id, params.epoch, Some(file), identity, first);
        held.began.set(self.now());
        held.used.set(self.now());
        state.segments.hold(held);
        state.space.note_progress();
        (state.space.synced_bytes, state.space.other_bytes) = (0, 0);
        drop(guard);
        self.start_seal_timer(id);
        self.0.upkeep_due.notify();
        true
    }

    /// Closes the open segment for good and writes its footer.
    pub(super) fn seal(&self) {
        let mut state = self.state();
        let state = &mut *state;
        let Some(id) = state.log.open_segment() else {
            return;
        };
        let Some((footer, page, bytes)) = state.log.seal(self.0.driver.pool()) else {
            return;
        };
        let held = state
            .segments
            .find(id)
            .expect("the open segment is held")
            .clone();
        held.pages.set(page);
        held.used.set(self.now());
        held.lsns.set((held.lsns.get().0, state.log.next_lsn()));
        state.segments.keep_sums(&held, footer.sums.into());
        state.space.sealing.insert(id);
        state.stats.device_written_bytes += bytes.len() as u64;
        let shard = self.clone();
        self.0
            .driver
            .spawn(async move { shard.write_footer(held, page, bytes).await });
    }

    async fn write_footer(&self, held: Rc<Held>, page: u32, bytes: Bytes) {
        let result = match self.0.files.open_segment(&held).await {
            Ok(file) => {
                file.write(u64::from(page) * PAGE as u64, bytes, Durability::Synced)
                    .await
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => {
                held.footer_durable.set(true);
                self.state().space.sealing.remove(&held.id);
                drop(held);
                self.0.room.notify();
                self.0.upkeep_due.notify();
                self.0.tier_changed.notify();
            }
            Err(error) => self.poison("sealing a segment", error),
        }
    }
}

/// A place in the line of writers; dropping it lets the next one go.
struct Ticket<D: Driver> {
    number: u64,
    shard: Shard<D>,
}

impl<D: Driver> Drop for Ticket<D> {
    fn drop(&mut self) {
        let mut state = self.shard.state();
        state.space.line.retain(|number| *number != self.number);
        let waiting = !state.space.line.is_empty();
        drop(state);
        if waiting {
            self.shard.0.room.notify();
        }
    }
}
