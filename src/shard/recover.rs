//! Opening a shard: checkpoint, then the log's tail, then a new segment behind it.
//!
//! The newest good checkpoint gives the map; the segments from where it ends on are replayed batch by
//! batch. Where a batch is bad, the question is whether it was ever promised to be durable. It was if
//! something valid and later says so: a batch's `committed_through`, or the head of a later segment.
//! Then it is corruption: its records are taken from the segment's footer if that is good, else they
//! are counted as lost, and replay goes on behind it. If nothing says so it is a torn tail: the log ends
//! before it, and goes on in a new segment, whose head says so.
//!
//! Invariants:
//! 1. Opening reads the checkpoint and the tail, whatever the store holds besides.
//! 2. Nothing is appended behind a tear.
//! 3. Whatever the files hold, opening ends in a shard or an error: no panic, no unbounded allocation.

use super::checkpoint::{Upkeep, parse_checkpoint_name};
use super::files::{Files, parse_segment_name};
use super::mailbox::Sender;
use super::request::Control;
use super::signal::Signal;
use super::tail::Tail;
use super::{Inner, Params, Shard, State};
use crate::buf::AlignedBuf;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{DirEntry, Driver, DriverFile, Durability, OpenMode};
use crate::log::checkpoint::{CHUNK_BYTES_MAX, Item, decode_chunk, identity};
use crate::log::checksum::Identity;
use crate::log::segment::{BatchHead, Footer, FooterBatch, SegmentHead, mutations};
use crate::log::writer::{Log, LogEnd, LogParams, footer_bytes};
use crate::map::extent::{Mapped, Zeroed};
use crate::map::tree::{Loader, NodeRef, Tree};
use crate::map::{Map, Payload};
use crate::marks::{mark, planted};
use crate::payload_id::PayloadId;
use crate::residency::{Held, Segments};
use crate::stats::{Latencies, Stats};
use crate::types::{Generation, Lsn, PAGE, SegmentId, page_ceil};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;

/// Largest batch in pages: 1 MiB of data and a head. Larger ones gain no speed, and make small flushes
/// wait longer behind them.
const BATCH_PAGES_MAX: u32 = 257;

/// A payload that lives on another shard than its name's home.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) id: PayloadId,
    pub(crate) generation: Generation,
}

/// What a shard knows after its files have been read.
struct Recovered {
    map: Map,
    segments: Segments,
    end: LogEnd,
    upkeep: Upkeep,
    stats: Stats,
    next_generation: u64,
}

/// A segment file that may hold a part of the tail.
struct Candidate {
    head: SegmentHead,
    file: u64,
}

impl<D: Driver> Shard<D> {
    /// Opens the shard in its directory, which is made if it is not there.
    pub(crate) async fn open(
        driver: D,
        params: Params,
        peers: Vec<Sender<Control>>,
    ) -> Result<Shard<D>> {
        let recovery = Recovery {
            driver: &driver,
            params: &params,
        };
        let recovered = recovery.run().await?;
        params.routes.reserve_generations(recovered.next_generation);
        let segment_pages = (params.segment_bytes() / PAGE as u64) as u32;
        // A quarter of the budget at most, so that one batch can fill while others are written.
        let budget_pages = (params.dirty_bytes_max() / 4 / PAGE as u64) as u32;
        let batch_pages_max = BATCH_PAGES_MAX
            .min(segment_pages - 4)
            .min(budget_pages)
            .max(2);
        let log_params = LogParams {
            store: params.store,
            shard: params.shard,
            epoch: params.epoch,
            segment_pages,
            batch_pages_max,
        };
        let durable = Lsn(recovered.end.next_lsn.0 - 1);
        let state = State {
            map: recovered.map,
            log: Log::new(log_params, recovered.end),
            tail: Tail::new(durable),
            segments: recovered.segments,
            commit: Default::default(),
            space: Default::default(),
            upkeep: recovered.upkeep,
            stats: recovered.stats,
            latencies: Latencies::new(),
            moving: BTreeSet::new(),
            changing: BTreeMap::new(),
            closing: false,
        };
        let files = Files::new(driver.clone(), params.clone());
        Ok(Shard(Rc::new(Inner {
            driver,
            params,
            state: RefCell::new(state),
            files,
            committed: Signal::default(),
            room: Signal::default(),
            commit_due: Signal::default(),
            upkeep_due: Signal::default(),
            finished: Signal::default(),
            peers,
            working: Cell::new(0),
        })))
    }

