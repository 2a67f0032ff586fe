//! Checkpoints: the map written out, so that opening reads it and the log's tail only.
//!
//! Invariants:
//! 1. A checkpoint is published (renamed, directory synced) only when every batch that it covers
//!    and every footer that it relies on is durable.
//! 2. The two newest checkpoints are kept, and no segment that either needs is freed.
//! 3. Checkpoints cost at most a twentieth of what the log costs: one is due when twenty times the
//!    bytes of the last have been logged since.

use super::heal::Heal;
use super::{Shard, State};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Driver, DriverFile, Durability, OpenMode};
use crate::log::checkpoint::{Encoder, Item, identity};
use crate::log::writer::LogEnd;
use crate::map::Payload;
use crate::map::extent::{Mapped, Zeroed};
use crate::map::tree::{Dumping, Entry, NodeRef};
use crate::marks::{mark, planted};
use crate::retention::RetentionPolicy;
use crate::stats::Stage;
use crate::types::{Lsn, NUMBER_MAX, PAGE, PayloadNo, SegmentId};
use std::collections::{BTreeSet, VecDeque};
use std::io;

/// Bytes of log per byte of checkpoint: the log's share of the writing is at least 95 %.
const LOG_PER_CHECKPOINT: u64 = 20;

/// Log that is replayed without a thought: 16 MiB take about 10 ms to read.
const LOG_BYTES_MIN: u64 = 16 << 20;

/// Leaves that are dumped between two looks at other work: about 50 us.
const LEAVES_PER_STEP: usize = 8;

/// Payloads of a snapshot that are given back between two looks at other work.
const PAYLOADS_PER_STEP: usize = 256;

/// Checkpoints that are kept.
const CHECKPOINTS_KEPT: usize = 2;

/// What upkeep knows.
#[derive(Default)]
pub(super) struct Upkeep {
    /// The newest checkpoints, oldest first.
    kept: VecDeque<Kept>,
    next_sequence: u64,
    /// Bytes written to the log when the last checkpoint was begun.
    logged_then: u64,
    /// Where the log stood when the last checkpoint was begun.
    covered: Option<Lsn>,
    /// Cleaning found nothing to do when the log and the losses stood here.
    pub(super) cleaned_at: Option<(Lsn, u64)>,
    /// Records that were not the cleaner's.
    pub(super) changes: u64,
    /// Bytes that had ceased to be referred to when cleaning last looked.
    pub(super) lost_then: u64,
    /// The cleaner is moving what it has chosen.
    pub(super) moving: bool,
    /// From this segment on there are copies that extents will refer to when the cleaner's move is
    /// over.
    pub(super) moved_to: Option<SegmentId>,
    /// A checkpoint is being written. One at a time: they share the name of the unfinished file.
    checkpointing: bool,
    /// All checkpoints before the first of this log were lost, and records with them: what the
    /// bucket has of the shard is more than this.
    pub(super) past_lost: bool,
    /// Segments with bytes that cannot be read, and so not moved.
    pub(super) unmovable: BTreeSet<SegmentId>,
    /// What is to be moved because the bucket's copy is bad.
    pub(super) heals: Vec<Heal>,
}

/// A checkpoint that is kept.
#[derive(Clone, Copy)]
pub(super) struct Kept {
    pub(super) sequence: u64,
    pub(super) bytes: u64,
    /// Where replay goes on behind it.
    pub(super) next: Lsn,
    /// It lists every segment before this one.
    pub(super) covers: SegmentId,
}

/// Name of a checkpoint's file.
pub(super) fn checkpoint_name(sequence: u64) -> String {
    format!("checkpoint-{sequence:016x}")
}

/// The number in a checkpoint's name.
pub(super) fn parse_checkpoint_name(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("checkpoint-")?;
    let sequence = u64::from_str_radix(digits, 16).ok()?;
    (checkpoint_name(sequence) == name && sequence < NUMBER_MAX).then_some(sequence)
}

impl Upkeep {
    /// Behind a checkpoint that says whether the past is lost.
    pub(super) fn behind(past_lost: bool) -> Upkeep {
        Upkeep {
            past_lost,
            ..Upkeep::default()
        }
    }

