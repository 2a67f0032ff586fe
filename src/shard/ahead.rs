//! Reading ahead: what `cache::prefetch` expects to be asked for goes into the read buffer.
//!
//! Invariants:
//! 1. A demand read never waits for more than what is already with the device and covers it: then
//!    it would be read twice otherwise. What is still to be started it does not wait for, and takes
//!    out of the line.
//! 2. `READS_MAX` reads are under way at once at most, and what is under way or waits for it is at
//!    most the shard's share of `Config::prefetch_bytes_max`; what is beyond is dropped.
//! 3. What comes back is put in under the same condition as what was asked for; see `cached`. An
//!    error is nobody's: whoever asks for these bytes gets his own.
//!
//! Deliberately not here: what is part of a stream.

use super::cached::KEPT_BYTES_MAX;
use super::read::Source;
use super::{Params, Shard, State};
use crate::cache::prefetch::{Prefetch, WINDOWS_MAX};
use crate::cache::table::Origin;
use crate::io::Driver;
use crate::marks::mark;
use crate::payload_id::PayloadId;
use crate::types::{PAGE, PayloadNo};
use std::collections::VecDeque;
use std::ops::Range;

/// Largest read ahead: a request of good size for any device.
const UNIT_BYTES: u64 = 128 << 10;

/// Largest read ahead of what is in the remote only: there a request costs more, and the way is so
/// long that much has to be under way.
const FAR_UNIT_BYTES: u64 = 1 << 20;

/// Reads ahead under way at once: they keep a device streaming, and a demand read behind them waits
/// for no more than 1 MiB.
const READS_MAX: usize = 8;

const PAGE_BYTES: u64 = PAGE as u64;

/// A range to be read ahead.
#[derive(Clone)]
struct Job {
    number: PayloadNo,
    id: PayloadId,
    range: Range<u64>,
    /// The stream's next window is due when this is used.
    edge: bool,
}

/// What is read ahead, and what waits for it.
pub(super) struct Ahead {
    prefetch: Prefetch,
    jobs: VecDeque<Job>,
    flights: Vec<(PayloadNo, Range<u64>)>,
    unit: u64,
    bytes: u64,
    bytes_max: u64,
}

impl Ahead {
    pub(super) fn new(params: &Params) -> Ahead {
        let bytes_max = params.config.prefetch_bytes_max / params.shards as u64;
        // A stream's windows and a few other things should fit the buffer.
        let most = params.read_buffer_bytes() / (WINDOWS_MAX + 2);
        Ahead {
            prefetch: Prefetch::new(most.min(bytes_max / WINDOWS_MAX)),
            jobs: VecDeque::new(),
            flights: Vec::new(),
            unit: UNIT_BYTES.min(most / PAGE_BYTES * PAGE_BYTES),
            bytes: 0,
            bytes_max,
        }
    }

    fn is_under_way(&self, number: PayloadNo, range: &Range<u64>) -> bool {
        let overlaps = |(other, theirs): &(PayloadNo, Range<u64>)| {
            *other == number && theirs.start < range.end && range.start < theirs.end
        };
        self.flights.iter().any(overlaps)
    }

    /// Lets a read take those in that follow it without a gap.
    fn join_following(&mut self, job: &mut Job) {
        while let Some(next) = self.jobs.front()
            && next.number == job.number
            && next.range.start == job.range.end
            && next.range.end - job.range.start <= FAR_UNIT_BYTES
            && !next.edge
        {
            job.range.end = next.range.end;
            self.jobs.pop_front();
        }
    }

    /// Cuts a window into reads, and lines them up: using the first asks for more.
    fn line_up(&mut self, number: PayloadNo, id: &PayloadId, ranges: Vec<Range<u64>>) {
        let mut edge = true;
        for range in ranges {
            let mut start = range.start;
            while start < range.end {
                let end = range.end.min((start / self.unit + 1) * self.unit);
                let len = end - start;
                if self.bytes + len > self.bytes_max {
                    mark("read ahead dropped, as enough is under way");
                    return;
                }
                self.bytes += len;
                self.jobs.push_back(Job {
                    number,
                    id: id.clone(),
                    range: start..end,
                    edge: std::mem::take(&mut edge),
                });
                start = end;
            }
        }
    }
}

impl Ahead {
    /// A range is being read on demand, and put in: what of it still waits to be started is not
    /// read twice.
    fn leave_out(&mut self, number: PayloadNo, range: &Range<u64>) {
        let (mut edge, mut bytes) = (false, 0);
        self.jobs.retain(|job| {
            let read = range.start <= job.range.start && job.range.end <= range.end;
            let is_left_out = job.number == number && read;
            if is_left_out {
                bytes += job.range.end - job.range.start;
                edge |= job.edge;
            }
            !is_left_out
        });
        self.bytes -= bytes;
        let mut others = self.jobs.iter_mut();
        if let Some(next) = others.find(|job| job.number == number) {
            next.edge |= edge;
        }
    }
}

impl State {
    /// Whether a range begins with bytes that are in the remote only.
    fn is_far(&self, number: PayloadNo, range: &Range<u64>) -> bool {
        let Some(payload) = self.map.payload(number) else {
            return false;
        };
        let first = payload.extents.range(range.start, range.end).next();
        first.is_some_and(|extent| !self.is_here(extent.at(), 1).0)
    }
}

