//! Checksums that bind bytes to the place they were written for.
//!
//! The sum of a page is its CRC-32C, combined by exclusive or with the CRC-32C of its identity:
//! store, shard, segment, epoch and page number. Identities that differ in up to 32 consecutive
//! bits always have different sums, others with probability 1 - 2^-32, so a page read from the
//! wrong place, or left over from an earlier use of a file, is refused like a damaged one. Keeping
//! the two apart lets page sums be combined into the plain CRC-32C of a whole object.

use crate::types::{Epoch, SegmentId, ShardId};

/// Name of a store: random, made with it.
pub(crate) type StoreId = [u8; 16];

/// CRC-32C of some bytes.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// What a segment's pages are bound to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity(u32);

impl Identity {
    pub(crate) fn new(
        store: &StoreId,
        shard: ShardId,
        segment: SegmentId,
        epoch: Epoch,
    ) -> Identity {
        let mut bytes = [0; 34];
        bytes[..16].copy_from_slice(store);
        bytes[16..18].copy_from_slice(&shard.0.to_le_bytes());
        // Planted bug: what an earlier use of a file left in it passes for what belongs there.
        if !crate::marks::planted("no_generation_in_checksum") {
            bytes[18..26].copy_from_slice(&segment.0.to_le_bytes());
            bytes[26..].copy_from_slice(&epoch.0.to_le_bytes());
        }
        Identity(crc32c(&bytes))
    }

    /// The sum of `bytes`, which begin at page `page` of the segment.
    pub(crate) fn sum(self, page: u32, bytes: &[u8]) -> u32 {
        let place = u64::from(page) << 32 | u64::from(self.0);
        crc32c(bytes) ^ crc32c(&place.to_le_bytes())
    }
}
