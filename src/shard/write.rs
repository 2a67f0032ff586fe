//! Everything that changes a payload: write, punch, truncate, delete, copy, and moves between
//! shards.
//!
//! Invariants:
//! 1. An operation is one batch's worth of mutations, decided and applied in one step: whole or not
//!    at all, in memory and after a crash.
//! 2. A write too large for a batch gathers its parts in a nameless payload, at the offsets they
//!    will have, and becomes visible by one splice.
//! 3. A copy onto a payload of another shard makes the new one durable before the old one goes; in
//!    between the higher generation wins.

use super::request::{Answer, Control, Move};
use super::space::Purpose;
use super::{Claim, Shard};
use crate::error::{Error, ErrorKind, Result};
use crate::io::Driver;
use crate::log::record::RECORD_BYTES_MAX;
use crate::marks::{mark, planted};
use crate::mutation::Mutation;
use crate::payload_id::PayloadId;
use crate::sync::slot::slot;
use crate::types::{Generation, Lsn, PayloadNo, ShardId};

/// Room for the records of any operation on one payload: a deletion, a creation, and the change.
pub(super) const RECORDS_LEN: usize = RECORD_BYTES_MAX + 12 + 36;

/// Deletions that are remembered until they are durable, before the durable ones are looked for.
const DELETED_MAX: usize = 1024;

impl<D: Driver> Shard<D> {
    pub(super) async fn write(&self, id: &PayloadId, offset: u64, data: &[u8]) -> Result<()> {
        let largest = self.0.state.borrow().log.data_bytes_max();
        if data.len() > largest {
            self.write_large(id, offset, data).await?;
        } else {
            self.record(Purpose::Data, RECORDS_LEN, data, |state, at| {
                let at = at.expect("a write has at least a byte");
                let len = data.len() as u32;
                let plan = state
                    .map
                    .plan_write(id, offset, len, at, || self.next_generation());
                Ok((plan, ()))
            })
            .await?;
        }
        self.state().stats.written_bytes += data.len() as u64;
        Ok(())
    }

    async fn write_large(&self, id: &PayloadId, offset: u64, data: &[u8]) -> Result<()> {
        mark("large write");
        let mut gathered = Gathered {
            number: None,
            shard: self.clone(),
        };
        let (mut at_offset, mut rest) = (offset, data);
        while !rest.is_empty() {
            let next = {
                let log = &self.0.state.borrow().log;
                log.data_bytes_next(rest.len(), usize::MAX, RECORDS_LEN)
            };
            let (part, after) = rest.split_at(next);
            rest = after;
            let number = gathered.number;
            let (number, _) = self
                .record(Purpose::Data, RECORDS_LEN, part, |state, at| {
                    let mut plan = Vec::new();
                    let payload = number.unwrap_or_else(|| {
                        let payload = state.map.next_payload();
                        let generation = Generation(0);
                        plan.push(Mutation::Create {
                            payload,
                            generation,
                            id: None,
                        });
                        payload
                    });
                    let at = at.expect("a part has at least a byte");
                    let len = part.len() as u32;
                    plan.push(Mutation::Write {
                        payload,
                        offset: at_offset,
                        len,
                        at,
                    });
                    Ok((plan, payload))
                })
                .await?;
            gathered.number = Some(number);
            at_offset += part.len() as u64;
        }
        let source = gathered.number.expect("a large write has parts");
        self.record(Purpose::Data, RECORDS_LEN, &[], |state, _| {
            let len = data.len() as u64;
            let plan = state
                .map
                .plan_splice(source, id, offset, len, || self.next_generation());
            Ok((plan, ()))
        })
        .await?;
        gathered.number = None;
        Ok(())
    }

    pub(super) async fn punch(&self, id: &PayloadId, offset: u64, len: u64) -> Result<()> {
        self.record(Purpose::Meta, RECORDS_LEN, &[], |state, _| {
            let plan = state
                .map
                .plan_punch(id, offset, len)
                .ok_or_else(Error::not_found)?;
            Ok((plan, ()))
        })
        .await?;
        self.0.upkeep_due.notify();
        Ok(())
    }

    pub(super) async fn truncate(&self, id: &PayloadId, size: u64) -> Result<()> {
        self.record(Purpose::Meta, RECORDS_LEN, &[], |state, _| {
            Ok((
                state.map.plan_truncate(id, size, || self.next_generation()),
                (),
            ))
        })
        .await?;
        self.0.upkeep_due.notify();
        Ok(())
    }

