//! What shards need of one another before what they have logged may count in the bucket.
//!
//! A payload that goes from one shard to another is in two logs: in one it ends, in the other it
//! begins. The old log's end of it counts only with the new one's beginning, or a rebuild would
//! find neither; and what the new one does with it later only with the old one's end, or a rebuild
//! would find the old payload again when the new one has been deleted.

use crate::error::Error;
use crate::sync::Mutex;
use crate::types::{Lsn, Nanos, SegmentId, ShardId};
use std::collections::{BTreeMap, BTreeSet};

/// A shard's next states need everything of another shard before a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Needs {
    pub(crate) shard: ShardId,
    pub(crate) before: Lsn,
}

/// What keeps a shard from going on with what others may wait for. Each goes by itself, or stays.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Cause {
    /// There is no room for a checkpoint.
    Checkpoint,
    /// This segment cannot be uploaded.
    Segment(SegmentId),
    /// The shard is poisoned.
    Poison,
    /// Nothing more of it will be uploaded.
    End,
}

/// Since when a shard cannot go on with what the others wait for, and why.
pub(crate) type Obstacle = (Nanos, Error);

#[derive(Default)]
struct State {
    /// Who needs whom, and how far.
    needs: BTreeMap<(ShardId, ShardId), Lsn>,
    obstacles: BTreeMap<(ShardId, Cause), Obstacle>,
    /// What was recovered of all shards counts. Before, every shard needs every other.
    is_begun: bool,
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

    /// A shard, whom it needs, whom those need, and so on.
    fn reached_from(&self, shard: ShardId) -> BTreeSet<ShardId> {
        let mut reached = BTreeSet::from([shard]);
        let mut ahead = vec![shard];
        while let Some(shard) = ahead.pop() {
            let needed = self.of(shard).into_iter().map(|needs| needs.shard);
            ahead.extend(needed.filter(|needed| reached.insert(*needed)));
        }
        reached
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

    /// What was recovered of all shards counts.
    pub(super) fn begin(&self) {
        self.0.lock().is_begun = true;
    }

    /// Something keeps a shard from publishing. What was noted of the same cause before stands.
    pub(crate) fn note_obstacle(&self, shard: ShardId, cause: Cause, obstacle: Obstacle) {
        let mut state = self.0.lock();
        state.obstacles.entry((shard, cause)).or_insert(obstacle);
    }

    /// A cause has gone; others stand.
    pub(crate) fn clear_obstacle(&self, shard: ShardId, cause: Cause) {
        self.0.lock().obstacles.remove(&(shard, cause));
    }

    /// What has kept a shard, or one that it waits for, from publishing the longest.
    pub(crate) fn obstacle(&self, shard: ShardId) -> Option<Obstacle> {
        let state = self.0.lock();
        let reached = state.reached_from(shard);
        let counts = |whose: &ShardId| !state.is_begun || reached.contains(whose);
        // How far its own segments go the shard knows better.
        let elsewhere =
            |(whose, cause): &(ShardId, Cause)| *cause == Cause::Checkpoint || *whose != shard;
        let obstacles = state.obstacles.iter();
        let counting = obstacles.filter(|(key, _)| counts(&key.0) && elsewhere(key));
        let longest = counting.map(|(_, obstacle)| obstacle);
        longest.min_by_key(|(since, _)| *since).cloned()
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

    fn obstacle(message: &str) -> Obstacle {
        (Nanos(1), Error::internal(message))
    }

    fn seen_by(between: &Between, shard: u16) -> Option<String> {
        let seen = between.obstacle(ShardId(shard));
        seen.map(|(_, error)| error.to_string())
    }

    #[test]
    fn clearing_one_obstacle_leaves_the_others() {
        let between = Between::new();
        let shard = ShardId(0);
        between.note_obstacle(shard, Cause::Checkpoint, obstacle("full"));
        between.note_obstacle(shard, Cause::Segment(SegmentId(3)), obstacle("unreadable"));
        between.clear_obstacle(shard, Cause::Checkpoint);
        let seen = seen_by(&between, 1).expect("one is left");
        assert!(seen.contains("unreadable"), "{seen}");
        between.clear_obstacle(shard, Cause::Segment(SegmentId(4)));
        assert!(seen_by(&between, 1).is_some());
        between.clear_obstacle(shard, Cause::Segment(SegmentId(3)));
        assert_eq!(seen_by(&between, 1), None);
    }

    #[test]
    fn obstacles_count_for_those_who_wait_for_the_shard() {
        let between = Between::new();
        between.note_obstacle(ShardId(0), Cause::Poison, obstacle("poison"));
        // What was recovered counts together.
        assert!(seen_by(&between, 2).is_some());
        between.begin();
        assert_eq!(seen_by(&between, 2), None);
        let needs = |shard| Needs {
            shard: ShardId(shard),
            before: Lsn(5),
        };
        between.note_needs(ShardId(2), needs(1));
        assert_eq!(seen_by(&between, 2), None);
        between.note_needs(ShardId(1), needs(0));
        assert!(seen_by(&between, 2).is_some());
        between.met(ShardId(2), &[needs(1)]);
        assert_eq!(seen_by(&between, 2), None);
    }
}
