//! Checkpoints in the remote, and what they let go. Whoever rebuilds the store reads the newest one
//! and the log behind it; objects that only an older one refers to are deleted.
//!
//! Invariants are those of the parent module.

use super::super::checkpoint::checkpoint_name;
use super::super::{Shard, State};
use super::{End, RETRY_PAUSE, TAIL_PER_BASE, TAIL_SEGMENTS_MAX, Tier, Uploaded};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Driver, DriverFile, OpenMode};
use crate::log::checkpoint::{CHUNK_BYTES_MAX, decode_chunk, identity};
use crate::marks::mark;
use crate::remote::Created;
use crate::residency::{CHECKPOINTS_TO_FREE, Needed};
use crate::types::PAGE;
use crate::upload::manifest::{Base, base_name};
use crate::upload::{Cause, Wanted};
use bytes::Bytes;

impl Tier {
    /// Takes a checkpoint in place of one before it. Gives that one, if it will never count.
    fn replace_uploaded(&mut self, uploaded: Uploaded) -> Option<Base> {
        let before = self.uploaded.replace(uploaded)?.base;
        let mut known = self.submitted.iter().chain(&self.published);
        let counts = known.any(|state| state.base == Some(before));
        (!counts).then_some(before)
    }
}

impl State {
    /// Whether segments are gone that would have to come next, or are to go, so that only a
    /// checkpoint helps.
    fn has_gap(&self) -> bool {
        let Some(tier) = &self.tier else { return false };
        // What was handed over may wait for what comes behind the gap.
        let Some(before) = tier.furthest() else {
            return false;
        };
        let (state, end) = self.extended(before.clone());
        if matches!(end, End::Waits(id) if self.is_stuck_and_dead(id)) {
            return true;
        }
        let first = |id| self.segments.find(id).map(|held| held.lsns.get().0);
        let behind = match end {
            End::Log => Some(self.log.end().next_lsn),
            End::Waits(id) | End::Gap(id) => first(id),
        };
        behind.is_some_and(|behind| behind > state.next)
    }

    /// Whether segments behind an uploaded checkpoint are gone that would have to count with it, or
    /// that count without it, or it needs what the bucket will never have.
    fn is_stale(&self, tier: &Tier, uploaded: &Uploaded) -> bool {
        let (state, end) = self.extended(uploaded.begun());
        let short = tier
            .furthest()
            .is_some_and(|before| state.next < before.next);
        let waits = matches!(end, End::Waits(id) if !self.is_stuck_and_dead(id));
        // While it waits for others, more of what it needs may go.
        match end.is_behind(uploaded.last) {
            true => !waits && short || self.is_broken(uploaded),
            false => !waits,
        }
    }

    /// Whether an uploaded checkpoint may refer to what was freed before the bucket had it.
    pub(super) fn is_broken(&self, uploaded: &Uploaded) -> bool {
        let has_gone = |held: &Needed| self.segments.find(held.id).is_none();
        uploaded
            .held
            .iter()
            .any(|held| !held.is_uploaded() && has_gone(held))
    }

    /// The sealed segments, oldest first, which a checkpoint needs.
    fn sealed(&self) -> Vec<Needed> {
        let sealed = self.segments.iter().filter(|held| held.is_sealed());
        sealed.map(Needed::new).collect()
    }

    /// Whether another checkpoint is worth its upload.
    fn rebase_due(&self) -> bool {
        let Some(tier) = &self.tier else {
            return false;
        };
        let Some(published) = &tier.published else {
            return false;
        };
        if tier.rebasing || tier.ended.is_some() {
            return false;
        }
        if let Some(uploaded) = &tier.uploaded {
            // Handed over, it may wait for others that wait for what comes behind a gap.
            let submitted = tier.submitted.as_ref().and_then(|state| state.base);
            let handed_over = submitted == Some(uploaded.base);
            return self.is_stale(tier, uploaded) || (handed_over && self.has_gap());
        }
        let tail: u64 = published
            .tail
            .iter()
            .map(|object| u64::from(object.pages))
            .sum();
        let base = published.base.map_or(0, |base| base.bytes);
        let long = published.tail.len() >= TAIL_SEGMENTS_MAX
            && tail * PAGE as u64 >= TAIL_PER_BASE * base.max(self.last_checkpoint_bytes());
        let waiting = tier.has_waiting_garbage();
        long || self.has_gap() || (waiting && self.commit.at_rest)
    }
}

impl<D: Driver> Shard<D> {
    /// Uploads a checkpoint whenever one is worth it.
    pub(super) async fn rebase_all(self) {
        loop {
            let due = || self.0.state.borrow().rebase_due().then_some(());
            self.0.tier_changed.until(due).await;
            if let Err(error) = self.rebase().await {
                tracing::warn!(shard = self.0.params.shard.0, %error, "no checkpoint uploaded");
                if self.check_poison().is_err() {
                    return;
                }
                self.0.driver.sleep(RETRY_PAUSE).await;
                if due().is_none() {
                    self.clear_obstacle(Cause::Checkpoint);
                }
            }
        }
    }