    /// The payloads that live here although their home is another shard.
    pub(crate) fn claims(&self) -> Vec<Claim> {
        let state = self.0.state.borrow();
        let (routes, shard) = (&self.0.params.routes, self.0.params.shard);
        let foreign = state
            .map
            .names_after(None)
            .filter(|id| routes.home(id) != shard);
        foreign
            .filter_map(|id| {
                let generation = state.map.find(id)?.generation;
                Some(Claim {
                    id: id.clone(),
                    generation,
                })
            })
            .collect()
    }
}

struct Recovery<'a, D: Driver> {
    driver: &'a D,
    params: &'a Params,
}

impl<D: Driver> Recovery<'_, D> {
    async fn run(&self) -> Result<Recovered> {
        let dir = self.params.dir();
        self.driver
            .create_dir(&dir)
            .await
            .map_err(|error| self.failed("made", error))?;
        self.driver
            .sync_dir("")
            .await
            .map_err(|error| self.failed("made durable", error))?;
        let entries = self
            .driver
            .list(&dir)
            .await
            .map_err(|error| self.failed("read", error))?;
        self.remove_leftovers(&entries).await;
        let mut recovered = self.load_newest_checkpoint(&entries).await?;
        let candidates = self.find_candidates(&entries, &mut recovered).await?;
        self.replay(candidates, &mut recovered).await?;
        recovered.map.finish_replay();
        Ok(recovered)
    }

    fn failed(&self, what: &str, error: io::Error) -> Error {
        let message = format!(
            "a shard's directory cannot be {what}: shard={}",
            self.params.shard.0
        );
        let kind = match error.kind() {
            io::ErrorKind::StorageFull => ErrorKind::Full,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                ErrorKind::InvalidInput
            }
            _ => ErrorKind::Poisoned,
        };
        Error::with_source(kind, message, error)
    }

    async fn remove_leftovers(&self, entries: &[DirEntry]) {
        if entries.iter().any(|entry| entry.name == "checkpoint.new") {
            // A checkpoint that was not finished; nothing refers to it.
            let _ = self
                .driver
                .unlink(&self.params.path("checkpoint.new"))
                .await;
        }
    }

    /// The newest checkpoint that is good, or an empty shard if there is none.
    async fn load_newest_checkpoint(&self, entries: &[DirEntry]) -> Result<Recovered> {
        let mut found: Vec<(u64, u64)> = entries
            .iter()
            .filter_map(|entry| Some((parse_checkpoint_name(&entry.name)?, entry.len)))
            .collect();
        found.sort_unstable();
        let mut bad = 0;
        for &(sequence, len) in found.iter().rev() {
            match self.load_checkpoint(sequence, len).await {
                Ok(mut recovered) => {
                    let covered = (bad == 0).then_some(recovered.end.next_lsn);
                    recovered.upkeep = Upkeep::found(found, covered);
                    recovered.stats.checksum_failures += bad;
                    return Ok(recovered);
                }
                Err(error) => {
                    mark("bad checkpoint passed over");
                    tracing::warn!(shard = self.params.shard.0, %error, "a checkpoint is bad");
                    bad += 1;
                }
            }
        }
        let mut recovered = Recovered {
            map: Map::new(),
            segments: Segments::default(),
            end: LogEnd {
                next_lsn: Lsn(1),
                chain: 0,
                segment: SegmentId(0),
                pages: 0,
            },
            upkeep: Upkeep::found(found, None),
            stats: Stats::default(),
            next_generation: 1,
        };
        recovered.stats.checksum_failures += bad;
        Ok(recovered)
    }

    async fn load_checkpoint(&self, sequence: u64, len: u64) -> Result<Recovered> {
        let path = self
            .params
            .path(&super::checkpoint::checkpoint_name(sequence));
        let unreadable =
            |error| Error::with_source(ErrorKind::Corrupt, "a checkpoint cannot be read", error);
        let file = self
            .driver
            .open(&path, OpenMode::Existing)
            .await
            .map_err(unreadable)?;
        let identity = identity(&self.params.store, self.params.shard, sequence);
        let mut loading = Loading::new();
        let (mut offset, mut index) = (0, 0);
        loop {
            let left = len.saturating_sub(offset).min(CHUNK_BYTES_MAX as u64) as usize;
            if left < PAGE {
                loading.give_up();
                return Err(Error::corrupt("a checkpoint is cut short"));
            }
            let buf = self.driver.pool().take(left / PAGE * PAGE);
            let chunk = match file.read(offset, buf).await {
                Ok(chunk) => chunk,
                Err(error) => {
                    loading.give_up();
                    return Err(unreadable(error));
                }
            };
            let decoded = decode_chunk(identity, index, &chunk)
                .map_err(|malformed| malformed.0)
                .and_then(|(items, last)| {
                    for item in items {
                        loading.take(item, self.params)?;
                    }
                    Ok(last)
                });
            match decoded {
                Ok(true) => return loading.finish().map_err(Error::corrupt),
                Ok(false) => (offset, index) = (offset + CHUNK_BYTES_MAX as u64, index + 1),
                Err(why) => {
                    loading.give_up();
                    return Err(Error::corrupt(why));
                }
            }
        }
    }

    /// The segments that may continue the log. Files that hold nothing of use are free.
    async fn find_candidates(
        &self,
        entries: &[DirEntry],
        recovered: &mut Recovered,
    ) -> Result<BTreeMap<SegmentId, Candidate>> {
        let known: BTreeSet<u64> = recovered.segments.iter().map(|held| held.file).collect();
        let mut candidates: BTreeMap<SegmentId, Candidate> = BTreeMap::new();
        let segment_bytes = self.params.segment_bytes();
        for entry in entries {
            let Some(file) = parse_segment_name(&entry.name) else {
                continue;
            };
            if known.contains(&file) {
                continue;
            }
            if entry.len < segment_bytes {
                // It was being made when the machine stopped: nothing was ever written to it.
                recovered.segments.note_file(file);
                let _ = self.driver.unlink(&self.params.path(&entry.name)).await;
                continue;
            }
            let head = self.read_head(&entry.name).await;
            let useful = head.filter(|head| {
                head.store == self.params.store
                    && head.shard == self.params.shard
                    && head.epoch <= self.params.epoch
                    && u64::from(head.pages) * PAGE as u64 == segment_bytes
                    && head.segment >= recovered.end.segment
                    && head.segment.0 > 0
            });
            match useful {
                Some(head) => {
                    let newer = candidates
                        .get(&head.segment)
                        .is_none_or(|other| other.head.epoch < head.epoch);
                    if newer {
                        let before = candidates.insert(head.segment, Candidate { head, file });
                        before
                            .into_iter()
                            .for_each(|old| recovered.segments.add_free(old.file));
                    } else {
                        recovered.segments.add_free(file);
                    }
                }
                None => recovered.segments.add_free(file),
            }
        }
        Ok(candidates)
    }

    async fn read_head(&self, name: &str) -> Option<SegmentHead> {
        let file = self
            .driver
            .open(&self.params.path(name), OpenMode::Existing)
            .await
            .ok()?;
        let page = file.read(0, self.driver.pool().take(PAGE)).await.ok()?;
        SegmentHead::parse(&page).ok()
    }

    /// Applies what the segments behind the checkpoint hold.
    async fn replay(
        &self,
        mut candidates: BTreeMap<SegmentId, Candidate>,
        recovered: &mut Recovered,
    ) -> Result<()> {
        drop_stale(&mut candidates, &mut recovered.segments);
        while let Some((_, Candidate { head, file })) = candidates.pop_first() {
            let next = recovered.end.next_lsn;
            if recovered.segments.find(head.segment).is_some() {
                recovered.segments.add_free(file);
                continue;
            }
            let continues = head.segment == recovered.end.segment || head.first_lsn == next;
            if !continues {
                candidates.insert(head.segment, Candidate { head, file });
                if self.proven_by(&candidates).await? < next || head.first_lsn < next {
                    // Nothing says that what is missing in between was ever promised: the log ended
                    // before, and these are batches that the device took out of order.
                    mark("segments behind a tear dropped");
                    let files = candidates.values().map(|candidate| candidate.file);
                    files.for_each(|file| recovered.segments.add_free(file));
                    return Ok(());
                }
                mark("segments of the tail are missing");
                recovered.stats.batches_lost += head.first_lsn.0 - next.0;
                (recovered.end.next_lsn, recovered.end.chain) = (head.first_lsn, head.chain);
                candidates.remove(&head.segment);
            }
            let scan = self.scan(&head, file, &candidates, recovered).await?;
            match scan.footer.batches.is_empty() {
                // Its first batch never arrived whole: there is nothing in it.
                true => recovered.segments.add_free(file),
                false => self.adopt(&head, file, scan, recovered).await?,
            }
        }
        Ok(())
    }

    /// The latest batch that any good batch of these segments says to have been durable.
    async fn proven_by(&self, candidates: &BTreeMap<SegmentId, Candidate>) -> Result<Lsn> {
        let mut proven = Lsn(0);
        for candidate in candidates.values() {
            let bytes = self.read_segment(candidate.file).await?;
            proven = proven.max(committed_through(candidate.head.identity(), &bytes));
        }
        Ok(proven)
    }

    /// Reads a segment's batches, applies what is new, and finds where they end.
    async fn scan(
        &self,
        head: &SegmentHead,
        file: u64,
        later: &BTreeMap<SegmentId, Candidate>,
        recovered: &mut Recovered,
    ) -> Result<Scan> {
        let bytes = self.read_segment(file).await?;
        let identity = head.identity();
        let pages = (bytes.len() / PAGE) as u32;
        // The next segment knows how far this one counts; what is behind that is left over.
        let limit = later
            .get(&head.segment.next())
            .map_or(pages, |next| next.head.previous_pages.clamp(1, pages));
        // A checkpoint is written when all that it covers is durable.
        let covered = Lsn(recovered.end.next_lsn.0 - 1);
        let mut proven = committed_through(identity, &bytes).max(covered);
        let mut looked_later = later.is_empty();
        let copy = find_footer(identity, &bytes);
        let mut scan = Scan::new(copy);
        let (mut next, mut chain) = (head.first_lsn, head.chain);
        while scan.page < limit {
            let found = read_batch(identity, &bytes, scan.page, limit, (next, chain));
            let doubtful = found.as_ref().is_none_or(|batch| !batch.whole);
            if doubtful && next > proven && !looked_later {
                proven = proven.max(self.proven_by(later).await?);
                looked_later = true;
            }
            match found {
                Some(batch) if batch.whole || next <= proven => {
                    if !batch.whole {
                        mark("bad data page of a committed batch kept");
                        recovered.stats.checksum_failures += 1;
                    }
                    self.apply(&batch.records, next, batch.sum, recovered);
                    (next, chain) = (next.next(), batch.sum);
                    scan.take(identity, &bytes, batch);
                }
                torn if next > proven || planted("cut_at_first_bad") => {
                    if torn.is_some() {
                        mark("torn tail cut");
                    }
                    break;
                }
                _ => {
                    (next, chain) =
                        self.step_over(&bytes, identity, limit, next, proven, &mut scan, recovered)
                }
            }
        }
        (recovered.end.segment, recovered.end.pages) = (head.segment, scan.page);
        Ok(scan)
    }

    /// Goes past a committed batch whose head is bad: with its records from the footer, or without.
    /// Returns what is expected next.
    #[expect(clippy::too_many_arguments, reason = "the state of one scan")]
    fn step_over(
        &self,
        bytes: &[u8],
        identity: Identity,
        limit: u32,
        next: Lsn,
        proven: Lsn,
        scan: &mut Scan,
        recovered: &mut Recovered,
    ) -> (Lsn, u32) {
        mark("hole ruled corruption");
        recovered.stats.checksum_failures += 1;
        if let Some((batch, until)) = scan.from_copy(next) {
            mark("records taken from a footer");
            self.apply(&batch.records, next, batch.sum, recovered);
            scan.fill(until.min(limit));
            let expected = (next.next(), batch.sum);
            scan.footer.batches.push(batch);
            return expected;
        }
        let good = |page: u32| {
            let at = page as usize * PAGE;
            let (head, _) = BatchHead::parse(identity, page, &bytes[at..at + PAGE]).ok()?;
            (head.lsn > next && head.lsn <= proven.next()).then_some((page, head))
        };
        let (page, expected) = match (scan.page + 1..limit).find_map(good) {
            Some((page, head)) => (page, (head.lsn, head.chain)),
            None => (limit, (proven.next(), 0)),
        };
        scan.fill(page);
        // What the checkpoint holds is not lost with its records.
        let first = next.max(recovered.end.next_lsn);
        recovered.stats.batches_lost += expected.0.0.saturating_sub(first.0);
        if expected.0 > recovered.end.next_lsn {
            (recovered.end.next_lsn, recovered.end.chain) = expected;
        }
        expected
    }

    fn apply(&self, records: &[u8], lsn: Lsn, sum: u32, recovered: &mut Recovered) {
        if lsn < recovered.end.next_lsn {
            return;
        }
        match mutations(records) {
            Ok(mutations) => {
                for mutation in &mutations {
                    if let crate::mutation::Mutation::Create { generation, .. } = mutation {
                        recovered.next_generation = recovered.next_generation.max(generation.0 + 1);
                    }
                    if recovered.map.apply(mutation, lsn).is_err() {
                        // Only after records were lost: what they began is not there.
                        mark("record without its payload");
                    }
                }
            }
            Err(malformed) => {
                tracing::error!(lsn = lsn.0, %malformed, "a good batch holds bad records");
                recovered.stats.batches_lost += 1;
            }
        }
        (recovered.end.next_lsn, recovered.end.chain) = (lsn.next(), sum);
    }

    /// Takes a scanned segment into the table, with a footer so that it can be read from now on.
    async fn adopt(
        &self,
        head: &SegmentHead,
        file: u64,
        scan: Scan,
        recovered: &mut Recovered,
    ) -> Result<()> {
        let Scan { footer, page, copy } = scan;
        let held = Held::new(head.segment, head.epoch, file, head.identity());
        held.pages.set(page);
        if copy.as_ref() != Some(&footer) {
            let bytes = footer_bytes(&footer, head.identity(), self.driver.pool());
            let offset = u64::from(page) * PAGE as u64;
            if offset + bytes.len() as u64 > self.params.segment_bytes() {
                return Err(Error::corrupt(format!(
                    "a segment leaves no room for its footer: segment={}",
                    head.segment.0
                )));
            }
            let path = self.params.path(&super::files::segment_name(file));
            let write = async {
                let file = self.driver.open(&path, OpenMode::Existing).await?;
                file.write(offset, bytes, Durability::Synced).await
            };
            write.await.map_err(|error| self.failed("sealed", error))?;
        }
        held.footer_durable.set(true);
        let held = recovered.segments.hold(held);
        recovered.segments.keep_sums(&held, footer.sums.into());
        Ok(())
    }

    async fn read_segment(&self, file: u64) -> Result<AlignedBuf> {
        let name = super::files::segment_name(file);
        let open = self
            .driver
            .open(&self.params.path(&name), OpenMode::Existing)
            .await;
        let handle = open.map_err(|error| self.failed("read", error))?;
        let bytes = self.params.segment_bytes() as usize;
        let mut whole = self.driver.pool().take(bytes);
        let mut offset = 0;
        while offset < bytes {
            let len = (bytes - offset).min(READ_BYTES);
            let buf = self.driver.pool().take(len);
            match handle.read(offset as u64, buf).await {
                Ok(buf) => whole[offset..offset + len].copy_from_slice(&buf),
                // Unreadable sectors are judged like wrong ones: by whether they were committed.
                Err(_) => {
                    self.read_pages(&handle, offset, &mut whole[offset..offset + len])
                        .await
                }
            }
            offset += len;
        }
        Ok(whole)
    }

    async fn read_pages(&self, handle: &D::File, offset: usize, out: &mut [u8]) {
        for (index, page) in out.chunks_exact_mut(PAGE).enumerate() {
            let at = (offset + index * PAGE) as u64;
            match handle.read(at, self.driver.pool().take(PAGE)).await {
                Ok(buf) => page.copy_from_slice(&buf),
                Err(_) => page.fill(0),
            }
        }
    }
}

