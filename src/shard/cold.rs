//! Cold reads: bytes of segments that are in the remote only, or that are bad on the local disk.
//!
//! Fetched bytes never touch the map: a place in the log is what it was, whoever has its bytes.
//!
//! Invariants:
//! 1. What comes from the remote is compared with the segment's sums, page by page, and the sums
//!    with their own, before a byte is handed out.
//! 2. A chunk is fetched once, however many wait for it. The fetch is a task of its own: nobody who
//!    gives up takes it along.
//! 3. A read that needs the remote ends within the uploader's time for a get.

use super::read::{DevicePart, Interest};
use super::{Shard, pages_of};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Driver, DriverFile, Durability};
use crate::log::kept::CHUNK_PAGES;
use crate::log::objects;
use crate::log::segment::is_good_page;
use crate::marks::{mark, planted};
use crate::residency::Held;
use crate::stats::Stage;
use crate::sync::signal::Signal;
use crate::types::{Location, PAGE, SegmentId};
use crate::upload::manifest::segment_name;
use bytes::{Bytes, BytesMut};
use futures_util::future::join;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Chunks of one request to the remote at most: what a MiB of a payload is spread over, with heads
/// of batches in it and a cut chunk on either side. A large read is several streams.
const RUN_CHUNKS_MAX: u32 = 36;

/// Times that bytes which fail their checksum are asked for.
const TRIES: u32 = 5;

/// Stands for a segment's table of sums among its chunks.
const TABLE: u32 = u32::MAX;

/// A chunk on its way.
#[derive(Default)]
pub(super) struct Fetch {
    result: RefCell<Option<Result<Bytes>>>,
    done: Signal,
    /// It has been asked for, and not only been lined up.
    is_begun: Cell<bool>,
    /// For whom it was lined up. Nobody waits for what others only may want.
    interest: Option<Interest>,
    /// Somebody who waits for it may come again.
    is_kept: Cell<bool>,
}

/// What is on its way, by segment and chunk.
pub(super) type Fetches = BTreeMap<(SegmentId, u32), Rc<Fetch>>;

/// How a piece is wanted: small ones by themselves, unless others are of the same chunk.
pub(super) fn interest_in(pieces: &[(Location, u32)], index: usize) -> Interest {
    let (at, len) = pieces[index];
    let (_, pages) = pages_of(at.offset(), len);
    let chunk = |at: Location| (at.segment(), at.offset() / (CHUNK_PAGES * PAGE as u32));
    let first = |index: usize| pieces.get(index).map(|(at, _)| chunk(*at));
    let last = |(at, len): &(Location, u32)| chunk(at.advance(len - 1));
    let before = index.checked_sub(1).map(|before| last(&pieces[before]));
    let is_near = before == first(index) || first(index + 1) == Some(last(&pieces[index]));
    match pages * 2 > CHUNK_PAGES || is_near {
        true => Interest::Passing,
        false => Interest::Alone,
    }
}

impl<D: Driver> Shard<D> {
    /// Reads and checks a part from the remote.
    pub(super) async fn read_remote(&self, part: &DevicePart) -> Result<Bytes> {
        let (first, count) = pages_of(part.at.offset(), part.len);
        let pages = self
            .fetch_pages(&part.held, first, count, part.interest)
            .await;
        let pages = pages.inspect_err(|error| {
            if error.kind() == ErrorKind::Unavailable && part.interest == Interest::Lasting {
                self.state().stats.offline_reads_blocked += 1;
            }
        })?;
        let start = part.at.offset() as usize - first as usize * PAGE;
        Ok(pages.slice(start..start + part.len as usize))
    }

    /// Pages of a segment, from the remote.
    pub(super) async fn fetch_pages(
        &self,
        held: &Rc<Held>,
        first: u32,
        count: u32,
        interest: Interest,
    ) -> Result<Bytes> {
        let from = self.pass();
        let pages = self.fetched_pages(held, first, count, interest).await;
        self.note_stage(Stage::Fetch, from);
        pages
    }

