//! The log's pen: gives every byte and record its place, and says what has to be written where.
//!
//! It writes nothing itself. The shard asks whether something fits, places bytes and records, and
//! takes closed batches, which it writes, in whatever order the device finishes them.
//!
//! Invariants:
//! 1. A location given by `place` is final, from before the byte is durable until it is cleaned.
//! 2. Batches have consecutive numbers over all segments, and each carries its predecessor's
//!    checksum.
//! 3. A segment always has room left for its footer.
//! 4. What is recorded between `fit` and the next `close` is in one batch, hence atomic.

use super::checksum::{Identity, StoreId};
use super::record;
use super::segment::{BATCH_HEAD, BatchHead, Footer, FooterBatch, SUM, SegmentHead};
use crate::buf::{AlignedBuf, BufPool};
use crate::mutation::Mutation;
use crate::types::{Epoch, Location, Lsn, PAGE, SegmentId, ShardId, page_ceil};
use bytes::Bytes;

/// Where a shard's log is, and whose it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogParams {
    pub(crate) store: StoreId,
    pub(crate) shard: ShardId,
    pub(crate) epoch: Epoch,
    /// Pages of a segment file.
    pub(crate) segment_pages: u32,
    /// Pages of a batch, its head page included, at most.
    pub(crate) batch_pages_max: u32,
}

/// Where the next batch goes on from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LogEnd {
    pub(crate) next_lsn: Lsn,
    /// Checksum of the last batch.
    pub(crate) chain: u32,
    /// The last segment that was begun; the next one has the next number.
    pub(crate) segment: SegmentId,
    /// Its pages that hold batches.
    pub(crate) pages: u32,
}

/// What has to happen before something can be recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fit {
    /// Nothing: it goes into the open batch.
    Now,
    /// A batch has to be begun: there is none.
    BeginBatch,
    /// The open batch has to be closed first.
    CloseBatch,
    /// A segment has to be begun; the last one is full, or there is none.
    BeginSegment,
}

/// A closed batch, to be written at its place.
#[derive(Debug)]
pub(crate) struct ClosedBatch {
    pub(crate) segment: SegmentId,
    pub(crate) lsn: Lsn,
    /// First page in the segment.
    pub(crate) page: u32,
    pub(crate) bytes: Bytes,
}

struct OpenBatch {
    buf: AlignedBuf,
    /// Page of the segment that the buffer begins at.
    first_page: u32,
    /// Bytes of the buffer before the head page: the segment's head, with its first batch.
    lead: usize,
    /// Records so far.
    records: Vec<u8>,
    /// Where in the head page the bytes of small writes begin.
    inline_start: usize,
    /// End of the data in the buffer.
    data_end: usize,
}

impl OpenBatch {
    fn data_start(&self) -> usize {
        self.lead + PAGE
    }

    fn data_pages(&self) -> usize {
        (page_ceil(self.data_end) - self.data_start()) / PAGE
    }
}

struct OpenSegment {
    id: SegmentId,
    identity: Identity,
    /// The head that its first batch takes along; `None` once it has.
    head: Option<SegmentHead>,
    /// First page behind the last closed batch.
    next_page: u32,
    footer: Footer,
    records_bytes: usize,
    batch: Option<OpenBatch>,
}

/// The writer of one shard's log.
pub(crate) struct Log {
    params: LogParams,
    end: LogEnd,
    open: Option<OpenSegment>,
}

impl Log {
    /// Goes on behind `end`; the first thing it asks for is a segment.
    pub(crate) fn new(params: LogParams, end: LogEnd) -> Log {
        assert!(params.batch_pages_max >= 2, "a batch has a head and data");
        Log {
            params,
            end,
            open: None,
        }
    }

    /// The number that the open batch has, or the next one will have.
    pub(crate) fn next_lsn(&self) -> Lsn {
        self.end.next_lsn
    }

    /// Where the log stands when the open batch is left out.
    pub(crate) fn end(&self) -> LogEnd {
        self.end
    }