    /// As found at opening: checkpoints by number with their bytes, what the newest good one
    /// covers, and the segment from which on it lists none.
    pub(super) fn found(
        mut found: Vec<(u64, u64)>,
        newest: Option<(Lsn, SegmentId)>,
        is_last: bool,
    ) -> Upkeep {
        found.sort_unstable();
        let next_sequence = found.last().map_or(1, |(sequence, _)| sequence + 1);
        let mut kept: VecDeque<Kept> = found
            .into_iter()
            .map(|(sequence, bytes)| Kept {
                sequence,
                bytes,
                next: Lsn(1),
                covers: SegmentId(0),
            })
            .collect();
        if let (Some((next, covers)), Some(last)) = (newest, kept.back_mut()) {
            (last.next, last.covers) = (next, covers);
        }
        Upkeep {
            kept,
            next_sequence,
            covered: newest.filter(|_| is_last).map(|(next, _)| next),
            ..Upkeep::default()
        }
    }

    /// The oldest checkpoint that is kept.
    pub(super) fn oldest_sequence(&self) -> u64 {
        self.kept.front().map_or(0, |kept| kept.sequence)
    }

    /// The number that the next checkpoint gets.
    pub(super) fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// Checkpoints from now on have numbers behind this one.
    pub(super) fn number_after(&mut self, sequence: u64) {
        self.next_sequence = self.next_sequence.max(sequence + 1);
    }

    /// The newest checkpoint.
    pub(super) fn newest(&self) -> Option<Kept> {
        self.kept.back().copied()
    }

    /// The older one of two checkpoints, which is for the case that the newer is damaged.
    pub(super) fn take_older(&mut self) -> Option<Kept> {
        match self.kept.len() > 1 {
            true => self.kept.pop_front(),
            false => None,
        }
    }

    /// All checkpoints list every segment before this one, and there are as many as there should
    /// be.
    pub(super) fn covered_by_all(&self) -> SegmentId {
        let enough = self.kept.len() >= CHECKPOINTS_KEPT;
        let least = self.kept.iter().map(|kept| kept.covers).min();
        least.filter(|_| enough).unwrap_or(SegmentId(0))
    }

    /// Whether one is being written, which holds on to what it found.
    pub(super) fn is_checkpointing(&self) -> bool {
        self.checkpointing
    }

    /// Bytes of the files of all checkpoints that are kept.
    pub(super) fn checkpoint_bytes(&self) -> u64 {
        self.kept.iter().map(|kept| kept.bytes).sum()
    }
}

impl State {
    /// Whether nothing refers to a segment, nor will.
    pub(super) fn is_dead(&self, id: SegmentId) -> bool {
        let is_awaited = self.upkeep.moved_to.is_some_and(|first| id >= first);
        self.map.live.bytes(id) == 0 && (!is_awaited || planted("free_what_is_moved_to"))
    }

    /// Segments that are dead, and that nobody reads.
    fn dead(&self) -> Vec<SegmentId> {
        let mut dead = self.segments.dead(|id| self.is_dead(id));
        if !dead.is_empty() {
            let is_awaited = self.awaited_by_remote();
            let held = |id: &SegmentId| self.segments.find(*id);
            dead.retain(|id| !held(id).is_some_and(|held| is_awaited(held)));
        }
        dead
    }

    pub(super) fn last_checkpoint_bytes(&self) -> u64 {
        self.upkeep.kept.back().map_or(0, |kept| kept.bytes)
    }

    /// Whether this opening has found that records are lost.
    pub(super) fn has_lost_records(&self) -> bool {
        let past_lost = self.upkeep.past_lost && self.upkeep.newest().is_none();
        self.stats.batches_lost > 0 || past_lost
    }

    /// Whether enough has been logged to pay for a checkpoint.
    pub(super) fn checkpoint_due(&self) -> bool {
        let logged = self
            .stats
            .device_written_bytes
            .saturating_sub(self.upkeep.logged_then);
        let enough = LOG_BYTES_MIN.max(self.last_checkpoint_bytes() * LOG_PER_CHECKPOINT);
        // What was written may be of batches that the last one has, and after it.
        logged >= enough && self.changed_since_checkpoint()
    }

    /// Whether the map has changed since the last checkpoint was begun.
    fn changed_since_checkpoint(&self) -> bool {
        self.upkeep.covered != Some(self.log.end().next_lsn) || self.log.has_open_batch()
    }