/// Bytes of a segment that are read at once.
const READ_BYTES: usize = 1 << 20;

/// Of segments that an earlier recovery gave up, none counts once the log has gone on without them:
/// along the log epochs never fall.
fn drop_stale(candidates: &mut BTreeMap<SegmentId, Candidate>, segments: &mut Segments) {
    let mut newest = None;
    candidates.retain(|_, candidate| {
        let fresh = newest.is_none_or(|newest| candidate.head.epoch >= newest);
        match fresh {
            true => newest = Some(candidate.head.epoch),
            false => segments.add_free(candidate.file),
        }
        fresh
    });
}

/// A segment's batches so far, and the page where they end.
struct Scan {
    footer: Footer,
    page: u32,
    /// The footer that the segment was sealed with, if it is good.
    copy: Option<Footer>,
}

impl Scan {
    fn new(copy: Option<Footer>) -> Scan {
        Scan {
            footer: Footer {
                sums: vec![0],
                batches: Vec::new(),
            },
            page: 1,
            copy,
        }
    }

    fn take(&mut self, identity: Identity, bytes: &[u8], batch: Batch) {
        let head_page = &bytes[self.page as usize * PAGE..][..PAGE];
        self.footer.sums.push(identity.sum(self.page, head_page));
        self.footer.sums.extend_from_slice(&batch.data_sums);
        self.footer.batches.push(FooterBatch {
            lsn: batch.head.lsn,
            page: self.page,
            sum: batch.sum,
            records: batch.records,
        });
        self.page += 1 + batch.head.data_pages;
    }

