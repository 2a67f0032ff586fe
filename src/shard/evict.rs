//! Eviction: segments that the remote has give their local files up, the coldest first.
//!
//! Invariants:
//! 1. Only what counts in the bucket is evicted, and only what both newest checkpoints list: no
//!    replay wants it.
//! 2. A segment with a byte that its payload's policy keeps here stays, whoever else is in it.
//! 3. Nobody reads a segment whose file goes.
//! 4. A file that is given up is removed, not used again: an older checkpoint may say that the
//!    segment is in it.

use super::space::Purpose;
use super::write::RECORDS_LEN;
use super::{Shard, State};
use crate::error::{Error, ErrorKind, Result};
use crate::io::Driver;
use crate::marks::{mark, planted};
use crate::mutation::Mutation;
use crate::payload_id::PayloadId;
use crate::residency::Held;
use crate::retention::RetentionPolicy;
use crate::types::{Lsn, Nanos, PAYLOAD_BYTES_MAX, PayloadNo, SegmentId};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

/// Payloads that are looked at between two looks at other work.
const PAYLOADS_PER_STEP: usize = 256;

/// How often files are looked for that a time to live has run out for, at most and at least.
const TTL_PERIOD_MIN: Duration = Duration::from_millis(10);
const TTL_PERIOD_MAX: Duration = Duration::from_secs(60);

/// Pause after a pass that found only what is being read.
const READ_PAUSE: Duration = Duration::from_millis(1);

/// What may be evicted, by the payloads' policies and the store's.
pub(super) struct Retention {
    default: RetentionPolicy,
    /// How often they were changed.
    changes: u64,
    /// A pass that found nothing found it when all of this stood so.
    futile: Option<Progress>,
    /// It was so because a policy was in the way, and not because nothing more was in the bucket.
    is_barred: bool,
    /// The timer that looks for times to live is running.
    timing: bool,
    /// Segments that the last pass was not to touch.
    barred: BTreeSet<SegmentId>,
    /// How many segments could give up their files, and when they were counted.
    stock: Option<(Count, usize)>,
}

/// What such a count depends on, beside what was not to be touched.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Count {
    published: Lsn,
    changes: u64,
}

/// What eviction depends on.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Progress {
    /// Whether it may happen at all.
    allowed: bool,
    published: Lsn,
    covered: SegmentId,
    changes: u64,
    freed: u64,
    kept: u64,
}

impl Retention {
    pub(super) fn new(default: RetentionPolicy) -> Retention {
        Retention {
            default,
            changes: 0,
            futile: None,
            is_barred: false,
            timing: false,
            barred: BTreeSet::new(),
            stock: None,
        }
    }
}

impl State {
    /// What may be evicted of a payload.
    fn policy_of(&self, payload: PayloadNo) -> RetentionPolicy {
        self.map.policy(payload).unwrap_or(self.retention.default)
    }

    /// The shortest time to live that anybody has.
    fn shortest_ttl(&self) -> Option<Duration> {
        let all = self.map.policies().values();
        let spans = all
            .chain([&self.retention.default])
            .filter_map(|policy| match policy {
                RetentionPolicy::Ttl(span) => Some(*span),
                RetentionPolicy::Pin | RetentionPolicy::Lru => None,
            });
        spans.min()
    }

    /// Whether a segment's file may go, policies aside.
    fn is_evictable(&self, held: &Rc<Held>) -> bool {
        self.may_be_evicted(held) && held.is_unread()
    }

    /// The same when nobody reads it.
    fn may_be_evicted(&self, held: &Held) -> bool {
        self.counts_in_remote(held) && self.is_covered(held)
    }

    /// Whether a segment has a file here, and counts in the bucket, too.
    fn counts_in_remote(&self, held: &Held) -> bool {
        held.file().is_some() && held.is_sealed() && self.is_published(held)
    }

    /// Whether a segment counts in the bucket.
    pub(super) fn is_published(&self, held: &Held) -> bool {
        let published = self.tier.as_ref().map(|tier| tier.published_next());
        let there = |next| held.is_uploaded() && held.lsns.get().1 <= next;
        published.is_some_and(|next| there(next) || planted("evict_before_upload"))
    }

    /// Whether all checkpoints list a segment, and say that the remote has it.
    fn is_covered(&self, held: &Held) -> bool {
        let recorded = held.is_recorded_by(self.upkeep.oldest_sequence());
        let recorded = recorded || planted("evict_before_upload");
        held.id < self.upkeep.covered_by_all() && recorded
    }