    /// Whether files wait for nothing but checkpoints, and giving them back is worth those: because
    /// they are wanted, because there is nothing else to do, or because they are many.
    pub(super) fn freeing_due(&self) -> bool {
        let dead = self.dead().len() as u64;
        let gain = dead * self.log.segment_bytes();
        let cheap = 2 * LOG_PER_CHECKPOINT * self.last_checkpoint_bytes();
        gain > 0 && (self.space.wants_file() || self.commit.at_rest || gain >= cheap)
    }
}

impl<D: Driver> Shard<D> {
    /// Writes a checkpoint and makes it the newest, if there is anything new.
    pub(super) async fn checkpoint(&self) -> Result<()> {
        self.checkpoint_if(false).await
    }

    /// Writes a checkpoint also when the last one says the same.
    pub(super) async fn checkpoint_anyway(&self) -> Result<()> {
        self.checkpoint_if(true).await
    }

    async fn checkpoint_if(&self, anyway: bool) -> Result<()> {
        let _turn = self.checkpoint_turn().await;
        self.check_poison()?;
        let unchanged = {
            let state = self.0.state.borrow();
            let unchanged = !state.changed_since_checkpoint();
            if unchanged && state.dead().is_empty() && !anyway {
                return Ok(());
            }
            unchanged
        };
        if !unchanged {
            // The snapshot has to stand between two batches.
            self.room_to_close().await?;
            self.close_batch();
        }
        let from = self.pass();
        let begun = self.begin_checkpoint();
        // Tried again it is the same one: it says nothing of what came later than its number.
        let mut result = self.write_checkpoint(&begun).await;
        while result.as_ref().is_err_and(is_full) && self.make_room_for_checkpoint().await {
            result = self.write_checkpoint(&begun).await;
        }
        self.give_back(begun.payloads).await;
        let kept = Kept {
            sequence: begun.sequence,
            bytes: result?,
            next: begun.end.next_lsn,
            covers: begun.covers,
        };
        self.finish_checkpoint(kept, &begun.dead).await;
        self.note_stage(Stage::Checkpoint, from);
        Ok(())
    }

    /// Waits until no other checkpoint is being written; the next one waits for the result.
    pub(super) async fn checkpoint_turn(&self) -> Turn<D> {
        let free = || (!self.0.state.borrow().upkeep.checkpointing).then_some(());
        self.0.room.until(free).await;
        self.0.state.borrow_mut().upkeep.checkpointing = true;
        Turn(self.clone())
    }

    pub(super) async fn room_to_close(&self) -> Result<()> {
        self.0
            .room
            .until(|| {
                let state = self.0.state.borrow();
                let poison = state.commit.poison.clone().map(Err);
                poison.or_else(|| state.may_close().then_some(Ok(())))
            })
            .await
    }

    /// The state that the checkpoint will hold, taken in one step.
    fn begin_checkpoint(&self) -> Begun {
        let mut state = self.state();
        let state = &mut *state;
        state.upkeep.logged_then = state.stats.device_written_bytes;
        let sequence = state.upkeep.next_sequence;
        state.upkeep.next_sequence += 1;
        let end = state.log.end();
        let item = |held: &std::rc::Rc<crate::residency::Held>| Item::Segment {
            segment: held.id,
            epoch: held.epoch,
            file: held.file(),
            pages: held.pages.get(),
            lsns: held.lsns.get(),
            uploaded: held.is_uploaded(),
        };
        let sealed = state.segments.iter().filter(|held| held.is_sealed());
        let mut head = vec![Item::Start {
            next_lsn: end.next_lsn.0,
            chain: end.chain,
            segment: end.segment,
            pages: end.pages,
            next_payload: state.map.next_payload().0,
            next_generation: self.next_generation().0,
            next_file: state.segments.next_file(),
            past_lost: state.upkeep.past_lost,
        }];
        head.extend(sealed.map(item));
        let dead = state.dead();
        if planted("free_before_checkpoint") {
            state.segments.checkpointed(&dead);
            state.segments.checkpointed(&dead);
        }
        // The open segment is not in the list, nor is what was begun later.
        let covers = match state.log.open_segment() {
            Some(open) => open,
            None => end.segment.next(),
        };
        Begun {
            sequence,
            end,
            covers,
            head,
            payloads: state.map.snapshot(),
            policies: state.map.policies().clone().into_iter().collect(),
            dead,
        }
    }