    async fn fetched_pages(
        &self,
        held: &Rc<Held>,
        first: u32,
        count: u32,
        interest: Interest,
    ) -> Result<Bytes> {
        if interest == Interest::Alone {
            return again(async || self.fetch_once(held, first, count).await).await;
        }
        let chunks = first / CHUNK_PAGES..=(first + count - 1) / CHUNK_PAGES;
        let fetches = self.start_fetches(held, chunks.clone(), interest);
        for fetch in fetches.iter().filter(|_| interest != Interest::Passing) {
            fetch.is_kept.set(true);
        }
        // Copied also if it is one: it must not hold on to all that was fetched with it.
        let mut joined = BytesMut::new();
        for fetch in &fetches {
            let ready = || fetch.result.borrow().clone();
            joined.extend_from_slice(&fetch.done.until(ready).await?);
        }
        let bytes = joined.freeze();
        let start = (first - chunks.start() * CHUNK_PAGES) as usize * PAGE;
        let end = start + count as usize * PAGE;
        let short = || missing(held, "is shorter in the remote than it should be");
        match bytes.len() < end {
            true => Err(short()),
            false => Ok(bytes.slice(start..end)),
        }
    }

    /// The fetches of chunks: those under way, and new ones for the others.
    ///
    /// What is new is asked for at the loop's next turn, so that what follows it and is wanted by
    /// then for the same reason, as the next part of the same read, is in the same request.
    fn start_fetches(
        &self,
        held: &Rc<Held>,
        chunks: std::ops::RangeInclusive<u32>,
        interest: Interest,
    ) -> Vec<Rc<Fetch>> {
        let mut state = self.state();
        let mut fetches = Vec::new();
        let mut starts = Vec::new();
        let mut follows = false;
        for chunk in chunks {
            if let Some(fetch) = state.fetches.get(&(held.id, chunk)) {
                mark("fetch shared");
                fetches.push(fetch.clone());
                follows = false;
                continue;
            }
            let fetch = Rc::new(Fetch {
                interest: Some(interest),
                ..Fetch::default()
            });
            state.fetches.insert((held.id, chunk), fetch.clone());
            fetches.push(fetch);
            if !follows {
                starts.push(chunk);
            }
            follows = true;
        }
        drop(state);
        for start in starts {
            self.spawn_run(held, start);
        }
        fetches
    }

    fn spawn_run(&self, held: &Rc<Held>, start: u32) {
        let (shard, held) = (self.clone(), held.clone());
        self.0
            .driver
            .spawn(async move { shard.fetch_run(&held, start).await });
    }

    /// Takes the chunks from `start` on that nobody has begun with, and leaves what is too much for
    /// one request to another.
    fn begin_run(&self, held: &Rc<Held>, start: u32) -> Vec<Rc<Fetch>> {
        let state = self.0.state.borrow();
        let lined_up = |chunk| {
            let fetch = state.fetches.get(&(held.id, chunk));
            fetch.filter(|fetch| !fetch.is_begun.get()).cloned()
        };
        let Some(first) = lined_up(start) else {
            return Vec::new();
        };
        let end = start + RUN_CHUNKS_MAX;
        let alike = |fetch: &Rc<Fetch>| fetch.interest == first.interest;
        let run = (start..end).map_while(|chunk| lined_up(chunk).filter(alike));
        let run: Vec<Rc<Fetch>> = run.collect();
        run.iter().for_each(|fetch| fetch.is_begun.set(true));
        let next = start + run.len() as u32;
        if lined_up(next).is_some() {
            self.spawn_run(held, next);
        }
        run
    }

    async fn fetch_run(&self, held: &Rc<Held>, start: u32) {
        let run = self.begin_run(held, start);
        if run.is_empty() {
            mark("fetched with what it follows");
            return;
        }
        let count = run.len() as u32;
        let result = self.fetch_chunks(held, start, count).await;
        let is_bad = |error: &Error| error.kind() == ErrorKind::Corrupt;
        // What is bad of it is for those only who want that.
        let is_split = count > 1 && result.as_ref().is_err_and(is_bad);
        let is_kept = run.iter().any(|fetch| fetch.is_kept.get());
        for (index, fetch) in run.into_iter().enumerate() {
            let chunk = start + index as u32;
            let piece = match is_split {
                true => self.fetch_chunks(held, chunk, 1).await,
                false => result.clone().map(|bytes| {
                    let from = (index * CHUNK_PAGES as usize * PAGE).min(bytes.len());
                    let to = (from + CHUNK_PAGES as usize * PAGE).min(bytes.len());
                    bytes.slice(from..to)
                }),
            };
            self.state().fetches.remove(&(held.id, chunk));
            *fetch.result.borrow_mut() = Some(piece);
            fetch.done.notify();
        }
        if is_kept && let Ok(bytes) = result {
            self.keep_fetched(held, start, bytes);
        }
    }

