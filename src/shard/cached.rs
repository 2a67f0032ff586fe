//! Reads through the read buffer: what is in it is taken, what was read is put in.
//!
//! A read is planned for whole pages of the payload where that costs the device no read more: what
//! is read for a part of a page serves the next part. Pages that lie in one piece are kept in the
//! memory that they were read into. Others, and what is in the log's memory, are copied, for it is
//! not the read buffer's to keep; a little of it, as it takes the shard's time.
//!
//! Invariants:
//! 1. A page is put in only if the map, looked at in the same step, still says what it said when
//!    the read was planned: the same payload, of the same size, with the same places.
//! 2. A mutation takes what it makes wrong out in the step in which it is applied, before it is
//!    acknowledged.
//! 3. A payload that is being moved, or lives elsewhere, is not put in.

use super::read::{DevicePart, Source, Sources};
use super::request::{LayerPart, zeros};
use super::{Shard, State, pages_of};
use crate::buf::BufPool;
use crate::cache::read_buffer::{Page, Room};
use crate::cache::table::Origin;
use crate::chunks::Chunks;
use crate::error::{Error, ErrorKind, Result};
use crate::io::Driver;
use crate::map::{Found, Map, Payload, Pieces};
use crate::marks::{mark, planted};
use crate::mutation::Mutation;
use crate::payload_id::PayloadId;
use crate::types::{Location, PAGE, PayloadNo};
use bytes::Bytes;
use futures_util::future::join;
use smallvec::SmallVec;

/// Reads that are larger leave the read buffer alone: what is read in such pieces is streamed.
pub(super) const KEPT_BYTES_MAX: u64 = 1 << 20;

/// Bytes of one read that are copied to be kept: 64 KiB take about 5 us, less than to ask again.
const COPIED_BYTES_MAX: usize = 64 << 10;

/// A payload of which a flush keeps what was written: as much as one read copies.
const FLUSHED_BYTES_MAX: u64 = COPIED_BYTES_MAX as u64;

const PAGE_BYTES: u64 = PAGE as u64;

/// Where a part of a planned read comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum From {
    Zeros,
    /// The log's memory; where in the log it will be.
    Memory(Location),
    /// The read buffer; where in the log it is.
    Buffer(Location),
    Device(Location),
}

/// Where the parts of a read come from, in order.
type Origins = SmallVec<[From; 1]>;

/// The bytes of a read, in order.
pub(super) type Parts = SmallVec<[Bytes; 1]>;

/// A range of a payload that is to be read, as the map was when it was planned.
pub(super) struct Plan {
    number: PayloadNo,
    size: u64,
    first: u64,
    end: u64,
    pieces: Pieces,
}

impl Plan {
    fn new(number: PayloadNo, payload: &Payload, first: u64, end: u64) -> Plan {
        Plan {
            number,
            size: payload.size,
            first,
            end,
            pieces: Map::pieces(payload, first, end - first),
        }
    }

    /// The end of a page, or of the payload in it.
    fn page_end(&self, page: u64) -> u64 {
        ((page + 1) * PAGE_BYTES).min(self.size)
    }

    /// The pages of which all is in a part `[start, end)`.
    fn whole_pages(&self, start: u64, end: u64) -> impl Iterator<Item = u64> + '_ {
        let pages = start.div_ceil(PAGE_BYTES)..end.div_ceil(PAGE_BYTES);
        pages.filter(move |page| self.page_end(*page) <= end)
    }

    /// A page that lies in memory which begins at `start` of the payload.
    fn page(&self, page: u64, start: u64, at: Option<Location>) -> Page {
        let offset = (page * PAGE_BYTES - start) as u32;
        let end = self.page_end(page);
        Page {
            number: page,
            start: offset,
            len: (end - page * PAGE_BYTES) as u16,
            last: end == self.size,
            at: at.map(|at| at.advance(offset)),
        }
    }
}

