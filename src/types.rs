//! Newtypes for everything that is a number here, so that no two bare integers stand side by side.
//!
//! Invariants:
//! 1. A [`Location`] names one byte of one shard's log for ever: segment ids are never used twice,
//!    so a location that has been freed is never given to other bytes.
//! 2. Page arithmetic rounds explicitly; nothing else here rounds.
//!
//! Deliberately not here: anything that knows what the numbers are for.

use std::fmt;
use std::time::Duration;

/// Unit of checksums, of device transfers and of read atomicity.
///
/// 4 KiB is the largest logical block size of NVMe devices in the field, so aligning to it
/// satisfies O_DIRECT everywhere.
pub(crate) const PAGE: usize = 4096;

/// Largest size of a payload, and largest `offset + len` of an operation.
pub(crate) const PAYLOAD_BYTES_MAX: u64 = 1 << 62;

/// Bits of a [`Location`] that say where in its segment it is; the others name the segment.
const OFFSET_BITS: u32 = 28;

/// Largest segment: what the offset bits of a location can address.
pub(crate) const SEGMENT_BYTES_MAX: u64 = 1 << OFFSET_BITS;

/// Bound of everything that is counted up: batches, epochs, generations, files, payloads.
///
/// What comes from disk is below it, so that counting on never overflows; nothing ever gets this
/// far by itself.
pub(crate) const NUMBER_MAX: u64 = 1 << 62;

/// Bound of segment numbers that come from disk: half of what a [`Location`] can name, so that
/// there are always numbers left to go on with.
pub(crate) const SEGMENT_NUMBER_MAX: u64 = 1 << 35;

/// Rounds up to whole pages, in bytes.
pub(crate) const fn page_ceil(bytes: usize) -> usize {
    bytes.div_ceil(PAGE) * PAGE
}

/// Rounds down to whole pages, in bytes.
pub(crate) const fn page_floor(bytes: usize) -> usize {
    bytes / PAGE * PAGE
}

/// Who keeps a store's local tier: random, made with its directory.
pub(crate) type NodeId = [u8; 16];

/// Number of a shard within its store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct ShardId(pub(crate) u16);

/// Number of a segment within its shard: consecutive, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct SegmentId(pub(crate) u64);

impl SegmentId {
    /// Whether a [`Location`] can name it, and some after it.
    pub(crate) fn is_valid(self) -> bool {
        self.0 < SEGMENT_NUMBER_MAX
    }

    /// The segment after this one.
    pub(crate) fn next(self) -> SegmentId {
        SegmentId(self.0 + 1)
    }
}

/// Sequence number of a batch within its shard's log: consecutive over all segments.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) struct Lsn(pub(crate) u64);

impl Lsn {
    /// The batch after this one.
    pub(crate) fn next(self) -> Lsn {
        Lsn(self.0 + 1)
    }
}

/// An opening for writing, larger than those before it; part of every checksum's identity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Epoch(pub(crate) u64);

/// Epochs before its own that a directory knows.
pub(crate) const ANCESTORS_MAX: usize = 64;

/// The epochs of the openings before, the last one first; 0 where there was none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ancestors(pub(crate) [u64; ANCESTORS_MAX]);

impl Ancestors {
    pub(crate) const NONE: Ancestors = Ancestors([0; ANCESTORS_MAX]);

    pub(crate) fn push(&mut self, epoch: Epoch) {
        self.0.rotate_right(1);
        self.0[0] = epoch.0;
    }

    /// Whether an epoch may have been one of this directory, and not of a copy that has gone its
    /// own way.
    pub(crate) fn may_have(&self, epoch: Epoch) -> bool {
        let oldest = self.0.iter().rev().find(|it| **it > 0);
        self.0.contains(&epoch.0) || oldest.is_none_or(|oldest| epoch.0 < *oldest)
    }
}

/// Internal number of a payload within its shard. A deleted payload's number is never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct PayloadNo(pub(crate) u64);

impl PayloadNo {
    /// The number after this one.
    pub(crate) fn next(self) -> PayloadNo {
        PayloadNo(self.0 + 1)
    }
}

/// Store-wide age of a payload's creation: of two shards that claim one id, the higher one owns it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Generation(pub(crate) u64);

/// A byte of a shard's log: segment and offset in it, packed into 64 bits to keep the map small.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Location(u64);

impl Location {
    /// The byte at `offset` of `segment`.
    pub(crate) fn new(segment: SegmentId, offset: u32) -> Location {
        assert!(
            u64::from(offset) < SEGMENT_BYTES_MAX,
            "offset outside any segment"
        );
        assert!(segment.0 < 1 << (64 - OFFSET_BITS), "segment ids exhausted");
        Location(segment.0 << OFFSET_BITS | u64::from(offset))
    }

    /// The segment it lies in.
    pub(crate) fn segment(self) -> SegmentId {
        SegmentId(self.0 >> OFFSET_BITS)
    }

    /// Bytes from the start of the segment.
    pub(crate) fn offset(self) -> u32 {
        (self.0 & (SEGMENT_BYTES_MAX - 1)) as u32
    }

    /// The location `bytes` further on in the same segment.
    pub(crate) fn advance(self, bytes: u32) -> Location {
        Location::new(self.segment(), self.offset() + bytes)
    }

    /// The packed form, as it stands on disk.
    pub(crate) fn to_bits(self) -> u64 {
        self.0
    }

    /// The inverse of [`Location::to_bits`]; every bit pattern is a location.
    pub(crate) fn from_bits(bits: u64) -> Location {
        Location(bits)
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.segment().0, self.offset())
    }
}

/// A point of the driver's monotonic time, in nanoseconds since an arbitrary start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) struct Nanos(pub(crate) u64);

impl Nanos {
    /// The point `span` later; saturates.
    pub(crate) fn after(self, span: Duration) -> Nanos {
        Nanos(
            self.0
                .saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)),
        )
    }

    /// Time from `earlier` to here, zero if that is not in the past.
    pub(crate) fn since(self, earlier: Nanos) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}
