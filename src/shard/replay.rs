//! Replay: what the segments behind the checkpoint hold, and where the log ends.
//!
//! A sealed segment's footer has a copy of its records, so a long tail is replayed without reading
//! its data. A footer proves nothing about the batches before it, which the device may have taken
//! in any order; what proves them is `committed_through` of something later. Where a batch is bad,
//! the same question decides: if it was promised to be durable this is corruption, its records are
//! taken from the footer if that is good, else counted as lost, and replay goes on behind it. If
//! not, it is a torn tail: the log ends before it, and goes on in a new segment, whose head says
//! so.
//!
//! Invariants:
//! 1. A batch is applied only if it is whole, or proven to have been durable.
//! 2. Batches are applied in the order of their numbers, each once.
//! 3. Whatever is taken over is durable before the shard is opened: a process that was killed
//!    leaves writes behind that can be read, and yet be lost with the power.

use super::candidates::{Candidate, Candidates};
use super::files::segment_name;
use super::recover::{Recovered, Recovery};
use super::takeover::pieces;
use crate::buf::AlignedBuf;
use crate::error::{Error, Result};
use crate::io::{Driver, DriverFile, OpenMode};
use crate::log::checksum::Identity;
use crate::log::segment::{BatchHead, Footer, FooterBatch, SegmentHead, mutations};
use crate::log::writer::footer_bytes;
use crate::marks::{mark, planted};
use crate::mutation::Mutation;
use crate::residency::{Held, Segments};
use crate::types::{Lsn, PAGE, SegmentId, page_ceil};
use std::collections::BTreeMap;