impl State {
    /// A mutation is about to be applied: what it makes wrong leaves the read buffer.
    pub(super) fn drop_stale(&mut self, mutation: &Mutation) {
        let size = |payload| self.map.payload(payload).map_or(0, |it| it.size);
        // The page in which a payload ends says so: it is wrong when the payload ends elsewhere.
        let last = |size: u64| size.saturating_sub(1) / PAGE_BYTES;
        let written = |payload, offset: u64, end: u64| {
            let size = size(payload);
            let first = offset / PAGE_BYTES;
            match end > size {
                true => (payload, first.min(last(size))..=last(end)),
                false => (payload, first..=last(end)),
            }
        };
        let (payload, pages) = match *mutation {
            Mutation::Write {
                payload,
                offset,
                len,
                ..
            } => written(payload, offset, offset + u64::from(len)),
            Mutation::Splice {
                target,
                offset,
                len,
                ..
            } => written(target, offset, offset + len),
            Mutation::Punch {
                payload,
                offset,
                len,
            } => (payload, offset / PAGE_BYTES..=last(offset + len)),
            Mutation::Truncate { .. } if planted("truncate_keeps_hits") => return,
            Mutation::Truncate { payload, size: new } => {
                (payload, last(size(payload).min(new))..=u64::MAX)
            }
            Mutation::Delete { payload } => (payload, 0..=u64::MAX),
            Mutation::Copy { target, .. } => (target, 0..=u64::MAX),
            Mutation::Create { .. } | Mutation::Relocate { .. } | Mutation::Retain { .. } => return,
        };
        self.buffer.invalidate(payload, pages);
    }

    /// A payload is about to live elsewhere: all of it leaves the read buffer.
    pub(super) fn drop_cached(&mut self, id: &PayloadId) {
        if let Some(number) = self.map.number(id) {
            self.buffer.invalidate(number, 0..=u64::MAX);
        }
    }

    /// Plans a read, of whole pages if that costs the device no read more.
    fn plan(&self, id: &PayloadId, offset: u64, end: u64) -> Result<(Plan, Sources)> {
        let (exact, sources) = self.plan_exactly(id, offset, end)?;
        let whole = end.next_multiple_of(PAGE_BYTES).min(exact.size);
        let (first, end) = (offset / PAGE_BYTES * PAGE_BYTES, whole.max(end));
        let is_wide = (first, end) != (exact.first, exact.end);
        let is_none = exact.first == exact.end;
        if is_none || !is_wide || !self.buffer.is_on() || end - first > KEPT_BYTES_MAX {
            return Ok((exact, sources));
        }
        let reads = |sources: &Sources| {
            let reads = sources.iter().filter(|it| it.device_bytes() > 0);
            reads.count()
        };
        match self.plan_exactly(id, first, end) {
            Ok((wide, more)) if reads(&more) <= reads(&sources) => Ok((wide, more)),
            _ => Ok((exact, sources)),
        }
    }

    pub(super) fn plan_exactly(
        &self,
        id: &PayloadId,
        first: u64,
        end: u64,
    ) -> Result<(Plan, Sources)> {
        let number = self.map.number(id).ok_or_else(Error::not_found)?;
        let payload = self.map.payload(number).expect("a name has a payload");
        let plan = Plan::new(number, payload, first, end);
        let sources = self.sources_of(&plan.pieces)?;
        Ok((plan, sources))
    }

    /// Pages of a payload of which a flush keeps what it finds in memory.
    fn pages_to_keep(&self, id: &PayloadId) -> u64 {
        let is_dirty = |payload: &&Payload| payload.changed > self.tail.durable();
        match self.map.find(id).filter(is_dirty) {
            Some(payload) if self.buffer.is_on() && payload.size <= FLUSHED_BYTES_MAX => {
                payload.size.div_ceil(PAGE_BYTES)
            }
            _ => 0,
        }
    }

    /// Plans what a flush keeps of a page: all of it, if none of it has to be read.
    fn plan_flushed(&self, id: &PayloadId, page: u64) -> Option<(Plan, Sources)> {
        let number = self.map.number(id)?;
        let size = self.map.payload(number)?.size;
        let (first, end) = (page * PAGE_BYTES, size.min((page + 1) * PAGE_BYTES));
        if first >= end || self.buffer.holds(number, page) {
            return None;
        }
        let planned = self.plan_exactly(id, first, end).ok()?;
        let is_memory = |source: &Source| matches!(source, Source::Memory(..));
        let reads = planned.1.iter().any(|it| it.device_bytes() > 0);
        (!reads && planned.1.iter().any(is_memory)).then_some(planned)
    }