    /// A batch as the sealed segment's footer has it, and the page behind it.
    fn from_copy(&self, lsn: Lsn) -> Option<(FooterBatch, u32)> {
        let copy = self.copy.as_ref()?;
        let index = copy.batches.iter().position(|batch| batch.lsn == lsn)?;
        let next = copy.batches.get(index + 1).map(|batch| batch.page);
        Some((
            copy.batches[index].clone(),
            next.unwrap_or(copy.sums.len() as u32),
        ))
    }

    /// Goes to a page past a bad batch. Sums of the pages between come from the footer, if there is
    /// one; without, the pages fail, as they should.
    fn fill(&mut self, until: u32) {
        for page in self.page..until.max(self.page + 1) {
            let sum = self
                .copy
                .as_ref()
                .and_then(|copy| copy.sums.get(page as usize));
            self.footer.sums.push(sum.copied().unwrap_or(0));
        }
        self.page = self.footer.sums.len() as u32;
    }
}

/// A batch whose head is good.
struct Batch {
    head: BatchHead,
    sum: u32,
    records: Vec<u8>,
    data_sums: Vec<u32>,
    /// Whether all its data pages are good, too.
    whole: bool,
}

/// The batch that begins at a page, if its head is good and it is the one expected.
fn read_batch(
    identity: Identity,
    bytes: &[u8],
    page: u32,
    limit: u32,
    (lsn, chain): (Lsn, u32),
) -> Option<Batch> {
    let at = page as usize * PAGE;
    let head_page = &bytes[at..at + PAGE];
    let (head, sum) = BatchHead::parse(identity, page, head_page).ok()?;
    // The chain is not known behind a hole; the number is.
    if head.lsn != lsn || (chain != 0 && head.chain != chain) {
        return None;
    }
    let end = page.checked_add(1)?.checked_add(head.data_pages)?;
    if end > limit {
        return None;
    }
    let data_sums = head.data_sums(head_page);
    let data = &bytes[at + PAGE..end as usize * PAGE];
    let good = |((page, sum), index): ((&[u8], &u32), u32)| identity.sum(index, page) == *sum;
    let whole = data
        .chunks_exact(PAGE)
        .zip(&data_sums)
        .zip(page + 1..)
        .all(good)
        || planted("skip_batch_checksum");
    Some(Batch {
        head,
        sum,
        records: head.records(head_page).to_vec(),
        data_sums,
        whole,
    })
}