    /// Uploads a checkpoint of the log as it is; it counts when the segments up to it do.
    async fn rebase(&self) -> Result<()> {
        {
            let mut state = self.state();
            let tier = state.tier.as_mut().expect("it does not go");
            if std::mem::replace(&mut tier.rebasing, true) {
                return Ok(());
            }
        }
        let result = self.try_rebase().await;
        let mut state = self.state();
        let tier = state.tier.as_mut().expect("it does not go");
        tier.rebasing = false;
        let result = result.map(|uploaded| tier.replace_uploaded(uploaded));
        drop(state);
        match &result {
            Ok(unused) => {
                let shard = self.0.params.shard;
                let name = |base: &Base| base_name(shard, base.sequence, base.epoch);
                self.delete_objects(unused.iter().map(name).collect());
                self.clear_obstacle(Cause::Checkpoint);
            }
            // Everything else passes, or has poisoned the shard.
            Err(error) if error.kind() == ErrorKind::Full => {
                self.note_obstacle(Cause::Checkpoint, error);
            }
            Err(_) => {}
        }
        self.0.tier_changed.notify();
        result.map(|_| ())
    }

    async fn try_rebase(&self) -> Result<Uploaded> {
        self.seal_open().await?;
        self.free_stuck().await?;
        // Also when nothing has changed but that a segment was sealed: the list of those counts.
        self.checkpoint_anyway().await?;
        let (newest, mut held) = {
            let state = self.0.state.borrow();
            (state.upkeep.newest(), state.sealed())
        };
        let newest = newest.ok_or_else(|| Error::internal("a checkpoint has gone"))?;
        let base = Base {
            sequence: newest.sequence,
            epoch: self.0.params.epoch,
            bytes: newest.bytes,
        };
        let name = base_name(self.0.params.shard, base.sequence, base.epoch);
        let body = self.read_checkpoint(newest.sequence, newest.bytes).await?;
        let client = self.client().expect("it does not go");
        let made = client.create(name.clone(), body.clone(), Wanted::default());
        if made.await? == Created::Exists {
            mark("checkpoint was uploaded at an earlier try");
            self.compare_whole(&client, &name, &body).await?;
        }
        // What the cleaner has moved meanwhile has to be in the bucket, too.
        self.seal_open().await?;
        let sealed = self.0.state.borrow().sealed();
        let last = sealed.last().map(|held| held.id);
        held.extend(sealed);
        mark("checkpoint uploaded");
        Ok(Uploaded {
            base,
            next: newest.next,
            last,
            covers: newest.covers,
            held,
        })
    }

    /// Frees what is dead and cannot be uploaded.
    async fn free_stuck(&self) -> Result<()> {
        for _ in 0..CHECKPOINTS_TO_FREE {
            let is_any_left = {
                let state = self.0.state.borrow();
                let mut all = state.segments.iter();
                all.any(|held| state.is_stuck_and_dead(held.id))
            };
            if !is_any_left {
                break;
            }
            mark("freed what could not be uploaded");
            self.checkpoint_anyway().await?;
        }
        Ok(())
    }

    /// Uploads a checkpoint of all there is, and waits until it counts, if that is of any use: few
    /// segments are behind it then, and no objects wait for it to go.
    pub(in crate::shard) async fn leave_checkpoint(&self) -> Result<()> {
        let of_use = {
            let state = self.0.state.borrow();
            let tier = state.tier.as_ref();
            tier.is_some_and(|tier| {
                let published = tier.published.as_ref();
                let behind = published.is_some_and(|published| !published.tail.is_empty());
                behind || tier.has_waiting_garbage()
            })
        };
        if !of_use {
            return Ok(());
        }
        self.rebase().await?;
        let done = || {
            let state = self.0.state.borrow();
            let tier = state.tier.as_ref().expect("it does not go");
            let ended = tier.ended.clone().map(Err);
            ended.or_else(|| (tier.uploaded.is_none() && !tier.rebasing).then_some(Ok(())))
        };
        self.0.tier_changed.until(done).await
    }

    /// A checkpoint's chunks, each checked: what the bucket has of the shard may soon stand on it
    /// alone.
    async fn read_checkpoint(&self, sequence: u64, bytes: u64) -> Result<Vec<Bytes>> {
        let path = self.0.params.path(&checkpoint_name(sequence));
        let read = async {
            let file = self.0.files.open_path(&path, OpenMode::Existing).await?;
            let (mut body, mut offset) = (Vec::new(), 0);
            while offset < bytes {
                let len = (bytes - offset).min(CHUNK_BYTES_MAX as u64);
                let buf = self.0.driver.pool().take(len as usize);
                body.push(file.read(offset, buf).await?.freeze());
                offset += len;
            }
            Ok(body)
        };
        let body = read.await.map_err(|error: std::io::Error| {
            Error::with_source(ErrorKind::Internal, "a checkpoint cannot be read", error)
        })?;
        let identity = identity(&self.0.params.store, self.0.params.shard, sequence);
        for (index, chunk) in (0u32..).zip(&body) {
            decode_chunk(identity, index, chunk).map_err(|malformed| {
                mark("bad checkpoint kept from the remote");
                let why = malformed.0;
                Error::corrupt(format!(
                    "a checkpoint was not written as it should be, {why}"
                ))
            })?;
        }
        Ok(body)
    }
}
