//! What shards need of one another before what they have logged may count in the bucket.
//!
//! A payload that goes from one shard to another is in two logs: in one it ends, in the other it
//! begins. The old log's end of it counts only with the new one's beginning, or a rebuild would
//! find neither; and what the new one does with it later only with the old one's end, or a rebuild
//! would find the old payload again when the new one has been deleted.

use crate::error::Error;
use crate::sync::Mutex;
use crate::types::{Lsn, Nanos, ShardId};
use std::collections::BTreeMap;

/// A shard's next states need everything of another shard before a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Needs {
    pub(crate) shard: ShardId,
    pub(crate) before: Lsn,
}

/// Since when a shard cannot go on with what the others wait for, and why.
pub(crate) type Obstacle = (Nanos, Error);

#[derive(Default)]
struct State {
    /// Who needs whom, and how far.
    needs: BTreeMap<(ShardId, ShardId), Lsn>,
    obstacles: BTreeMap<ShardId, Obstacle>,
}

impl State {
    fn note(&mut self, shard: ShardId, needs: Needs) {
        let pair = (shard, needs.shard);
        let before = self.needs.entry(pair).or_insert(needs.before);
        *before = needs.before.max(*before);
    }

    fn of(&self, shard: ShardId) -> Vec<Needs> {
        let own = self.needs.iter().filter(|((whose, _), _)| *whose == shard);
        let needs = |(&(_, shard), &before): (&(ShardId, ShardId), &Lsn)| Needs { shard, before };
        own.map(needs).collect()
    }
}

/// What all shards of an opening know of each other.
pub(crate) struct Between(Mutex<State>);

impl Between {
    pub(super) fn new() -> Between {
        Between(Mutex::new(State::default()))
    }

    /// From now on, what `shard` publishes needs this.
    pub(crate) fn note_needs(&self, shard: ShardId, needs: Needs) {
        self.0.lock().note(shard, needs);
    }

    /// From now on, what `taker` publishes needs all that `giver` does of others.
    pub(crate) fn hand_on(&self, giver: ShardId, taker: ShardId) {
        let mut state = self.0.lock();
        for needs in state.of(giver) {
            if needs.shard != taker {
                state.note(taker, needs);
            }
        }
    }

    /// What the next state of `shard` needs.
    pub(crate) fn needs(&self, shard: ShardId) -> Vec<Needs> {
        self.0.lock().of(shard)
    }

    /// A state of `shard` that needed these counts.
    pub(crate) fn met(&self, shard: ShardId, met: &[Needs]) {
        let mut state = self.0.lock();
        for needs in met {
            let pair = (shard, needs.shard);
            if state.needs.get(&pair) == Some(&needs.before) {
                state.needs.remove(&pair);
            }
        }
    }

    /// Says what keeps a shard from publishing, or that nothing does any more.
    pub(crate) fn note_obstacle(&self, shard: ShardId, obstacle: Option<Obstacle>) {
        let mut state = self.0.lock();
        match obstacle {
            Some(obstacle) => {
                state.obstacles.entry(shard).or_insert(obstacle);
            }
            None => {
                state.obstacles.remove(&shard);
            }
        }
    }

    /// What has kept a shard from publishing the longest. Shards wait for each other.
    pub(crate) fn obstacle(&self) -> Option<Obstacle> {
        let state = self.0.lock();
        let longest = state.obstacles.values().min_by_key(|(since, _)| *since);
        longest.cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_go_when_they_are_met_and_have_not_grown() {
        let between = Between::new();
        let needs = |before| Needs {
            shard: ShardId(1),
            before: Lsn(before),
        };
        between.note_needs(ShardId(0), needs(5));
        between.note_needs(ShardId(0), needs(3));
        assert_eq!(between.needs(ShardId(0)), [needs(5)]);
        assert_eq!(between.needs(ShardId(1)), []);
        between.note_needs(ShardId(0), needs(7));
        between.met(ShardId(0), &[needs(5)]);
        assert_eq!(between.needs(ShardId(0)), [needs(7)]);
        between.met(ShardId(0), &[needs(7)]);
        assert_eq!(between.needs(ShardId(0)), []);
    }

    #[test]
    fn needs_are_handed_on_but_to_whom_they_are_of() {
        let between = Between::new();
        let needs = Needs {
            shard: ShardId(1),
            before: Lsn(5),
        };
        between.note_needs(ShardId(0), needs);
        between.hand_on(ShardId(0), ShardId(1));
        between.hand_on(ShardId(0), ShardId(2));
        assert_eq!(between.needs(ShardId(1)), []);
        assert_eq!(between.needs(ShardId(2)), [needs]);
    }
}