/// The latest batch that any good batch of a segment says to have been durable.
fn committed_through(identity: Identity, bytes: &[u8]) -> Lsn {
    let good = (1u32..)
        .zip(bytes.chunks_exact(PAGE).skip(1))
        .filter_map(|(index, page)| {
            let (head, _) = BatchHead::parse(identity, index, page).ok()?;
            Some(head.committed_through)
        });
    good.max().unwrap_or(Lsn(0))
}

/// The footer of a segment, wherever it begins.
fn find_footer(identity: Identity, bytes: &[u8]) -> Option<Footer> {
    let pages = (bytes.len() / PAGE) as u32;
    (1..pages).find_map(|page| {
        let rest = &bytes[page as usize * PAGE..];
        let len = page_ceil(Footer::announced_len(rest)?);
        Footer::parse(identity, page, rest.get(..len)?).ok()
    })
}

/// A checkpoint as it is being read.
struct Loading {
    map: Map,
    segments: Segments,
    end: Option<(LogEnd, u64, u64)>,
    extents: Loader<Mapped>,
    zeroed: Loader<Zeroed>,
}

impl Loading {
    fn new() -> Loading {
        Loading {
            map: Map::new(),
            segments: Segments::default(),
            end: None,
            extents: Loader::new(),
            zeroed: Loader::new(),
        }
    }