    /// Takes the pages that the read buffer has from what is to be read.
    fn take_resident(&self, plan: &Plan, sources: Sources) -> (Origins, Sources) {
        let (mut origins, mut left) = (Origins::new(), Sources::new());
        let mut start = plan.first;
        for source in sources {
            let len = match &source {
                Source::Zeros(len) | Source::Absent(_, len) => *len,
                Source::Memory(bytes, _) => bytes.len() as u64,
                Source::Device(part) => u64::from(part.len),
            };
            match source {
                Source::Device(part) => self.split(&part, start, &mut origins, &mut left),
                Source::Memory(_, at) => {
                    origins.push(From::Memory(at));
                    left.push(source);
                }
                Source::Zeros(_) | Source::Absent(..) => {
                    origins.push(From::Zeros);
                    left.push(source);
                }
            }
            start += len;
        }
        (origins, left)
    }

    /// Divides a part that begins at `start` of a payload into what is in the buffer and what not.
    fn split(&self, part: &DevicePart, start: u64, origins: &mut Origins, out: &mut Sources) {
        let device = |from: u32, to: u32, origins: &mut Origins, out: &mut Sources| {
            if from < to {
                origins.push(From::Device(part.at.advance(from)));
                out.push(Source::Device(part.part(from, to - from)));
            }
        };
        let mut done = 0;
        let mut page = (start.next_multiple_of(PAGE_BYTES) - start) as u32;
        while page + PAGE as u32 <= part.len {
            let at = part.at.advance(page);
            if let Some(bytes) = self.buffer.find(at) {
                device(done, page, origins, out);
                origins.push(From::Buffer(at));
                out.push(Source::Memory(bytes, at));
                done = page + PAGE as u32;
            }
            page += PAGE as u32;
        }
        device(done, part.len, origins, out);
    }
}

impl<D: Driver> Shard<D> {
    /// The bytes of `[offset, min(offset + len, size))`.
    pub(super) async fn read(&self, id: &PayloadId, offset: u64, len: usize) -> Result<Chunks> {
        self.note_read(id, offset, len as u64, false);
        self.wait_for_ahead(id, offset, len as u64).await;
        let (end, planned) = {
            let state = self.0.state.borrow();
            let size = state.map.find(id).ok_or_else(Error::not_found)?.size;
            let end = offset + (len as u64).min(size.saturating_sub(offset));
            (end, state.plan(id, offset, end)?)
        };
        let is_wide = (planned.0.first, planned.0.end) != (offset, end);
        let result = match self.read_planned(id, planned, Origin::Demand).await {
            // What is bad may be what was read on top.
            Err(error) if is_wide && error.kind() == ErrorKind::Corrupt => {
                mark("read again without the rest of its pages");
                return Box::pin(self.read_exactly(id, offset, len)).await;
            }
            result => result,
        };
        let (first, parts) = result?;
        let chunks = cut(parts, offset - first, end - offset);
        self.state().stats.read_bytes += chunks.len() as u64;
        Ok(chunks)
    }

    async fn read_exactly(&self, id: &PayloadId, offset: u64, len: usize) -> Result<Chunks> {
        let planned = {
            let state = self.0.state.borrow();
            let size = state.map.find(id).ok_or_else(Error::not_found)?.size;
            let end = offset + (len as u64).min(size.saturating_sub(offset));
            state.plan_exactly(id, offset, end)?
        };
        let (_, parts) = self.read_planned(id, planned, Origin::Demand).await?;
        let chunks = cut(parts, 0, len as u64);
        self.state().stats.read_bytes += chunks.len() as u64;
        Ok(chunks)
    }

    /// Puts what a flush finds of a small payload in the log's memory into the read buffer: it
    /// leaves that memory as soon as it is durable.
    pub(super) async fn keep_flushed(&self, id: &PayloadId) {
        let pages = self.0.state.borrow().pages_to_keep(id);
        if pages == 0 {
            return;
        }
        // After the committer, so that the device is at work meanwhile.
        self.yield_now().await;
        for page in 0..pages {
            let planned = self.0.state.borrow().plan_flushed(id, page);
            if let Some(planned) = planned {
                mark("kept what was flushed");
                let kept = self.read_planned(id, planned, Origin::Flush).await;
                assert!(kept.is_ok(), "nothing is read that could fail");
            }
        }
    }

