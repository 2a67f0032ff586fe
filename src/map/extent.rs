//! The two kinds of entry of a payload's map: bytes that are in the log, and bytes that read zero.
//!
//! It alone knows which numbers make an entry up. How they are kept in memory is the tree's.
//!
//! Invariants:
//! 1. An entry is never empty and never reaches beyond [`PAYLOAD_BYTES_MAX`].
//! 2. A [`Mapped`] lies in one segment, and does not reach beyond [`SEGMENT_BYTES_MAX`] in it.
//! 3. Both are byte-exact: nothing here rounds to pages.
//!
//! Deliberately not here: how an entry looks on disk (`log`), and what overlaps what (`tree`).

use crate::map::tree::{Entry, Numbers};
use crate::types::{Location, PAYLOAD_BYTES_MAX, SEGMENT_BYTES_MAX, SegmentId};
use std::fmt;

/// Bytes of a payload that are found in the log, one after the other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapped {
    start: u64,
    len: u32,
    at: Location,
}

impl Mapped {
    /// `[start, start + len)` of the payload is at `at`, if that respects the invariants: it is how
    /// what comes from disk is checked.
    pub(crate) fn checked(start: u64, len: u32, at: Location) -> Option<Mapped> {
        let end = start.checked_add(u64::from(len))?;
        let end_in_segment = u64::from(at.offset()) + u64::from(len);
        let valid = len > 0 && end <= PAYLOAD_BYTES_MAX && end_in_segment <= SEGMENT_BYTES_MAX;
        valid.then_some(Mapped { start, len, at })
    }

    /// `[start, start + len)` of the payload is at `at`.
    pub(crate) fn new(start: u64, len: u32, at: Location) -> Mapped {
        Mapped::checked(start, len, at).expect("an extent within its payload and its segment")
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// Where its first byte is.
    pub(crate) fn at(&self) -> Location {
        self.at
    }
}

impl Entry for Mapped {
    fn start(&self) -> u64 {
        self.start
    }

    fn end(&self) -> u64 {
        self.start() + u64::from(self.len)
    }

    fn slice(&self, start: u64, end: u64) -> Mapped {
        assert!(self.start() <= start && start < end && end <= self.end());
        // Both differences are at most `self.len`, so that they fit.
        let skipped = (start - self.start()) as u32;
        Mapped::new(start, (end - start) as u32, self.at().advance(skipped))
    }

    fn join(&self, next: &Mapped) -> Option<Mapped> {
        let (at, next_at) = (self.at(), next.at());
        let continues = self.end() == next.start()
            && at.segment() == next_at.segment()
            && u64::from(at.offset()) + u64::from(self.len) == u64::from(next_at.offset());
        // Within one segment the sum cannot exceed SEGMENT_BYTES_MAX, which fits.
        continues.then(|| Mapped {
            len: self.len + next.len,
            ..*self
        })
    }

    fn numbers(&self) -> Numbers {
        let (offset, segment) = (self.at.offset(), self.at.segment());
        [self.start, self.len.into(), offset.into(), segment.0]
    }

    fn from_numbers([start, len, offset, segment]: Numbers) -> Mapped {
        // Length and offset are of 32 bits: they come from `numbers`.
        Mapped {
            start,
            len: len as u32,
            at: Location::new(SegmentId(segment), offset as u32),
        }
    }
}

impl fmt::Debug for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}@{:?}", self.start(), self.len, self.at())
    }
}

/// Bytes of a payload that were zeroed explicitly, whatever a source below it may hold.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Zeroed {
    start: u64,
    end: u64,
}

impl Zeroed {
    /// `[start, end)` reads zero, if that respects the invariants.
    pub(crate) fn checked(start: u64, end: u64) -> Option<Zeroed> {
        (start < end && end <= PAYLOAD_BYTES_MAX).then_some(Zeroed { start, end })
    }

