//! The index of a file that keeps what was fetched of a segment: which chunks of it are there.
//!
//! Such a file has the segment's pages where the segment has them, with holes between, behind them
//! its table of sums, as an object has it before them, and last this index, one page.
//!
//! Invariants:
//! 1. The index is a hint. It is written without a sync, and what it says is there is compared with
//!    the segment's sums like everything that is read.
//! 2. Decoding any bytes ends in an index or in nothing.

use super::checksum::Identity;
use super::objects::table_pages;
use crate::types::{PAGE, SEGMENT_BYTES_MAX};

const MAGIC: [u8; 8] = *b"RINGKEPT";

/// Pages of a chunk, the unit in which is fetched and kept: 32 KiB cost hardly more time than one
/// page, and eight times as few requests where reads are near each other.
pub(crate) const CHUNK_PAGES: u32 = 8;

/// Bytes of a chunk.
pub(crate) const CHUNK_BYTES: u64 = CHUNK_PAGES as u64 * PAGE as u64;

/// Bytes before the bits: magic, sum, zeros.
const HEAD: usize = 16;

/// Stands in for the number of the index's page in its sum: no segment or table has such a page.
const PLACE: u32 = u32::MAX;

const _: () = assert!(
    SEGMENT_BYTES_MAX / CHUNK_BYTES / 8 <= (PAGE - HEAD) as u64,
    "the index of the largest segment is one page"
);

/// Where the table of a segment of so many pages begins in the file.
pub(crate) fn table_page(pages: u32) -> u32 {
    pages
}

/// Where its index is.
pub(crate) fn index_page(pages: u32) -> u32 {
    pages + table_pages(pages)
}

/// Which chunks of a segment are kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Present {
    bits: Vec<u8>,
    count: u32,
}

impl Present {
    /// None of a segment of so many pages.
    pub(crate) fn none(pages: u32) -> Present {
        let chunks = pages.div_ceil(CHUNK_PAGES) as usize;
        Present {
            bits: vec![0; chunks.div_ceil(8)],
            count: 0,
        }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    pub(crate) fn has(&self, chunk: u32) -> bool {
        let byte = self.bits.get(chunk as usize / 8);
        byte.is_some_and(|byte| byte >> (chunk % 8) & 1 == 1)
    }

    /// Notes that a chunk is there.
    pub(crate) fn add(&mut self, chunk: u32) {
        if !self.has(chunk) {
            self.bits[chunk as usize / 8] |= 1 << (chunk % 8);
            self.count += 1;
        }
    }

    /// The index as a page.
    pub(crate) fn encode(&self, identity: Identity) -> Vec<u8> {
        let mut page = MAGIC.to_vec();
        page.resize(HEAD, 0);
        page.extend_from_slice(&self.bits);
        page.resize(PAGE, 0);
        let sum = identity.sum(PLACE, &page);
        page[8..12].copy_from_slice(&sum.to_le_bytes());
        page
    }

    /// Reads a page, which may be any bytes, as the index of a segment of so many pages.
    pub(crate) fn decode(identity: Identity, pages: u32, page: &[u8]) -> Option<Present> {
        let mut zeroed = page.to_vec();
        let sum = zeroed.get_mut(8..12)?;
        sum.fill(0);
        let good = identity.sum(PLACE, &zeroed).to_le_bytes() == page[8..12];
        if page.len() != PAGE || page[..8] != MAGIC || !good {
            return None;
        }
        let mut present = Present::none(pages);
        let len = present.bits.len();
        present.bits.copy_from_slice(page.get(HEAD..HEAD + len)?);
        present.count = present.bits.iter().map(|byte| byte.count_ones()).sum();
        Some(present)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Epoch, SegmentId, ShardId};

    #[test]
    fn reads_back_or_not_at_all() {
        let identity = Identity::new(&[1; 16], ShardId(0), SegmentId(3), Epoch(2));
        let other = Identity::new(&[1; 16], ShardId(0), SegmentId(4), Epoch(2));
        let pages = 1000;
        let mut present = Present::none(pages);
        for chunk in [0, 8, 124] {
            present.add(chunk);
            present.add(chunk);
        }
        assert_eq!(present.count(), 3);
        assert!(present.has(124) && !present.has(7) && !present.has(9999));
        let page = present.encode(identity);
        let parse = |bytes: &[u8]| Present::decode(identity, pages, bytes);
        assert_eq!(parse(&page), Some(present));
        assert_eq!(Present::decode(other, pages, &page), None);
        assert_eq!(crate::log::cuts_and_flips(&page, parse), 0);
    }
}
