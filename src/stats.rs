//! Figures: counters, health, latency histograms, and the plain types that carry them to a caller.
//!
//! Deliberately not here: when anything is counted.

mod latency;

pub use latency::LatencySnapshot;
pub(crate) use latency::{Ended, Latencies, Op, Requests, Spent, Stage, Verb};

use std::fmt;

/// What the store holds and has done; [`Store::stats`](crate::Store::stats) takes it.
///
/// The first block carries the JSON names of the Go engine that this one succeeds. Sizes are bytes.
/// A block counts once, by its worst state: dirty before local before remote.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Payloads.
    pub file_count: u64,
    /// Blocks with bytes that are not yet durable on this machine.
    pub blocks_dirty: u64,
    /// Blocks with local bytes, none of them dirty.
    pub blocks_local: u64,
    /// Blocks whose bytes are only in the remote.
    pub blocks_remote: u64,
    /// All blocks.
    pub blocks_total: u64,
    /// Bytes of files in the store's directory.
    pub local_disk_used: u64,
    /// The limit of local bytes; 0: none.
    pub local_disk_max: u64,
    /// Memory held by bytes that are not yet durable.
    pub local_mem_used: u64,
    /// The limit of that memory.
    pub local_mem_max: u64,
    /// Entries of the read buffer.
    pub read_buffer_entries: u64,
    /// Bytes in the read buffer.
    pub read_buffer_used: u64,
    /// The limit of those bytes.
    pub read_buffer_max: u64,
    /// Whether there is a remote tier.
    pub has_remote: bool,
    /// Segments that wait to be durable in the remote.
    pub pending_syncs: u64,
    /// Uploads in flight.
    pub pending_uploads: u64,
    /// Segments that have become durable in the remote.
    pub completed_syncs: u64,
    /// Segments that could not be uploaded when it was last tried, and are tried again.
    pub failed_syncs: u64,
    /// Whether the remote answered its last probes; false without one.
    pub remote_healthy: bool,
    /// Whether eviction waits, for the remote or by an operator's word.
    pub eviction_suspended: bool,
    /// Seconds since the remote turned bad; 0 while it is good.
    pub outage_duration_seconds: f64,
    /// Seconds since the oldest segment was begun of those that are not durable in the remote, or
    /// since the opening if it is older; 0 without one.
    pub oldest_unsynced_seconds: f64,
    /// Reads that failed because the remote could not be reached.
    pub offline_reads_blocked: u64,

    /// Bytes of all payloads, holes included.
    pub used_size: u64,
    /// Payloads, as the capacity report counts them.
    pub content_count: u64,
    /// The local limit, or what the file system has; 0 where it does not say.
    pub total_size: u64,
    /// What of it is free.
    pub available_size: u64,
    /// `used_size / content_count`, 0 when there are none.
    pub average_size: u64,

    /// Name of the driver in use: `uring`, `threads` or `sim`.
    pub driver: String,
    /// Shards.
    pub shards: u64,
    /// Bytes that live payloads refer to; a byte shared by clones counts at least once.
    ///
    /// While a checkpoint is written, what it holds counts, too: see `checkpoints_running`. And
    /// what a large payload gave up, as it was deleted or cut, ceases to count in steps.
    pub live_bytes: u64,
    /// Segment files in use.
    pub segments: u64,
    /// Segments that take no more batches, those included that are only in the remote.
    pub segments_sealed: u64,
    /// Segment files ready to be used again.
    pub segments_free: u64,
    /// Bytes of local segments that no payload refers to, heads of batches included.
    pub garbage_bytes: u64,
    /// With a remote: bytes of the log that it does not have yet.
    pub unsynced_bytes: u64,
    /// Payload bytes written by callers since the store was opened.
    pub written_bytes: u64,
    /// Payload bytes read by callers since the store was opened.
    pub read_bytes: u64,
    /// Bytes read ahead of their readers since the store was opened.
    pub prefetched_bytes: u64,
    /// Of these, bytes that a reader came to while they were in the read buffer.
    pub prefetch_used_bytes: u64,
    /// Bytes written to the device since the store was opened.
    pub device_written_bytes: u64,
    /// Bytes read from the device since the store was opened.
    pub device_read_bytes: u64,
    /// Batches of the log written since the store was opened.
    pub batches: u64,
    /// Data syncs, of writes and of files, since the store was opened.
    pub device_syncs: u64,
    /// Live bytes moved by cleaning since the store was opened.
    pub cleaned_bytes: u64,
    /// Bytes read from the device to move them; part of `device_read_bytes`.
    pub cleaning_read_bytes: u64,
    /// Segments freed by cleaning since the store was opened.
    pub cleaned_segments: u64,
    /// Checkpoints written since the store was opened.
    pub checkpoints: u64,
    /// Checkpoints that are being written now. Until they are done they keep what payloads have
    /// ceased to refer to, and `live_bytes` counts it.
    pub checkpoints_running: u64,
    /// Bytes of those checkpoints.
    pub checkpoint_bytes: u64,
    /// Extents in the map; shared ones count once.
    pub extents: u64,
    /// Memory of the map's trees.
    pub map_bytes: u64,
    /// Segments whose local files were given up since the store was opened.
    pub evicted_segments: u64,
    /// Bytes fetched from the remote since the store was opened.
    pub remote_read_bytes: u64,
    /// Bytes of files that keep what was fetched from the remote.
    pub kept_bytes: u64,
    /// Bad bytes that were written anew from the remote since the store was opened.
    pub bytes_repaired: u64,
    /// Pages that failed their checksum.
    pub checksum_failures: u64,
    /// Pages, or tables of their sums, that came from the remote and failed theirs; each is asked
    /// for again.
    pub remote_checksum_failures: u64,
    /// Batches whose records could not be read at recovery.
    pub batches_lost: u64,
    /// Writers that are held back by a full store now.
    pub stalled_writers: u64,
    /// Passes of a shard's loop that took more than 1 ms, since the store was opened.
    pub shard_stalls: u64,
    /// Seconds that the shards' loops had work for, together, since the store was opened: neither
    /// parked, nor looking for work as [`Config::idle_spin`](crate::Config::idle_spin) lets them.
    pub shard_busy_seconds: f64,
    /// Shards that refuse writes after a failed write or sync.
    pub shards_poisoned: u64,
    /// The figures of each shard, in the shards' order; theirs are empty here.
    pub per_shard: Vec<Stats>,
}