impl<D: Driver> Shard<D> {
    /// A payload is read, or its reader has come to the edge of what was read ahead.
    pub(super) fn note_read(&self, id: &PayloadId, offset: u64, len: u64, is_hit: bool) {
        let mut state = self.state();
        let state = &mut *state;
        if !state.buffer.is_on() || self.0.ending.get() {
            return;
        }
        let Some(number) = state.map.number(id) else {
            return;
        };
        let size = state.map.payload(number).map_or(0, |it| it.size);
        let end = offset.saturating_add(len).min(size);
        if offset >= end {
            return;
        }
        let (range, prefetch) = (offset..end, &state.ahead.prefetch);
        // Beside the reader, for what it reads may be here by now.
        let near = [
            end..end.saturating_add(UNIT_BYTES),
            offset.saturating_sub(UNIT_BYTES)..offset,
        ];
        let is_far = || near.iter().any(|range| state.is_far(number, range));
        let is_far = prefetch.follows(number, &range) && is_far();
        for window in state.ahead.prefetch.note(number, range, size, is_far) {
            state.ahead.line_up(number, id, window);
        }
        if !is_hit && end - offset <= KEPT_BYTES_MAX {
            let whole = end.next_multiple_of(PAGE_BYTES).min(size);
            let range = offset / PAGE_BYTES * PAGE_BYTES..whole;
            state.ahead.leave_out(number, &range);
        }
        self.start_reading_ahead(state);
    }

    /// Begins what may begin.
    fn start_reading_ahead(&self, state: &mut State) {
        while let Some(job) = self.next_job(state) {
            let shard = self.clone();
            self.0
                .driver
                .spawn(async move { shard.read_ahead(job).await });
        }
    }

    /// Takes the next read that may begin, and is of use.
    fn next_job(&self, state: &mut State) -> Option<Job> {
        while state.ahead.flights.len() < READS_MAX {
            let mut job = state.ahead.jobs.pop_front()?;
            if state.is_far(job.number, &job.range) {
                state.ahead.join_following(&mut job);
            }
            let pages = job.range.start / PAGE_BYTES..job.range.end.div_ceil(PAGE_BYTES);
            let is_here = |page| state.buffer.holds(job.number, page);
            let under_way = state.ahead.is_under_way(job.number, &job.range);
            if under_way || pages.into_iter().all(is_here) {
                state.ahead.bytes -= job.range.end - job.range.start;
                // Somebody has to say when the stream comes here.
                if let Some(next) = state.ahead.jobs.front_mut().filter(|_| job.edge) {
                    next.edge |= next.number == job.number;
                }
                continue;
            }
            state.ahead.flights.push((job.number, job.range.clone()));
            return Some(job);
        }
        None
    }

    /// Reads ahead, one after the other, for as long as there is something.
    ///
    /// Not one task each: a new task would have its turn only when all that has completed with this
    /// read has had its own, and the device nothing to do meanwhile.
    async fn read_ahead(&self, first: Job) {
        let mut next = Some(first);
        while let Some(job) = next {
            self.fetch(&job).await;
            next = self.land(&job);
            self.0.fetched.notify();
        }
    }

    /// A read ahead is over. The next one, if there is any.
    fn land(&self, job: &Job) -> Option<Job> {
        let mut state = self.state();
        let state = &mut *state;
        let own = |it: &(PayloadNo, Range<u64>)| *it == (job.number, job.range.clone());
        let index = state.ahead.flights.iter().position(own);
        state
            .ahead
            .flights
            .swap_remove(index.expect("it was under way"));
        state.ahead.bytes -= job.range.end - job.range.start;
        match self.0.ending.get() {
            true => None,
            false => self.next_job(state),
        }
    }

    async fn fetch(&self, job: &Job) {
        let planned = {
            let state = self.0.state.borrow();
            let size = state.map.find(&job.id).map_or(0, |it| it.size);
            let end = job.range.end.min(size);
            if job.range.start >= end || state.map.number(&job.id) != Some(job.number) {
                return;
            }
            state.plan_exactly(&job.id, job.range.start, end)
        };
        let Ok((plan, mut sources)) = planned else {
            return;
        };
        sources.iter_mut().for_each(Source::read_ahead);
        let bytes: u64 = sources.iter().map(|source| source.device_bytes()).sum();
        if bytes == 0 {
            // It is in memory, or it is zeros.
            return;
        }
        let origin = Origin::Ahead { edge: job.edge };
        if self
            .read_planned(&job.id, (plan, sources), origin)
            .await
            .is_ok()
        {
            mark("read ahead");
            self.state().stats.prefetched_bytes += job.range.end - job.range.start;
        }
    }

    /// Waits for what is being read ahead of a range.
    pub(super) async fn wait_for_ahead(&self, id: &PayloadId, offset: u64, len: u64) {
        let landed = || {
            let state = self.0.state.borrow();
            if state.ahead.flights.is_empty() {
                return Some(());
            }
            let range = offset..offset.saturating_add(len);
            let number = state.map.number(id);
            let waits = number.is_some_and(|number| state.ahead.is_under_way(number, &range));
            (!waits).then_some(())
        };
        self.0.fetched.until(landed).await;
    }
}