    /// The coldest segment that may give up its file, or what is kept of it.
    fn coldest(&self) -> Option<Rc<Held>> {
        let barred = &self.retention.barred;
        let may_evict = self.may_evict();
        let goes = |held: &&Rc<Held>| {
            // What is kept is a copy: it goes whether or not the bucket can be reached.
            let kept = self.kept.bytes_of(held.id) > 0;
            (kept || may_evict && self.is_evictable(held)) && !barred.contains(&held.id)
        };
        let goes = self.segments.iter().filter(goes);
        goes.min_by_key(|held| (held.used.get(), held.id)).cloned()
    }

    /// How many segments could give up their files, for a checkpoint at most.
    pub(super) fn stock(&mut self) -> usize {
        if !self.may_evict() {
            return 0;
        }
        let count = Count {
            published: self.published(),
            changes: self.segments.changes(),
        };
        if let Some((last, segments)) = self.retention.stock
            && last == count
        {
            return segments;
        }
        let barred = &self.retention.barred;
        let goes = |held: &&Rc<Held>| self.counts_in_remote(held) && !barred.contains(&held.id);
        let segments = self.segments.iter().filter(goes).count();
        self.retention.stock = Some((count, segments));
        segments
    }

    /// Whether checkpoints would make more segments evictable.
    fn waits_for_checkpoint(&self) -> bool {
        let waits = |held: &Rc<Held>| self.counts_in_remote(held) && !self.is_covered(held);
        self.segments.iter().any(waits)
    }

    /// Up to where the bucket has everything.
    fn published(&self) -> Lsn {
        let tier = self.tier.as_ref();
        tier.map_or(Lsn(0), |tier| tier.published_next())
    }

    fn progress(&self) -> Progress {
        Progress {
            allowed: self.may_evict(),
            published: self.published(),
            covered: self.upkeep.covered_by_all(),
            changes: self.retention.changes,
            freed: self.stats.cleaned_segments,
            kept: self.kept.bytes(),
        }
    }

    /// Whether eviction makes room: now, or when more has been uploaded.
    pub(super) fn eviction_helps(&self) -> bool {
        let more_comes = || {
            let is_on_its_way = self.on_their_way();
            self.segments.iter().rev().any(|held| is_on_its_way(held))
        };
        self.may_evict() && (!self.is_futile() || !self.retention.is_barred && more_comes())
    }

    /// Whether the last pass found nothing, and nothing has changed since.
    fn is_futile(&self) -> bool {
        self.retention.futile == Some(self.progress())
    }

    /// Whether eviction may happen at all now.
    fn may_evict(&self) -> bool {
        let tier = self.tier.as_ref();
        tier.is_some_and(|tier| tier.is_well() && tier.eviction_enabled)
    }
}

impl<D: Driver> Shard<D> {
    /// Whether there is little room, and eviction may help.
    pub(super) fn evicting_due(&self, state: &State) -> bool {
        let may_give = !state.kept.is_empty() || state.may_evict();
        // What takes less room than it seems to is looked at first.
        may_give && state.kept.is_known() && self.is_short_of_files(state) && !state.is_futile()
    }

    /// Makes room: evicts the coldest segments, or brings a checkpoint up that lets them go.
    pub(super) async fn evict_coldest(&self) -> Result<()> {
        let progress = self.0.state.borrow().progress();
        let barred = self.barred(|policy, used, now| match policy {
            RetentionPolicy::Pin => true,
            RetentionPolicy::Ttl(span) => now.since(used) < span,
            RetentionPolicy::Lru => false,
        });
        let barred = barred.await;
        {
            let mut state = self.state();
            (state.retention.barred, state.retention.stock) = (barred, None);
        }
        let (mut evicted, mut crumbs) = (0, 0);
        loop {
            let coldest = {
                let state = self.0.state.borrow();
                // Who changes a policy meanwhile may want to keep the very next.
                let stands = state.retention.changes == progress.changes;
                let goes_on = stands && self.is_short_of_files(&state);
                goes_on.then(|| state.coldest()).flatten()
            };
            let Some(held) = coldest else { break };
            if held.file().is_some() {
                evicted += self.evict_segment(held).await;
                continue;
            }
            let bytes = self.drop_kept(held.id).await;
            (evicted, crumbs) = (evicted + bytes, crumbs + bytes);
            let mut state = self.state();
            if self.is_room(&state, crumbs) {
                crumbs = 0;
                state.space.note_progress();
            }
        }
        if evicted > 0 {
            return Ok(());
        }
        let uncovered = {
            let state = self.0.state.borrow();
            state.may_evict() && state.waits_for_checkpoint()
        };
        if uncovered {
            self.checkpoint_anyway().await?;
        }
        let only_read = {
            let mut state = self.state();
            let may_evict = state.may_evict();
            let barred = &state.retention.barred;
            let goes = |held: &&Rc<Held>| {
                may_evict && state.may_be_evicted(held) && !barred.contains(&held.id)
            };
            let left = state.segments.iter().filter(goes);
            let some_unread = left.map(Held::is_unread).reduce(|a, b| a || b);
            if some_unread.is_none() && state.progress() == progress {
                let is_barred = state.segments.iter().any(|held| state.is_evictable(held));
                state.retention.futile = Some(progress);
                state.retention.is_barred = is_barred;
            }
            some_unread == Some(false)
        };
        if only_read {
            mark("eviction waits for readers");
            self.0.driver.sleep(READ_PAUSE).await;
        }
        Ok(())
    }

