//! Taking the bucket over, once per opening, and what begins with that.
//!
//! Invariants are those of the parent module.

use super::super::{Shard, State};
use crate::error::{Error, ErrorKind, Result};
use crate::io::Driver;
use crate::types::Lsn;
use crate::upload::Claimed;
use crate::upload::manifest::ShardState;
use std::pin::Pin;

impl State {
    /// What counts in a bucket that was taken, if it is this store's as it is.
    fn accepts(&self, claimed: Claimed, recovered: Lsn) -> Result<ShardState> {
        if claimed.state.next > recovered {
            return Err(Error::new(
                ErrorKind::Poisoned,
                "the remote is ahead of this directory, which seems to be an old copy: rebuild it \
                 from the remote",
            ));
        }
        // Nothing is uploaded before the bucket is taken.
        if claimed.was_empty && self.segments.any_uploaded() {
            return Err(Error::invalid(
                "the remote holds nothing of this store, which has bytes in its remote: give the \
                 one that it had",
            ));
        }
        Ok(claimed.state)
    }
}

impl<D: Driver> Shard<D> {
    /// Waits until the bucket is taken, and then keeps it up with the log.
    pub(super) async fn keep_remote_up(&self) {
        let Some(client) = self.client() else { return };
        let recovered = self.0.state.borrow().log.end().next_lsn;
        let claimed = client.claimed(self.0.params.shard, recovered).await;
        let taken = self.begin_tier(claimed, recovered);
        self.0.tier_changed.notify();
        self.0.upkeep_due.notify();
        if !taken {
            return;
        }
        let loops: [Pin<Box<dyn Future<Output = ()>>>; 3] = [
            Box::pin(self.clone().upload_all()),
            Box::pin(self.clone().publish_all()),
            Box::pin(self.clone().rebase_all()),
        ];
        loops.into_iter().for_each(|task| self.0.driver.spawn(task));
        let shard = self.clone();
        self.0.driver.spawn(async move { shard.sweep().await });
    }

    /// Takes note of what counts in the bucket. False: nothing will be uploaded.
    fn begin_tier(&self, claimed: Result<Claimed>, recovered: Lsn) -> bool {
        let mut state = self.state();
        let state = &mut *state;
        let accepted = claimed.and_then(|claimed| state.accepts(claimed, recovered));
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
                tier.ended = Some(error);
                false
            }
        }
    }
}
