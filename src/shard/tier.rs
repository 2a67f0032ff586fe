//! The shard's side of the remote tier: what is uploaded, in which order, and from when on it
//! counts.
//!
//! Sealed segments are uploaded as they are, several at once; what counts in the bucket is only
//! ever the log up to some segment, without a gap. Now and then a checkpoint is uploaded, too, and
//! the segments behind it alone count from then on, with those that the checkpoint refers to.
//!
//! Invariants:
//! 1. A segment is uploaded when all of it is durable here, and compared with its sums before.
//! 2. A state is published only when every segment that it names, or that its checkpoint may refer
//!    to, is in the bucket, and never one that goes less far than another before it. The cleaner
//!    may have made the checkpoint refer to what was logged while it was written, so it counts only
//!    together with all segments up to its end.
//! 3. An object is deleted only when a published checkpoint was begun after the last reference to
//!    its segment had gone.
//! 4. What nobody needs here is kept for the bucket only as long as the bucket takes it and nobody
//!    has waited for the room for long. An upload of what is freed is given up, and a checkpoint
//!    that needs it never counts.
//!
//! Deliberately not here: how the bucket is spoken to (`upload`), and reading from it (`cold`).

mod claim;
mod compare;
mod garbage;
mod rebase;
mod uploads;

use super::{Shard, State};
use crate::error::{Error, ErrorKind, Result};
use crate::io::Driver;
use crate::marks::{mark, planted};
use crate::payload_id::PayloadId;
use crate::residency::{Held, Needed, Segments};
use crate::stats::{Stage, Stats};
use crate::types::{Lsn, Nanos, SegmentId, ShardId};
use crate::upload::manifest::{Base, Object, ShardState, base_name};
use crate::upload::{Cause, Client, Needs, Wanted, within};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use uploads::Stuck;

/// Bytes that are read at once for an upload.
const READ_PAGES: u32 = 256;

/// Segments behind the published checkpoint from which on another one is worth its upload: few
/// enough that a node is rebuilt in a moment.
const TAIL_SEGMENTS_MAX: usize = 32;

/// Bytes of published segments per byte of published checkpoint.
const TAIL_PER_BASE: u64 = 20;

/// Segments whose uploads a gap in the log may wait for: few enough that nobody notices.
const GAP_SEGMENTS_MAX: usize = 4;

/// How often somebody who waits for the bucket looks whether it is away.
const HEALTH_PERIOD: Duration = Duration::from_millis(250);

/// How long a bucket may be bad, or be it again and again, before who waits for it is told: some
/// failed requests in a row are none of his business.
const HICCUP_MAX: Duration = Duration::from_secs(5);

/// Pause before something that failed here is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A checkpoint that is in the bucket and does not count yet.
struct Uploaded {
    base: Base,
    next: Lsn,
    /// It counts with all segments up to here.
    last: Option<SegmentId>,
    /// It lists every segment before this one.
    covers: SegmentId,
    /// What it may refer to.
    held: Vec<Needed>,
}

impl Uploaded {
    /// The state with it, and nothing behind it yet but the segment that was open as it was begun:
    /// that one has bytes that it refers to, and it does not list it.
    fn begun(&self) -> ShardState {
        let open = |held: &&Needed| held.id >= self.covers && held.lsns.get().1 <= self.next;
        let open = self.held.iter().rev().find(open);
        ShardState {
            next: self.next,
            base: Some(self.base),
            tail: open.map(|held| object(held)).into_iter().collect(),
        }
    }
}

fn object(held: &Held) -> Object {
    let (first, next) = held.lsns.get();
    Object {
        segment: held.id,
        epoch: held.epoch,
        first,
        next,
        pages: held.pages.get(),
    }
}

/// Why a published state goes no further.
#[derive(Clone, Copy)]
enum End {
    /// It has all of the log.
    Log,
    /// This segment is not uploaded yet.
    Waits(SegmentId),
    /// Before this segment, something is gone.
    Gap(SegmentId),
}

