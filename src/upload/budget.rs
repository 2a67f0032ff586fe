//! How much may be on its way to the bucket at once, whoever it is of: where one shard has all the
//! work, it has all the streams.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes on their way, for the whole store: sixteen streams of 16 MiB, and four segments that are
/// being read, so that no stream waits for the disk.
const BYTES_MAX: u64 = 320 << 20;

/// Bytes that are on their way to the bucket.
#[derive(Default)]
pub(crate) struct Budget(AtomicU64);

impl Budget {
    /// Whether so many bytes more may go.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        self.0.load(Ordering::Relaxed) + bytes <= BYTES_MAX
    }

    /// Bytes are going. Shards that look at the same time may both find room: what that is too much
    /// is no more than a segment each.
    pub(crate) fn take(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes are there, or have failed.
    pub(crate) fn give_back(&self, bytes: u64) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}
