//! The map of one shard: which payloads there are, and where their bytes lie.
//!
//! The truth about content. It changes only through [`Map::apply`], in live operation and in replay
//! alike; the `plan_*` functions say which mutations an operation is, and change nothing.
//!
//! Invariants:
//! 1. A named payload has exactly one number, and a number at most one name.
//! 2. No extent reaches past its payload's size.
//! 3. An extent's bytes keep their logical offset for ever, in every payload that refers to them:
//!    copies and splices keep offsets. So relocating a range of the log is one substitution.
//! 4. `live` counts every extent of every distinct tree node; a segment whose count is zero is
//!    referred to by nothing.
//!
//! Deliberately not here: bytes, files, time, and whether a location is in memory or on disk.

pub(crate) mod extent;
pub(crate) mod live;
mod pieces;
mod relocated;
pub(crate) mod tree;

use crate::mutation::Mutation;
use crate::payload_id::PayloadId;
use crate::retention::RetentionPolicy;
use crate::types::{Generation, Location, Lsn, PAYLOAD_BYTES_MAX, PayloadNo, SegmentId};
use extent::{Mapped, Zeroed};
use live::Live;
use relocated::substitute;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Bound;
use tree::{Entry, Tree};

pub(crate) use pieces::{Found, Piece, Pieces};

/// Tree nodes that a mutation itself loses, of those that were given up: well below 10 us. What is
/// larger is lost in steps, as whoever owns the map likes.
const NODES_AT_ONCE: usize = 4;

/// One payload.
pub(crate) struct Payload {
    pub(crate) id: Option<PayloadId>,
    pub(crate) generation: Generation,
    pub(crate) size: u64,
    /// The smallest size that it was ever truncated to: below it, and only there, bytes that were
    /// never written let a copy-on-write source show through.
    pub(crate) cut: u64,
    pub(crate) extents: Tree<Mapped>,
    /// Ranges without bytes that were punched: zero also where a source would show through.
    pub(crate) zeroed: Tree<Zeroed>,
    /// The batch of its last change.
    pub(crate) changed: Lsn,
    /// Blocks with data, as last counted; `None` since it changed.
    pub(crate) blocks: Cell<Option<u64>>,
}

/// A mutation does not fit the map: in replay, records before it were lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Misfit;

/// All payloads of a shard.
pub(crate) struct Map {
    payloads: BTreeMap<PayloadNo, Payload>,
    names: BTreeMap<PayloadId, PayloadNo>,
    /// What may be evicted of payloads for which somebody has said it.
    policies: BTreeMap<PayloadNo, RetentionPolicy>,
    pub(crate) live: Live,
    next_payload: u64,
    /// Relocated ranges that extents may still refer to by their old place.
    relocated: BTreeMap<Location, (u32, Location)>,
    next_pass: u64,
    /// Whether nodes may be shared, so that `live` may count bytes more than once.
    shares: bool,
}

impl Map {
    pub(crate) fn new() -> Map {
        Map {
            payloads: BTreeMap::new(),
            names: BTreeMap::new(),
            policies: BTreeMap::new(),
            live: Live::default(),
            next_payload: 1,
            relocated: BTreeMap::new(),
            next_pass: 1,
            shares: false,
        }
    }

    pub(crate) fn find(&self, id: &PayloadId) -> Option<&Payload> {
        self.payloads.get(self.names.get(id)?)
    }

    pub(crate) fn number(&self, id: &PayloadId) -> Option<PayloadNo> {
        self.names.get(id).copied()
    }

    pub(crate) fn payload(&self, number: PayloadNo) -> Option<&Payload> {
        self.payloads.get(&number)
    }

    /// What may be evicted of a payload, if somebody has said it.
    pub(crate) fn policy(&self, number: PayloadNo) -> Option<RetentionPolicy> {
        self.policies.get(&number).copied()
    }

    /// All payloads for which somebody has said it.
    pub(crate) fn policies(&self) -> &BTreeMap<PayloadNo, RetentionPolicy> {
        &self.policies
    }

