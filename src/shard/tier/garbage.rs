//! Objects that nothing needs: those of freed segments, of checkpoints that were followed, and what
//! earlier openings have left behind.
//!
//! Invariants are those of the parent module.

use super::super::{Params, Shard, State};
use super::Tier;
use crate::io::Driver;
use crate::marks::{mark, planted};
use crate::remote::Listed;
use crate::residency::Held;
use crate::types::ShardId;
use crate::upload::Cause;
use crate::upload::manifest::{
    base_name, base_prefix, parse_base_name, parse_segment_name, segment_name, segment_prefix,
};

impl Tier {
    /// Whether objects wait for another checkpoint to count.
    pub(super) fn has_waiting_garbage(&self) -> bool {
        let base = self.published.as_ref().and_then(|state| state.base);
        let sequence = base.map_or(0, |base| base.sequence);
        self.garbage.iter().any(|(needed, _)| *needed > sequence)
    }

    /// An object goes when a checkpoint of this sequence or a later one counts.
    fn note_garbage(&mut self, name: String, sequence: u64) {
        self.garbage.push((sequence, name));
    }

    /// A segment was freed by this checkpoint, and its object goes with it. Whether there is one is
    /// not always known: an earlier opening may have made it.
    pub(in crate::shard) fn note_freed(&mut self, shard: ShardId, held: &Held, sequence: u64) {
        self.note_garbage(segment_name(shard, held.id, held.epoch), sequence);
        if let Some(wanted) = self.uploading.get(&held.id) {
            wanted.clear();
        }
        if self.stuck.remove(&held.id).is_some() {
            let between = self.client.between();
            between.clear_obstacle(shard, Cause::Segment(held.id));
        }
    }
}

impl State {
    /// Whether an object is of an earlier opening, and nothing refers to its segment.
    fn is_orphan(&self, params: &Params, name: &str) -> bool {
        let Some((segment, epoch)) = parse_segment_name(params.shard, name) else {
            return false;
        };
        let Some(tier) = &self.tier else { return false };
        let unneeded = match self.segments.find(segment) {
            Some(held) => held.epoch != epoch,
            None => self.map.live.bytes(segment) == 0,
        };
        let waits = tier.garbage.iter().any(|(_, garbage)| garbage == name);
        epoch < params.epoch && unneeded && !waits
    }
}

impl<D: Driver> Shard<D> {
    /// Deletes the objects of segments that were freed, as far as the published checkpoint lets
    /// them go, and none is just being made.
    pub(in crate::shard) fn collect_garbage(&self) {
        let names = {
            let mut state = self.state();
            let Some(tier) = &mut state.tier else { return };
            let base = tier.published.as_ref().and_then(|published| published.base);
            let sequence = base.map_or(0, |base| base.sequence);
            let Tier {
                uploading, garbage, ..
            } = tier;
            let gone = |(needed, name): &mut (u64, String)| {
                let segment = parse_segment_name(self.0.params.shard, name);
                let comes = segment.is_some_and(|(id, _)| uploading.contains_key(&id));
                !comes && (*needed <= sequence || planted("delete_before_checkpoint"))
            };
            let gone = garbage.extract_if(.., gone).map(|(_, name)| name);
            gone.collect()
        };
        self.delete_objects(names);
    }

    /// Deletes objects in the background; those that stay behind are swept at the next opening.
    pub(super) fn delete_objects(&self, names: Vec<String>) {
        if names.is_empty() {
            return;
        }
        mark("objects deleted");
        let client = self.client().expect("it does not go");
        let deleting = |shard: &Shard<D>, change: isize| {
            let mut state = shard.state();
            let tier = state.tier.as_mut().expect("it does not go");
            let deleting = tier.deleting.checked_add_signed(change);
            tier.deleting = deleting.expect("they are counted");
        };
        deleting(self, 1);
        let shard = self.clone();
        self.0.driver.spawn(async move {
            if let Err(error) = client.delete(names).await {
                tracing::warn!(%error, "objects that nothing needs stay in the remote");
            }
            deleting(&shard, -1);
            shard.0.tier_changed.notify();
        });
    }

    /// Waits until nothing is in the bucket any more that nothing needs.
    pub(in crate::shard) async fn clear_remote(&self) {
        self.until_tier(|tier| tier.swept).await;
        if let Err(error) = self.leave_checkpoint().await {
            tracing::warn!(shard = self.0.params.shard.0, %error, "no checkpoint uploaded");
        }
        let still = |tier: &Tier| tier.deleting == 0 && tier.uploading.is_empty();
        self.until_tier(still).await;
    }

    /// Waits for something of the remote; not if there is none, or no more of it.
    async fn until_tier(&self, is_so: impl Fn(&Tier) -> bool) {
        let done = || {
            let state = self.0.state.borrow();
            let is_so = |tier: &Tier| tier.ended.is_some() || is_so(tier);
            state.tier.as_ref().is_none_or(is_so).then_some(())
        };
        self.0.tier_changed.until(done).await;
    }

    /// Deletes objects of this shard that nothing refers to: of uploads that were never published.
    pub(super) async fn sweep(&self) {
        self.sweep_all().await;
        self.state().tier.as_mut().expect("it does not go").swept = true;
        self.0.tier_changed.notify();
    }

    async fn sweep_all(&self) {
        let client = self.client().expect("it does not go");
        let shard = self.0.params.shard;
        let mut after = None;
        loop {
            let Ok(page) = client.list(segment_prefix(shard), after.take()).await else {
                return;
            };
            let Some(last) = page.last().map(|listed| listed.name.clone()) else {
                break;
            };
            self.note_orphans(&page);
            after = Some(last);
        }
        let Ok(bases) = client.list(base_prefix(shard), None).await else {
            return;
        };
        let kept = {
            let state = self.0.state.borrow();
            let tier = state.tier.as_ref().expect("it does not go");
            let base = tier.published.as_ref().and_then(|state| state.base);
            base.map(|base| base_name(shard, base.sequence, base.epoch))
        };
        // This opening's own may be on its way to count, and a later one's counts already, if this
        // is a machine that was taken for dead.
        let own = self.0.params.epoch;
        let is_older =
            |name: &str| parse_base_name(shard, name).is_some_and(|(_, epoch)| epoch < own);
        let orphan = |name: &String| Some(name) != kept.as_ref() && is_older(name);
        let names = bases.into_iter().map(|listed| listed.name).filter(orphan);
        self.delete_objects(names.collect());
    }

    /// Notes which listed objects nothing here needs. The published checkpoint may refer to them
    /// still; the next one will not.
    fn note_orphans(&self, page: &[Listed]) {
        let mut state = self.state();
        let state = &mut *state;
        let orphans = page.iter().map(|listed| &listed.name);
        let orphans = orphans.filter(|name| state.is_orphan(&self.0.params, name));
        let orphans: Vec<String> = orphans.cloned().collect();
        let sequence = state.upkeep.next_sequence();
        let tier = state.tier.as_mut().expect("it does not go");
        for name in orphans {
            mark("orphan in the remote");
            tier.note_garbage(name, sequence);
        }
        self.0.tier_changed.notify();
    }
}
