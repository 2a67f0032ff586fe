//! What was fetched from the remote is kept on the local disk, as far as the limit allows, for the
//! next time that it is asked for, in this opening or a later one.
//!
//! Of a segment that is in the remote only, a file of its own keeps chunks, each where the segment
//! has it, with the segment's table of sums and an index behind them. Nothing is synced: a place in
//! the log never has other bytes, and every page is compared with its sum when it is read. What a
//! crash has left of a file is either what it should be, or is fetched again.
//!
//! Invariants:
//! 1. Neither the map nor a checkpoint knows of these files: with all of them gone, nothing is.
//! 2. They count as local bytes and take no room that a segment could not have: they are evicted as
//!    segments are, the coldest first. What an earlier opening has left counts with the most that
//!    it may take, until it was looked at.
//! 3. Nobody waits for anything to be kept, and no failure of it is anybody's but its own.
//!
//! Deliberately not here: fetching (`cold`) and who is to be evicted (`evict`).

use super::files::{FileId, kept_name, parse_kept_name};
use super::read::DevicePart;
use super::recover::Recovery;
use super::space::Purpose;
use super::{Shard, State, pages_of};
use crate::io::{DirEntry, Driver, DriverFile, Durability, OpenMode};
use crate::log::kept::{CHUNK_BYTES, CHUNK_PAGES, Present, index_page, table_page};
use crate::log::objects;
use crate::log::segment::is_good_page;
use crate::marks::{mark, planted};
use crate::residency::{Held, Segments};
use crate::stats::Stage;
use crate::types::{Epoch, Location, PAGE, SegmentId};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::rc::Rc;

/// Fetched bytes that wait to be written, per shard at most; what comes beyond is not kept.
const WAITING_BYTES_MAX: usize = 4 << 20;

/// Files per shard at most: each is looked at once after an opening, in the background.
const FILES_MAX: usize = 4096;

/// What is kept of one segment.
struct KeptFile {
    epoch: Epoch,
    present: Present,
    /// Bytes of its table and its index.
    behind: u64,
}

/// Bytes of the table and the index of a segment of so many pages.
fn bytes_behind(pages: u32) -> u64 {
    u64::from(index_page(pages) + 1 - table_page(pages)) * PAGE as u64
}

impl KeptFile {
    fn new(held: &Held, present: Present) -> KeptFile {
        KeptFile {
            epoch: held.epoch,
            present,
            behind: bytes_behind(held.pages.get()),
        }
    }

    /// One of which nobody knows what it has: none of it is there, and all of it takes room.
    fn unread(held: &Held) -> KeptFile {
        let pages = held.pages.get();
        let whole = u64::from(pages.div_ceil(CHUNK_PAGES)) * CHUNK_BYTES;
        KeptFile {
            epoch: held.epoch,
            present: Present::none(pages),
            behind: bytes_behind(pages) + whole,
        }
    }

    fn bytes(&self) -> u64 {
        self.behind + u64::from(self.present.count()) * CHUNK_BYTES
    }
}

/// Chunks that were fetched and are to be kept.
struct Fetched {
    held: Rc<Held>,
    chunk: u32,
    bytes: Bytes,
}

/// What is kept of all segments, and what waits to be.
#[derive(Default)]
pub(super) struct Kept {
    files: BTreeMap<SegmentId, KeptFile>,
    bytes: u64,
    waiting: VecDeque<Fetched>,
    waiting_bytes: usize,
    /// Something is being written.
    writing: bool,
    /// What earlier openings have left was looked at.
    known: bool,
}

impl Kept {
    /// Bytes that the files take.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Whether it takes what it is said to take, and not less.
    pub(super) fn is_known(&self) -> bool {
        self.known
    }

    /// Bytes that are kept of a segment.
    pub(super) fn bytes_of(&self, id: SegmentId) -> u64 {
        self.files.get(&id).map_or(0, KeptFile::bytes)
    }

    fn insert(&mut self, id: SegmentId, file: KeptFile) {
        self.bytes += file.bytes();
        self.files.insert(id, file);
    }

    fn remove(&mut self, id: SegmentId) -> Option<KeptFile> {
        let file = self.files.remove(&id)?;
        self.bytes -= file.bytes();
        Some(file)
    }

    /// Notes that chunks of a segment are there. Returns the index to be written, `None` if the
    /// file has gone meanwhile.
    fn add(&mut self, held: &Held, chunks: std::ops::Range<u32>) -> Option<Vec<u8>> {
        let file = self.files.get_mut(&held.id)?;
        let before = file.bytes();
        chunks.for_each(|chunk| file.present.add(chunk));
        self.bytes = self.bytes - before + file.bytes();
        Some(file.present.encode(held.identity))
    }

