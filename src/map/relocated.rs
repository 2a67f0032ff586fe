//! Relocations: what an extent is when the cleaner has moved the bytes that it refers to.

use super::extent::Mapped;
use super::tree::Entry;
use crate::types::Location;
use std::collections::BTreeMap;
use std::ops::Bound;

/// The parts of an extent, with relocated ones at their new place. False if none is.
pub(super) fn substitute(
    relocated: &BTreeMap<Location, (u32, Location)>,
    mapped: &Mapped,
    out: &mut Vec<Mapped>,
) -> bool {
    let (at, len) = (mapped.at(), (mapped.end() - mapped.start()) as u32);
    let segment = at.segment();
    let end = at.offset() + len;
    let before = relocated.range(..=at).next_back();
    let after = relocated.range((Bound::Excluded(at), Bound::Unbounded));
    let mut done = 0;
    for (from, (moved, to)) in before.into_iter().chain(after) {
        if from.segment() > segment || (from.segment() == segment && from.offset() >= end) {
            break;
        }
        if from.segment() < segment || from.offset() + moved <= at.offset() {
            continue;
        }
        // What comes from disk may have been relocated twice; the first counts.
        let start = from.offset().max(at.offset() + done);
        let stop = (from.offset() + moved).min(end);
        if start >= stop {
            continue;
        }
        let logical = |offset: u32| mapped.start() + u64::from(offset - at.offset());
        if logical(start) > mapped.start() + u64::from(done) {
            out.push(mapped.slice(mapped.start() + u64::from(done), logical(start)));
        }
        let place = to.advance(start - from.offset());
        out.push(Mapped::new(logical(start), stop - start, place));
        done = stop - at.offset();
    }
    if done > 0 && done < len {
        out.push(mapped.slice(mapped.start() + u64::from(done), mapped.end()));
    }
    done > 0
}
