//! What each payload may be: the set of its possible states, narrowed by everything that is learnt.
//!
//! An operation that was issued and not answered may take effect at any moment, so the set holds
//! the states with and without it. Its answer, a read, a flush and a recovery each rule some of
//! them out. A store that shows anything outside of the set has broken its contract.
//!
//! Invariants:
//! 1. The true state of a correct store is always in the set: states are added before they are
//!    possible, and ruled out only by what a correct store cannot contradict.
//! 2. Past states stay until a flush that began after them succeeds: a crash may bring them back.
//! 3. What a recovery has lost is gone: a later one may go further back, never forward again.
//!
//! Deliberately not here: how bytes are read and how differences are explained.

use super::content::{Change, State, apply};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Operations that may be unanswered on one payload at once: the states grow with their factorial.
const PENDING_MAX: usize = 3;

/// Number of a payload in a plan.
pub(super) type PayloadIndex = usize;

/// A state that a payload has, had, or may have had.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) state: Rc<State>,
    /// Which unanswered operations it includes.
    mask: u32,
    born: u64,
    /// When it was so the last time: doubles are kept once.
    born_again: u64,
    /// Since when it is known not to be the current one; `u64::MAX` while it may be.
    died: u64,
}

/// What an unanswered operation does.
#[derive(Clone)]
enum Effect {
    Change(Change),
    /// The payload becomes what this one is, at some time since `since`.
    Copy {
        source: PayloadIndex,
        since: u64,
    },
}

#[derive(Clone)]
struct Pending {
    bit: u32,
    effect: Effect,
    /// Whether anybody still waits for its answer.
    awaited: bool,
}

impl History {
    /// States that died at or before this are out of reach when that many commits are lost.
    fn reach(&self, commits: usize) -> u64 {
        if commits == 0 {
            return self.floor;
        }
        let kept = self.floors.len().checked_sub(commits.saturating_add(1));
        kept.map_or(0, |last| self.floors[last].since)
    }
}

impl Pending {
    fn copies_from(&self, payload: PayloadIndex) -> bool {
        matches!(self.effect, Effect::Copy { source, .. } if source == payload)
    }
}

/// A flush that returned.
#[derive(Clone, Copy)]
struct Floor {
    /// When it began: what had died by then is out of a crash's reach.
    since: u64,
    /// When it returned.
    until: u64,
}

#[derive(Clone, Default)]
struct History {
    entries: Vec<Entry>,
    pending: Vec<Pending>,
    /// States that died at or before this are out of a crash's reach.
    floor: u64,
    /// And these are out of a rebuild's.
    published: u64,
    /// Flushes so far that surely wrote a commit each, oldest first: each began when the one before
    /// had returned, with a change in between.
    floors: Vec<Floor>,
    /// Changes whenever the set does, so that a reader knows if it was alone.
    version: u64,
    /// When readers that are under way began.
    readers: BTreeMap<u64, usize>,
}

/// An unanswered operation on one payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    payload: PayloadIndex,
    bit: u32,
}

/// An observation of one payload that is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watch {
    payload: PayloadIndex,
    since: u64,
    version: u64,
}

impl Ticket {
    pub(super) fn payload(self) -> PayloadIndex {
        self.payload
    }
}

impl Watch {
    /// When the observation began.
    pub(super) fn since(self) -> u64 {
        self.since
    }
}

/// Every payload of a run.
#[derive(Clone)]
pub(super) struct Histories {
    clock: u64,
    /// Whether states that were flushed over are kept: damage may bring them back.
    keeps_past: bool,
    /// Whether states are kept that a rebuild may bring back.
    has_remote: bool,
    payloads: Vec<History>,
}