    /// Reads what was planned, and keeps it. Returns where in the payload it begins.
    pub(super) async fn read_planned(
        &self,
        id: &PayloadId,
        (plan, sources): (Plan, Sources),
        origin: Origin,
    ) -> Result<(u64, Parts)> {
        let (origins, sources) = match self.0.state.borrow().buffer.is_on() {
            true => self.0.state.borrow().take_resident(&plan, sources),
            false => (Origins::new(), sources),
        };
        if origin == Origin::Demand {
            let state = self.0.state.borrow();
            for from in &origins {
                if let From::Buffer(at) = from {
                    state.buffer.note_use(*at);
                }
            }
        }
        let is_kept = !origins.is_empty() && plan.end - plan.first <= KEPT_BYTES_MAX;
        let frames: SmallVec<[u64; 1]> = match is_kept {
            true => sources.iter().filter_map(memory_of).collect(),
            false => SmallVec::new(),
        };
        let reserve = async { self.state().buffer.reserve(&frames) };
        // In this order: the device has its work before room is made for what comes of it.
        let (gathered, mut room) = join(self.gather(sources), reserve).await;
        if planted("fetched_over_newer") {
            self.put_back(&plan);
        }
        let mut parts = Parts::new();
        for part in gathered? {
            match part {
                LayerPart::Bytes(bytes) => parts.push(bytes),
                LayerPart::Absent(_, len) => parts.extend(zeros(len)),
            }
        }
        if is_kept {
            self.keep(id, (&plan, &origins), &mut parts, origin, &mut room);
        }
        Ok((plan.first, parts))
    }

    /// Planted bug: what was fetched becomes the payload's again, whatever came meanwhile.
    fn put_back(&self, plan: &Plan) {
        let mut state = self.state();
        let state = &mut *state;
        for piece in &plan.pieces {
            let Found::At(at) = piece.found else { continue };
            let held = state.segments.find(at.segment());
            let is_cold = held.is_some_and(|held| held.file().is_none());
            let Some(changed) = state.map.payload(plan.number).map(|it| it.changed) else {
                return;
            };
            let mutation = Mutation::Write {
                payload: plan.number,
                offset: piece.offset,
                len: piece.len as u32,
                at,
            };
            if is_cold {
                state
                    .map
                    .apply(&mutation, changed)
                    .expect("it was just found");
            }
        }
    }

    /// Whether a payload still is what it was when the read was planned.
    fn still_holds(&self, state: &State, id: &PayloadId, plan: &Plan) -> bool {
        let elsewhere = self.0.params.shards > 1
            && (state.moving.contains(id)
                || self.0.params.routes.shard_of(id) != self.0.params.shard);
        if elsewhere || state.map.number(id) != Some(plan.number) {
            return false;
        }
        let payload = state.map.payload(plan.number).expect("it has a name");
        if planted("insert_without_looking") {
            return true;
        }
        payload.size == plan.size
            && Map::pieces(payload, plan.first, plan.end - plan.first) == plan.pieces
    }