    /// Whether what was given up of kept bytes is room for a segment. Nobody's patience begins anew
    /// for less.
    fn is_room(&self, state: &State, bytes: u64) -> bool {
        match state.space.disk_full {
            true => bytes >= self.0.params.segment_bytes(),
            false => state.segments.local() < self.segments_max(state, Purpose::Data),
        }
    }

    /// Gives a segment's file up. Says how many bytes that frees.
    async fn evict_segment(&self, held: Rc<Held>) -> u64 {
        let Some(file) = self.state().segments.leave_file(&held) else {
            return 0;
        };
        mark("segment evicted");
        drop(held);
        self.remove(file).await;
        let mut state = self.state();
        state.stats.evicted_segments += 1;
        let bytes = self.0.params.segment_bytes();
        state.space.note_freed(bytes, self.now());
        drop(state);
        self.0.room.notify();
        bytes
    }

    /// The segments with bytes that some payload's policy keeps here.
    async fn barred(
        &self,
        keeps: impl Fn(RetentionPolicy, Nanos, Nanos) -> bool,
    ) -> BTreeSet<SegmentId> {
        let mut barred = BTreeSet::new();
        let mut next = Some(PayloadNo(0));
        let all_lru = {
            let state = self.0.state.borrow();
            state.map.policies().is_empty() && state.retention.default == RetentionPolicy::Lru
        };
        if all_lru && !keeps(RetentionPolicy::Lru, Nanos(0), Nanos(0)) {
            return barred;
        }
        while let Some(from) = next.take() {
            {
                let state = self.0.state.borrow();
                let now = self.now();
                for (count, (number, payload)) in state.map.payloads_from(from).enumerate() {
                    if count == PAYLOADS_PER_STEP {
                        next = Some(number);
                        break;
                    }
                    let policy = state.policy_of(number);
                    if policy == RetentionPolicy::Lru && !keeps(policy, now, now) {
                        continue;
                    }
                    for extent in payload.extents.range(0, PAYLOAD_BYTES_MAX) {
                        let id = extent.at().segment();
                        let used = state.segments.find(id).map(|held| held.used.get());
                        if keeps(policy, used.unwrap_or_default(), now) {
                            barred.insert(id);
                        }
                    }
                }
            }
            self.yield_now().await;
        }
        barred
    }

    /// Frees a payload's local bytes, once the remote has them.
    pub(super) async fn evict(&self, id: &PayloadId) -> Result<u64> {
        self.check_enabled()?;
        self.wait_remote(id).await?;
        self.check_not_suspended()?;
        let segments = {
            let state = self.0.state.borrow();
            let number = state.map.number(id).ok_or_else(Error::not_found)?;
            if state.policy_of(number) == RetentionPolicy::Pin {
                return Ok(0);
            }
            let payload = state.map.payload(number).expect("a name has a payload");
            let extents = payload.extents.range(0, PAYLOAD_BYTES_MAX);
            extents.map(|extent| extent.at().segment()).collect()
        };
        self.evict_segments(segments).await
    }