impl Stats {
    /// Adds a shard's figures to the store's.
    pub(crate) fn merge(&mut self, other: &Stats) {
        let Stats {
            has_remote,
            remote_healthy,
            eviction_suspended,
            driver,
            ..
        } = other;
        self.has_remote |= has_remote;
        // For all shards, or not at all.
        self.remote_healthy = *remote_healthy && (self.shards == 0 || self.remote_healthy);
        self.eviction_suspended |= eviction_suspended;
        self.driver.clone_from(driver);
        self.outage_duration_seconds = self
            .outage_duration_seconds
            .max(other.outage_duration_seconds);
        self.oldest_unsynced_seconds = self
            .oldest_unsynced_seconds
            .max(other.oldest_unsynced_seconds);
        self.shard_busy_seconds += other.shard_busy_seconds;
        for (name, count) in other.counts() {
            let sum = self.count_mut(name);
            *sum = sum.saturating_add(count);
        }
        self.average_size = self.used_size.checked_div(self.content_count).unwrap_or(0);
    }
}

macro_rules! counts {
    ($($name:ident)*) => {
        impl Stats {
            /// Every whole-number figure with its name, in a fixed order.
            pub fn counts(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }

            fn count_mut(&mut self, name: &str) -> &mut u64 {
                match name {
                    $(stringify!($name) => &mut self.$name,)*
                    _ => unreachable!("names come from `counts`"),
                }
            }
        }
    };
}

counts! {
    file_count blocks_dirty blocks_local blocks_remote blocks_total local_disk_used local_disk_max
    local_mem_used local_mem_max read_buffer_entries read_buffer_used read_buffer_max pending_syncs
    pending_uploads completed_syncs failed_syncs offline_reads_blocked used_size content_count
    total_size available_size average_size shards live_bytes segments segments_sealed segments_free
    garbage_bytes unsynced_bytes written_bytes read_bytes prefetched_bytes prefetch_used_bytes
    device_written_bytes device_read_bytes batches
    device_syncs cleaned_bytes cleaning_read_bytes cleaned_segments checkpoints checkpoints_running
    checkpoint_bytes extents map_bytes checksum_failures batches_lost
    remote_checksum_failures stalled_writers shard_stalls shards_poisoned evicted_segments
    remote_read_bytes kept_bytes bytes_repaired
}

