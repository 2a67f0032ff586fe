//! A checkpoint while it is read: its items become a map, or it is refused.
//!
//! Invariants:
//! 1. Nothing in it is believed because its checksum is right: numbers are in range, ranges are
//!    possible, and what it says fits together.
//! 2. A checkpoint that is refused leaves nothing.
//!
//! Deliberately not here: where it is read from, and which one counts; see `recover`.

use super::Params;
use super::checkpoint::Upkeep;
use super::recover::Recovered;
use crate::log::checkpoint::Item;
use crate::log::checksum::Identity;
use crate::log::writer::LogEnd;
use crate::map::extent::{Mapped, Zeroed};
use crate::map::tree::{Loader, NodeRef, Tree};
use crate::map::{Map, Payload};
use crate::residency::{Held, Segments};
use crate::stats::Stats;
use crate::types::{Lsn, NUMBER_MAX, PAYLOAD_BYTES_MAX};
use std::cell::Cell;
use std::collections::BTreeSet;

/// A checkpoint as it is being read.
pub(super) struct Loading {
    map: Map,
    segments: Segments,
    end: Option<(LogEnd, u64, u64)>,
    past_lost: bool,
    extents: Loader<Mapped>,
    zeroed: Loader<Zeroed>,
}

impl Loading {
    pub(super) fn new() -> Loading {
        Loading {
            map: Map::new(),
            segments: Segments::default(),
            end: None,
            past_lost: false,
            extents: Loader::new(),
            zeroed: Loader::new(),
        }
    }

    pub(super) fn take(
        &mut self,
        item: Item,
        params: &Params,
    ) -> std::result::Result<(), &'static str> {
        let Loading {
            map,
            segments,
            end,
            past_lost,
            extents,
            zeroed,
        } = self;
        match item {
            Item::Start {
                next_lsn,
                chain,
                segment,
                pages,
                next_payload,
                next_generation,
                next_file,
                past_lost: lost,
            } => {
                *past_lost = lost;
                segments.number_files_from(next_file);
                let numbers = [next_lsn, next_payload, next_generation];
                let sane = numbers.iter().all(|number| *number < NUMBER_MAX);
                if next_lsn == 0 || !sane || !segment.is_valid() {
                    return Err("a checkpoint begins nowhere");
                }
                let log_end = LogEnd {
                    next_lsn: Lsn(next_lsn),
                    chain,
                    segment,
                    pages,
                };
                *end = Some((log_end, next_payload, next_generation));
                Ok(())
            }
            Item::Segment {
                segment,
                epoch,
                file,
                pages,
                lsns,
                uploaded,
            } => {
                let somewhere = match file {
                    Some(file) => file < NUMBER_MAX,
                    None => uploaded,
                };
                let numbers = lsns.0.0 < NUMBER_MAX && lsns.1.0 < NUMBER_MAX;
                let sane = segment.is_valid() && pages > 0 && somewhere && numbers;
                if segments.find(segment).is_some() || !sane {
                    return Err("a checkpoint lists a segment twice, or an impossible one");
                }
                let identity = Identity::new(&params.store, params.shard, segment, epoch);
                let held = Held::new(segment, epoch, file, identity, lsns.0);
                let held = segments.hold(held);
                held.lsns.set(lsns);
                if uploaded {
                    held.set_uploaded(0);
                }
                held.pages.set(pages);
                held.footer_durable.set(true);
                Ok(())
            }
            Item::Policy { payload, policy } => map
                .restore_policy(payload, policy)
                .map_err(|_| "a checkpoint has a policy for no payload"),
            Item::ExtentLeaf(entries) => {
                let entries = checked(entries, |(start, len, at)| Mapped::checked(start, len, at))?;
                extents.push(NodeRef::Leaf(&entries), &mut map.live)
            }
            Item::ExtentInner(children) => extents.push(NodeRef::Inner(&children), &mut map.live),
            Item::ZeroedLeaf(entries) => {
                let entries = checked(entries, |(start, end)| Zeroed::checked(start, end))?;
                zeroed.push(NodeRef::Leaf(&entries), &mut map.live)
            }
            Item::ZeroedInner(children) => zeroed.push(NodeRef::Inner(&children), &mut map.live),
            Item::Payload {
                payload,
                generation,
                id,
                size,
                cut,
                extents: root,
                zeroed: holes,
            } => {
                let payload_value = Payload {
                    id,
                    generation,
                    size,
                    cut,
                    extents: root.map_or(Ok(Tree::new()), |root| extents.tree(root))?,
                    zeroed: holes.map_or(Ok(Tree::new()), |root| zeroed.tree(root))?,
                    // In this checkpoint at the latest.
                    changed: end.map_or(Lsn(0), |(end, ..)| Lsn(end.next_lsn.0 - 1)),
                    blocks: Cell::new(None),
                };
                if payload.0 >= NUMBER_MAX || !is_sane(&payload_value) {
                    map.release(payload_value);
                    return Err("a checkpoint holds an impossible payload");
                }
                map.restore(payload, payload_value)
                    .map_err(|_| "a checkpoint holds a payload twice")
            }
        }
    }

    pub(super) fn finish(mut self) -> std::result::Result<Recovered, &'static str> {
        let Some((end, next_payload, next_generation)) = self.end else {
            self.give_up();
            return Err("a checkpoint has no beginning");
        };
        // The log goes on behind all of them, and writes to no file that holds one.
        let known = self.segments.iter().filter_map(|held| held.file());
        let known: BTreeSet<u64> = known.collect();
        let last = self.segments.iter().next_back().map(|held| held.id);
        if known.len() < self.segments.local() || last > Some(end.segment) {
            self.give_up();
            return Err("a checkpoint lists a file twice, or a segment that is yet to come");
        }
        self.extents.finish(&mut self.map.live);
        self.zeroed.finish(&mut self.map.live);
        self.map.reserve_numbers(next_payload);
        self.map.assume_shares();
        Ok(Recovered {
            map: self.map,
            segments: self.segments,
            end,
            upkeep: Upkeep::behind(self.past_lost),
            stats: Stats::default(),
            next_generation,
            kept: Default::default(),
        })
    }

    /// A bad checkpoint: what was read of it goes.
    pub(super) fn give_up(self) {
        let Loading {
            mut map,
            extents,
            zeroed,
            ..
        } = self;
        extents.finish(&mut map.live);
        zeroed.finish(&mut map.live);
    }
}