impl<D: Driver> Recovery<'_, D> {
    /// Applies what the segments behind the checkpoint hold.
    pub(super) async fn replay(
        &self,
        mut candidates: Candidates,
        recovered: &mut Recovered,
    ) -> Result<()> {
        drop_stale(&mut candidates, &mut recovered.segments);
        // A checkpoint is written when all that it covers is durable.
        let covered = Lsn(recovered.end.next_lsn.0 - 1);
        let proven = covered.max(self.find_proof(&mut candidates).await?);
        while let Some((id, candidate)) = candidates.pop_first() {
            let next = recovered.end.next_lsn;
            if recovered.segments.find(id).is_some() {
                recovered.segments.add_free(candidate.file);
                continue;
            }
            let first = candidate.head.first_lsn;
            let chain = recovered.end.chain;
            let chained = [chain, 0].contains(&candidate.head.chain) || chain == 0;
            if id != recovered.end.segment && !(first == next && chained) {
                if first <= next || proven < next {
                    // Nothing says that what is missing in between was ever promised: the log ended
                    // before, and these are batches that the device took out of order.
                    mark("segments behind a tear dropped");
                    recovered.segments.add_free(candidate.file);
                    let files = candidates.values().map(|candidate| candidate.file);
                    files.for_each(|file| recovered.segments.add_free(file));
                    return Ok(());
                }
                mark("segments of the tail are missing");
                recovered.stats.batches_lost += first.0 - next.0;
                recovered.go_on(first, candidate.head.chain);
            }
            self.replay_segment(candidate, &candidates, proven, recovered)
                .await?;
        }
        Ok(())
    }

    /// The latest batch that anything in these segments says to have been durable. Reads footers,
    /// and whole segments where there is none: the last one, as a rule.
    async fn find_proof(&self, candidates: &mut Candidates) -> Result<Lsn> {
        let ends: BTreeMap<SegmentId, u32> = candidates
            .values()
            .map(|next| (SegmentId(next.head.segment.0 - 1), next.head.previous_pages))
            .collect();
        let mut proven = Lsn(0);
        for (id, candidate) in candidates.iter_mut() {
            if let Some(&page) = ends.get(id) {
                candidate.footer_page = Some(page);
            }
            let through = match self.read_footer(candidate).await {
                Some(footer) => footer.committed_through,
                None => {
                    let bytes = self.read_segment(candidate.file).await?;
                    committed_through(candidate.head.identity(), &bytes)
                }
            };
            proven = proven.max(through);
        }
        Ok(proven)
    }

    /// A sealed segment's footer, if it is good. It is read twice rather than kept: a long tail has
    /// many, and they hold all its records.
    async fn read_footer(&self, candidate: &Candidate) -> Option<Footer> {
        let page = candidate.footer_page?;
        let path = self.params.path(&segment_name(candidate.file));
        let file = self.driver.open(&path, OpenMode::Existing).await.ok()?;
        let offset = u64::from(page) * PAGE as u64;
        let room = self
            .params
            .segment_bytes()
            .checked_sub(offset)
            .filter(|room| *room > 0)?;
        let first = file
            .read(offset, self.driver.pool().take(PAGE))
            .await
            .ok()?;
        let len = page_ceil(Footer::announced_len(&first)?);
        if len as u64 > room {
            return None;
        }
        let whole = match len > PAGE {
            true => file.read(offset, self.driver.pool().take(len)).await.ok()?,
            false => first,
        };
        Footer::parse(candidate.head.identity(), page, &whole).ok()
    }

    async fn replay_segment(
        &self,
        candidate: Candidate,
        later: &Candidates,
        proven: Lsn,
        recovered: &mut Recovered,
    ) -> Result<()> {
        let Candidate { head, file, .. } = candidate;
        // One whose first batch was never promised may be torn, and is no failure.
        if candidate.damaged && head.first_lsn <= proven {
            mark("segment known by its batches");
            recovered.stats.checksum_failures += 1;
        }
        let footer = self.read_footer(&candidate).await;
        let limit = left_over_from(later);
        if let Some(footer) = footer.filter(|footer| is_run(footer, &head, proven, limit)) {
            mark("segment replayed from its footer");
            for batch in &footer.batches {
                self.apply(&batch.records, batch.lsn, batch.sum, recovered);
            }
            let page = footer.sums.len() as u32;
            (recovered.end.segment, recovered.end.pages) = (head.segment, page);
            return self
                .adopt(
                    &head,
                    file,
                    Scan {
                        page,
                        copy: Some(footer.clone()),
                        footer,
                        bytes: None,
                    },
                    proven,
                    recovered,
                )
                .await;
        }
        let scan = self.scan(&head, file, later, proven, recovered).await?;
        match scan.footer.batches.is_empty() {
            // Its first batch never arrived whole: there is nothing in it.
            true => recovered.segments.add_free(file),
            false => self.adopt(&head, file, scan, proven, recovered).await?,
        }
        Ok(())
    }

    /// Reads a segment's batches, applies what is new, and finds where they end.
    async fn scan(
        &self,
        head: &SegmentHead,
        file: u64,
        later: &Candidates,
        proven: Lsn,
        recovered: &mut Recovered,
    ) -> Result<Scan> {
        let bytes = self.read_segment(file).await?;
        let identity = head.identity();
        let pages = (bytes.len() / PAGE) as u32;
        // The next segments know how far this one counts; what is behind that is left over.
        let left_over = left_over_from(later);
        let limit = later
            .get(&head.segment.next())
            .map_or(pages, |next| next.head.previous_pages.clamp(1, pages));
        let mut scan = Scan {
            footer: Footer::new(),
            page: 1,
            copy: find_footer(identity, &bytes),
            bytes: None,
        };
        let (mut next, mut chain) = (head.first_lsn, head.chain);
        while scan.page < limit && next < left_over {
            match read_batch(identity, &bytes, scan.page, limit, (next, chain)) {
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
                    let behind = later.values().next();
                    let behind = behind.map(|next| (next.head.first_lsn, next.head.chain));
                    let bad = Bad {
                        bytes: &bytes,
                        identity,
                        limit,
                        next,
                        last: Lsn(proven.0.min(left_over.0 - 1)),
                        behind,
                    };
                    let before = scan.page;
                    (next, chain) = self.step_over(&bad, &mut scan, recovered);
                    if scan.page == before {
                        break;
                    }
                }
            }
        }
        (recovered.end.segment, recovered.end.pages) = (head.segment, scan.page);
        scan.bytes = Some(bytes);
        Ok(scan)
    }

    /// Goes past a committed batch whose head is bad: with its records from the footer, or without.
    /// Returns what is expected next. Where nothing good is left, the scan stays where it is.
    fn step_over(&self, bad: &Bad<'_>, scan: &mut Scan, recovered: &mut Recovered) -> (Lsn, u32) {
        mark("hole ruled corruption");
        recovered.stats.checksum_failures += 1;
        if let Some((batch, until)) = scan.copied_batch(bad.next) {
            mark("records taken from a footer");
            self.apply(&batch.records, bad.next, batch.sum, recovered);
            scan.fill(until.min(bad.limit));
            let expected = (bad.next.next(), batch.sum);
            scan.footer.batches.push(batch);
            return expected;
        }
        let good = |page: u32| {
            let at = page as usize * PAGE;
            let (head, _) = BatchHead::parse(bad.identity, page, &bad.bytes[at..at + PAGE]).ok()?;
            (head.lsn > bad.next && head.lsn <= bad.last.next()).then_some((page, head))
        };
        let expected = match (scan.page + 1..bad.limit).find_map(good) {
            Some((page, head)) => {
                scan.fill(page);
                (head.lsn, head.chain)
            }
            // Nothing good is left here: the segment ends before the bad batch, and the log goes on
            // behind what was promised.
            None => bad.behind.unwrap_or((bad.last.next(), 0)),
        };
        // What the checkpoint holds is not lost with its records.
        let first = bad.next.max(recovered.end.next_lsn);
        recovered.stats.batches_lost += expected.0.0.saturating_sub(first.0);
        if expected.0 > recovered.end.next_lsn {
            recovered.go_on(expected.0, expected.1);
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
                    if let Mutation::Create { generation, .. } = mutation {
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

    /// Takes a segment into the table, durable and with a footer, so that it can be read from now
    /// on.
    async fn adopt(
        &self,
        head: &SegmentHead,
        file: u64,
        scan: Scan,
        proven: Lsn,
        recovered: &mut Recovered,
    ) -> Result<()> {
        let Scan {
            footer,
            page,
            copy,
            bytes,
        } = scan;
        let same = |copy: &Footer| copy.sums == footer.sums && copy.batches == footer.batches;
        let sealed = copy.as_ref().is_some_and(same);
        let offset = u64::from(page) * PAGE as u64;
        let last = footer_bytes(&footer, head.identity(), self.driver.pool());
        if offset + last.len() as u64 > self.params.segment_bytes() {
            return Err(Error::corrupt(format!(
                "a segment leaves no room for its footer: segment={}",
                head.segment.0
            )));
        }
        let last = (offset, last);
        let unproven = footer.batches.iter().find(|batch| batch.lsn > proven);
        let unproven = unproven.filter(|_| !planted("believe_what_is_found"));
        let mut changed = Vec::new();
        let mut moved = None;
        if let Some(first) = unproven {
            // Read anew it might be worse than what was judged.
            let mut bytes = bytes.expect("what is not proven was scanned");
            head.write(&mut bytes[..PAGE]);
            bytes.shorten(offset as usize);
            let bytes = bytes.freeze();
            moved = self.copy_out(&bytes, &last, recovered).await?;
            // The segment's head was in the same write as its first batch.
            let from = if first.page == 1 { 0 } else { first.page };
            changed.extend(pieces(&bytes, u64::from(from) * PAGE as u64));
        }
        let file = match moved {
            Some(copy) => {
                recovered.segments.add_free(file);
                copy
            }
            None => {
                changed.extend((!sealed).then_some(last));
                self.persist(file, changed).await?;
                file
            }
        };
        let held = Held::new(
            head.segment,
            head.epoch,
            Some(file),
            head.identity(),
            head.first_lsn,
        );
        held.pages.set(page);
        let last = footer
            .batches
            .last()
            .map_or(head.first_lsn, |last| last.lsn.next());
        held.lsns.set((head.first_lsn, last));
        held.footer_durable.set(true);
        let held = recovered.segments.hold(held);
        recovered.segments.keep_sums(&held, footer.sums.into());
        Ok(())
    }
}

/// Of segments that an earlier recovery gave up, none counts once the log has gone on without them:
/// along the log epochs never fall.
fn drop_stale(candidates: &mut Candidates, segments: &mut Segments) {
    let mut newest = segments.iter().map(|held| held.epoch).max();
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
    /// The segment as it was judged, if it was read.
    bytes: Option<AlignedBuf>,
}

impl Scan {
    fn take(&mut self, identity: Identity, bytes: &[u8], batch: Batch) {
        let head_page = &bytes[self.page as usize * PAGE..][..PAGE];
        self.footer.sums.push(identity.sum(self.page, head_page));
        self.footer.sums.extend_from_slice(&batch.data_sums);
        self.footer.committed_through = self
            .footer
            .committed_through
            .max(batch.head.committed_through);
        self.footer.batches.push(FooterBatch {
            lsn: batch.head.lsn,
            page: self.page,
            sum: batch.sum,
            records: batch.records,
        });
        self.page += 1 + batch.head.data_pages;
    }

    /// A batch as the sealed segment's footer has it, and the page behind it.
    fn copied_batch(&self, lsn: Lsn) -> Option<(FooterBatch, u32)> {
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

/// A place where a committed batch is bad, and what is known around it.
struct Bad<'a> {
    bytes: &'a [u8],
    identity: Identity,
    limit: u32,
    next: Lsn,
    /// The last batch that was proven and may be here.
    last: Lsn,
    /// What the next segment begins with.
    behind: Option<(Lsn, u32)>,
}

/// The batch with which later segments begin: where the log has gone on without what an earlier one
/// holds behind a tear. Segments in between may be gone.
fn left_over_from(later: &Candidates) -> Lsn {
    let firsts = later.values().map(|candidate| candidate.head.first_lsn);
    firsts.min().unwrap_or(Lsn(u64::MAX))
}

/// Whether a footer lists a segment's batches without a gap, all of them proven to be durable, and
/// none left over.
fn is_run(footer: &Footer, head: &SegmentHead, proven: Lsn, left_over: Lsn) -> bool {
    let mut expected = head.first_lsn;
    for batch in &footer.batches {
        if batch.lsn != expected {
            return false;
        }
        expected = expected.next();
    }
    expected > head.first_lsn && Lsn(expected.0 - 1) <= proven && expected <= left_over
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

/// How many good batches a segment has, one behind the other.
pub(super) fn whole_batches(head: &SegmentHead, bytes: &[u8]) -> usize {
    let pages = (bytes.len() / PAGE) as u32;
    let (mut page, mut expected, mut count) = (1, (head.first_lsn, head.chain), 0);
    while page < pages {
        let batch = read_batch(head.identity(), bytes, page, pages, expected);
        let Some(batch) = batch.filter(|batch| batch.whole) else {
            break;
        };
        page += 1 + batch.head.data_pages;
        expected = (batch.head.lsn.next(), batch.sum);
        count += 1;
    }
    count
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