/// How well the store can do its work.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum HealthStatus {
    /// Everything works.
    Healthy,
    /// It serves, but something is missing: the remote, or bytes lost to corruption.
    Degraded,
    /// Writes fail on at least one shard.
    Unhealthy,
    /// It could not be found out, for example because the store is closed.
    Unknown,
}

impl fmt::Display for HealthStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HealthStatus::Healthy => "healthy",
            HealthStatus::Degraded => "degraded",
            HealthStatus::Unhealthy => "unhealthy",
            HealthStatus::Unknown => "unknown",
        })
    }
}

/// The worst of the tiers, with what is wrong in words.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Health {
    /// The worst of what follows.
    pub status: HealthStatus,
    /// The local tier.
    pub local: HealthStatus,
    /// The remote tier; `None` without one.
    pub remote: Option<HealthStatus>,
    /// One line for each thing that is wrong.
    pub reasons: Vec<String>,
}

/// What `flush` says when everything it covers is durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Flushed {
    /// Whether all of the payload's bytes are durable in the remote, too.
    pub finalized: bool,
    /// Orders the flushes of one shard.
    pub lsn: u64,
}

/// Whether a range of a payload holds data, and where.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum ExtentKind {
    /// Reads zero, takes no space.
    Hole,
    /// Data in memory, not yet durable.
    Dirty,
    /// Data on the local disk.
    Local,
    /// Data only in the remote.
    Remote,
}

/// A range of a payload.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// What is there.
    pub kind: ExtentKind,
}

/// What [`Store::verify`](crate::Store::verify) found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Payloads looked at.
    pub payloads: u64,
    /// Live bytes read and checked; what payloads share counts once.
    pub bytes_checked: u64,
    /// Bytes of objects in the remote that were read and checked, of segments that are here, too.
    pub remote_bytes_checked: u64,
    /// Bytes of such objects that could not be had, as the remote is away.
    pub remote_bytes_unreachable: u64,
    /// Bytes that were bad in one tier and have been made anew from the other: whole pages here,
    /// all that is live in a segment there.
    pub bytes_repaired: u64,
    /// Ranges that are bad in every tier.
    pub corrupt: Vec<(crate::PayloadId, Extent)>,
}

/// What a segment's file is used for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum SegmentState {
    /// The log is written to it.
    Open,
    /// It is full, and never changes until it is free.
    Sealed,
    /// It holds nothing, and waits to be used again.
    Free,
}

impl fmt::Display for SegmentState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SegmentState::Open => "open",
            SegmentState::Sealed => "sealed",
            SegmentState::Free => "free",
        })
    }
}

/// A segment file; [`Store::segments`](crate::Store::segments) lists them.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Segment {
    /// The shard whose log it is part of.
    pub shard: u64,
    /// Its number in that log, never used twice; `None` for a free file.
    pub number: Option<u64>,
    /// Its file, relative to the store's directory.
    pub file: String,
    /// How often the store had been opened when it was begun; 0 for a free file.
    pub epoch: u64,
    /// What it is used for.
    pub state: SegmentState,
    /// Pages of 4 KiB that are in use, its footer not counted.
    pub pages: u64,
    /// Bytes of it that payloads refer to, as [`Stats::live_bytes`] counts them.
    pub live_bytes: u64,
}

/// What stands in a segment's file; [`Store::dump_segment`](crate::Store::dump_segment) reads it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct SegmentDump {
    /// The segment.
    pub segment: Segment,
    /// Its batches, in the order in which they stand.
    pub batches: Vec<BatchDump>,
    /// Pages that should be the head of a batch and are not, with the reason.
    pub unreadable: Vec<(u64, String)>,
}

/// One batch of a segment: what became durable together.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct BatchDump {
    /// Its number in the shard's log.
    pub lsn: u64,
    /// Page of its head.
    pub page: u64,
    /// Pages of data behind its head.
    pub data_pages: u64,
    /// Every batch up to this one was durable when it was written.
    pub committed_through: u64,
    /// Its records, one line each.
    pub records: Vec<String>,
}