    fn check_enabled(&self) -> Result<()> {
        let state = self.0.state.borrow();
        match state.tier.as_ref().is_some_and(|it| it.eviction_enabled) {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Unavailable,
                "eviction is disabled: enable it with set_eviction_enabled",
            )),
        }
    }

    /// What is here may be all that can be had while the bucket is bad, or another's.
    fn check_not_suspended(&self) -> Result<()> {
        self.check_enabled()?;
        let state = self.0.state.borrow();
        if state.may_evict() {
            return Ok(());
        }
        mark("eviction refused, as the remote is bad");
        let why = state.tier.as_ref().and_then(|tier| tier.trouble());
        let why = why.unwrap_or_else(|| "it is not taken yet".to_owned());
        let message = format!("nothing is evicted while the remote is bad: {why}");
        Err(Error::new(ErrorKind::Unavailable, message))
    }

    async fn evict_segments(&self, mut segments: BTreeSet<SegmentId>) -> Result<u64> {
        // Two checkpoints have to list a segment before its file may go, and one may have been
        // begun before it was uploaded.
        for _ in 0..3 {
            let uncovered = {
                let state = self.0.state.borrow();
                let held = segments.iter().filter_map(|id| state.segments.find(*id));
                let mut local = held.filter(|held| held.file().is_some());
                local.any(|held| !state.is_covered(held))
            };
            if uncovered {
                self.checkpoint_anyway().await?;
            }
        }
        let mut freed = 0;
        while !segments.is_empty() {
            let changes = self.0.state.borrow().retention.changes;
            let pinned = self.barred(|policy, _, _| policy == RetentionPolicy::Pin);
            let pinned = pinned.await;
            segments.retain(|id| !pinned.contains(id));
            while self.0.state.borrow().retention.changes == changes
                && let Some(id) = segments.pop_first()
            {
                self.check_not_suspended()?;
                let held = {
                    let state = self.0.state.borrow();
                    let held = state.segments.find(id);
                    held.filter(|held| state.is_evictable(held)).cloned()
                };
                freed += match held {
                    Some(held) => self.evict_segment(held).await,
                    None => self.drop_kept(id).await,
                };
            }
        }
        Ok(freed)
    }

    /// Says what may be evicted of a payload, from now on and after a restart.
    pub(super) async fn set_retention(
        &self,
        id: &PayloadId,
        policy: RetentionPolicy,
    ) -> Result<()> {
        self.record(Purpose::Meta, RECORDS_LEN, &[], |state, _| {
            let payload = state.map.number(id).ok_or_else(Error::not_found)?;
            Ok((vec![Mutation::Retain { payload, policy }], ()))
        })
        .await?;
        self.note_policies();
        Ok(())
    }

    /// The same for all payloads of which nobody has said it, until the store is closed.
    pub(super) fn set_default_retention(&self, policy: RetentionPolicy) {
        self.state().retention.default = policy;
        self.note_policies();
    }

    fn note_policies(&self) {
        self.state().retention.changes += 1;
        self.0.upkeep_due.notify();
        self.start_ttl_timer();
    }

    pub(super) fn set_eviction_enabled(&self, enabled: bool) {
        let mut state = self.state();
        state.retention.changes += 1;
        if let Some(tier) = &mut state.tier {
            tier.eviction_enabled = enabled;
        }
        drop(state);
        self.0.upkeep_due.notify();
    }

    /// Starts the timer that evicts what a time to live has run out for, if anybody has one.
    pub(super) fn start_ttl_timer(&self) {
        let mut state = self.state();
        let idle = state.tier.is_none() || state.shortest_ttl().is_none();
        if idle || std::mem::replace(&mut state.retention.timing, true) {
            return;
        }
        drop(state);
        let shard = self.clone();
        self.0.driver.spawn(async move {
            loop {
                let ttl = shard.0.state.borrow().shortest_ttl();
                let Some(ttl) = ttl else { break };
                let period = (ttl / 4).clamp(TTL_PERIOD_MIN, TTL_PERIOD_MAX);
                shard.0.driver.sleep(period).await;
                if shard.0.state.borrow().may_evict()
                    && let Err(error) = shard.evict_expired().await
                {
                    tracing::warn!(%error, "what has expired could not be evicted");
                }
            }
            shard.state().retention.timing = false;
        });
    }

    /// Evicts what no payload keeps here any more, of those that have a time to live.
    async fn evict_expired(&self) -> Result<()> {
        let expires = |state: &State, held: &Rc<Held>| {
            let idle = self.now().since(held.used.get());
            let ttl = state.shortest_ttl();
            let here = held.file().is_some() || state.kept.bytes_of(held.id) > 0;
            here && held.is_sealed() && ttl.is_some_and(|ttl| idle >= ttl)
        };
        let old: BTreeSet<SegmentId> = {
            let state = self.0.state.borrow();
            let old = state.segments.iter().filter(|held| expires(&state, held));
            old.map(|held| held.id).collect()
        };
        if old.is_empty() {
            return Ok(());
        }
        let barred = self.barred(|policy, used, now| match policy {
            RetentionPolicy::Ttl(span) => now.since(used) < span,
            RetentionPolicy::Pin | RetentionPolicy::Lru => true,
        });
        let barred = barred.await;
        let expired: BTreeSet<SegmentId> = old.difference(&barred).copied().collect();
        if !expired.is_empty() {
            self.evict_segments(expired).await?;
        }
        Ok(())
    }
}