impl End {
    /// Whether all segments up to this one are in.
    fn is_behind(self, last: Option<SegmentId>) -> bool {
        match self {
            End::Log => true,
            End::Waits(first) | End::Gap(first) => last.is_none_or(|last| first > last),
        }
    }
}

/// What the shard knows of its remote tier.
pub(super) struct Tier {
    shard: ShardId,
    pub(super) client: Client,
    /// What counts in the bucket; `None` until the bucket is taken.
    published: Option<ShardState>,
    /// What will count there next, as far as it has been handed over, and how often something was;
    /// what was handed over later stands for more.
    submitted: Option<ShardState>,
    submissions: u64,
    /// The last of those that counts.
    counted: u64,
    /// Why nothing more will be uploaded.
    pub(super) ended: Option<Error>,
    /// Segments on their way, and whether they are still wanted there.
    uploading: BTreeMap<SegmentId, Wanted>,
    /// What could not be uploaded when it was last tried.
    stuck: BTreeMap<SegmentId, Stuck>,
    uploaded: Option<Uploaded>,
    /// Objects of freed segments, with the first checkpoint that cannot refer to them.
    garbage: Vec<(u64, String)>,
    /// The objects that earlier openings left behind are known.
    swept: bool,
    /// Deletions under way.
    deleting: usize,
    /// Another checkpoint is being uploaded.
    rebasing: bool,
    /// The operator lets eviction happen.
    pub(super) eviction_enabled: bool,
}

impl Tier {
    pub(super) fn new(shard: ShardId, client: Client) -> Tier {
        Tier {
            shard,
            client,
            published: None,
            submitted: None,
            submissions: 0,
            counted: 0,
            ended: None,
            uploading: BTreeMap::new(),
            stuck: BTreeMap::new(),
            uploaded: None,
            garbage: Vec::new(),
            swept: false,
            deleting: 0,
            rebasing: false,
            eviction_enabled: true,
        }
    }

    /// The batch behind the last one that counts in the bucket.
    pub(super) fn published_next(&self) -> Lsn {
        self.published.as_ref().map_or(Lsn(1), |state| state.next)
    }

    /// Whether who rebuilds fetches one of these segments at once.
    pub(super) fn asks_for(&self, segments: &BTreeSet<SegmentId>) -> bool {
        let tail = self.published.iter().flat_map(|state| &state.tail);
        tail.map(|object| object.segment)
            .any(|id| segments.contains(&id))
    }

    /// The furthest state: what was handed over last, or else what counts.
    fn furthest(&self) -> Option<&ShardState> {
        self.submitted.as_ref().or(self.published.as_ref())
    }

    /// Whether the bucket is this engine's and answers.
    pub(super) fn is_well(&self) -> bool {
        self.published.is_some() && self.ended.is_none() && self.client.health().is_good()
    }

    /// Whether nothing elsewhere keeps what is uploaded from counting.
    fn goes_on(&self) -> bool {
        self.is_well() && self.client.between().obstacle(self.shard).is_none()
    }

    /// Why the bucket is bad, if it is.
    pub(super) fn trouble(&self) -> Option<String> {
        let ended = self.ended.as_ref().map(Error::to_string);
        ended.or_else(|| self.client.health().bad().map(|(_, why)| why))
    }

    /// The remote's part of the figures.
    pub(super) fn count(&self, segments: &Segments, now: Nanos, stats: &mut Stats) {
        let waits = |held: &&Rc<Held>| held.is_sealed() && !held.is_uploaded();
        stats.has_remote = true;
        stats.pending_syncs = segments.iter().filter(waits).count() as u64;
        stats.pending_uploads = self.uploading.len() as u64;
        stats.failed_syncs = self.stuck.len() as u64;
        stats.remote_healthy = self.trouble().is_none();
        stats.eviction_suspended = !self.eviction_enabled || !stats.remote_healthy;
        let bad = self.client.health().bad();
        stats.outage_duration_seconds =
            bad.map_or(0.0, |(since, _)| now.since(since).as_secs_f64());
    }
}