/// Entries as they stand in a checkpoint, if every one is possible.
fn checked<T, E>(
    entries: Vec<T>,
    check: impl Fn(T) -> Option<E>,
) -> std::result::Result<Vec<E>, &'static str> {
    let entries: Option<Vec<E>> = entries.into_iter().map(check).collect();
    entries.ok_or("a checkpoint holds an impossible range")
}

/// Whether a payload of a checkpoint is one that the map could have had.
fn is_sane(payload: &Payload) -> bool {
    let past = payload.extents.range(payload.size, u64::MAX).next();
    past.is_none() && payload.size <= PAYLOAD_BYTES_MAX && payload.generation.0 < NUMBER_MAX
}

/// Loads items as they stand in a checkpoint, goes over all that they make, and lets it go again.
#[cfg(any(fuzzing, test))]
pub(crate) fn load_checkpoint(items: Vec<Item>, params: &Params) {
    use crate::mutation::Mutation;
    use crate::types::{Location, PayloadNo};
    let mut loading = Loading::new();
    for item in items {
        if loading.take(item, params).is_err() {
            loading.give_up();
            return;
        }
    }
    let Ok(mut recovered) = loading.finish() else {
        return;
    };
    let (map, end) = (&mut recovered.map, recovered.end);
    map.finish_replay();
    // The log goes on behind these, and so do new payloads and new files.
    let _ = (
        end.next_lsn.next(),
        Location::new(end.segment.next(), 0),
        map.next_payload().0 + 1,
        recovered.next_generation + 1,
        recovered.segments.new_file(),
    );
    let numbers: Vec<PayloadNo> = map
        .payloads_from(PayloadNo(0))
        .map(|(number, payload)| {
            assert!(payload.size <= PAYLOAD_BYTES_MAX);
            let past = payload.extents.range(payload.size, u64::MAX).next();
            assert!(past.is_none(), "no extent reaches past its payload's size");
            Map::pieces(payload, 0, payload.size);
            number
        })
        .collect();
    for payload in numbers {
        map.apply(&Mutation::Delete { payload }, end.next_lsn)
            .expect("it is there");
    }
    map.live.lose_discarded(usize::MAX);
    assert_eq!((map.live.total(), map.live.extents()), (0, 0));
}