    /// The segment that is open for writing.
    pub(crate) fn open_segment(&self) -> Option<SegmentId> {
        self.open.as_ref().map(|open| open.id)
    }

    /// Most bytes of one write that a batch can hold.
    pub(crate) fn data_bytes_max(&self) -> usize {
        (self.params.batch_pages_max as usize - 1) * PAGE
    }

    /// How much of `len` bytes goes into the log next, at most `max`: what the open segment has
    /// room for, if it has any, so that no segment is left half empty because all did not fit.
    ///
    /// What is left over is a page at least: smaller pieces share their pages with other payloads.
    pub(crate) fn data_bytes_next(&self, len: usize, max: usize, records_len: usize) -> usize {
        let largest = self.data_bytes_max().min(max);
        let room = self.open.as_ref().map_or(0, |open| {
            // A page more for the head of a batch of its own.
            let used = open.next_page as usize + self.open_batch_pages() + 1;
            self.room(open, records_len).saturating_sub(used) * PAGE
        });
        let part = match room {
            0 => len.min(largest),
            room => len.min(largest).min(room),
        };
        match len - part {
            0 | PAGE.. => part,
            _ if part > PAGE => part - PAGE,
            _ => len.min(largest),
        }
    }

    /// Bytes of data that a segment holds when it is filled with the largest batches.
    pub(crate) fn data_bytes_of_segment(&self) -> u64 {
        let pages = self.params.segment_pages;
        let footer = Footer::encoded_len(pages, 1, 0).div_ceil(PAGE) as u32;
        let batches = pages - 1 - footer;
        let heads = batches.div_ceil(self.params.batch_pages_max);
        u64::from(batches - heads) * PAGE as u64
    }

    /// Bytes of a segment's file.
    pub(crate) fn segment_bytes(&self) -> u64 {
        u64::from(self.params.segment_pages) * PAGE as u64
    }

    /// Pages of the open segment that no closed batch holds, those of its footer included.
    pub(crate) fn pages_left(&self) -> u64 {
        let next = self.open.as_ref().map(|open| open.next_page);
        next.map_or(0, |next| u64::from(self.params.segment_pages - next))
    }

