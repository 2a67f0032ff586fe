//! Cleaning: live bytes of half-empty segments are moved to the end of the log, so that the
//! segments can be used again.
//!
//! Victims are chosen by cost and benefit, after "The design and implementation of a log-structured
//! file system" (Rosenblum and Ousterhout, 1992): free space gained times age, over bytes read and
//! written.
//!
//! Invariants:
//! 1. Moving changes no content: live bytes are copied, made durable, and only then do extents
//!    refer to the copy. Until a checkpoint has taken note, the old place stays.
//! 2. Only sealed segments are moved, and none that an unfinished large write refers to. So nothing
//!    begins to refer to a victim while it is being moved, except by sharing what is moved already.
//! 3. A victim is given up only by `Segments`, when nothing refers to it; a walk that missed a
//!    reference costs time, not data.

use super::cold::interest_in;
use super::read::{Interest, Source, Sources};
use super::space::{Purpose, SEGMENTS_LOW};
use super::{Shard, State};
use crate::error::{ErrorKind, Result};
use crate::io::Driver;
use crate::map::extent::Mapped;
use crate::marks::mark;
use crate::mutation::Mutation;
use crate::types::{Location, Lsn, Nanos, PAGE, PayloadNo, SegmentId, page_ceil};
use bytes::Bytes;
use futures_util::stream::{FuturesOrdered, StreamExt};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Tree leaves that are visited between two looks at other work: about 50 us.
const LEAVES_PER_STEP: usize = 128;

/// Victims of one pass at most; a pass walks the map, which many victims share.
const VICTIMS_MAX: usize = 64;

/// Live bytes that one pass moves at most, in segments.
const MOVED_SEGMENTS_MAX: u64 = 2;

/// Walks after which references that are still left are left to a later pass.
const WALKS_MAX: usize = 4;

/// Bytes that are moved at once: a flush that meets them in its batch waits well under 0.1 ms
/// longer.
const MOVE_BYTES_MAX: u32 = 128 << 10;

/// While there is room, the cleaner rests this many times as long as each move took.
const REST_PER_MOVE: u32 = 3;

/// The same while others use the device. One of some hundreds of their operations meets a
/// move then, so that the slowest hundredth of them is as slow as without.
const REST_PER_MOVE_BUSY: u32 = 200;

/// Nobody has used the device for so long: nobody is in the way.
const IDLE_AFTER: Duration = Duration::from_millis(50);

/// How often a cleaner that rests looks whether it may go on.
const REST_STEP: Duration = Duration::from_millis(10);

/// Cleaning begins when the held segments, but for two, are so many tenths of the live bytes.
const HELD_TENTHS: u64 = 13;

/// The same while eviction makes room for those who write. What was evicted is garbage of the
/// bucket's only, and fetching it and uploading it again is paid for by the writers: so hardly
/// ever.
const HELD_TENTHS_SHORT: u64 = 60;

/// Reads of what is in the remote only that are in flight at once.
const FETCHES_MAX: usize = 16;

/// Bytes of a relocation record.
const RELOCATE_LEN: usize = 24;

/// What a record takes of a segment: in its batch, in the footer, and the entry of a batch of its
/// own there, with that batch's share of unused room.
const RECORD_COST: u64 = 128;

/// Bytes that moving a range takes, records included, at most.
fn bytes_to_move(len: u32) -> u64 {
    let parts = u64::from(len.div_ceil(MOVE_BYTES_MAX));
    let data = match len as usize >= PAGE {
        true => page_ceil(len as usize) as u64,
        false => u64::from(len),
    };
    data + parts * RECORD_COST
}

/// Bytes that moving ranges takes, by segment.
fn cost_of(ranges: &[(Location, u32)]) -> BTreeMap<SegmentId, u64> {
    let mut cost = BTreeMap::new();
    for (at, len) in ranges {
        *cost.entry(at.segment()).or_default() += bytes_to_move(*len);
    }
    cost
}

/// A range in pieces that are read at once; the first ends where the next begin with a page.
fn pieces((at, len): (Location, u32)) -> impl Iterator<Item = (Location, u32)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let from = at.advance(done);
        let to_boundary = MOVE_BYTES_MAX - from.offset() % PAGE as u32;
        let piece = to_boundary.min(len - done);
        done += piece;
        (piece > 0).then_some((from, piece))
    })
}

impl State {
    /// Bytes of segments that something refers to, the open one included.
    fn held_bytes(&self) -> u64 {
        let alive = self
            .segments
            .iter()
            .filter(|held| !held.is_sealed() || self.map.live.bytes(held.id) > 0);
        alive.count() as u64 * self.log.segment_bytes()
    }

