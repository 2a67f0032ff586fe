//! What stands where in a segment: head, batches, footer, and how each is recognised.
//!
//! ```text
//! page 0      segment head: identity, and how far the segment before it is valid
//! page 1..    batches, each [head page | data pages]
//! page f..    footer: the sums of all pages before it and a copy of every batch's records
//! ```
//!
//! A batch's head page holds, from the front, its header, its records and the sums of its data
//! pages; from the back, small writes' bytes. A durable 100-byte write is one page.
//!
//! Invariants:
//! 1. Nothing here is believed before its checksum, bound to segment and page, has been compared.
//! 2. Parsing any bytes ends in a value or an error: no panic, no allocation by an unchecked
//!    length.

use super::checksum::{Identity, StoreId, crc32c};
use super::record::{self, Malformed};
use crate::mutation::Mutation;
use crate::types::{Epoch, Lsn, NUMBER_MAX, PAGE, SegmentId, ShardId};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Version of the format on disk; another one is refused.
pub(crate) const FORMAT_VERSION: u32 = 1;

const SEGMENT_MAGIC: [u8; 8] = *b"RINGSEG\0";
const BATCH_MAGIC: [u8; 4] = *b"RBAT";
const FOOTER_MAGIC: [u8; 8] = *b"RINGFTR\0";

/// Bytes of a sum in a table.
pub(crate) const SUM: usize = 4;

/// The first page of a segment.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawSegmentHead {
    magic: [u8; 8],
    version: U32,
    sum: U32,
    store: StoreId,
    shard: U16,
    reserved: U16,
    pages: U32,
    segment: U64,
    epoch: U64,
    first_lsn: U64,
    chain: U32,
    previous_pages: U32,
}

/// What a segment says of itself and of the one before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SegmentHead {
    pub(crate) store: StoreId,
    pub(crate) shard: ShardId,
    pub(crate) segment: SegmentId,
    pub(crate) epoch: Epoch,
    /// Pages of the file.
    pub(crate) pages: u32,
    /// The batch that stands on page 1.
    pub(crate) first_lsn: Lsn,
    /// Checksum of the batch before that one.
    pub(crate) chain: u32,
    /// Pages of the previous segment that hold batches which count.
    pub(crate) previous_pages: u32,
}

/// Whether a page is what it should be: the first by its own sum, the others by the table's.
pub(crate) fn is_good_page(identity: Identity, index: u32, page: &[u8], sums: &[u32]) -> bool {
    match index {
        0 => SegmentHead::parse(page).is_ok_and(|head| head.identity() == identity),
        _ => sums.get(index as usize) == Some(&identity.sum(index, page)),
    }
}

impl SegmentHead {
    pub(crate) fn identity(&self) -> Identity {
        Identity::new(&self.store, self.shard, self.segment, self.epoch)
    }

    /// Fills a page with it.
    pub(crate) fn write(&self, page: &mut [u8]) {
        let mut raw = RawSegmentHead {
            magic: SEGMENT_MAGIC,
            version: FORMAT_VERSION.into(),
            sum: 0.into(),
            store: self.store,
            shard: self.shard.0.into(),
            reserved: 0.into(),
            pages: self.pages.into(),
            segment: self.segment.0.into(),
            epoch: self.epoch.0.into(),
            first_lsn: self.first_lsn.0.into(),
            chain: self.chain.into(),
            previous_pages: self.previous_pages.into(),
        };
        raw.sum = crc32c(raw.as_bytes()).into();
        page.fill(0);
        page[..size_of::<RawSegmentHead>()].copy_from_slice(raw.as_bytes());
    }