    /// `[start, end)` reads zero.
    pub(crate) fn new(start: u64, end: u64) -> Zeroed {
        Zeroed::checked(start, end).expect("a zeroed range within its payload")
    }
}

impl Entry for Zeroed {
    fn start(&self) -> u64 {
        self.start
    }

    fn end(&self) -> u64 {
        self.end
    }

    fn slice(&self, start: u64, end: u64) -> Zeroed {
        assert!(self.start <= start && start < end && end <= self.end);
        Zeroed { start, end }
    }

    fn join(&self, next: &Zeroed) -> Option<Zeroed> {
        (self.end == next.start).then_some(Zeroed {
            start: self.start,
            end: next.end,
        })
    }

    fn numbers(&self) -> Numbers {
        [self.start, self.end - self.start, 0, 0]
    }

    fn from_numbers([start, len, ..]: Numbers) -> Zeroed {
        let end = start + len;
        Zeroed { start, end }
    }
}

impl fmt::Debug for Zeroed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{} zero", self.start, self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SegmentId;

    fn at(segment: u64, offset: u32) -> Location {
        Location::new(SegmentId(segment), offset)
    }

    #[test]
    fn mapped_is_exact() {
        let start = PAYLOAD_BYTES_MAX - 7;
        let last = (SEGMENT_BYTES_MAX - 7) as u32;
        let mapped = Mapped::new(start, 7, at((1 << 36) - 1, last));
        assert_eq!((mapped.start(), mapped.end()), (start, PAYLOAD_BYTES_MAX));
        assert_eq!(mapped.at(), at((1 << 36) - 1, last));
        let part = mapped.slice(start + 2, start + 5);
        assert_eq!(part, Mapped::new(start + 2, 3, at((1 << 36) - 1, last + 2)));
    }

    #[test]
    fn mapped_joins_only_its_exact_continuation() {
        let first = Mapped::new(100, 10, at(3, 50));
        let cases = [
            (Mapped::new(110, 5, at(3, 60)), true),
            (Mapped::new(111, 5, at(3, 60)), false),
            (Mapped::new(110, 5, at(3, 61)), false),
            (Mapped::new(110, 5, at(4, 60)), false),
        ];
        for (next, joins) in cases {
            let joined = joins.then(|| Mapped::new(100, 15, at(3, 50)));
            assert_eq!(first.join(&next), joined, "{next:?}");
        }
        // The end of one segment is not the start of the next, though their bits are adjacent.
        let last = Mapped::new(0, 4, at(3, (SEGMENT_BYTES_MAX - 4) as u32));
        assert_eq!(last.join(&Mapped::new(4, 4, at(4, 0))), None);
    }

    #[test]
    fn what_breaks_the_invariants_is_refused() {
        let last = (SEGMENT_BYTES_MAX - 1) as u32;
        assert_eq!(Mapped::checked(0, 0, at(1, 0)), None);
        assert_eq!(Mapped::checked(u64::MAX, 1, at(1, 0)), None);
        assert_eq!(Mapped::checked(PAYLOAD_BYTES_MAX, 1, at(1, 0)), None);
        assert_eq!(Mapped::checked(0, 2, at(1, last)), None);
        assert_eq!(Mapped::checked(0, u32::MAX, at(1, 1)), None);
        assert_eq!(Zeroed::checked(5, 5), None);
        assert_eq!(Zeroed::checked(6, 5), None);
        assert_eq!(Zeroed::checked(6, PAYLOAD_BYTES_MAX + 1), None);
    }

    #[test]
    fn zeroed_ranges_join_when_adjacent() {
        let first = Zeroed::new(3, 9);
        assert_eq!(first.join(&Zeroed::new(9, 12)), Some(Zeroed::new(3, 12)));
        assert_eq!(first.join(&Zeroed::new(10, 12)), None);
        assert_eq!(first.slice(4, 5), Zeroed::new(4, 5));
    }
}