    /// The same without what the open one has room for, unless it is sealed early for a remote.
    fn taken_bytes(&self) -> u64 {
        let room = match self.tier {
            Some(_) => 0,
            None => self.log.pages_left() * PAGE as u64,
        };
        self.held_bytes() - room
    }
}

impl<D: Driver> Shard<D> {
    /// Whether so much of the held segments is garbage, or so little room is left, that moving
    /// pays.
    ///
    /// At rest the store promises 1.5 times the live bytes and two segments; cleaning begins below
    /// that.
    pub(super) fn cleaning_due(&self, state: &State) -> bool {
        let progress = (state.log.end().next_lsn, state.map.live.lost());
        state.upkeep.cleaned_at != Some(progress)
            && (self.is_urgent(state) || self.is_worthwhile(state))
    }

    fn is_worthwhile(&self, state: &State) -> bool {
        let held = state.held_bytes();
        if held <= 2 * state.log.segment_bytes() {
            return false;
        }
        let slack = held - 2 * state.log.segment_bytes();
        let tenths = match self.is_evicting(state) {
            true => HELD_TENTHS_SHORT,
            false => HELD_TENTHS,
        };
        let worth = slack * 10 > state.map.live.total() * tenths;
        match state.map.shares() {
            false => worth,
            // Counts are upper bounds while clones share; what was lost since tells that it is
            // worth a look.
            true => {
                let lost = state.map.live.lost() - state.upkeep.lost_then;
                worth || lost > held / 8
            }
        }
    }

    /// Whether eviction makes the room that writers need.
    fn is_evicting(&self, state: &State) -> bool {
        !state.commit.at_rest && self.is_nearly_short_of_files(state) && state.eviction_helps()
    }

    /// Whether what was worth moving would by now only slow those down who write.
    fn is_in_the_way(&self, state: &State) -> bool {
        self.is_evicting(state) && !self.is_worthwhile(state)
    }

    /// Whether writers wait for what cleaning frees, or soon will.
    fn is_urgent(&self, state: &State) -> bool {
        // With a remote, what is sealed for it is never full: moving that would go on for ever.
        let low = || {
            let most = self.segments_max(state, Purpose::Data);
            state.tier.is_none() && state.segments.local() + SEGMENTS_LOW > most
        };
        state.space.wants_file() && !state.eviction_helps() || low()
    }