    /// Gives a snapshot back.
    async fn give_back(&self, payloads: Vec<(PayloadNo, Payload)>) {
        let mut payloads = payloads.into_iter();
        while payloads.len() > 0 {
            for (_, payload) in payloads.by_ref().take(PAYLOADS_PER_STEP) {
                self.state().map.release(payload);
            }
            self.yield_now().await;
        }
        // What only it had is dead when the next one begins.
        self.lose_discarded().await;
    }

    async fn write_checkpoint(&self, begun: &Begun) -> Result<u64> {
        // What the checkpoint refers to is durable before the checkpoint is.
        if !planted("checkpoint_before_log") {
            self.durable(Lsn(begun.end.next_lsn.0 - 1)).await?;
        }
        self.footers_durable(begun.end.segment).await?;
        let temporary = self.0.params.path("checkpoint.new");
        let result = self.write_checkpoint_file(begun, &temporary).await;
        if result.is_err() {
            // The next opening removes it if this does not.
            let _ = self.0.driver.unlink(&temporary).await;
        }
        result.map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::StorageFull => ErrorKind::Full,
                _ => ErrorKind::Poisoned,
            };
            Error::with_source(kind, "a checkpoint could not be written", error)
        })
    }

    /// Waits until every segment that was sealed, up to `last`, can be read after a restart.
    pub(super) async fn footers_durable(&self, last: SegmentId) -> Result<()> {
        self.0
            .room
            .until(|| {
                let state = self.0.state.borrow();
                let poison = state.commit.poison.clone().map(Err);
                let done = state.space.first_sealing().is_none_or(|first| first > last);
                poison.or_else(|| done.then_some(Ok(())))
            })
            .await
    }

    async fn write_checkpoint_file(&self, begun: &Begun, temporary: &str) -> io::Result<u64> {
        let _ = self.0.driver.unlink(temporary).await;
        let file = self
            .0
            .files
            .open_path(temporary, OpenMode::CreateNew)
            .await?;
        let params = &self.0.params;
        let mut out = Out {
            file,
            encoder: Encoder::new(identity(&params.store, params.shard, begun.sequence)),
            full: VecDeque::new(),
            written: 0,
        };
        for item in &begun.head {
            out.push(item);
            self.drain_chunks(&mut out).await?;
        }
        let pass = self.state().map.begin_pass();
        let (mut extents, mut zeroed) = (0, 0);
        for (number, payload) in &begun.payloads {
            let begun = payload.extents.begin_dump(pass);
            let extents = self.dump(begun, &mut extents, &mut out, Out::push_extents);
            let extents = extents.await?;
            let begun = payload.zeroed.begin_dump(pass);
            let zeroed = self.dump(begun, &mut zeroed, &mut out, Out::push_zeroed);
            let item = Item::Payload {
                payload: *number,
                generation: payload.generation,
                id: payload.id.clone(),
                size: payload.size,
                cut: payload.cut,
                extents,
                zeroed: zeroed.await?,
            };
            out.push(&item);
            self.drain_chunks(&mut out).await?;
        }
        for &(payload, policy) in &begun.policies {
            out.push(&Item::Policy { payload, policy });
            self.drain_chunks(&mut out).await?;
        }
        let last = out.encoder.finish();
        out.written += self.write_chunk(&out.file, &last, out.written).await?;
        out.file.sync().await?;
        let path = params.path(&checkpoint_name(begun.sequence));
        self.0.driver.rename(temporary, &path).await?;
        self.sync_dir().await?;
        Ok(out.written)
    }

    /// Dumps a tree, letting others run in between. Returns the index of its root.
    async fn dump<E: Entry>(
        &self,
        mut dumping: Dumping<E>,
        next: &mut u32,
        out: &mut Out<D::File>,
        push: fn(&mut Out<D::File>, NodeRef<'_, E>),
    ) -> io::Result<Option<u32>> {
        while !dumping.step(LEAVES_PER_STEP, next, &mut |node| push(out, node)) {
            mark("dumped in steps");
            self.drain_chunks(out).await?;
            self.yield_now().await;
        }
        Ok(dumping.root())
    }

    async fn drain_chunks(&self, out: &mut Out<D::File>) -> io::Result<()> {
        while let Some(chunk) = out.full.pop_front() {
            out.written += self.write_chunk(&out.file, &chunk, out.written).await?;
        }
        Ok(())
    }

    async fn write_chunk(&self, file: &D::File, chunk: &[u8], offset: u64) -> io::Result<u64> {
        let mut buf = self.0.driver.pool().take(chunk.len());
        buf[..chunk.len()].copy_from_slice(chunk);
        file.write(offset, buf.freeze(), Durability::Visible)
            .await?;
        let bytes = chunk.len() as u64;
        debug_assert!(bytes.is_multiple_of(PAGE as u64), "chunks are whole pages");
        self.state().stats.checkpoint_bytes += bytes;
        Ok(bytes)
    }

    /// The checkpoint is durable: older ones go, and what only they needed.
    async fn finish_checkpoint(&self, kept: Kept, dead: &[SegmentId]) {
        mark("checkpoint");
        let (old, dropped): (Vec<u64>, Vec<SegmentId>) = {
            let mut state = self.state();
            let state = &mut *state;
            state.stats.checkpoints += 1;
            state.upkeep.covered = Some(kept.next);
            state.upkeep.kept.push_back(kept);
            let surplus = state.upkeep.kept.len().saturating_sub(CHECKPOINTS_KEPT);
            let freed = state.segments.checkpointed(dead);
            let files = freed.iter().filter(|held| held.file().is_some()).count() as u64;
            if !freed.is_empty() {
                let bytes = files * self.0.params.segment_bytes();
                state.space.note_freed(bytes, self.now());
            }
            state.stats.cleaned_segments += freed.len() as u64;
            if let Some(tier) = &mut state.tier {
                for held in &freed {
                    tier.note_freed(self.0.params.shard, held, kept.sequence);
                }
            }
            let old = state.upkeep.kept.drain(..surplus);
            let old = old.map(|kept| kept.sequence).collect();
            (old, freed.iter().map(|held| held.id).collect())
        };
        for id in dropped {
            self.drop_kept(id).await;
        }
        self.collect_garbage();
        self.0.tier_changed.notify();
        for sequence in old {
            // One that stays behind costs space until the next opening, nothing else.
            let _ = self
                .0
                .driver
                .unlink(&self.0.params.path(&checkpoint_name(sequence)))
                .await;
        }
        self.0.room.notify();
        self.0.upkeep_due.notify();
    }
}

