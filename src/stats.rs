//! Figures: counters, health, latency histograms, and the plain types that carry them to a caller.
//!
//! The only module that names `hdrhistogram`. Deliberately not here: when anything is counted.

use crate::types::Nanos;
use hdrhistogram::Histogram;
use std::fmt;
use std::time::Duration;

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
    /// The local limit, or what the file system has.
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
    /// While a checkpoint is written, what it holds counts, too: see `checkpoints_running`.
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
    /// Pauses of more than 1 ms between two passes of a shard's loop.
    pub shard_stalls: u64,
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
        self.remote_healthy |= remote_healthy;
        self.eviction_suspended |= eviction_suspended;
        self.driver.clone_from(driver);
        self.outage_duration_seconds = self
            .outage_duration_seconds
            .max(other.outage_duration_seconds);
        self.oldest_unsynced_seconds = self
            .oldest_unsynced_seconds
            .max(other.oldest_unsynced_seconds);
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
    /// Bytes that were bad in one tier and have been restored from the other.
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

/// Operations that have a histogram of their own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    ReadHit,
    ReadLocal,
    Write,
    Flush,
    Truncate,
    Punch,
    Delete,
    Copy,
    CowRead,
    Meta,
}

impl Op {
    const ALL: [(Op, &'static str); 10] = [
        (Op::ReadHit, "read_hit"),
        (Op::ReadLocal, "read_local"),
        (Op::Write, "write"),
        (Op::Flush, "flush"),
        (Op::Truncate, "truncate"),
        (Op::Punch, "punch"),
        (Op::Delete, "delete"),
        (Op::Copy, "copy"),
        (Op::CowRead, "cow_read"),
        (Op::Meta, "meta"),
    ];
}

/// Longest latency that is told apart, in nanoseconds; longer ones count as this. One minute.
const LATENCY_MAX_NS: u64 = 60_000_000_000;

/// One histogram per operation. Two digits, always on: 30 KiB each.
pub(crate) struct Latencies(LatencySnapshot);

impl Latencies {
    pub(crate) fn new() -> Latencies {
        let fresh = || Histogram::new_with_bounds(1, LATENCY_MAX_NS, 2).expect("bounds are valid");
        Latencies(LatencySnapshot {
            histograms: Op::ALL.iter().map(|_| fresh()).collect(),
            failed: [0; Op::ALL.len()],
            slow: [0; Op::ALL.len()],
        })
    }

    pub(crate) fn record(&mut self, op: Op, from: Nanos, to: Nanos, succeeded: bool) {
        let span = to.since(from).as_nanos() as u64;
        self.0.histograms[op as usize].saturating_record(span.max(1));
        self.0.failed[op as usize] += u64::from(!succeeded);
    }

    pub(crate) fn note_slow(&mut self, op: Op) {
        self.0.slow[op as usize] += 1;
    }

    pub(crate) fn snapshot(&self) -> LatencySnapshot {
        self.0.clone()
    }
}

/// Latency distributions per operation since the store was opened, over all shards.
#[derive(Clone)]
pub struct LatencySnapshot {
    histograms: Vec<Histogram<u64>>,
    failed: [u64; Op::ALL.len()],
    slow: [u64; Op::ALL.len()],
}

impl LatencySnapshot {
    pub(crate) fn empty() -> LatencySnapshot {
        Latencies::new().snapshot()
    }

    pub(crate) fn merge(&mut self, other: &LatencySnapshot) {
        for (mine, theirs) in self.histograms.iter_mut().zip(&other.histograms) {
            mine.add(theirs)
                .expect("all histograms have the same bounds");
        }
        for (mine, theirs) in self.failed.iter_mut().zip(other.failed) {
            *mine += theirs;
        }
        for (mine, theirs) in self.slow.iter_mut().zip(other.slow) {
            *mine += theirs;
        }
    }

    /// So many more of an operation took so many nanoseconds.
    pub(crate) fn add(&mut self, op: Op, span: u64, count: u64) {
        let span = span.clamp(1, LATENCY_MAX_NS);
        self.histograms[op as usize].saturating_record_n(span, count);
    }

    fn index(operation: &str) -> Option<usize> {
        Op::ALL.iter().position(|(_, name)| *name == operation)
    }

    fn histogram(&self, operation: &str) -> Option<&Histogram<u64>> {
        Some(&self.histograms[LatencySnapshot::index(operation)?])
    }

    /// Names of the operations that are told apart.
    pub fn operations(&self) -> impl Iterator<Item = &'static str> + '_ {
        Op::ALL.iter().map(|(_, name)| *name)
    }

    /// How many of an operation were counted; 0 for an unknown name.
    pub fn count(&self, operation: &str) -> u64 {
        self.histogram(operation).map_or(0, Histogram::len)
    }

    /// How many of these ended in an error; 0 for an unknown name.
    pub fn failed(&self, operation: &str) -> u64 {
        LatencySnapshot::index(operation).map_or(0, |index| self.failed[index])
    }

    /// How many of these took longer than [`Config::slow_op`](crate::Config::slow_op); 0 where
    /// that is not set.
    pub fn slow(&self, operation: &str) -> u64 {
        LatencySnapshot::index(operation).map_or(0, |index| self.slow[index])
    }

    /// How many of an operation took no longer than `span`, to two digits.
    pub fn count_within(&self, operation: &str, span: Duration) -> u64 {
        let span = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        self.histogram(operation).map_or(0, |histogram| {
            histogram.count_between(0, span.min(histogram.high()))
        })
    }

    /// How long all of an operation took together, to two digits.
    pub fn total(&self, operation: &str) -> Duration {
        self.histogram(operation)
            .map_or(Duration::ZERO, |histogram| {
                Duration::from_nanos((histogram.mean() * histogram.len() as f64) as u64)
            })
    }

    /// The latency that a share `quantile` (0 to 1) of an operation did not exceed.
    ///
    /// `None` if none was counted. From the caller's submission to the shard's reply.
    pub fn quantile(&self, operation: &str, quantile: f64) -> Option<Duration> {
        let histogram = self
            .histogram(operation)
            .filter(|histogram| !histogram.is_empty())?;
        Some(Duration::from_nanos(histogram.value_at_quantile(quantile)))
    }

    /// The longest of an operation, `None` if none was counted.
    pub fn max(&self, operation: &str) -> Option<Duration> {
        let histogram = self
            .histogram(operation)
            .filter(|histogram| !histogram.is_empty())?;
        Some(Duration::from_nanos(histogram.max()))
    }
}

impl fmt::Debug for LatencySnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for name in self.operations().filter(|name| self.count(name) > 0) {
            map.entry(
                &name,
                &(self.count(name), self.quantile(name, 0.5), self.max(name)),
            );
        }
        map.finish()
    }
}