impl State {
    /// Tells whether the bucket is to have a dead segment first. To leave it out makes a gap in the
    /// log, and nothing behind that counts before a checkpoint does, with all that it refers to: so
    /// if much waits, or if the segment is all but there.
    pub(super) fn awaited_by_remote(&self) -> impl Fn(&Held) -> bool {
        let is_on_its_way = self.on_their_way();
        let waits = |held: &&Rc<Held>| is_on_its_way(held) && self.map.live.bytes(held.id) > 0;
        let gap_matters = self.segments.iter().filter(waits).count() > GAP_SEGMENTS_MAX;
        let uploading = self.tier.as_ref().map(|tier| &tier.uploading);
        move |held| {
            let begun = || uploading.is_some_and(|uploading| uploading.contains_key(&held.id));
            is_on_its_way(held) && (gap_matters || held.is_needed() || begun())
        }
    }

    /// Tells whether a segment does not count in the bucket yet, and will as soon as it can. That
    /// is not so behind one that cannot be uploaded, while another shard does not go on, or when
    /// somebody has waited for room for long: then nobody knows when.
    pub(super) fn on_their_way(&self) -> impl Fn(&Held) -> bool {
        let patient = !self.space.is_pressing();
        let tier = self.tier.as_ref().filter(|tier| patient && tier.goes_on());
        let first_stuck = tier.and_then(|tier| tier.stuck.keys().next().copied());
        move |held| {
            let is_behind = first_stuck.is_some_and(|stuck| held.id >= stuck);
            tier.is_some() && held.is_sealed() && !is_behind && !self.is_published(held)
        }
    }

    /// What may be published now, if it is more than what was handed over for it.
    fn publishable(&self) -> Option<ShardState> {
        let tier = self.tier.as_ref()?;
        if tier.ended.is_some() {
            return None;
        }
        let before = tier.furthest()?;
        let uploaded = tier.uploaded.as_ref();
        let fresh = uploaded.filter(|uploaded| before.base != Some(uploaded.base));
        let fresh = fresh.filter(|uploaded| !self.is_broken(uploaded));
        let rebased = fresh.and_then(|uploaded| {
            let (state, end) = self.extended(uploaded.begun());
            (end.is_behind(uploaded.last) && state.next >= before.next).then_some(state)
        });
        if rebased.is_some() {
            return rebased;
        }
        let (state, _) = self.extended(before.clone());
        (state.next > before.next).then_some(state)
    }

    /// A state with all uploaded segments that follow without a gap, and why it goes no further.
    fn extended(&self, mut state: ShardState) -> (ShardState, End) {
        for held in self.segments.iter() {
            let (first, next) = held.lsns.get();
            if !held.is_sealed() || !(held.is_uploaded() || planted("publish_out_of_order")) {
                return (state, End::Waits(held.id));
            }
            if next > state.next {
                if first > state.next {
                    return (state, End::Gap(held.id));
                }
                state.next = next;
                state.tail.push(object(held));
            }
        }
        (state, End::Log)
    }
}

impl<D: Driver> Shard<D> {
    /// Starts the tasks that keep the remote up with the log.
    pub(super) fn spawn_tier(&self) {
        if self.0.state.borrow().tier.is_none() {
            return;
        }
        let shard = self.clone();
        self.0
            .driver
            .spawn(async move { shard.keep_remote_up().await });
    }

    /// Notes that from now on nothing of a shard counts in the remote without all of another one
    /// before a batch.
    pub(super) fn note_needs(&self, whose: ShardId, shard: ShardId, before: Lsn) {
        if let Some(client) = self.client() {
            client.between().note_needs(whose, Needs { shard, before });
        }
    }

