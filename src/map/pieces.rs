//! What a range of a payload consists of: bytes at places of the log, zeros, and nothing.

use super::tree::Entry;
use super::{Map, Payload};
use crate::types::Location;

/// What a range of a payload holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// Bytes, at this place of the log.
    At(Location),
    /// Zeros that were asked for.
    Zero,
    /// Nothing was ever written there: zeros, or what a copy-on-write source has.
    Absent,
}

/// A range of a payload and what it holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) found: Found,
}

/// Pieces of a range, in order. Most reads find one: it needs no allocation.
pub(crate) type Pieces = smallvec::SmallVec<[Piece; 1]>;

impl Map {
    /// What `[offset, offset + len)` of a payload holds, without gaps, in order. The size is not
    /// looked at: past it, everything is absent.
    pub(crate) fn pieces(payload: &Payload, offset: u64, len: u64) -> Pieces {
        let end = offset + len;
        let mut pieces = Pieces::new();
        let mut at = offset;
        let fill = |pieces: &mut Pieces, from: u64, to: u64| {
            let mut at = from;
            for zero in payload.zeroed.range(from, to) {
                let (start, end) = (zero.start(), zero.end());
                if start > at {
                    pieces.push(Piece {
                        offset: at,
                        len: start - at,
                        found: Found::Absent,
                    });
                }
                pieces.push(Piece {
                    offset: start,
                    len: end - start,
                    found: Found::Zero,
                });
                at = end;
            }
            if to > at {
                pieces.push(Piece {
                    offset: at,
                    len: to - at,
                    found: Found::Absent,
                });
            }
        };
        for mapped in payload.extents.range(offset, end) {
            if mapped.start() > at {
                fill(&mut pieces, at, mapped.start());
            }
            let len = mapped.end() - mapped.start();
            pieces.push(Piece {
                offset: mapped.start(),
                len,
                found: Found::At(mapped.at()),
            });
            at = mapped.end();
        }
        if end > at {
            fill(&mut pieces, at, end);
        }
        pieces
    }
}