    /// Whether the open batch holds anything.
    pub(crate) fn has_open_batch(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.batch.is_some())
    }

    /// Pages that the open batch would write if it were closed now.
    pub(crate) fn open_batch_pages(&self) -> usize {
        let batch = self.open.as_ref().and_then(|open| open.batch.as_ref());
        batch.map_or(0, |batch| batch.data_pages() + 1)
    }

    /// Bytes of memory that a new batch takes.
    pub(crate) fn batch_bytes(&self) -> u64 {
        // One page more for the segment's head, which the first batch takes along.
        (self.params.batch_pages_max as u64 + 1) * PAGE as u64
    }

    /// What has to happen before `records_len` bytes of records and `data_len` of data can go in.
    pub(crate) fn fit(&self, records_len: usize, data_len: usize) -> Fit {
        assert!(
            data_len <= self.data_bytes_max(),
            "the caller splits large writes"
        );
        let Some(open) = &self.open else {
            return Fit::BeginSegment;
        };
        let Some(batch) = &open.batch else {
            let data_pages = data_len.div_ceil(PAGE);
            return match open.next_page as usize + 1 + data_pages <= self.room(open, records_len) {
                true => Fit::BeginBatch,
                false => Fit::BeginSegment,
            };
        };
        let (inline, data_end) = placed(batch, data_len, records_len);
        let inline_start = batch.inline_start - if inline { data_len } else { 0 };
        let data_pages = (page_ceil(data_end) - batch.data_start()) / PAGE;
        let records_len = batch.records.len() + records_len;
        let front = BATCH_HEAD + records_len + data_pages * SUM;
        let end_page = open.next_page as usize + 1 + data_pages;
        let fits = front <= inline_start
            && data_end <= batch.buf.len()
            && end_page <= self.room(open, records_len);
        if fits { Fit::Now } else { Fit::CloseBatch }
    }

    /// First page that batches may not reach, given `records_len` bytes of records in the open one.
    fn room(&self, open: &OpenSegment, records_len: usize) -> usize {
        let pages = self.params.segment_pages;
        let batches = open.footer.batches.len() + 1;
        let footer = Footer::encoded_len(pages, batches, open.records_bytes + records_len);
        (pages as usize).saturating_sub(footer.div_ceil(PAGE))
    }

    /// Begins the next segment. Whatever was open must have been closed and sealed.
    pub(crate) fn begin_segment(&mut self) -> SegmentId {
        assert!(
            self.open.is_none(),
            "a segment is sealed before the next begins"
        );
        let id = self.end.segment.next();
        let head = SegmentHead {
            store: self.params.store,
            shard: self.params.shard,
            segment: id,
            epoch: self.params.epoch,
            pages: self.params.segment_pages,
            first_lsn: self.end.next_lsn,
            chain: self.end.chain,
            previous_pages: self.end.pages,
        };
        self.open = Some(OpenSegment {
            id,
            identity: head.identity(),
            head: Some(head),
            next_page: 1,
            footer: Footer::new(),
            records_bytes: 0,
            batch: None,
        });
        (self.end.segment, self.end.pages) = (id, 1);
        id
    }

    /// Begins a batch in the open segment, in memory from `pool`.
    pub(crate) fn begin_batch(&mut self, pool: &BufPool) {
        let open = self
            .open
            .as_mut()
            .expect("`fit` asked for a batch in an open segment");
        assert!(open.batch.is_none(), "one batch is open at a time");
        let lead = if open.head.is_some() { PAGE } else { 0 };
        let room = (self.params.segment_pages - open.next_page).min(self.params.batch_pages_max);
        let buf = pool.take(lead + room as usize * PAGE);
        open.batch = Some(OpenBatch {
            buf,
            first_page: open.next_page - (lead / PAGE) as u32,
            lead,
            records: Vec::new(),
            inline_start: PAGE,
            data_end: lead + PAGE,
        });
    }

    /// Puts bytes into the open batch and says where they are from now on. `fit` was asked for them
    /// and `records_len` bytes of records, which follow.
    pub(crate) fn place(&mut self, data: &[u8], records_len: usize) -> Location {
        let open = self.open.as_mut().expect("`fit` was asked");
        let batch = open.batch.as_mut().expect("`fit` was asked");
        let (inline, data_end) = placed(batch, data.len(), records_len);
        let start = match inline {
            true => {
                batch.inline_start -= data.len();
                batch.lead + batch.inline_start
            }
            false => {
                let start = data_end - data.len();
                batch.buf[batch.data_end..start].fill(0);
                batch.data_end = data_end;
                start
            }
        };
        batch.buf[start..start + data.len()].copy_from_slice(data);
        Location::new(open.id, batch.first_page * PAGE as u32 + start as u32)
    }

    /// Puts a record into the open batch, which it fits.
    pub(crate) fn record(&mut self, mutation: &Mutation) {
        let open = self.open.as_mut().expect("`fit` was asked");
        let batch = open.batch.as_mut().expect("`fit` was asked");
        record::encode(mutation, &mut batch.records);
    }

    /// Where the open batch begins.
    pub(crate) fn open_place(&self) -> Option<Location> {
        let open = self.open.as_ref()?;
        let batch = open.batch.as_ref()?;
        Some(Location::new(open.id, batch.first_page * PAGE as u32))
    }

    /// Copies bytes that lie in the open batch; `None` if they do not.
    pub(crate) fn read_open(&self, at: Location, len: u32) -> Option<Bytes> {
        let open = self.open.as_ref().filter(|open| open.id == at.segment())?;
        let batch = open.batch.as_ref()?;
        let start = (at.offset() as usize).checked_sub(batch.first_page as usize * PAGE)?;
        let bytes = batch.buf.get(start..start + len as usize)?;
        Some(Bytes::copy_from_slice(bytes))
    }

    /// Closes the open batch and says what to write; `None` if there is none.
    pub(crate) fn close_batch(&mut self, committed_through: Lsn) -> Option<ClosedBatch> {
        let open = self.open.as_mut()?;
        let OpenBatch {
            mut buf,
            first_page,
            lead,
            records,
            inline_start,
            data_end,
        } = open.batch.take()?;
        let end = page_ceil(data_end);
        buf[data_end..end].fill(0);
        if let Some(head) = open.head.take() {
            head.write(&mut buf[..PAGE]);
        }
        let head_page = first_page + (lead / PAGE) as u32;
        let data_pages = (end - lead - PAGE) / PAGE;
        let (front, data) = buf.split_at_mut(lead + PAGE);
        let data_sums: Vec<u32> = data[..data_pages * PAGE]
            .chunks_exact(PAGE)
            .zip(head_page + 1..)
            .map(|(page, index)| open.identity.sum(index, page))
            .collect();
        let head = BatchHead {
            lsn: self.end.next_lsn,
            committed_through,
            chain: self.end.chain,
            data_pages: data_pages as u32,
            records_len: records.len() as u32,
            inline_start: inline_start as u32,
            segment: open.id,
            epoch: self.params.epoch,
        };
        let page = &mut front[lead..];
        page[BATCH_HEAD..BATCH_HEAD + records.len()].copy_from_slice(&records);
        let sum = head.write(open.identity, head_page, page, &data_sums);

        open.footer.sums.push(open.identity.sum(head_page, page));
        open.footer.sums.extend_from_slice(&data_sums);
        open.footer.committed_through = committed_through;
        open.records_bytes += records.len();
        let batch = FooterBatch {
            lsn: head.lsn,
            page: head_page,
            sum,
            records,
        };
        open.footer.batches.push(batch);
        open.next_page = head_page + 1 + data_pages as u32;
        self.end = LogEnd {
            next_lsn: head.lsn.next(),
            chain: sum,
            segment: open.id,
            pages: open.next_page,
        };
        buf.shorten(end);
        Some(ClosedBatch {
            segment: open.id,
            lsn: head.lsn,
            page: first_page,
            bytes: buf.freeze(),
        })
    }

    /// The sums of the pages of the open segment that have been closed into batches.
    pub(crate) fn open_sums(&self) -> &[u32] {
        self.open.as_ref().map_or(&[], |open| &open.footer.sums)
    }

    /// Ends the open segment, whose batches are closed: its footer's first page and its bytes.
    pub(crate) fn seal(&mut self, pool: &BufPool) -> Option<(Footer, u32, Bytes)> {
        let open = self.open.take()?;
        assert!(
            open.batch.is_none(),
            "a segment's last batch is closed before it is sealed"
        );
        let bytes = footer_bytes(&open.footer, open.identity, pool);
        Some((open.footer, open.next_page, bytes))
    }
}

/// A footer as it is written.
pub(crate) fn footer_bytes(footer: &Footer, identity: Identity, pool: &BufPool) -> Bytes {
    let records = footer.batches.iter().map(|batch| batch.records.len()).sum();
    let pages = footer.sums.len() as u32;
    let mut buf = pool.take(Footer::encoded_len(pages, footer.batches.len(), records));
    footer.write(identity, &mut buf);
    buf.freeze()
}

/// Where `len` more bytes go, with `records_len` bytes of records to follow: into the head page or
/// not, and where the data then ends.
fn placed(batch: &OpenBatch, len: usize, records_len: usize) -> (bool, usize) {
    if len >= PAGE {
        return (false, page_ceil(batch.data_end) + len);
    }
    let front = BATCH_HEAD + batch.records.len() + records_len + batch.data_pages() * SUM;
    if front + len <= batch.inline_start {
        return (true, batch.data_end);
    }
    // A small write does not straddle pages unless it has to: one page less to read.
    let start = match batch.data_end % PAGE + len > PAGE {
        true => page_ceil(batch.data_end),
        false => batch.data_end,
    };
    (false, start + len)
}