    /// Tells the other shards why this one does not go on, for those that wait for it.
    pub(super) fn note_obstacle(&self, cause: Cause, error: &Error) {
        if let Some(client) = self.client() {
            let obstacle = (self.now(), error.clone());
            let between = client.between();
            between.note_obstacle(self.0.params.shard, cause, obstacle);
        }
    }

    /// A cause has gone.
    fn clear_obstacle(&self, cause: Cause) {
        if let Some(client) = self.client() {
            let between = client.between();
            between.clear_obstacle(self.0.params.shard, cause);
        }
    }

    pub(super) fn client(&self) -> Option<Client> {
        let state = self.0.state.borrow();
        state.tier.as_ref().map(|tier| tier.client.clone())
    }

    /// Hands over whatever may be published. What waits for other shards is not waited for: more of
    /// this one's may be what they wait for.
    async fn publish_all(self) {
        loop {
            let next = || self.0.state.borrow().publishable();
            let next = self.0.tier_changed.until(next).await;
            let (number, needs) = {
                let mut state = self.state();
                let tier = state.tier.as_mut().expect("it does not go");
                tier.submissions += 1;
                tier.submitted = Some(next.clone());
                let needs = tier.client.between().needs(self.0.params.shard);
                (tier.submissions, needs)
            };
            // Another checkpoint may have to come behind the one that was handed over.
            self.0.tier_changed.notify();
            let shard = self.clone();
            self.0
                .driver
                .spawn(async move { shard.publish(number, next, needs).await });
        }
    }

    async fn publish(&self, number: u64, next: ShardState, needs: Vec<Needs>) {
        let client = self.client().expect("it does not go");
        let shard = self.0.params.shard;
        let result = client.publish(shard, next.clone(), needs.clone()).await;
        if result.is_ok() {
            client.between().met(shard, &needs);
        }
        let mut state = self.state();
        let tier = state.tier.as_mut().expect("it does not go");
        match result {
            Ok(()) if number > tier.counted => {
                tier.counted = number;
                drop(state);
                self.note_published(next);
            }
            Ok(()) => {}
            Err(error) => {
                tier.ended.get_or_insert(error.clone());
                drop(state);
                self.note_obstacle(Cause::End, &error);
                self.0.tier_changed.notify();
            }
        }
    }

    fn note_published(&self, next: ShardState) {
        let old = {
            let mut state = self.state();
            let tier = state.tier.as_mut().expect("it does not go");
            let before = tier.published.replace(next.clone());
            let replaced = before.and_then(|before| before.base);
            match next.base {
                Some(base) if Some(base) != replaced => {
                    tier.uploaded.take_if(|uploaded| uploaded.base == base);
                    let shard = self.0.params.shard;
                    replaced.map(|old| base_name(shard, old.sequence, old.epoch))
                }
                _ => None,
            }
        };
        self.0.tier_changed.notify();
        self.0.upkeep_due.notify();
        self.0.room.notify();
        self.delete_objects(old.into_iter().collect());
        self.collect_garbage();
    }

    /// Seals the open segment, so that it can be uploaded.
    pub(super) async fn seal_open(&self) -> Result<()> {
        self.room_to_close().await?;
        self.close_batch();
        // One that was just begun has no head yet, and nothing in it.
        let empty = {
            let state = self.0.state.borrow();
            let open = state.log.open_segment();
            let held = open.and_then(|id| state.segments.find(id));
            held.is_some_and(|held| held.lsns.get().0 == state.log.next_lsn())
        };
        if !empty {
            self.seal();
            self.0.tier_changed.notify();
        }
        Ok(())
    }