    /// Reads it, from a page that may hold anything.
    pub(crate) fn parse(page: &[u8]) -> Result<SegmentHead, Malformed> {
        let (mut raw, _) = RawSegmentHead::read_from_prefix(page)
            .map_err(|_| Malformed("a segment head is cut short"))?;
        if raw.magic != SEGMENT_MAGIC {
            return Err(Malformed("not a segment"));
        }
        let sum = raw.sum.get();
        raw.sum = 0.into();
        if crc32c(raw.as_bytes()) != sum {
            return Err(Malformed("a segment head fails its checksum"));
        }
        if raw.version.get() != FORMAT_VERSION {
            return Err(Malformed("a segment is of another version"));
        }
        let sane = SegmentId(raw.segment.get()).is_valid()
            && raw.epoch.get() < NUMBER_MAX
            && (1..NUMBER_MAX).contains(&raw.first_lsn.get());
        if !sane {
            return Err(Malformed("a segment head holds an impossible number"));
        }
        Ok(SegmentHead {
            store: raw.store,
            shard: ShardId(raw.shard.get()),
            segment: SegmentId(raw.segment.get()),
            epoch: Epoch(raw.epoch.get()),
            pages: raw.pages.get(),
            first_lsn: Lsn(raw.first_lsn.get()),
            chain: raw.chain.get(),
            previous_pages: raw.previous_pages.get(),
        })
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawBatchHead {
    magic: [u8; 4],
    sum: U32,
    lsn: U64,
    committed_through: U64,
    chain: U32,
    data_pages: U32,
    records_len: U32,
    inline_start: U32,
    segment: U64,
    epoch: U64,
}

/// Bytes of a batch's header, before its records.
pub(crate) const BATCH_HEAD: usize = size_of::<RawBatchHead>();

/// The head of a batch, without its records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BatchHead {
    pub(crate) lsn: Lsn,
    /// Every batch up to here was durable when this one was written.
    pub(crate) committed_through: Lsn,
    /// Checksum of the batch before it.
    pub(crate) chain: u32,
    pub(crate) data_pages: u32,
    pub(crate) records_len: u32,
    /// Where in the page the bytes of small writes begin.
    pub(crate) inline_start: u32,
    /// The segment it is in, and that segment's epoch: what makes a segment known whose own head is
    /// bad.
    pub(crate) segment: SegmentId,
    pub(crate) epoch: Epoch,
}

impl BatchHead {
    /// Completes a head page in which records and small writes stand already: adds the sums of the
    /// data pages and the header. Returns the page's checksum, the next batch's `chain`.
    pub(crate) fn write(
        &self,
        identity: Identity,
        page_index: u32,
        page: &mut [u8],
        data_sums: &[u32],
    ) -> u32 {
        let sums_start = BATCH_HEAD + self.records_len as usize;
        let sums_end = sums_start + data_sums.len() * SUM;
        assert!(
            sums_end <= self.inline_start as usize,
            "a batch's head page is overfull"
        );
        for (slot, sum) in page[sums_start..sums_end]
            .chunks_exact_mut(SUM)
            .zip(data_sums)
        {
            slot.copy_from_slice(&sum.to_le_bytes());
        }
        page[sums_end..self.inline_start as usize].fill(0);
        let mut raw = RawBatchHead {
            magic: BATCH_MAGIC,
            sum: 0.into(),
            lsn: self.lsn.0.into(),
            committed_through: self.committed_through.0.into(),
            chain: self.chain.into(),
            data_pages: self.data_pages.into(),
            records_len: self.records_len.into(),
            inline_start: self.inline_start.into(),
            segment: self.segment.0.into(),
            epoch: self.epoch.0.into(),
        };
        page[..BATCH_HEAD].copy_from_slice(raw.as_bytes());
        let sum = identity.sum(page_index, page);
        raw.sum = sum.into();
        page[..BATCH_HEAD].copy_from_slice(raw.as_bytes());
        sum
    }

    /// Reads and checks a head page. Returns the head and its checksum.
    pub(crate) fn parse(
        identity: Identity,
        page_index: u32,
        page: &[u8],
    ) -> Result<(BatchHead, u32), Malformed> {
        if page.len() != PAGE {
            return Err(Malformed("a batch head is a page"));
        }
        let (mut raw, _) = RawBatchHead::read_from_prefix(page)
            .map_err(|_| Malformed("a batch head is cut short"))?;
        if raw.magic != BATCH_MAGIC {
            return Err(Malformed("not a batch"));
        }
        let sum = raw.sum.get();
        raw.sum = 0.into();
        let mut zeroed = [0; PAGE];
        zeroed.copy_from_slice(page);
        zeroed[..BATCH_HEAD].copy_from_slice(raw.as_bytes());
        let skipped = crate::marks::planted("skip_batch_checksum");
        if identity.sum(page_index, &zeroed) != sum && !skipped {
            return Err(Malformed("a batch head fails its checksum"));
        }
        let head = BatchHead {
            lsn: Lsn(raw.lsn.get()),
            committed_through: Lsn(raw.committed_through.get()),
            chain: raw.chain.get(),
            data_pages: raw.data_pages.get(),
            records_len: raw.records_len.get(),
            inline_start: raw.inline_start.get(),
            segment: SegmentId(raw.segment.get()),
            epoch: Epoch(raw.epoch.get()),
        };
        // What it promises of others is behind it: replay believes no promise of the future.
        let sane = head.segment.is_valid() && head.epoch.0 < NUMBER_MAX && head.lsn.0 < NUMBER_MAX;
        if !sane || head.committed_through >= head.lsn {
            return Err(Malformed("a batch head holds an impossible number"));
        }
        let sums_end = BATCH_HEAD as u64
            + u64::from(head.records_len)
            + u64::from(head.data_pages) * SUM as u64;
        match sums_end <= u64::from(head.inline_start) && head.inline_start as usize <= PAGE {
            true => Ok((head, sum)),
            false => Err(Malformed("a batch head's lengths do not fit its page")),
        }
    }