    /// How much from a place on is kept, or is not: all of it the one or the other.
    pub(super) fn alike(&self, at: Location, len: u32) -> (bool, u32) {
        let Some(file) = self.files.get(&at.segment()) else {
            return (false, len);
        };
        let (first, count) = pages_of(at.offset(), len);
        let chunks = first / CHUNK_PAGES..=(first + count - 1) / CHUNK_PAGES;
        let there = file.present.has(*chunks.start());
        let other = chunks
            .into_iter()
            .find(|chunk| file.present.has(*chunk) != there);
        let end = other.map_or(len, |chunk| chunk * CHUNK_BYTES as u32 - at.offset());
        (there, end)
    }
}

impl State {
    /// Whether bytes at a place can be had here, and how many from there on are alike in that. At
    /// least one is.
    pub(super) fn is_here(&self, at: Location, len: u32) -> (bool, u32) {
        match self.segments.find(at.segment()) {
            Some(held) if held.file().is_none() => self.kept.alike(at, len),
            _ => (true, len),
        }
    }
}

impl<D: Driver> Shard<D> {
    /// Segments that could be held instead of what is kept.
    pub(super) fn kept_segments(&self, state: &State) -> usize {
        state.kept.bytes().div_ceil(self.0.params.segment_bytes()) as usize
    }

    /// Whether so many bytes more may be kept, and a segment still be begun. Files that are ready
    /// for segments count: they are there, and are used before they go.
    fn may_keep(&self, state: &State, bytes: u64) -> bool {
        let segment = self.0.params.segment_bytes();
        let more = (state.kept.bytes() + bytes).div_ceil(segment) as usize;
        let more = more - self.kept_segments(state);
        let most = self.segments_max(state, Purpose::Data);
        let files = state.segments.files() + usize::from(state.space.has_spare()) + more;
        let fits = files <= most.saturating_add(Purpose::Data.reserve());
        !state.space.disk_full && fits && state.segments.local() + more < most
    }

    /// Keeps chunks that were fetched, in the background, if there is room.
    pub(super) fn keep_fetched(&self, held: &Rc<Held>, chunk: u32, bytes: Bytes) {
        let mut state = self.state();
        let kept = &mut state.kept;
        let room = kept.waiting_bytes + bytes.len() <= WAITING_BYTES_MAX;
        if !kept.known || held.file().is_some() || !room {
            return;
        }
        kept.waiting_bytes += bytes.len();
        kept.waiting.push_back(Fetched {
            held: held.clone(),
            chunk,
            bytes,
        });
        if std::mem::replace(&mut kept.writing, true) {
            return;
        }
        drop(state);
        let shard = self.clone();
        self.0
            .driver
            .spawn(async move { shard.keep_waiting().await });
    }

    async fn keep_waiting(&self) {
        loop {
            let next = {
                let kept = &mut self.state().kept;
                let next = kept.waiting.pop_front();
                kept.waiting_bytes -= next.as_ref().map_or(0, |next| next.bytes.len());
                kept.writing = next.is_some();
                next
            };
            let Some(fetched) = next else { return };
            let (id, epoch) = (fetched.held.id, fetched.held.epoch);
            if let Err(error) = self.keep_one(fetched).await {
                tracing::debug!(segment = id.0, %error, "what was fetched is not kept");
                self.state().kept.remove(id);
                self.remove_kept(id, epoch).await;
            }
        }
    }

    async fn keep_one(&self, fetched: Fetched) -> io::Result<()> {
        let Fetched { held, chunk, bytes } = fetched;
        let (pages, Some(sums)) = (held.pages.get(), held.sums()) else {
            return Ok(());
        };
        let name = FileId::Kept(held.id, held.epoch);
        let (fits, is_new) = {
            let state = self.0.state.borrow();
            let is_new = !state.kept.files.contains_key(&held.id);
            let behind = bytes_behind(pages);
            let most = state.kept.files.len() < FILES_MAX || !is_new;
            (
                most && self.may_keep(&state, bytes.len() as u64 + behind),
                is_new,
            )
        };
        if !fits {
            mark("no room to keep what was fetched");
            self.0.upkeep_due.notify();
            return Ok(());
        }
        if is_new {
            let path = self.0.files.path(name);
            let file = self.0.files.open_path(&path, OpenMode::CreateNew).await?;
            let present = Present::none(pages);
            let mut behind = objects::table(held.identity, &sums);
            behind.extend_from_slice(&present.encode(held.identity));
            self.write_kept(&file, table_page(pages), &behind).await?;
            self.0.files.keep(name, file);
            self.state()
                .kept
                .insert(held.id, KeptFile::new(&held, present));
        }
        let file = self.0.files.open(name).await?;
        self.write_kept(&file, chunk * CHUNK_PAGES, &bytes).await?;
        let chunks = chunk..chunk + (bytes.len() as u64).div_ceil(CHUNK_BYTES) as u32;
        let index = self.state().kept.add(&held, chunks);
        let Some(index) = index else { return Ok(()) };
        mark("fetched bytes kept");
        self.write_kept(&file, index_page(pages), &index).await
    }

    async fn write_kept(&self, file: &D::File, page: u32, bytes: &[u8]) -> io::Result<()> {
        let mut buf = self.0.driver.pool().take(bytes.len());
        buf.copy_from_slice(bytes);
        let offset = u64::from(page) * PAGE as u64;
        file.write(offset, buf.freeze(), Durability::Visible).await
    }