    pub(super) async fn delete(&self, id: &PayloadId) -> Result<()> {
        self.check_settled(id)?;
        let Some(lsn) = self.delete_here(id).await? else {
            return self.check_poison();
        };
        self.0.upkeep_due.notify();
        if self.0.params.routes.home(id) != self.0.params.shard {
            let (shard, id) = (self.clone(), id.clone());
            self.0.driver.spawn(async move {
                // Only when the deletion is durable may the name go home: recreated there and
                // deleted durably, it must not find this older payload alive after a crash.
                if shard.durable(lsn).await.is_ok() {
                    let home = shard.0.params.routes.home(&id);
                    shard.note_needs(home, shard.0.params.shard, lsn.next());
                    shard.send_home(&id);
                }
            });
        }
        Ok(())
    }

    /// A payload that outranks an older one on another shard has to stay until that is gone:
    /// without it a crash would bring the older one back.
    fn check_settled(&self, id: &PayloadId) -> Result<()> {
        let Some(kind) = self.0.params.routes.unsettled(id) else {
            return Ok(());
        };
        let message = "an older payload of this name is not deleted yet on a shard that is full or \
                       has failed: retry later, or reopen";
        Err(Error::new(kind, message))
    }

    fn send_home(&self, id: &PayloadId) {
        let state = self.0.state.borrow();
        let routes = &self.0.params.routes;
        let busy = state.changing.contains_key(id) || state.moving.contains(id);
        if !busy && state.map.find(id).is_none() && routes.shard_of(id) == self.0.params.shard {
            routes.set(id, routes.home(id));
        }
    }