    /// Reads a head page of a segment that is not known, if it is good for the one that it names.
    pub(crate) fn parse_as_named(
        store: &StoreId,
        shard: ShardId,
        page_index: u32,
        page: &[u8],
    ) -> Option<(BatchHead, u32)> {
        let (raw, _) = RawBatchHead::read_from_prefix(page).ok()?;
        if raw.magic != BATCH_MAGIC {
            return None;
        }
        let (segment, epoch) = (SegmentId(raw.segment.get()), Epoch(raw.epoch.get()));
        BatchHead::parse(
            Identity::new(store, shard, segment, epoch),
            page_index,
            page,
        )
        .ok()
    }

    /// The records in a head page that `parse` accepted.
    pub(crate) fn records<'a>(&self, page: &'a [u8]) -> &'a [u8] {
        &page[BATCH_HEAD..BATCH_HEAD + self.records_len as usize]
    }

    /// The sums of the data pages, from a head page that `parse` accepted.
    pub(crate) fn data_sums(&self, page: &[u8]) -> Vec<u32> {
        let start = BATCH_HEAD + self.records_len as usize;
        sums_from_bytes(&page[start..start + self.data_pages as usize * SUM])
    }
}

/// The mutations of a batch's records, which a checksum has vouched for.
pub(crate) fn mutations(mut records: &[u8]) -> Result<Vec<Mutation>, Malformed> {
    let mut mutations = Vec::new();
    while !records.is_empty() {
        let (mutation, rest) = record::decode(records)?;
        mutations.push(mutation);
        records = rest;
    }
    Ok(mutations)
}

fn sums_from_bytes(bytes: &[u8]) -> Vec<u32> {
    bytes
        .chunks_exact(SUM)
        .map(|sum| u32::from_le_bytes(sum.try_into().expect("chunks are exact")))
        .collect()
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawFooterHead {
    magic: [u8; 8],
    sum: U32,
    len: U32,
    pages: U32,
    batches: U32,
    committed_through: U64,
    reserved: U64,
}

const FOOTER_HEAD: usize = size_of::<RawFooterHead>();

/// Bytes of a batch's entry in a footer, before its records.
const FOOTER_ENTRY: usize = size_of::<RawFooterEntry>();

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawFooterEntry {
    lsn: U64,
    page: U32,
    sum: U32,
    records_len: U32,
    reserved: U32,
}

/// What a footer says of one batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct FooterBatch {
    pub(crate) lsn: Lsn,
    /// Its head page.
    pub(crate) page: u32,
    /// Its checksum, the `chain` of the next.
    pub(crate) sum: u32,
    pub(crate) records: Vec<u8>,
}

/// What closes a sealed segment: enough to read it and to replay it without its batches' heads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Footer {
    /// The sum of every page before the footer; page 0's is 0, for its head has a sum of its own.
    pub(crate) sums: Vec<u32>,
    pub(crate) batches: Vec<FooterBatch>,
    /// Every batch up to here was durable when the last of these was written.
    pub(crate) committed_through: Lsn,
}

impl Footer {
    /// Of a segment that holds its head, and no batch yet.
    pub(crate) fn new() -> Footer {
        Footer {
            sums: vec![0],
            batches: Vec::new(),
            committed_through: Lsn(0),
        }
    }