    /// Seals a segment that was begun, when it has become old.
    pub(super) fn start_seal_timer(&self, id: SegmentId) {
        if self.0.state.borrow().tier.is_none() {
            return;
        }
        let shard = self.clone();
        self.0.driver.spawn(async move {
            let seal_after = shard.0.params.config.seal_after;
            shard.0.driver.sleep(seal_after).await;
            let open = || shard.0.state.borrow().log.open_segment() == Some(id);
            // One that is empty is looked at again. A poisoned shard seals nothing.
            while open() && shard.seal_open().await.is_ok() {
                mark("old segment sealed");
                shard.0.driver.sleep(seal_after).await;
            }
        });
    }

    /// Waits until what was flushed of a payload counts in the bucket.
    pub(super) async fn wait_remote(&self, id: &PayloadId) -> Result<()> {
        let lsn = self.flush_changes(id).await?;
        let from = self.pass();
        let result = self.published(lsn).await;
        self.spend(Stage::Upload, self.pass().since(from));
        result
    }

    /// Waits until everything counts in the bucket.
    pub(super) async fn drain(&self) -> Result<()> {
        self.flush_all().await?;
        self.published(self.last_lsn()).await
    }

    /// Waits until the log counts in the bucket up to `lsn`. Fails when the bucket is away, or when
    /// what it waits for, here or on another shard, cannot be had for long.
    pub(super) async fn published(&self, lsn: Lsn) -> Result<()> {
        let began = self.now();
        let open = {
            let state = self.0.state.borrow();
            if state.tier.is_none() {
                return Ok(());
            }
            let open = state.log.open_segment();
            let first = open.and_then(|id| Some(state.segments.find(id)?.lsns.get().0));
            first.is_some_and(|first| lsn >= first)
        };
        if open {
            self.seal_open().await?;
        }
        // When the bucket turned bad, the first time that it was seen to be.
        let mut troubled: Option<Nanos> = None;
        loop {
            let waits = within(
                &self.0.driver,
                HEALTH_PERIOD,
                self.0.tier_changed.until(|| self.how_published(lsn)),
            );
            if let Some(result) = waits.await {
                return result;
            }
            let state = self.0.state.borrow();
            let bad = state.tier.as_ref().and_then(|it| it.client.health().bad());
            if let Some((since, why)) = bad {
                let first = *troubled.get_or_insert(since);
                if self.now().since(first) >= HICCUP_MAX {
                    let message = format!("not everything is in the remote yet: {why}");
                    return Err(Error::new(ErrorKind::Unavailable, message));
                }
            }
            let client = state.tier.as_ref().map(|tier| &tier.client);
            let own = self.0.params.shard;
            let obstacle = client.and_then(|client| client.between().obstacle(own));
            let stall_timeout = self.0.params.config.stall_timeout;
            if let Some((since, error)) = obstacle
                && self.now().since(since.max(began)) >= stall_timeout
            {
                return Err(error);
            }
        }
    }

    fn how_published(&self, lsn: Lsn) -> Option<Result<()>> {
        let state = self.0.state.borrow();
        let tier = state.tier.as_ref()?;
        if tier.published.is_some() && tier.published_next() > lsn {
            return Some(Ok(()));
        }
        if let Some(error) = tier.ended.as_ref().or(state.commit.poison.as_ref()) {
            return Some(Err(error.clone()));
        }
        let stuck = tier.stuck.iter().find(|(id, _)| {
            let held = state.segments.find(**id);
            // What is dead goes, and the bucket gets a checkpoint instead.
            let is_given_up = state.is_stuck_and_dead(**id);
            held.is_some_and(|held| held.lsns.get().0 <= lsn) && !is_given_up
        });
        // With everything else uploaded there is nothing to wait for. Where there is always more,
        // nobody waits for ever.
        let idle = tier.uploading.is_empty() && state.next_upload().is_none();
        let stall_timeout = self.0.params.config.stall_timeout;
        let lasts = |stuck: &Stuck| self.now().since(stuck.since) >= stall_timeout;
        stuck
            .filter(|(_, stuck)| idle || lasts(stuck))
            .map(|(_, stuck)| Err(stuck.why.clone()))
    }
}