    /// Copies a payload of this shard.
    ///
    /// The source is not kept from moving meanwhile: two copies in opposite directions would wait
    /// for each other. A source that has moved by the time of the copy is looked for where it is.
    pub(super) async fn copy(&self, source: &PayloadId, target: &PayloadId) -> Result<Answer<u64>> {
        loop {
            let settled = || (!self.0.state.borrow().moving.contains(source)).then_some(());
            self.0.finished.until(settled).await;
            if self.0.params.routes.shard_of(source) != self.0.params.shard {
                return Ok(Answer::Elsewhere);
            }
            let blocks = self.blocks(source)?;
            if source == target {
                return Ok(Answer::Done(blocks));
            }
            let result = match self.claim(target).await {
                Some(_changing) => self
                    .copy_here(source, target)
                    .await
                    .map(|done| Some(done.0)),
                None => self.copy_from_elsewhere(source, target).await,
            };
            match result {
                Ok(Some(blocks)) => return Ok(Answer::Done(blocks)),
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// How many blocks a clone of a payload shares with it.
    fn blocks(&self, id: &PayloadId) -> Result<u64> {
        let state = self.0.state.borrow();
        let payload = state.map.find(id).ok_or_else(Error::not_found)?;
        Ok(payload.size.div_ceil(self.0.params.config.block_bytes))
    }

    async fn copy_here(&self, source: &PayloadId, target: &PayloadId) -> Result<(u64, Lsn)> {
        let block_bytes = self.0.params.config.block_bytes;
        self.record(Purpose::Meta, RECORDS_LEN, &[], |state, _| {
            let number = state.map.number(source).ok_or_else(Error::not_found)?;
            let size = state
                .map
                .payload(number)
                .expect("a name has a payload")
                .size;
            let plan = state.map.plan_copy(number, target, self.next_generation());
            Ok((plan, size.div_ceil(block_bytes)))
        })
        .await
    }

    /// Makes the copy here and takes its name over from the shard that has it. `None`: that shard
    /// does not have it any more; look again.
    async fn copy_from_elsewhere(
        &self,
        source: &PayloadId,
        target: &PayloadId,
    ) -> Result<Option<u64>> {
        let from = self.0.params.routes.shard_of(target);
        let id = target.clone();
        let unsettled = match self.ask(from, |reply| Control::Hold { id, reply }).await? {
            Answer::Elsewhere => return Ok(None),
            Answer::Done(unsettled) => unsettled,
        };
        mark("copy between shards");
        let made = self.copy_here(source, target).await;
        let result = match &made {
            Ok((_, lsn)) if unsettled && !planted("old_one_goes_first") => self.durable(*lsn).await,
            Ok(_) => Ok(()),
            Err(error) => Err(error.clone()),
        };
        if let Err(error) = result {
            // A copy that may be on the disk must not win over what is written to the old one
            // later.
            let undone = made.is_err() || self.disown(std::slice::from_ref(target)).await.is_ok();
            self.end_move(from, target, Move::GivenUp { outrank: !undone })
                .await?;
            return Err(error);
        }
        // From here on the copy stands. Without an answer the old payload may be gone already.
        let (blocks, lsn) = made?;
        let moved = Move::Done(self.0.params.shard, lsn);
        self.end_move(from, target, moved).await?;
        Ok(Some(blocks))
    }

    async fn end_move(&self, from: ShardId, id: &PayloadId, end: Move) -> Result<()> {
        let id = id.clone();
        self.ask(from, |reply| Control::Release { id, end, reply })
            .await
    }

    async fn ask<T>(
        &self,
        shard: ShardId,
        control: impl FnOnce(crate::sync::slot::Reply<Result<T>>) -> Control,
    ) -> Result<T> {
        let (reply, pending) = slot();
        let peer = &self.0.peers[usize::from(shard.0)];
        peer.send(control(reply))
            .await
            .map_err(|_| Error::closed())?;
        pending.await.unwrap_or_else(|| Err(Error::closed()))
    }

    /// From the answer on, operations on the payload wait. Says whether something of it is still on
    /// this shard's disk, so that the move has to be durable in order.
    pub(super) async fn hold(&self, id: &PayloadId) -> Result<Answer<bool>> {
        let settled = || (!self.0.state.borrow().moving.contains(id)).then_some(());
        self.0.finished.until(settled).await;
        if self.0.params.routes.shard_of(id) != self.0.params.shard {
            return Ok(Answer::Elsewhere);
        }
        self.check_poison()?;
        self.check_settled(id)?;
        if self.0.ending.get() {
            return Err(Error::closed());
        }
        self.state().moving.insert(id.clone());
        let quiet = || (!self.0.state.borrow().changing.contains_key(id)).then_some(());
        self.0.finished.until(quiet).await;
        let state = self.0.state.borrow();
        let deleted = state
            .deleted
            .get(id)
            .is_some_and(|lsn| *lsn > state.tail.durable());
        Ok(Answer::Done(deleted || state.map.find(id).is_some()))
    }

    /// Ends a move; operations on the payload go on.
    pub(super) async fn release(&self, id: &PayloadId, end: Move) -> Result<()> {
        let result = match end {
            Move::Done(shard, copied) => {
                self.give_away(id, shard, copied).await;
                Ok(())
            }
            Move::GivenUp { outrank: true } => self.outrank(id).await,
            Move::GivenUp { outrank: false } => Ok(()),
        };
        self.state().moving.remove(id);
        self.0.finished.notify();
        result
    }

    /// Deletes a payload that another shard has a durable copy of, and points its name there. The
    /// copy stands also if the deletion has to wait for room: it outranks the old payload, so
    /// whatever a crash finds of that is deleted then. Only the copy's own deletion has to wait
    /// until the old one is gone for good.
    async fn give_away(&self, id: &PayloadId, shard: ShardId, copied: Lsn) {
        let routes = &self.0.params.routes;
        self.note_needs(self.0.params.shard, shard, copied.next());
        // Also if it cannot be deleted yet: it is not this shard's any more.
        self.state().drop_cached(id);
        let gone = self.disown(std::slice::from_ref(id)).await;
        match gone {
            Ok(()) => self.hand_needs_on(shard),
            Err(error) => {
                mark("moved from a shard that could not delete");
                routes.unsettle(id, error.kind());
                let (giver, id) = (self.clone(), id.clone());
                let deleting = async move { giver.delete_in_the_end(&id, shard).await };
                self.0.driver.spawn(deleting);
            }
        }
        routes.set(id, shard);
    }

    /// A shard has a payload from this one: what it does with it counts only with the payload's end
    /// here, and with what that needs.
    fn hand_needs_on(&self, shard: ShardId) {
        let own = self.0.params.shard;
        self.note_needs(shard, own, self.last_lsn().next());
        if let Some(client) = self.client() {
            client.between().hand_on(own, shard);
        }
    }

    async fn delete_in_the_end(&self, id: &PayloadId, shard: ShardId) {
        loop {
            match self.disown(std::slice::from_ref(id)).await {
                Ok(()) => {
                    self.hand_needs_on(shard);
                    return self.0.params.routes.settle(id);
                }
                Err(error) => self.0.params.routes.unsettle(id, error.kind()),
            }
            if self.check_poison().is_err() {
                return;
            }
        }
    }

    /// Gives a payload a new generation, durably: another shard may hold a later one that failed.
    /// Until that is done nobody may use the payload, so a want of room is waited out.
    async fn outrank(&self, id: &PayloadId) -> Result<()> {
        mark("payload outranks a failed copy");
        loop {
            match self.try_outrank(id).await {
                Err(error) if error.kind() == ErrorKind::Full => self.check_poison()?,
                result => return result,
            }
        }
    }

    async fn try_outrank(&self, id: &PayloadId) -> Result<()> {
        let (_, lsn) = self
            .record(Purpose::Meta, 2 * RECORDS_LEN, &[], |state, _| {
                let Some(old) = state.map.number(id) else {
                    return Ok((Vec::new(), ()));
                };
                let (kept, new) = (state.map.next_payload(), state.map.next_payload().next());
                let policy = state.map.policy(old);
                let mut plan = vec![
                    Mutation::Create {
                        payload: kept,
                        generation: Generation(0),
                        id: None,
                    },
                    Mutation::Copy {
                        source: old,
                        target: kept,
                    },
                    Mutation::Delete { payload: old },
                    Mutation::Create {
                        payload: new,
                        generation: self.next_generation(),
                        id: Some(id.clone()),
                    },
                    Mutation::Copy {
                        source: kept,
                        target: new,
                    },
                    Mutation::Delete { payload: kept },
                ];
                // The payload is what it was, but for its generation.
                plan.extend(policy.map(|policy| Mutation::Retain {
                    payload: new,
                    policy,
                }));
                Ok((plan, ()))
            })
            .await?;
        self.durable(lsn).await
    }

    /// Deletes payloads that belong to other shards now, durably.
    pub(super) async fn disown(&self, ids: &[PayloadId]) -> Result<()> {
        for id in ids {
            self.delete_here(id).await?;
        }
        let last = {
            let state = self.0.state.borrow();
            ids.iter()
                .filter_map(|id| state.deleted.get(id))
                .max()
                .copied()
        };
        match last {
            Some(lsn) => self.durable(lsn).await,
            None => Ok(()),
        }
    }

    /// Deletes a payload if it is there, and remembers since when it is gone. Says in which batch.
    async fn delete_here(&self, id: &PayloadId) -> Result<Option<Lsn>> {
        if self.0.state.borrow().map.find(id).is_none() {
            return Ok(None);
        }
        let (_, lsn) = self
            .record(Purpose::Meta, RECORDS_LEN, &[], |state, _| {
                Ok((state.map.plan_delete(id), ()))
            })
            .await?;
        let mut state = self.state();
        let state = &mut *state;
        if self.0.params.shards > 1 {
            if state.deleted.len() >= DELETED_MAX {
                let durable = state.tail.durable();
                state.deleted.retain(|_, lsn| *lsn > durable);
            }
            state.deleted.insert(id.clone(), lsn);
        }
        Ok(Some(lsn))
    }

    /// Which of other shards' claims to payloads win over this shard's own. Losers here are
    /// deleted.
    pub(super) async fn settle_claims(&self, claims: &[Claim]) -> Result<Vec<bool>> {
        let mine = |id: &PayloadId| self.0.state.borrow().map.find(id).map(|own| own.generation);
        let won = claims
            .iter()
            .map(|claim| mine(&claim.id) < Some(claim.generation))
            .collect();
        let lost = |claim: &&Claim| mine(&claim.id).is_some_and(|own| own < claim.generation);
        let ids: Vec<PayloadId> = claims
            .iter()
            .filter(lost)
            .map(|claim| claim.id.clone())
            .collect();
        self.give_up(&ids).await?;
        Ok(won)
    }

    /// Deletes payloads that other shards have newer ones of. What those do with them counts in the
    /// remote only with that.
    pub(super) async fn give_up(&self, ids: &[PayloadId]) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        self.disown(ids).await?;
        let own = self.0.params.shard;
        let others = (0..self.0.params.shards as u16).map(ShardId);
        for other in others.filter(|other| *other != own) {
            self.note_needs(other, own, self.last_lsn().next());
        }
        Ok(())
    }
}

/// The nameless payload that a large write gathers in; deleted if the write is given up.
struct Gathered<D: Driver> {
    number: Option<PayloadNo>,
    shard: Shard<D>,
}

impl<D: Driver> Drop for Gathered<D> {
    fn drop(&mut self) {
        let Some(payload) = self.number else { return };
        let shard = self.shard.clone();
        self.shard.0.driver.spawn(async move {
            // A poisoned shard takes no records; the next opening drops what has no name.
            while shard.check_poison().is_ok() {
                let plan = vec![Mutation::Delete { payload }];
                let deleted = shard.record(Purpose::Meta, RECORDS_LEN, &[], |_, _| Ok((plan, ())));
                if deleted.await.is_ok() {
                    return;
                }
                mark("abandoned parts could not be deleted yet");
            }
        });
    }
}