    /// Moves what is live in the segments that are most worth it.
    pub(super) async fn clean(&self) -> Result<()> {
        let (progress, changes, taken) = {
            let mut state = self.state();
            let lost = state.map.live.lost();
            state.upkeep.lost_then = lost;
            let progress = (state.log.end().next_lsn, lost);
            (progress, state.upkeep.changes, state.taken_bytes())
        };
        let live = self.count_live().await;
        let chosen = self.choose_victims(&live);
        let mut ranges = match chosen.is_empty() {
            true => Vec::new(),
            false => self.collect(&chosen).await,
        };
        let mut victims = self.what_fits(chosen, &ranges);
        if !self.is_gain(&victims, &ranges) {
            self.state().upkeep.cleaned_at = Some(progress);
            return Ok(());
        }
        ranges.retain(|(at, _)| victims.contains(&at.segment()));
        mark("cleaning");
        let (moved, settled) = self.move_away(&ranges, &mut victims).await;
        {
            let mut state = self.state();
            let lost = state.map.live.lost();
            state.upkeep.lost_then = lost;
            // Into segments that are sealed early as many may have gone as were freed. Where others
            // changed something, nobody can tell: they may have filled what was freed.
            let goes_on = state.tier.is_none() && self.is_urgent(&state);
            let is_alone = state.upkeep.changes == changes;
            if state.taken_bytes() >= taken && is_alone && !goes_on {
                mark("cleaning gained nothing");
                state.upkeep.cleaned_at = Some((state.log.end().next_lsn, lost));
            }
        }
        match moved {
            // The remote went away in the middle: the rest waits until something has changed.
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                self.state().upkeep.cleaned_at = Some(progress);
                settled
            }
            moved => moved.and(settled),
        }
    }

    /// Moves what is live in segments, whatever that gains. Those that were moved whole.
    pub(super) async fn move_out(
        &self,
        mut left: BTreeSet<SegmentId>,
    ) -> Result<BTreeSet<SegmentId>> {
        let mut moved = BTreeSet::new();
        loop {
            {
                let state = self.0.state.borrow();
                let unclaimed = state.map.first_unclaimed();
                left.retain(|id| {
                    let held = state.segments.find(*id);
                    let whole = held.is_some_and(|held| held.footer_durable.get());
                    whole && unclaimed.is_none_or(|first| *id < first)
                });
            }
            let chosen: Vec<SegmentId> = left.iter().copied().collect();
            let mut ranges = self.collect(&chosen).await;
            let mut victims = self.what_fits(chosen, &ranges);
            ranges.retain(|(at, _)| victims.contains(&at.segment()));
            if victims.is_empty() {
                return Ok(moved);
            }
            let (result, settled) = self.move_away(&ranges, &mut victims).await;
            result.and(settled)?;
            if victims.is_empty() {
                return Ok(moved);
            }
            left.retain(|id| !victims.contains(id));
            moved.extend(victims);
        }
    }

    /// Copies ranges, and lets extents refer to the copies. Of the victims those stay that were
    /// moved whole.
    async fn move_away(
        &self,
        ranges: &[(Location, u32)],
        victims: &mut BTreeSet<SegmentId>,
    ) -> (Result<()>, Result<()>) {
        {
            let mut state = self.state();
            state.upkeep.moving = true;
            state.upkeep.moved_to = Some(state.log.end().segment);
        }
        let moved = self.move_ranges(ranges, victims).await;
        self.state().upkeep.moving = false;
        self.0.room.notify();
        // What was moved is used even if not everything could be; extents may refer to a copy that
        // is not durable, since no checkpoint is begun before it is.
        // No checkpoint is begun while places are exchanged: what it takes to be dead would not be.
        let settled = {
            let _turn = self.checkpoint_turn().await;
            self.settle(victims).await
        };
        self.state().upkeep.moved_to = None;
        (moved, settled)
    }

    /// Pages that the cleaner can fill for certain before anything is freed, at most
    /// `MOVED_SEGMENTS_MAX` segments' worth.
    fn pages_to_fill(&self, state: &State) -> u64 {
        let held = state.segments.local();
        let most = self.segments_max(state, Purpose::Clean);
        let new = (most.saturating_sub(held) as u64).min(MOVED_SEGMENTS_MAX);
        // What is left of the open segment counts only if nobody else fills it meanwhile.
        let open = match held > most - 1 {
            true => state.log.pages_left(),
            false => 0,
        };
        let whole = state.log.segment_bytes() / PAGE as u64;
        let pages = match state.space.disk_full {
            true => state.pages_in_reserve().min(open + new * whole),
            false => open + new * whole,
        };
        pages.min(MOVED_SEGMENTS_MAX * whole)
    }

    /// Live bytes per segment: from the counts, or exactly, by a walk, while clones share.
    async fn count_live(&self) -> BTreeMap<SegmentId, u64> {
        if !self.0.state.borrow().map.shares() {
            let state = self.0.state.borrow();
            let count = |id| (id, state.map.live.bytes(id));
            return state.segments.iter().map(|held| count(held.id)).collect();
        }
        let mut pages: BTreeMap<SegmentId, Vec<u64>> = BTreeMap::new();
        self.walk(|mapped| {
            let (first, count) = super::pages_of(mapped.at().offset(), mapped.len());
            let bits = pages.entry(mapped.at().segment()).or_default();
            for page in first as usize..(first + count) as usize {
                bits.resize(bits.len().max(page / 64 + 1), 0);
                bits[page / 64] |= 1 << (page % 64);
            }
        })
        .await;
        let bytes = |bits: &Vec<u64>| {
            bits.iter()
                .map(|word| u64::from(word.count_ones()))
                .sum::<u64>()
                * PAGE as u64
        };
        pages.iter().map(|(id, bits)| (*id, bytes(bits))).collect()
    }

    /// The segments that are most worth moving, those first.
    fn choose_victims(&self, live: &BTreeMap<SegmentId, u64>) -> Vec<SegmentId> {
        let state = self.0.state.borrow();
        // What a segment holds at best: what is moved takes no less room than that.
        let capacity = state.log.data_bytes_of_segment();
        let newest = state.log.end().segment.0;
        let unclaimed = state.map.first_unclaimed();
        let reachable = state.tier.as_ref().is_some_and(|tier| tier.is_well());
        // Moving what is in the remote only gives no room here, and takes some.
        let far = reachable && (!self.is_short_of_files(&state) || state.eviction_helps());
        let is_on_its_way = state.on_their_way();
        let mut candidates: Vec<(f64, SegmentId, u64)> = state
            .segments
            .iter()
            .filter(|held| held.is_sealed() && held.footer_durable.get())
            .filter(|held| held.file().is_some() || far)
            // What is on its way is waited for: the log in the bucket is to have no gaps.
            .filter(|held| !is_on_its_way(held))
            .filter(|held| unclaimed.is_none_or(|first| held.id < first))
            .filter(|held| !state.upkeep.unmovable.contains(&held.id))
            .filter_map(|held| {
                let bytes = live.get(&held.id).copied().unwrap_or(0);
                let used = (bytes as f64 / capacity as f64).min(1.0);
                let age = (newest - held.id.0 + 1) as f64;
                let worth = (1.0 - used) * age / (1.0 + used);
                // Moving something nearly full gains nothing but wear.
                (bytes > 0 && used < 0.9).then_some((worth, held.id, bytes))
            })
            .collect();
        candidates.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        candidates.truncate(VICTIMS_MAX);
        candidates.into_iter().map(|(_, id, _)| id).collect()
    }

    /// As many of the chosen segments as can be moved whole.
    fn what_fits(&self, chosen: Vec<SegmentId>, ranges: &[(Location, u32)]) -> BTreeSet<SegmentId> {
        let state = self.0.state.borrow();
        let cost = cost_of(ranges);
        // Every batch has a head, every segment a head and a footer.
        let batch_pages = (state.log.data_bytes_max() / PAGE) as u64;
        let pages = |bytes: u64| {
            let data = bytes.div_ceil(PAGE as u64);
            data + data.div_ceil(batch_pages) + 1
        };
        let left = self.pages_to_fill(&state);
        let ends = 2 * left.div_ceil(state.log.segment_bytes() / PAGE as u64);
        let (mut victims, mut moved) = (BTreeSet::new(), 0);
        for id in chosen {
            let bytes = moved + cost.get(&id).copied().unwrap_or(0);
            if pages(bytes) + ends <= left {
                moved = bytes;
                victims.insert(id);
            }
        }
        victims
    }

    /// Whether moving segments frees more than it takes. One that is moved whole into a segment of
    /// its own frees nothing, and neither do several that fill as many: it would be done again, for
    /// ever.
    fn is_gain(&self, victims: &BTreeSet<SegmentId>, ranges: &[(Location, u32)]) -> bool {
        let cost = cost_of(ranges);
        let moved: u64 = victims.iter().filter_map(|id| cost.get(id)).sum();
        let capacity = self.0.state.borrow().log.data_bytes_of_segment();
        victims.len() as u64 * capacity >= moved + capacity / 8
    }

    /// The live ranges of some segments, in the order of the log, each once.
    async fn collect(&self, victims: &[SegmentId]) -> Vec<(Location, u32)> {
        let victims: BTreeSet<SegmentId> = victims.iter().copied().collect();
        let mut ranges = Vec::new();
        self.walk(|mapped| {
            if victims.contains(&mapped.at().segment()) {
                ranges.push((mapped.at(), mapped.len()));
            }
        })
        .await;
        ranges.sort_unstable();
        let mut merged: Vec<(Location, u32)> = Vec::new();
        for (at, len) in ranges {
            match merged.last_mut() {
                Some((last, last_len))
                    if last.segment() == at.segment()
                        && at.offset() <= last.offset() + *last_len =>
                {
                    *last_len = (*last_len).max(at.offset() + len - last.offset());
                }
                _ => merged.push((at, len)),
            }
        }
        merged
    }

    /// Visits every extent of the map, letting others run in between.
    async fn walk(&self, mut visit: impl FnMut(&Mapped)) {
        let pass = self.state().map.begin_pass();
        let mut next = Some((PayloadNo(0), 0));
        while let Some(from) = next {
            next = self
                .0
                .state
                .borrow()
                .map
                .visit_step(pass, from, LEAVES_PER_STEP, &mut visit);
            self.yield_now().await;
        }
    }

    /// Copies ranges to the end of the log, in its order, and waits until the copies are durable.
    /// Of the victims those stay that were moved whole.
    async fn move_ranges(
        &self,
        ranges: &[(Location, u32)],
        victims: &mut BTreeSet<SegmentId>,
    ) -> Result<()> {
        let mut last = None;
        let mut failure = None;
        let pieces: Vec<(Location, u32)> = ranges.iter().copied().flat_map(pieces).collect();
        let mut next = 0;
        let mut paid = self.0.state.borrow().stats.written_bytes;
        let mut ahead = FuturesOrdered::new();
        loop {
            let began = self.now();
            // What is here is read when its turn comes: others want the device, too.
            let is_far = |at| !self.0.state.borrow().is_here(at, 1).0;
            while let Some(&(at, len)) = pieces.get(next)
                && (ahead.is_empty() || is_far(at) && ahead.len() < FETCHES_MAX)
            {
                let interest = interest_in(&pieces, next);
                next += 1;
                let read = async move { (at, len, self.read_to_move(at, len, interest).await) };
                ahead.push_back(read);
            }
            let Some((at, len, bytes)) = ahead.next().await else {
                break;
            };
            if self.is_in_the_way(&self.0.state.borrow()) {
                mark("cleaning broken off");
                victims.retain(|id| *id < at.segment());
                break;
            }
            let moved = match bytes {
                Ok(bytes) => self.move_bytes(at, &bytes).await,
                Err(error) => Err(error),
            };
            paid += u64::from(len);
            self.rest(began, paid).await;
            match moved {
                Ok(lsn) => last = Some(lsn),
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    // Bytes that cannot be read cannot be moved; they stay, and are reported.
                    mark("corrupt bytes not moved");
                    self.state().upkeep.unmovable.insert(at.segment());
                    victims.remove(&at.segment());
                }
                Err(error) => {
                    victims.retain(|id| *id < at.segment());
                    failure = Some(error);
                    break;
                }
            }
        }
        // Also of a part: nobody may refer to a copy that is not durable.
        if let Some(lsn) = last {
            self.durable(lsn).await?;
        }
        failure.map_or(Ok(()), Err)
    }

    /// Leaves the device to others after a move. Who writes makes garbage, so what was written pays
    /// for as much to be moved: `paid` is the figure from which on this move is paid for.
    async fn rest(&self, began: Nanos, paid: u64) {
        let took = self.now().since(began);
        let (rest, until) = (took * REST_PER_MOVE, began.after(took * REST_PER_MOVE_BUSY));
        if !self.is_urgent(&self.0.state.borrow()) {
            self.0.driver.sleep(rest).await;
        }
        loop {
            let now = self.now();
            let is_idle = now.since(self.0.used_at.get()) > IDLE_AFTER;
            let goes_on = {
                let state = self.0.state.borrow();
                state.stats.written_bytes >= paid || self.is_nearly_short_of_files(&state)
            };
            if is_idle || goes_on || now >= until {
                return;
            }
            self.0.driver.sleep(REST_STEP.min(until.since(now))).await;
        }
    }

    async fn read_to_move(&self, from: Location, len: u32, interest: Interest) -> Result<Bytes> {
        let mut sources = Sources::new();
        self.0
            .state
            .borrow()
            .located(from, len, interest, &mut sources)?;
        let read = sources.iter().map(Source::device_bytes).sum::<u64>();
        let bytes = self.join(sources).await?;
        // One read at most, just counted: so whoever looks at both figures sees both or neither.
        self.state().stats.cleaning_read_bytes += read;
        Ok(bytes)
    }

    /// Appends bytes that are elsewhere in the log, in as many parts as fill batches well.
    async fn move_bytes(&self, from: Location, bytes: &Bytes) -> Result<Lsn> {
        let (mut done, mut last) = (0, Lsn(0));
        while done < bytes.len() {
            let len = {
                let log = &self.0.state.borrow().log;
                log.data_bytes_next(bytes.len() - done, MOVE_BYTES_MAX as usize, RELOCATE_LEN)
            };
            let from = from.advance(done as u32);
            let part = &bytes[done..done + len];
            let (_, lsn) = self
                .record(Purpose::Clean, RELOCATE_LEN, part, |_, to| {
                    let to = to.expect("a range has at least a byte");
                    let len = len as u32;
                    Ok((vec![Mutation::Relocate { from, to, len }], ()))
                })
                .await?;
            self.state().stats.cleaned_bytes += len as u64;
            (done, last) = (done + len, lsn);
        }
        Ok(last)
    }

    /// Lets extents refer to the new places, until none refers to a segment that was moved whole.
    async fn settle(&self, moved: &BTreeSet<SegmentId>) -> Result<()> {
        self.check_poison()?;
        for _ in 0..WALKS_MAX {
            if !self.0.state.borrow().map.has_relocated() {
                break;
            }
            mark("places exchanged");
            let pass = self.state().map.begin_pass();
            let mut next = Some((PayloadNo(0), 0));
            while let Some(from) = next {
                next = self
                    .0
                    .state
                    .borrow_mut()
                    .map
                    .settle_step(pass, from, LEAVES_PER_STEP);
                self.yield_now().await;
            }
            // Walks do not come to what was given up.
            self.lose_discarded().await;
            let state = self.0.state.borrow();
            if moved.iter().all(|id| state.map.live.bytes(*id) == 0) {
                break;
            }
        }
        self.state().map.forget_relocated();
        Ok(())
    }
}