impl Histories {
    pub(super) fn new(payloads: usize, keeps_past: bool, has_remote: bool) -> Histories {
        let first = || History {
            entries: vec![Entry {
                state: Rc::new(None),
                mask: 0,
                born: 0,
                born_again: 0,
                died: u64::MAX,
            }],
            ..History::default()
        };
        Histories {
            clock: 0,
            keeps_past,
            has_remote,
            payloads: (0..payloads).map(|_| first()).collect(),
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    pub(super) fn now(&self) -> u64 {
        self.clock
    }

    pub(super) fn len(&self) -> usize {
        self.payloads.len()
    }

    /// States that the payload may have now.
    pub(super) fn current(&self, payload: PayloadIndex) -> Vec<Rc<State>> {
        let entries = self.payloads[payload].entries.iter();
        let alive = entries.filter(|entry| entry.died == u64::MAX);
        alive.map(|entry| entry.state.clone()).collect()
    }

    /// States that the payload may have had at some time since `since`.
    pub(super) fn since(&self, payload: PayloadIndex, since: u64) -> Vec<Rc<State>> {
        let entries = self.payloads[payload].entries.iter();
        let reachable = entries.filter(|entry| entry.died > since);
        reachable.map(|entry| entry.state.clone()).collect()
    }

    /// States that a crash may leave if the last `commits` commits are lost with it.
    pub(super) fn after_crash(&self, payload: PayloadIndex, commits: usize) -> Vec<Rc<State>> {
        self.since(payload, self.payloads[payload].reach(commits))
    }

    /// Whether one more operation may be issued; `copies_from` is the source if it is a copy.
    pub(super) fn may_issue(&self, payload: PayloadIndex, copies_from: Option<usize>) -> bool {
        let history = &self.payloads[payload];
        let alive = history
            .entries
            .iter()
            .filter(|entry| entry.died == u64::MAX)
            .count();
        let is_copy = |pending: &Pending| matches!(pending.effect, Effect::Copy { .. });
        let is_target = |payload: usize| self.payloads[payload].pending.iter().any(is_copy);
        let is_source = |payload: usize| {
            let from = |pending: &Pending| pending.copies_from(payload);
            self.payloads
                .iter()
                .any(|history| history.pending.iter().any(from))
        };
        // Copies under way that hang together in a chain would multiply the states.
        let chained = copies_from.is_some_and(|source| is_target(source) || is_source(payload));
        history.pending.len() < PENDING_MAX && alive <= 12 && !chained
    }

    /// Whether operations are unanswered that nobody waits for.
    pub(super) fn has_orphans(&self, payload: PayloadIndex) -> bool {
        let pending = &self.payloads[payload].pending;
        pending.iter().any(|pending| !pending.awaited)
    }

    /// A change is about to be asked for.
    pub(super) fn issue(&mut self, payload: PayloadIndex, change: Change) -> Ticket {
        self.begin(payload, Effect::Change(change))
    }

    /// A copy is about to be asked for.
    pub(super) fn issue_copy(&mut self, source: PayloadIndex, target: PayloadIndex) -> Ticket {
        let since = self.tick();
        self.begin(target, Effect::Copy { source, since })
    }

    fn begin(&mut self, payload: PayloadIndex, effect: Effect) -> Ticket {
        let history = &mut self.payloads[payload];
        let taken = history.pending.iter().fold(0, |bits, it| bits | it.bit);
        let bit = 1 << (!taken).trailing_zeros();
        history.pending.push(Pending {
            bit,
            effect,
            awaited: true,
        });
        self.close(payload);
        Ticket { payload, bit }
    }

    /// Adds every state that unanswered operations may lead to.
    fn close(&mut self, payload: PayloadIndex) {
        let now = self.tick();
        self.payloads[payload].version = now;
        let mut grew = true;
        while grew {
            grew = false;
            for (state, mask) in self.successors(payload) {
                let entries = &mut self.payloads[payload].entries;
                let known = entries.iter().any(|entry| {
                    entry.died == u64::MAX && entry.mask == mask && *entry.state == *state
                });
                if !known {
                    entries.push(Entry {
                        state,
                        mask,
                        born: now,
                        born_again: now,
                        died: u64::MAX,
                    });
                    grew = true;
                }
            }
        }
        let copies = |history: &History| {
            let from = |pending: &Pending| pending.copies_from(payload);
            history.pending.iter().any(from)
        };
        for target in 0..self.payloads.len() {
            if target != payload && copies(&self.payloads[target]) {
                self.close(target);
            }
        }
    }

    /// What one more unanswered operation makes of each current state.
    fn successors(&self, payload: PayloadIndex) -> Vec<(Rc<State>, u32)> {
        let history = &self.payloads[payload];
        let mut out = Vec::new();
        for entry in history.entries.iter().filter(|it| it.died == u64::MAX) {
            for pending in &history.pending {
                if entry.mask & pending.bit != 0 {
                    continue;
                }
                let mask = entry.mask | pending.bit;
                match &pending.effect {
                    Effect::Change(change) => {
                        out.push((Rc::new(apply(&entry.state, change)), mask));
                    }
                    Effect::Copy { source, since } => {
                        let states = self.since(*source, *since).into_iter();
                        out.extend(states.filter(|it| it.is_some()).map(|it| (it, mask)));
                    }
                }
            }
        }
        out
    }

    /// The operation was answered with success: it has happened.
    pub(super) fn succeeded(&mut self, ticket: Ticket) {
        self.settle(ticket, true);
    }

    /// The operation was answered with an error that says that nothing happened.
    pub(super) fn failed(&mut self, ticket: Ticket) {
        self.settle(ticket, false);
    }

    /// Nobody will hear of the operation: it may happen at any time, or never.
    pub(super) fn forgotten(&mut self, ticket: Ticket) {
        let pending = &mut self.payloads[ticket.payload].pending;
        if let Some(pending) = pending.iter_mut().find(|it| it.bit == ticket.bit) {
            pending.awaited = false;
        }
    }

    fn settle(&mut self, ticket: Ticket, happened: bool) {
        let now = self.tick();
        let history = &mut self.payloads[ticket.payload];
        history.pending.retain(|it| it.bit != ticket.bit);
        for entry in history.entries.iter_mut().filter(|it| it.died == u64::MAX) {
            if (entry.mask & ticket.bit != 0) != happened {
                entry.died = now;
            }
            entry.mask &= !ticket.bit;
        }
        self.tidy(ticket.payload);
        self.close(ticket.payload);
    }

    /// An observation begins.
    pub(super) fn watch(&mut self, payload: PayloadIndex) -> Watch {
        let since = self.tick();
        let history = &mut self.payloads[payload];
        *history.readers.entry(since).or_insert(0) += 1;
        Watch {
            payload,
            since,
            version: history.version,
        }
    }

    /// The observation ends; returns what the payload may have been meanwhile.
    pub(super) fn seen(&mut self, watch: Watch) -> Vec<Rc<State>> {
        let states = self.since(watch.payload, watch.since);
        let history = &mut self.payloads[watch.payload];
        if let Some(count) = history.readers.get_mut(&watch.since) {
            *count -= 1;
            if *count == 0 {
                history.readers.remove(&watch.since);
            }
        }
        states
    }

    /// Whether nothing changed during an observation, so that what it saw is the state.
    pub(super) fn was_alone(&self, watch: Watch) -> bool {
        self.payloads[watch.payload].version == watch.version
    }

    /// An observation that was alone rules states out.
    pub(super) fn narrow(&mut self, payload: PayloadIndex, fits: impl Fn(&State) -> bool) {
        let now = self.tick();
        let history = &mut self.payloads[payload];
        let alive = history.entries.iter().filter(|it| it.died == u64::MAX);
        if alive.clone().all(|entry| fits(&entry.state)) {
            return;
        }
        for entry in history.entries.iter_mut().filter(|it| it.died == u64::MAX) {
            if !fits(&entry.state) {
                entry.died = now;
            }
        }
        self.close(payload);
    }

    /// What had happened when the clock stood at `since` is durable.
    pub(super) fn flushed(&mut self, payload: PayloadIndex, since: u64) {
        let now = self.tick();
        let history = &mut self.payloads[payload];
        history.floor = history.floor.max(since);
        let before = history.floors.last().map_or(0, |floor| floor.until);
        // Whatever it was then, it was asked for after the flush before had returned.
        let mut then = history.entries.iter().filter(|it| it.died > since);
        let changed = then.all(|it| it.born > before);
        match history.floors.last_mut() {
            Some(last) if !changed => {
                last.since = last.since.max(since);
                last.until = now;
            }
            _ => history.floors.push(Floor { since, until: now }),
        }
        self.tidy(payload);
    }

    /// What had happened when the clock stood at `since` is in the remote.
    pub(super) fn published(&mut self, payload: PayloadIndex, since: u64) {
        let history = &mut self.payloads[payload];
        history.published = history.published.max(since);
        self.tidy(payload);
    }

    /// States that a rebuild from the remote may find.
    pub(super) fn after_loss(&self, payload: PayloadIndex) -> Vec<Rc<State>> {
        self.since(payload, self.payloads[payload].published)
    }

    /// Rebuilt from the remote, the payload was found in a state that `fits`. False if none was
    /// allowed.
    pub(super) fn rebuilt(&mut self, payload: PayloadIndex, fits: impl Fn(&State) -> bool) -> bool {
        let reach = self.payloads[payload].published;
        let found = self.found(payload, reach, fits);
        if found {
            // What was found is in the remote, and on the new disk.
            let now = self.tick();
            let history = &mut self.payloads[payload];
            history.floors.clear();
            (history.floor, history.published) = (now, now);
            self.tidy(payload);
        }
        found
    }

    /// After a crash that may have taken `commits` commits with it: the payload was found in a
    /// state that `fits`. False if none was allowed, and then nothing is learnt.
    pub(super) fn recovered(
        &mut self,
        payload: PayloadIndex,
        commits: usize,
        fits: impl Fn(&State) -> bool,
    ) -> bool {
        let reach = self.payloads[payload].reach(commits);
        self.found(payload, reach, fits)
    }

    fn found(&mut self, payload: PayloadIndex, reach: u64, fits: impl Fn(&State) -> bool) -> bool {
        let now = self.tick();
        let history = &mut self.payloads[payload];
        let found: Vec<bool> = history
            .entries
            .iter()
            .map(|entry| entry.died > reach && fits(&entry.state))
            .collect();
        let those = history.entries.iter().zip(&found).filter(|it| *it.1);
        let Some(last) = those.clone().map(|it| it.0.born_again).max() else {
            return false;
        };
        let died = those.map(|it| it.0.died).max().unwrap_or(u64::MAX);
        history.pending.clear();
        history.readers.clear();
        history.version = now;
        // Flushes that turned out to be lost promise nothing any more.
        history.floors.retain(|floor| floor.since < died);
        if died <= history.floor {
            history.floor = history.floors.last().map_or(0, |floor| floor.since);
        }
        for (entry, found) in history.entries.iter_mut().zip(&found) {
            entry.mask = 0;
            entry.died = match found {
                true => u64::MAX,
                false => entry.died.min(now),
            };
        }
        history.entries.retain(|entry| entry.born <= last);
        self.tidy(payload);
        true
    }

    /// The payload is exactly this, durably, whatever it was.
    pub(super) fn reset(&mut self, payload: PayloadIndex, state: State) {
        let now = self.tick();
        self.payloads[payload] = History {
            entries: vec![Entry {
                state: Rc::new(state),
                mask: 0,
                born: now,
                born_again: now,
                died: u64::MAX,
            }],
            floor: now,
            // The remote may be behind: what it has is found as it was.
            published: 0,
            version: now,
            ..History::default()
        };
    }

    /// Drops what nobody can ask for: states out of reach, and doubles.
    fn tidy(&mut self, payload: PayloadIndex) {
        let copies_since = self.payloads.iter().flat_map(|history| &history.pending);
        let since = |pending: &Pending| match pending.effect {
            Effect::Copy { source, since } if source == payload => Some(since),
            _ => None,
        };
        let copied = copies_since.filter_map(since).min().unwrap_or(u64::MAX);
        let history = &mut self.payloads[payload];
        let read = history.readers.keys().next().copied().unwrap_or(u64::MAX);
        let reach = match self.keeps_past {
            true => 0,
            false if self.has_remote => history.floor.min(history.published).min(copied).min(read),
            false => history.floor.min(copied).min(read),
        };
        let mut kept: Vec<Entry> = Vec::new();
        for entry in history.entries.drain(..).filter(|it| it.died > reach) {
            let double = kept.iter_mut().find(|other| {
                other.died == u64::MAX
                    && entry.died == u64::MAX
                    && other.mask == entry.mask
                    && *other.state == *entry.state
            });
            match double {
                Some(other) => {
                    other.born = other.born.min(entry.born);
                    other.born_again = other.born_again.max(entry.born_again);
                }
                None => kept.push(entry),
            }
        }
        history.entries = kept;
    }
}
