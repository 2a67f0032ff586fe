//! Taking the bucket over, once per opening, and what begins with that.
//!
//! Invariants are those of the parent module.

use super::super::{Shard, State};
use super::RETRY_PAUSE;
use crate::error::{Error, ErrorKind, Result};
use crate::io::Driver;
use crate::marks::mark;
use crate::types::Lsn;
use crate::upload::manifest::ShardState;
use crate::upload::{Cause, Recovered};
use std::pin::Pin;

/// Whether this directory may go on from what counts in the bucket.
fn may_go_on(
    published: &ShardState,
    recovered: Lsn,
    past_lost: bool,
    diverged: bool,
) -> Result<()> {
    if past_lost && *published != ShardState::empty() {
        return Err(Error::corrupt(
            "records of a shard were lost here with all its checkpoints, and the remote may have \
             them: rebuild the store from its remote; what was not uploaded yet is here alone",
        ));
    }
    if diverged {
        mark("other past than the bucket's");
        return Err(Error::corrupt(
            "records that the remote has are lost here, and others were logged in their place: \
             rebuild the store from its remote; what was not uploaded yet is here alone",
        ));
    }
    match published.next > recovered {
        false => Ok(()),
        true => Err(Error::new(
            ErrorKind::Poisoned,
            "the remote is ahead of this directory, which seems to be an old copy: rebuild it from \
             the remote",
        )),
    }
}

impl State {
    /// Whether something was logged here in place of what the bucket has: by an opening after the
    /// last one of which the bucket has anything, and yet from a batch on that the bucket has.
    fn has_diverged(&self, published: &ShardState) -> bool {
        let base = published.base.map(|base| base.epoch);
        let tail = published.tail.iter().map(|object| object.epoch);
        let newest = tail.chain(base).max();
        self.segments.iter().any(|held| {
            newest.is_some_and(|newest| held.epoch > newest) && held.lsns.get().0 < published.next
        })
    }
}

impl<D: Driver> Shard<D> {
    /// Waits until the bucket is taken, and then keeps it up with the log.
    pub(super) async fn keep_remote_up(&self) {
        let Some(client) = self.client() else { return };
        let recovered = {
            let state = self.0.state.borrow();
            Recovered {
                end: state.log.end().next_lsn,
                any_uploaded: state.segments.any_uploaded(),
            }
        };
        let published = client.claimed(self.0.params.shard, recovered).await;
        let taken = self.begin_tier(published, recovered.end);
        self.0.tier_changed.notify();
        self.0.upkeep_due.notify();
        if !taken {
            return;
        }
        self.forget_loss().await;
        let loops: [Pin<Box<dyn Future<Output = ()>>>; 3] = [
            Box::pin(self.clone().upload_all()),
            Box::pin(self.clone().publish_all()),
            Box::pin(self.clone().rebase_all()),
        ];
        loops.into_iter().for_each(|task| self.0.driver.spawn(task));
        let shard = self.clone();
        self.0.driver.spawn(async move { shard.sweep().await });
    }

    /// The bucket has nothing of what was lost here. A checkpoint has to say so before it has
    /// anything at all. On a poisoned shard none is written, and nothing is uploaded.
    async fn forget_loss(&self) {
        if !std::mem::take(&mut self.state().upkeep.past_lost) {
            return;
        }
        while let Err(error) = self.checkpoint_anyway().await {
            tracing::warn!(shard = self.0.params.shard.0, %error, "no checkpoint for the remote");
            self.note_obstacle(Cause::Checkpoint, &error);
            self.0.driver.sleep(RETRY_PAUSE).await;
        }
        self.clear_obstacle(Cause::Checkpoint);
    }

    /// Takes note of what counts in the bucket. False: nothing will be uploaded.
    fn begin_tier(&self, published: Result<ShardState>, recovered: Lsn) -> bool {
        let mut guard = self.state();
        let state = &mut *guard;
        let accepted = published.and_then(|published| {
            let diverged = state.has_diverged(&published);
            may_go_on(&published, recovered, state.upkeep.past_lost, diverged)?;
            Ok(published)
        });
        if let Ok(ShardState {
            base: Some(base), ..
        }) = &accepted
        {
            // After a loss of checkpoints here: what the bucket's refers to is garbage only when a
            // later one counts.
            state.upkeep.number_after(base.sequence);
        }
        let recorded_from = state.upkeep.next_sequence() + 1;
        let tier = state.tier.as_mut().expect("it does not go");
        match accepted {
            Ok(published) => {
                for object in &published.tail {
                    let held = state.segments.find(object.segment);
                    if let Some(held) = held.filter(|held| held.epoch == object.epoch) {
                        held.set_uploaded(recorded_from);
                    }
                }
                tier.published = Some(published);
                true
            }
            Err(error) => {
                tier.ended = Some(error.clone());
                drop(guard);
                self.note_obstacle(Cause::End, &error);
                false
            }
        }
    }
}