    /// Gets chunks, of which the segment's last may be short, and checks them. What is wrong may
    /// have become so on its way, and is asked for again.
    async fn fetch_chunks(&self, held: &Rc<Held>, start: u32, count: u32) -> Result<Bytes> {
        let first = start * CHUNK_PAGES;
        let count = (count * CHUNK_PAGES).min(held.pages.get() - first);
        again(async || self.fetch_once(held, first, count).await).await
    }

    async fn fetch_once(&self, held: &Rc<Held>, first: u32, count: u32) -> Result<Bytes> {
        let offset = objects::page_offset(held.pages.get(), first);
        let bytes = self.get(held, offset, u64::from(count) * PAGE as u64);
        // At once: the first fetch of a segment would wait twice otherwise.
        let (sums, bytes) = join(self.load_sums(held), bytes).await;
        let (sums, bytes) = (sums?, bytes?);
        mark("fetched from the remote");
        for (page, index) in bytes.chunks_exact(PAGE).zip(first..) {
            let good = is_good_page(held.identity, index, page, &sums);
            if !good && !planted("skip_remote_checksum") {
                self.state().stats.remote_checksum_failures += 1;
                return Err(missing(held, "fails its checksum in the remote"));
            }
        }
        Ok(bytes)
    }

    /// The sums of a segment, from the remote, fetched once for all who wait.
    pub(super) async fn fetch_sums(&self, held: &Rc<Held>) -> Result<Rc<[u32]>> {
        let (fetch, new) = {
            let mut state = self.state();
            match state.fetches.get(&(held.id, TABLE)) {
                Some(fetch) => (fetch.clone(), false),
                None => {
                    let fetch = Rc::new(Fetch::default());
                    state.fetches.insert((held.id, TABLE), fetch.clone());
                    (fetch, true)
                }
            }
        };
        if new {
            let (shard, held, fetch) = (self.clone(), held.clone(), fetch.clone());
            self.0.driver.spawn(async move {
                let len = objects::page_offset(held.pages.get(), 0);
                let result = shard.get(&held, 0, len).await;
                shard.state().fetches.remove(&(held.id, TABLE));
                *fetch.result.borrow_mut() = Some(result);
                fetch.done.notify();
            });
        }
        let table = fetch.done.until(|| fetch.result.borrow().clone()).await?;
        let sums = objects::parse_table(held.identity, held.pages.get(), &table);
        sums.map(Into::into).ok_or_else(|| {
            self.state().stats.remote_checksum_failures += 1;
            missing(held, "has no good table of sums in the remote")
        })
    }

    async fn get(&self, held: &Held, offset: u64, len: u64) -> Result<Bytes> {
        let client = {
            let state = self.0.state.borrow();
            state.tier.as_ref().map(|tier| tier.client.clone())
        };
        let Some(client) = client else {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "these bytes are in the remote only: open the store with Config::remote",
            ));
        };
        let name = segment_name(self.0.params.shard, held.id, held.epoch);
        let bytes = client.get(name, offset, len).await?;
        self.state().stats.remote_read_bytes += bytes.len() as u64;
        match bytes.len() as u64 == len {
            true => Ok(bytes),
            false => Err(missing(held, "is cut short in the remote")),
        }
    }

    /// Writes pages that were bad on the local disk anew, from what the remote has.
    pub(super) async fn mend(&self, part: &DevicePart) -> Result<()> {
        let (first, count) = pages_of(part.at.offset(), part.len);
        let pages = self
            .fetch_pages(&part.held, first, count, Interest::Passing)
            .await?;
        let mut buf = self.0.driver.pool().take(pages.len());
        buf.copy_from_slice(&pages);
        let offset = u64::from(first) * PAGE as u64;
        let mend = async {
            let file = self.0.files.open_segment(&part.held).await?;
            file.write(offset, buf.freeze(), Durability::Synced).await
        };
        mend.await.map_err(|error| {
            Error::with_source(
                ErrorKind::Poisoned,
                "bad bytes cannot be written anew",
                error,
            )
        })?;
        mark("bad bytes mended from the remote");
        self.state().stats.bytes_repaired += u64::from(part.len);
        Ok(())
    }
}

/// Tries again what may have gone bad on its way.
pub(super) async fn again<T>(what: impl AsyncFn() -> Result<T>) -> Result<T> {
    let mut tries = 1;
    loop {
        match what().await {
            Err(error) if error.kind() == ErrorKind::Corrupt && tries < TRIES => tries += 1,
            result => return result,
        }
    }
}

fn missing(held: &Held, what: &str) -> Error {
    Error::corrupt(format!("a segment {what}: segment={}", held.id.0))
}
