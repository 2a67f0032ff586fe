//! A segment as an object of a bucket: a table of its pages' sums, then the pages themselves.
//!
//! The table comes first, in pages that each carry a sum of their own, so that a reader who knows
//! the segment's length finds any page and what to check it with.
//!
//! Invariant: reading any bytes as a table ends in sums or in nothing.

use super::checksum::Identity;
use crate::types::PAGE;

/// Sums in a page of the table; its own comes before them.
const SUMS_PER_PAGE: usize = PAGE / 4 - 1;

/// Set in the number of a table's page, so that none passes for a page of the segment.
const TABLE: u32 = 1 << 31;

/// Pages of the table of a segment of so many pages.
pub(crate) fn table_pages(pages: u32) -> u32 {
    pages.div_ceil(SUMS_PER_PAGE as u32)
}

/// Where a page of a segment begins in its object.
pub(crate) fn page_offset(pages: u32, page: u32) -> u64 {
    u64::from(table_pages(pages) + page) * PAGE as u64
}

/// The table of a segment.
pub(crate) fn table(identity: Identity, sums: &[u32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, sums) in (0u32..).zip(sums.chunks(SUMS_PER_PAGE)) {
        let mut page = vec![0; 4];
        sums.iter()
            .for_each(|sum| page.extend_from_slice(&sum.to_le_bytes()));
        page.resize(PAGE, 0);
        let sum = identity.sum(TABLE | index, &page);
        page[..4].copy_from_slice(&sum.to_le_bytes());
        bytes.extend_from_slice(&page);
    }
    bytes
}

/// The sums of a segment of so many pages, if the table is good.
pub(crate) fn parse_table(identity: Identity, pages: u32, bytes: &[u8]) -> Option<Vec<u32>> {
    let mut sums = Vec::new();
    if bytes.len() != table_pages(pages) as usize * PAGE {
        return None;
    }
    for (index, page) in (0u32..).zip(bytes.chunks_exact(PAGE)) {
        let (own, rest) = page.split_at(4);
        let mut zeroed = page.to_vec();
        zeroed[..4].fill(0);
        if identity.sum(TABLE | index, &zeroed).to_le_bytes() != own {
            return None;
        }
        let words = rest.chunks_exact(4);
        sums.extend(words.map(|word| u32::from_le_bytes(word.try_into().expect("four bytes"))));
    }
    sums.truncate(pages as usize);
    Some(sums)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Epoch, SegmentId, ShardId};

    #[test]
    fn tables_read_back_or_not_at_all() {
        let identity = Identity::new(&[1; 16], ShardId(0), SegmentId(3), Epoch(2));
        let other = Identity::new(&[1; 16], ShardId(0), SegmentId(4), Epoch(2));
        for pages in [1, 1023, 1024, 5000] {
            let sums: Vec<u32> = (0..pages).map(|page| page * 7).collect();
            let bytes = table(identity, &sums);
            assert_eq!(bytes.len() as u64, page_offset(pages, 0));
            assert_eq!(parse_table(identity, pages, &bytes), Some(sums));
            assert_eq!(parse_table(other, pages, &bytes), None);
            assert_eq!(parse_table(identity, pages, &bytes[PAGE..]), None);
            let mut flipped = bytes.clone();
            flipped[bytes.len() - 1] ^= 1;
            assert_eq!(parse_table(identity, pages, &flipped), None);
        }
    }
}