    /// Bytes of a footer over `pages` pages and batches with `records_bytes` of records in all.
    pub(crate) fn encoded_len(pages: u32, batches: usize, records_bytes: usize) -> usize {
        FOOTER_HEAD + pages as usize * SUM + batches * FOOTER_ENTRY + records_bytes
    }

    /// Fills `out`, whole pages, of which the first will be the segment's page `sums.len()`.
    pub(crate) fn write(&self, identity: Identity, out: &mut [u8]) {
        let mut bytes = vec![0; FOOTER_HEAD];
        self.sums
            .iter()
            .for_each(|sum| bytes.extend_from_slice(&sum.to_le_bytes()));
        for batch in &self.batches {
            let entry = RawFooterEntry {
                lsn: batch.lsn.0.into(),
                page: batch.page.into(),
                sum: batch.sum.into(),
                records_len: (batch.records.len() as u32).into(),
                reserved: 0.into(),
            };
            bytes.extend_from_slice(entry.as_bytes());
            bytes.extend_from_slice(&batch.records);
        }
        let mut head = RawFooterHead {
            magic: FOOTER_MAGIC,
            sum: 0.into(),
            len: (bytes.len() as u32).into(),
            pages: (self.sums.len() as u32).into(),
            batches: (self.batches.len() as u32).into(),
            committed_through: self.committed_through.0.into(),
            reserved: 0.into(),
        };
        bytes[..FOOTER_HEAD].copy_from_slice(head.as_bytes());
        head.sum = identity.sum(self.sums.len() as u32, &bytes).into();
        bytes[..FOOTER_HEAD].copy_from_slice(head.as_bytes());
        out[..bytes.len()].copy_from_slice(&bytes);
        out[bytes.len()..].fill(0);
    }

    /// Whether a page looks like the first of a footer, and how long the footer would be in bytes.
    pub(crate) fn announced_len(page: &[u8]) -> Option<usize> {
        let (head, _) = RawFooterHead::read_from_prefix(page).ok()?;
        (head.magic == FOOTER_MAGIC).then_some(head.len.get() as usize)
    }

    /// Reads and checks a footer that begins at page `page_index`.
    pub(crate) fn parse(
        identity: Identity,
        page_index: u32,
        bytes: &[u8],
    ) -> Result<Footer, Malformed> {
        let cut = Malformed("a footer is cut short");
        let len = Footer::announced_len(bytes).ok_or(Malformed("not a footer"))?;
        let bytes = bytes.get(..len).ok_or(cut)?;
        let (mut head, _) = RawFooterHead::read_from_prefix(bytes).map_err(|_| cut)?;
        // Before the checksum: a segment full of pages that look like footers, as a payload may
        // hold them, would take the square of its size to read.
        if head.pages.get() != page_index {
            return Err(Malformed(
                "a footer covers other pages than those before it",
            ));
        }
        let mut bytes = bytes.to_vec();
        let sum = head.sum.get();
        head.sum = 0.into();
        bytes[..FOOTER_HEAD].copy_from_slice(head.as_bytes());
        if identity.sum(page_index, &bytes) != sum {
            return Err(Malformed("a footer fails its checksum"));
        }
        let sums_len = head.pages.get() as usize * SUM;
        let (sums, mut rest) = bytes[FOOTER_HEAD..].split_at_checked(sums_len).ok_or(cut)?;
        let mut batches = Vec::new();
        while !rest.is_empty() {
            let (entry, after) = RawFooterEntry::read_from_prefix(rest).map_err(|_| cut)?;
            let records_len = entry.records_len.get() as usize;
            let (records, after) = after.split_at_checked(records_len).ok_or(cut)?;
            batches.push(FooterBatch {
                lsn: Lsn(entry.lsn.get()),
                page: entry.page.get(),
                sum: entry.sum.get(),
                records: records.to_vec(),
            });
            rest = after;
        }
        let committed_through = head.committed_through.get();
        if batches.len() as u64 != u64::from(head.batches.get()) || committed_through >= NUMBER_MAX
        {
            return Err(Malformed("a footer holds an impossible number"));
        }
        Ok(Footer {
            sums: sums_from_bytes(sums),
            batches,
            committed_through: Lsn(committed_through),
        })
    }
}

#[cfg(test)]
mod tests;