    /// Pages of a file that keeps something.
    async fn kept_pages(&self, held: &Held, first: u32, count: u32) -> io::Result<Bytes> {
        let from = self.pass();
        let file = self.0.files.open(FileId::Kept(held.id, held.epoch)).await?;
        let buf = self.0.driver.pool().take(count as usize * PAGE);
        let bytes = file.read(u64::from(first) * PAGE as u64, buf).await?;
        self.note_stage(Stage::DeviceRead, from);
        self.state().stats.device_read_bytes += bytes.len() as u64;
        Ok(bytes.freeze())
    }

    /// Reads and checks a part that is kept; `None` if it has to be fetched after all.
    pub(super) async fn read_kept(&self, part: &DevicePart) -> Option<Bytes> {
        let held = &part.held;
        let sums = self.load_sums(held).await.ok()?;
        let (first, count) = pages_of(part.at.offset(), part.len);
        let read = self.kept_pages(held, first, count).await;
        let good = |(page, index): (&[u8], u32)| {
            is_good_page(held.identity, index, page, &sums) || planted("skip_remote_checksum")
        };
        let bytes = read.ok();
        let bytes = bytes.filter(|bytes| bytes.chunks_exact(PAGE).zip(first..).all(good));
        let Some(bytes) = bytes else {
            // A crash took it, or the disk: it is a copy. All of the file goes, for what is of no
            // use in it would take room, and there is no way to give that back alone.
            mark("kept bytes were not what they should be");
            self.drop_kept(held.id).await;
            return None;
        };
        mark("kept bytes read");
        let start = part.at.offset() as usize - first as usize * PAGE;
        Some(bytes.slice(start..start + part.len as usize))
    }

    /// The sums of a segment that is in the remote only, as far as they are kept.
    pub(super) async fn kept_sums(&self, held: &Held) -> Option<Rc<[u32]>> {
        let pages = held.pages.get();
        if self.0.state.borrow().kept.bytes_of(held.id) == 0 {
            return None;
        }
        let table = self
            .kept_pages(held, table_page(pages), objects::table_pages(pages))
            .await
            .ok()?;
        objects::parse_table(held.identity, pages, &table).map(Into::into)
    }

    /// Removes what is kept of a segment. Says how many bytes that frees.
    pub(super) async fn drop_kept(&self, id: SegmentId) -> u64 {
        let Some(file) = self.state().kept.remove(id) else {
            return 0;
        };
        self.remove_kept(id, file.epoch).await;
        self.0.room.notify();
        file.bytes()
    }

    /// What stays behind is found at the next opening.
    async fn remove_kept(&self, id: SegmentId, epoch: Epoch) {
        let _ = self.0.files.remove(FileId::Kept(id, epoch)).await;
    }

    /// Looks, in the background, at what earlier openings have kept.
    pub(super) fn start_looking_at_kept(&self) {
        if self.0.state.borrow().tier.is_none() {
            return;
        }
        let shard = self.clone();
        self.0.driver.spawn(async move {
            let unread: Vec<SegmentId> = {
                let state = shard.0.state.borrow();
                state.kept.files.keys().copied().collect()
            };
            for id in unread {
                shard.look_at_kept(id).await;
            }
            let mut state = shard.state();
            state.kept.known = true;
            // Who found no room may have been refused for what takes less than it seemed to.
            state.space.note_progress();
            drop(state);
            shard.0.room.notify();
            shard.0.upkeep_due.notify();
        });
    }

    /// Finds out what an earlier opening has kept of a segment; what is of no use goes.
    async fn look_at_kept(&self, id: SegmentId) {
        let held = self.0.state.borrow().segments.find(id).cloned();
        // It goes with its segment.
        let Some(held) = held else { return };
        let pages = held.pages.get();
        let index = self.kept_pages(&held, index_page(pages), 1).await.ok();
        let present = index.and_then(|page| Present::decode(held.identity, pages, &page));
        let Some(present) = present else {
            self.drop_kept(id).await;
            return;
        };
        let kept = &mut self.state().kept;
        if kept.remove(id).is_some() {
            mark("kept bytes found");
            kept.insert(id, KeptFile::new(&held, present));
        }
    }
}

impl<D: Driver> Recovery<'_, D> {
    /// What earlier openings have kept of segments that are in the remote only. What they have left
    /// of others goes.
    pub(super) async fn find_kept(&self, entries: &[DirEntry], segments: &Segments) -> Kept {
        let mut kept = Kept::default();
        let names = entries
            .iter()
            .filter_map(|entry| parse_kept_name(&entry.name));
        for (id, epoch) in names {
            let held = segments.find(id);
            match held.filter(|held| held.epoch == epoch && held.file().is_none()) {
                Some(held) => kept.insert(id, KeptFile::unread(held)),
                None => {
                    mark("leftover of what was kept");
                    let path = self.params.path(&kept_name(id, epoch));
                    let _ = self.driver.unlink(&path).await;
                }
            }
        }
        kept
    }
}