    /// Puts what was read into the read buffer, as far as it is still what the payload holds.
    ///
    /// Parts that are kept are replaced by what counts as pinned for as long as it is used.
    fn keep(
        &self,
        id: &PayloadId,
        (plan, origins): (&Plan, &[From]),
        parts: &mut [Bytes],
        origin: Origin,
        room: &mut Room,
    ) {
        let mut state = self.state();
        let state = &mut *state;
        if !self.still_holds(state, id, plan) {
            mark("not kept, as it changed meanwhile");
            return;
        }
        // Zeros above 1 MiB come in several parts; so much is never kept.
        assert_eq!(origins.len(), parts.len(), "a part for each origin");
        let key = (plan.number, id);
        let mut copied = 0;
        let mut start = plan.first;
        for (from, part) in origins.iter().zip(parts.iter_mut()) {
            let end = start + part.len() as u64;
            let wanted = |page: &u64| !state.buffer.holds(plan.number, *page);
            let pages: SmallVec<[u64; 1]> = plan.whole_pages(start, end).filter(wanted).collect();
            let place = match from {
                From::Device(at) | From::Buffer(at) | From::Memory(at) => Some(*at),
                From::Zeros => None,
            };
            let frame = match from {
                _ if pages.is_empty() => None,
                From::Zeros | From::Buffer(_) => Some(part.clone()),
                From::Device(at) => {
                    let memory = memory_at(*at, part.len() as u32);
                    let put = room.put(std::mem::take(part), memory);
                    *part = put.clone().unwrap_or_else(|bytes| bytes);
                    put.ok()
                }
                From::Memory(_) if copied + part.len() > COPIED_BYTES_MAX => None,
                From::Memory(_) => {
                    copied += part.len();
                    self.copy_to_keep(state, std::slice::from_ref(part), 0, part.len())
                }
            };
            if let Some(frame) = frame {
                let pages = pages.into_iter().map(|page| plan.page(page, start, place));
                state.buffer.insert(key, &frame, pages, origin);
            }
            start = end;
        }
        self.keep_scattered(state, key, plan, parts, origin);
    }

    /// Puts pages in that do not lie in one part, each as a copy.
    fn keep_scattered(
        &self,
        state: &mut State,
        key: (PayloadNo, &PayloadId),
        plan: &Plan,
        parts: &[Bytes],
        origin: Origin,
    ) {
        if parts.len() < 2 {
            return;
        }
        let mut start = plan.first;
        let mut copied = 0;
        let mut done = None;
        for part in &parts[..parts.len() - 1] {
            start += part.len() as u64;
            let page = start / PAGE_BYTES;
            let (from, end) = (page * PAGE_BYTES, plan.page_end(page));
            let is_whole = from >= plan.first && end <= plan.end;
            let divided = start > from && start < end && done != Some(page);
            if !is_whole || !divided || state.buffer.holds(plan.number, page) {
                continue;
            }
            done = Some(page);
            copied += PAGE;
            if copied > COPIED_BYTES_MAX {
                return;
            }
            let skip = (from - plan.first) as usize;
            if let Some(frame) = self.copy_to_keep(state, parts, skip, (end - from) as usize) {
                let page = std::iter::once(plan.page(page, from, None));
                state.buffer.insert(key, &frame, page, origin);
            }
        }
    }

    /// Copies `[skip, skip + len)` of what some parts hold, if there is room for it.
    fn copy_to_keep(
        &self,
        state: &mut State,
        parts: &[Bytes],
        skip: usize,
        len: usize,
    ) -> Option<Bytes> {
        let mut buf = self.0.driver.pool().take(len);
        let mut done = 0;
        for piece in cut(parts.iter().cloned(), skip as u64, len as u64) {
            buf[done..done + piece.len()].copy_from_slice(&piece);
            done += piece.len();
        }
        assert_eq!(done, len, "the parts hold it");
        let bytes = buf.freeze().slice(..len);
        let memory = BufPool::memory_of(len) as u64;
        state.buffer.reserve(&[memory]).put(bytes, memory).ok()
    }
}

/// Memory that reading a part takes, if it is read from the device.
fn memory_of(source: &Source) -> Option<u64> {
    match source {
        Source::Device(part) => Some(memory_at(part.at, part.len)),
        Source::Zeros(_) | Source::Absent(..) | Source::Memory(..) => None,
    }
}

fn memory_at(at: Location, len: u32) -> u64 {
    let (_, count) = pages_of(at.offset(), len);
    BufPool::memory_of(count as usize * PAGE) as u64
}

/// `[skip, skip + len)` of what some parts hold, or what there is of it.
fn cut(parts: impl IntoIterator<Item = Bytes>, skip: u64, len: u64) -> Chunks {
    let (mut skip, mut left) = (skip, len);
    let mut chunks = Chunks::new();
    for mut part in parts {
        let skipped = skip.min(part.len() as u64);
        skip -= skipped;
        let _ = part.split_to(skipped as usize);
        part.truncate(left.min(part.len() as u64) as usize);
        left -= part.len() as u64;
        chunks.push(part);
    }
    chunks
}