fn is_full(error: &Error) -> bool {
    error.kind() == ErrorKind::Full
}

/// The turn to write a checkpoint; dropping it lets the next one begin.
pub(super) struct Turn<D: Driver>(Shard<D>);

impl<D: Driver> Drop for Turn<D> {
    fn drop(&mut self) {
        self.0.0.state.borrow_mut().upkeep.checkpointing = false;
        self.0.0.room.notify();
    }
}

/// What a checkpoint holds, as it was when it was begun.
struct Begun {
    sequence: u64,
    end: LogEnd,
    covers: SegmentId,
    /// Where replay goes on, and the sealed segments.
    head: Vec<Item>,
    payloads: Vec<(PayloadNo, Payload)>,
    policies: Vec<(PayloadNo, RetentionPolicy)>,
    /// Segments that nothing referred to.
    dead: Vec<SegmentId>,
}

/// A checkpoint's file, and chunks on their way to it.
struct Out<F> {
    file: F,
    encoder: Encoder,
    full: VecDeque<Vec<u8>>,
    written: u64,
}

impl<F> Out<F> {
    fn push(&mut self, item: &Item) {
        self.full.extend(self.encoder.push(item));
    }

    fn push_extents(&mut self, node: NodeRef<'_, Mapped>) {
        self.push(&match node {
            NodeRef::Leaf(entries) => {
                let entry = |e: &Mapped| (e.start(), (e.end() - e.start()) as u32, e.at());
                Item::ExtentLeaf(entries.iter().map(entry).collect())
            }
            NodeRef::Inner(children) => Item::ExtentInner(children.to_vec()),
        });
    }

    fn push_zeroed(&mut self, node: NodeRef<'_, Zeroed>) {
        self.push(&match node {
            NodeRef::Leaf(entries) => {
                let entry = |e: &Zeroed| (e.start(), e.end());
                Item::ZeroedLeaf(entries.iter().map(entry).collect())
            }
            NodeRef::Inner(children) => Item::ZeroedInner(children.to_vec()),
        });
    }
}