    /// Payloads that have a name.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// Names after `after`, in order.
    pub(crate) fn names_after<'a>(
        &'a self,
        after: Option<&PayloadId>,
    ) -> impl Iterator<Item = &'a PayloadId> + use<'a> {
        let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(after.clone()));
        self.names.range((from, Bound::Unbounded)).map(|(id, _)| id)
    }

    /// All payloads, nameless ones too, by number from `from` on.
    pub(crate) fn payloads_from(
        &self,
        from: PayloadNo,
    ) -> impl Iterator<Item = (PayloadNo, &Payload)> {
        self.payloads
            .range(from..)
            .map(|(number, payload)| (*number, payload))
    }

    /// The number that the next payload will have.
    pub(crate) fn next_payload(&self) -> PayloadNo {
        PayloadNo(self.next_payload)
    }

    /// A fresh number for a walk that visits every node once.
    pub(crate) fn begin_pass(&mut self) -> u64 {
        self.next_pass += 1;
        self.next_pass - 1
    }

    /// The only way in which the map changes.
    pub(crate) fn apply(&mut self, mutation: &Mutation, lsn: Lsn) -> Result<(), Misfit> {
        let result = self.change(mutation, lsn);
        self.live.lose_discarded(NODES_AT_ONCE);
        result
    }

    fn change(&mut self, mutation: &Mutation, lsn: Lsn) -> Result<(), Misfit> {
        match *mutation {
            Mutation::Create {
                payload,
                generation,
                ref id,
            } => {
                return self.create(payload, generation, id.clone(), lsn);
            }
            Mutation::Delete { payload } => return self.delete(payload),
            Mutation::Copy { source, target } => return self.copy(source, target, lsn),
            Mutation::Splice {
                source,
                target,
                offset,
                len,
            } => {
                return self.splice(source, target, offset, len, lsn);
            }
            Mutation::Retain { payload, policy } => {
                let found = self.payloads.get_mut(&payload).ok_or(Misfit)?;
                found.changed = lsn;
                self.policies.insert(payload, policy);
                return Ok(());
            }
            Mutation::Relocate { from, to, len } => {
                self.relocated.insert(from, (len, to));
                return Ok(());
            }
            _ => {}
        }
        let Map { payloads, live, .. } = self;
        match *mutation {
            Mutation::Write {
                payload,
                offset,
                len,
                at,
            } => {
                let payload = payloads.get_mut(&payload).ok_or(Misfit)?;
                payload.write(Mapped::new(offset, len, at), live);
                payload.change(lsn);
            }
            Mutation::Punch {
                payload,
                offset,
                len,
            } => {
                let payload = payloads.get_mut(&payload).ok_or(Misfit)?;
                payload.extents.remove(offset, offset + len, live);
                payload
                    .zeroed
                    .insert(Zeroed::new(offset, offset + len), live);
                payload.change(lsn);
            }
            Mutation::Truncate { payload, size } => {
                let payload = payloads.get_mut(&payload).ok_or(Misfit)?;
                if size < payload.size && !crate::marks::planted("truncate_keeps_extents") {
                    payload.extents.remove(size, PAYLOAD_BYTES_MAX, live);
                    payload.zeroed.remove(size, PAYLOAD_BYTES_MAX, live);
                }
                if !crate::marks::planted("cut_not_lowered") {
                    payload.cut = payload.cut.min(size);
                }
                payload.size = size;
                payload.change(lsn);
            }
            _ => unreachable!("the other mutations returned above"),
        }
        Ok(())
    }

    fn create(
        &mut self,
        number: PayloadNo,
        generation: Generation,
        id: Option<PayloadId>,
        changed: Lsn,
    ) -> Result<(), Misfit> {
        if self.payloads.contains_key(&number) || number.0 == u64::MAX {
            return Err(Misfit);
        }
        if let Some(id) = &id {
            if self.names.contains_key(id) {
                return Err(Misfit);
            }
            self.names.insert(id.clone(), number);
        }
        self.next_payload = self.next_payload.max(number.0 + 1);
        let (extents, zeroed) = (Tree::new(), Tree::new());
        let blocks = Cell::new(None);
        let payload = Payload {
            id,
            generation,
            size: 0,
            cut: u64::MAX,
            extents,
            zeroed,
            changed,
            blocks,
        };
        self.payloads.insert(number, payload);
        Ok(())
    }

    fn delete(&mut self, number: PayloadNo) -> Result<(), Misfit> {
        let payload = self.payloads.remove(&number).ok_or(Misfit)?;
        self.policies.remove(&number);
        if let Some(id) = &payload.id {
            self.names.remove(id);
        }
        if crate::marks::planted("clone_without_reference") {
            use tree::Account;
            let range = payload.extents.range(0, PAYLOAD_BYTES_MAX);
            range.for_each(|mapped| self.live.lose(&mapped));
        }
        payload.extents.release(&mut self.live);
        payload.zeroed.release(&mut self.live);
        Ok(())
    }

    fn copy(&mut self, source: PayloadNo, target: PayloadNo, lsn: Lsn) -> Result<(), Misfit> {
        self.shares = true;
        let source = self.payloads.get(&source).ok_or(Misfit)?;
        let (size, cut) = (source.size, source.cut);
        let blocks = source.blocks.clone();
        let (extents, zeroed) = (source.extents.share(), source.zeroed.share());
        let target = self.payloads.get_mut(&target).ok_or(Misfit)?;
        (target.size, target.cut, target.changed) = (size, cut, lsn);
        target.blocks = blocks;
        std::mem::replace(&mut target.extents, extents).release(&mut self.live);
        std::mem::replace(&mut target.zeroed, zeroed).release(&mut self.live);
        Ok(())
    }

    fn splice(
        &mut self,
        source: PayloadNo,
        target: PayloadNo,
        offset: u64,
        len: u64,
        lsn: Lsn,
    ) -> Result<(), Misfit> {
        if source == target || !self.payloads.contains_key(&target) {
            return Err(Misfit);
        }
        let parts = self.payloads.remove(&source).ok_or(Misfit)?;
        let target = self.payloads.get_mut(&target).ok_or(Misfit)?;
        target.change(lsn);
        for part in parts.extents.range(offset, offset + len) {
            target.write(part, &mut self.live);
        }
        parts.extents.release(&mut self.live);
        parts.zeroed.release(&mut self.live);
        Ok(())
    }

    /// The mutations that begin a payload of this name, unless it exists, and its number.
    fn plan_existing(
        &self,
        id: &PayloadId,
        generation: impl FnOnce() -> Generation,
    ) -> (Vec<Mutation>, PayloadNo) {
        match self.number(id) {
            Some(number) => (Vec::new(), number),
            None => {
                let payload = self.next_payload();
                let id = Some(id.clone());
                (
                    vec![Mutation::Create {
                        payload,
                        generation: generation(),
                        id,
                    }],
                    payload,
                )
            }
        }
    }

    /// Bytes at a known place become part of a payload.
    pub(crate) fn plan_write(
        &self,
        id: &PayloadId,
        offset: u64,
        len: u32,
        at: Location,
        generation: impl FnOnce() -> Generation,
    ) -> Vec<Mutation> {
        let (mut plan, payload) = self.plan_existing(id, generation);
        plan.push(Mutation::Write {
            payload,
            offset,
            len,
            at,
        });
        plan
    }

    /// The parts of a large write, gathered in a nameless payload, become part of a named one.
    pub(crate) fn plan_splice(
        &self,
        source: PayloadNo,
        id: &PayloadId,
        offset: u64,
        len: u64,
        generation: impl FnOnce() -> Generation,
    ) -> Vec<Mutation> {
        let (mut plan, target) = self.plan_existing(id, generation);
        plan.push(Mutation::Splice {
            source,
            target,
            offset,
            len,
        });
        plan
    }

    pub(crate) fn plan_truncate(
        &self,
        id: &PayloadId,
        size: u64,
        generation: impl FnOnce() -> Generation,
    ) -> Vec<Mutation> {
        let (mut plan, payload) = self.plan_existing(id, generation);
        plan.push(Mutation::Truncate { payload, size });
        plan
    }

    /// Zeros, up to the payload's size; nothing to do behind it.
    pub(crate) fn plan_punch(
        &self,
        id: &PayloadId,
        offset: u64,
        len: u64,
    ) -> Option<Vec<Mutation>> {
        let number = self.number(id)?;
        let size = self.payloads[&number].size;
        let len = (offset + len).min(size).saturating_sub(offset);
        let punch = Mutation::Punch {
            payload: number,
            offset,
            len,
        };
        Some(if len == 0 { Vec::new() } else { vec![punch] })
    }

    pub(crate) fn plan_delete(&self, id: &PayloadId) -> Vec<Mutation> {
        self.number(id)
            .map(|payload| Mutation::Delete { payload })
            .into_iter()
            .collect()
    }

    /// `target` becomes what `source` is, in place of what it may have been.
    pub(crate) fn plan_copy(
        &self,
        source: PayloadNo,
        target: &PayloadId,
        generation: Generation,
    ) -> Vec<Mutation> {
        let mut plan = self.plan_delete(target);
        let number = self.next_payload();
        plan.push(Mutation::Create {
            payload: number,
            generation,
            id: Some(target.clone()),
        });
        plan.push(Mutation::Copy {
            source,
            target: number,
        });
        plan
    }

    /// Whether clones may exist, so that `live` may count bytes more than once.
    pub(crate) fn shares(&self) -> bool {
        self.shares
    }

    /// Clones may exist: a checkpoint was read, which does not say.
    pub(crate) fn assume_shares(&mut self) {
        self.shares = true;
    }

    /// Whether ranges have been relocated that extents may still refer to by their old place.
    pub(crate) fn has_relocated(&self) -> bool {
        !self.relocated.is_empty()
    }

    /// Forgets relocations, which nothing refers to any more.
    pub(crate) fn forget_relocated(&mut self) {
        self.relocated.clear();
    }

    /// Substitutes relocated places in a part of the map; returns where to go on, `None` at the
    /// end.
    ///
    /// The substitution changes no content, so nodes are changed in place and clones stay shared.
    pub(crate) fn settle_step(
        &mut self,
        pass: u64,
        from: (PayloadNo, u64),
        leaves_max: usize,
    ) -> Option<(PayloadNo, u64)> {
        let Map {
            payloads,
            live,
            relocated,
            ..
        } = self;
        let mut rewrite =
            |mapped: &Mapped, out: &mut Vec<Mapped>| substitute(relocated, mapped, out);
        for (number, payload) in payloads.range(from.0..) {
            let start = if *number == from.0 { from.1 } else { 0 };
            let next = payload
                .extents
                .rewrite_pass(pass, start, leaves_max, &mut rewrite, live);
            match next {
                Some(next) => return Some((*number, next)),
                None if payload.extents.is_empty() => {}
                None => return Some((PayloadNo(number.0 + 1), 0)),
            }
        }
        None
    }

    /// Visits the extents of a part of the map, those of shared nodes once per pass; returns where
    /// to go on, `None` at the end.
    pub(crate) fn visit_step(
        &self,
        pass: u64,
        from: (PayloadNo, u64),
        leaves_max: usize,
        visit: &mut dyn FnMut(&Mapped),
    ) -> Option<(PayloadNo, u64)> {
        for (number, payload) in self.payloads.range(from.0..) {
            let start = if *number == from.0 { from.1 } else { 0 };
            match payload.extents.visit_pass(pass, start, leaves_max, visit) {
                Some(next) => return Some((*number, next)),
                None if payload.extents.is_empty() => {}
                None => return Some((PayloadNo(number.0 + 1), 0)),
            }
        }
        None
    }

    /// The oldest segment that an unfinished large write refers to.
    pub(crate) fn first_unclaimed(&self) -> Option<SegmentId> {
        let nameless = self
            .payloads
            .values()
            .filter(|payload| payload.id.is_none());
        nameless
            .flat_map(|payload| payload.extents.range(0, PAYLOAD_BYTES_MAX))
            .map(|mapped| mapped.at().segment())
            .min()
    }

    /// After replay: relocations are substituted everywhere, and writes that never became whole go.
    pub(crate) fn finish_replay(&mut self) {
        let pass = self.begin_pass();
        let mut from = Some((PayloadNo(0), 0));
        while let Some(at) = from.filter(|_| self.has_relocated()) {
            from = self.settle_step(pass, at, usize::MAX);
        }
        self.forget_relocated();
        let nameless: Vec<PayloadNo> = self
            .payloads
            .iter()
            .filter(|(_, payload)| payload.id.is_none())
            .map(|(number, _)| *number)
            .collect();
        for number in nameless {
            self.delete(number).expect("it was just listed");
        }
        self.live.lose_discarded(usize::MAX);
    }

    /// A payload as a checkpoint has it.
    pub(crate) fn restore(&mut self, number: PayloadNo, payload: Payload) -> Result<(), Misfit> {
        let (id, generation) = (payload.id.clone(), payload.generation);
        if self
            .create(number, generation, id, payload.changed)
            .is_err()
        {
            payload.extents.release(&mut self.live);
            payload.zeroed.release(&mut self.live);
            return Err(Misfit);
        }
        self.payloads.insert(number, payload);
        Ok(())
    }

    /// A policy as a checkpoint has it.
    pub(crate) fn restore_policy(
        &mut self,
        number: PayloadNo,
        policy: RetentionPolicy,
    ) -> Result<(), Misfit> {
        let known = self.payloads.contains_key(&number);
        self.policies.insert(number, policy);
        known.then_some(()).ok_or(Misfit)
    }

    /// Numbers below `next` are taken.
    pub(crate) fn reserve_numbers(&mut self, next: u64) {
        self.next_payload = self.next_payload.max(next);
    }

    /// Everything that the map holds, to be written while the map goes on changing.
    pub(crate) fn snapshot(&self) -> Vec<(PayloadNo, Payload)> {
        let share = |payload: &Payload| Payload {
            id: payload.id.clone(),
            extents: payload.extents.share(),
            zeroed: payload.zeroed.share(),
            blocks: Cell::new(None),
            ..*payload
        };
        self.payloads
            .iter()
            .map(|(number, payload)| (*number, share(payload)))
            .collect()
    }

    /// Gives a snapshot's share of the trees back.
    pub(crate) fn release(&mut self, payload: Payload) {
        payload.extents.release(&mut self.live);
        payload.zeroed.release(&mut self.live);
    }
}

impl Payload {
    fn change(&mut self, lsn: Lsn) {
        self.changed = lsn;
        self.blocks.set(None);
    }

    fn write(&mut self, mapped: Mapped, live: &mut Live) {
        self.zeroed.remove(mapped.start(), mapped.end(), live);
        self.extents.insert(mapped, live);
        self.size = self.size.max(mapped.end());
    }
}