    fn take(&mut self, item: Item, params: &Params) -> std::result::Result<(), &'static str> {
        let Loading {
            map,
            segments,
            end,
            extents,
            zeroed,
        } = self;
        match item {
            Item::Start {
                next_lsn,
                chain,
                segment,
                pages,
                next_payload,
                next_generation,
            } => {
                if next_lsn == 0 {
                    return Err("a checkpoint begins nowhere");
                }
                let next_lsn = Lsn(next_lsn);
                let log_end = LogEnd {
                    next_lsn,
                    chain,
                    segment,
                    pages,
                };
                *end = Some((log_end, next_payload, next_generation));
                Ok(())
            }
            Item::Segment {
                segment,
                epoch,
                file,
                pages,
            } => {
                if segments.find(segment).is_some() || pages == 0 {
                    return Err("a checkpoint lists a segment twice, or an empty one");
                }
                let identity = Identity::new(&params.store, params.shard, segment, epoch);
                let held = segments.hold(Held::new(segment, epoch, file, identity));
                held.pages.set(pages);
                held.footer_durable.set(true);
                Ok(())
            }
            Item::ExtentLeaf(entries) => {
                let entry = |(start, len, at)| Mapped::checked(start, len, at);
                let entries: Option<Vec<Mapped>> = entries.into_iter().map(entry).collect();
                let entries = entries.ok_or("a checkpoint holds an impossible extent")?;
                extents.push(NodeRef::Leaf(&entries), &mut map.live)
            }
            Item::ExtentInner(children) => extents.push(NodeRef::Inner(&children), &mut map.live),
            Item::ZeroedLeaf(entries) => {
                let entry = |(start, end)| Zeroed::checked(start, end);
                let entries: Option<Vec<Zeroed>> = entries.into_iter().map(entry).collect();
                let entries = entries.ok_or("a checkpoint holds an impossible range")?;
                zeroed.push(NodeRef::Leaf(&entries), &mut map.live)
            }
            Item::ZeroedInner(children) => zeroed.push(NodeRef::Inner(&children), &mut map.live),
            Item::Payload {
                payload,
                generation,
                id,
                size,
                cut,
                extents: root,
                zeroed: holes,
            } => {
                let payload_value = Payload {
                    id,
                    generation,
                    size,
                    cut,
                    extents: root.map_or(Ok(Tree::new()), |root| extents.tree(root))?,
                    zeroed: holes.map_or(Ok(Tree::new()), |root| zeroed.tree(root))?,
                    changed: Lsn(0),
                };
                map.restore(payload, payload_value)
                    .map_err(|_| "a checkpoint holds a payload twice")
            }
        }
    }

    fn finish(mut self) -> std::result::Result<Recovered, &'static str> {
        let Some((end, next_payload, next_generation)) = self.end else {
            self.give_up();
            return Err("a checkpoint has no beginning");
        };
        self.extents.finish(&mut self.map.live);
        self.zeroed.finish(&mut self.map.live);
        self.map.reserve_numbers(next_payload);
        self.map.assume_shares();
        Ok(Recovered {
            map: self.map,
            segments: self.segments,
            end,
            upkeep: Upkeep::default(),
            stats: Stats::default(),
            next_generation,
        })
    }

    /// A bad checkpoint: what was read of it goes.
    fn give_up(self) {
        let Loading {
            mut map,
            extents,
            zeroed,
            ..
        } = self;
        extents.finish(&mut map.live);
        zeroed.finish(&mut map.live);
    }
}
