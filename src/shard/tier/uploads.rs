//! Uploading sealed segments. One that cannot be uploaded is tried again, ever less often, for its
//! bytes may be mended; it holds up what counts, and nobody else's upload.
//!
//! Once its bytes are in memory, an upload keeps nobody from freeing its segment.
//!
//! Invariants are those of the parent module.

use super::super::{Shard, State};
use super::{READ_PAGES, RETRY_PAUSE, Tier};
use crate::error::{Error, ErrorKind, Result};
use crate::io::Driver;
use crate::log::objects;
use crate::marks::mark;
use crate::remote::Created;
use crate::residency::Held;
use crate::stats::Stage;
use crate::types::{Lsn, Nanos, SegmentId};
use crate::upload::manifest::segment_name;
use crate::upload::{Cause, Wanted};
use bytes::Bytes;
use std::rc::Rc;
use std::time::Duration;

/// Segments that a shard may always have on their way: one goes, while another one is read.
const UPLOADS_MIN: usize = 2;

/// The longest of the pauses between tries, which double: who waits for the segment waits hardly
/// longer than that once it can be had.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// A segment that could not be uploaded.
pub(super) struct Stuck {
    pub(super) why: Error,
    /// When it could not be uploaded for the first time.
    pub(super) since: Nanos,
    /// How long it rests before it is tried again.
    pause: Duration,
    resting: bool,
}

impl State {
    /// The next segment to be uploaded, if there is one.
    pub(super) fn next_upload(&self) -> Option<Rc<Held>> {
        let tier = self.tier.as_ref()?;
        if tier.published.is_none() || tier.ended.is_some() {
            return None;
        }
        let waits = |held: &&Rc<Held>| {
            let resting = tier.stuck.get(&held.id).is_some_and(|stuck| stuck.resting);
            let begun = tier.uploading.contains_key(&held.id);
            held.is_sealed() && !held.is_uploaded() && !begun && !resting
        };
        self.segments.iter().find(waits).cloned()
    }

    /// Whether nothing refers to a segment that could not be uploaded: after a crash, its file may
    /// have been another's already.
    pub(super) fn is_stuck_and_dead(&self, id: SegmentId) -> bool {
        let is_stuck = |tier: &Tier| tier.stuck.contains_key(&id);
        self.tier.as_ref().is_some_and(is_stuck) && self.is_dead(id)
    }
}

impl<D: Driver> Shard<D> {
    /// Uploads sealed segments, oldest first, several at once. One that fails does not hold up the
    /// others, and is tried again.
    pub(super) async fn upload_all(self) {
        loop {
            let next = || {
                let state = self.0.state.borrow();
                let next = || state.next_upload();
                self.may_upload(&state).then(next).flatten()
            };
            let held = self.0.tier_changed.until(next).await;
            let mut state = self.state();
            let tier = state.tier.as_mut().expect("it does not go");
            let wanted = Wanted::default();
            tier.uploading.insert(held.id, wanted.clone());
            tier.client.budget().take(self.0.params.segment_bytes());
            drop(state);
            let shard = self.clone();
            self.0.driver.spawn(async move {
                let id = held.id;
                let result = shard.upload_segment(held, wanted).await;
                shard.note_upload(id, result);
            });
        }
    }

    /// Whether one more segment may be on its way. Who has waited for room of other shards looks
    /// again when one of its own is there.
    fn may_upload(&self, state: &State) -> bool {
        let bytes = self.0.params.segment_bytes();
        state.tier.as_ref().is_some_and(|tier| {
            tier.uploading.len() < UPLOADS_MIN || tier.client.budget().has_room(bytes)
        })
    }

    fn note_upload(&self, id: SegmentId, result: Result<()>) {
        let mut state = self.state();
        let held = state.segments.find(id).cloned();
        // One checkpoint may have been begun that does not know yet.
        let recorded_from = state.upkeep.next_sequence() + 1;
        let tier = state.tier.as_mut().expect("it does not go");
        tier.uploading.remove(&id);
        let bytes = self.0.params.segment_bytes();
        tier.client.budget().give_back(bytes);
        match (held, result) {
            (None, _) => {
                mark("upload given up");
                drop(state);
                // It may be there all the same.
                self.collect_garbage();
            }
            (Some(held), Ok(())) => {
                held.set_uploaded(recorded_from);
                let was_stuck = tier.stuck.remove(&id).is_some();
                state.stats.completed_syncs += 1;
                drop(state);
                if was_stuck {
                    mark("segment uploaded at a later try");
                    self.clear_obstacle(Cause::Segment(id));
                }
            }
            (Some(_), Err(error)) => {
                tracing::error!(segment = id.0, %error, "a segment is not uploaded");
                let before = tier.stuck.get(&id);
                let pause = before.map_or(RETRY_PAUSE, |it| (2 * it.pause).min(PAUSE_MAX));
                let stuck = Stuck {
                    why: error.clone(),
                    since: before.map_or_else(|| self.now(), |it| it.since),
                    pause,
                    resting: true,
                };
                tier.stuck.insert(id, stuck);
                drop(state);
                self.note_obstacle(Cause::Segment(id), &error);
                // A poisoned shard, or a bucket that is another's: time heals neither.
                if error.kind() != ErrorKind::Poisoned {
                    self.wake_later(id, pause);
                }
            }
        }
        self.0.tier_changed.notify();
        self.0.upkeep_due.notify();
    }

    /// Lets a segment be tried again after a pause.
    fn wake_later(&self, id: SegmentId, pause: Duration) {
        let shard = self.clone();
        self.0.driver.spawn(async move {
            shard.0.driver.sleep(pause).await;
            let mut state = shard.state();
            let tier = state.tier.as_mut().expect("it does not go");
            if let Some(stuck) = tier.stuck.get_mut(&id) {
                stuck.resting = false;
            }
            drop(state);
            shard.0.tier_changed.notify();
        });
    }

    async fn upload_segment(&self, held: Rc<Held>, wanted: Wanted) -> Result<()> {
        let (_, next) = held.lsns.get();
        self.durable(Lsn(next.0 - 1)).await?;
        self.footers_durable(held.id).await?;
        let sums = self.load_sums(&held).await?;
        let table = objects::table(held.identity, &sums);
        let mut body = vec![Bytes::from(table.clone())];
        let pages = held.pages.get();
        let mut first = 0;
        while first < pages {
            let count = READ_PAGES.min(pages - first);
            body.push(self.read_checked(&held, first, count, &sums).await?);
            first += count;
        }
        let client = self.client().expect("it does not go");
        let name = segment_name(self.0.params.shard, held.id, held.epoch);
        drop(held);
        let from = self.pass();
        let created = client.create(name.clone(), body, wanted).await?;
        self.note_stage(Stage::Upload, from);
        match created {
            Created::New => Ok(()),
            // An earlier try, or an earlier opening, has made it: if it is the same.
            Created::Exists => {
                mark("segment was uploaded at an earlier try");
                // Its table vouches for all of it.
                self.compare_there(&client, &name, 0, &table).await
            }
        }
    }
}
