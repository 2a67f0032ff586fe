//! What is asked about payloads and about the shard, without reading a byte of data.

use super::Shard;
use crate::error::{Error, Result};
use crate::io::Driver;
use crate::log::checkpoint::CHECKPOINT_BYTES_MIN;
use crate::map::tree::Entry;
use crate::map::{Found, Map, Payload};
use crate::payload_id::PayloadId;
use crate::stats::{Extent, ExtentKind, Health, HealthStatus, LatencySnapshot, Op, Stats};
use crate::types::{Location, PAGE, PAYLOAD_BYTES_MAX, PayloadNo, ShardId};

/// Payloads that are counted for `stats` between two looks at other work.
const PAYLOADS_PER_STEP: usize = 256;

/// Blocks that extents touch, each counted once; extents come in order.
#[derive(Default)]
struct Blocks {
    count: u64,
    last: Option<u64>,
}

impl Blocks {
    fn add(&mut self, blocks: &std::ops::RangeInclusive<u64>) {
        let (first, end) = (*blocks.start(), *blocks.end());
        self.count += end - first + u64::from(self.last != Some(first));
        self.last = Some(end);
    }
}

impl<D: Driver> Shard<D> {
    pub(super) fn size(&self, id: &PayloadId) -> Result<u64> {
        let state = self.0.state.borrow();
        state
            .map
            .find(id)
            .map(|payload| payload.size)
            .ok_or_else(Error::not_found)
    }

    /// Names of payloads that are here, in order. One that is being moved may be on two shards.
    pub(super) fn list(&self, after: Option<&PayloadId>, limit: usize) -> Vec<PayloadId> {
        self.0
            .state
            .borrow()
            .map
            .names_after(after)
            .take(limit)
            .cloned()
            .collect()
    }

    /// Data and holes of a range, up to the payload's size.
    pub(super) fn extents(&self, id: &PayloadId, offset: u64, len: u64) -> Result<Vec<Extent>> {
        let state = self.0.state.borrow();
        let payload = state.map.find(id).ok_or_else(Error::not_found)?;
        let len = len.min(payload.size.saturating_sub(offset));
        let mut extents: Vec<Extent> = Vec::new();
        for piece in Map::pieces(payload, offset, len) {
            let mut done = 0;
            while done < piece.len {
                let (kind, len) = match piece.found {
                    Found::At(at) => {
                        let left = (piece.len - done) as u32;
                        self.kind_of(at.advance(done as u32), left, &state)
                    }
                    Found::Zero | Found::Absent => (ExtentKind::Hole, piece.len),
                };
                match extents.last_mut() {
                    Some(last) if last.kind == kind => last.len += len,
                    _ => extents.push(Extent {
                        offset: piece.offset + done,
                        len,
                        kind,
                    }),
                }
                done += len;
            }
        }
        Ok(extents)
    }

    /// Where the bytes at a place are, and how many from there on are there, too.
    fn kind_of(&self, at: Location, len: u32, state: &super::State) -> (ExtentKind, u64) {
        if state.first_dirty().is_some_and(|first| at >= first) {
            return (ExtentKind::Dirty, u64::from(len));
        }
        let (here, len) = state.is_here(at, len);
        let kind = match here {
            true => ExtentKind::Local,
            false => ExtentKind::Remote,
        };
        (kind, u64::from(len))
    }

    /// The shard's figures. Blocks are counted payload by payload, between other work.
    pub(super) async fn stats(&self) -> Stats {
        let mut stats = self.0.state.borrow().stats.clone();
        let mut next = Some(PayloadNo(0));
        while let Some(from) = next {
            {
                let state = self.0.state.borrow();
                next = None;
                for (count, (number, payload)) in state.map.payloads_from(from).enumerate() {
                    if count == PAYLOADS_PER_STEP {
                        next = Some(number);
                        break;
                    }
                    self.count_blocks(payload, &state, &mut stats);
                }
            }
            self.yield_now().await;
        }
        self.count_shard(&mut stats);
        stats
    }

    /// Counts a payload's blocks that hold data, and those that hold dirty data.
    ///
    /// Walks its extents, unless nothing in it is dirty and it was counted since it changed: clones
    /// would be walked again and again.
    fn count_blocks(&self, payload: &Payload, state: &super::State, stats: &mut Stats) {
        stats.used_size = stats.used_size.saturating_add(payload.size);
        let may_be_dirty = payload.changed > state.tail.durable();
        let plain = !may_be_dirty && state.tier.is_none();
        if let Some(blocks) = payload.blocks.get().filter(|_| plain) {
            stats.blocks_total += blocks;
            stats.blocks_local += blocks;
            return;
        }
        let block_bytes = self.0.params.config.block_bytes;
        let (mut all, mut dirty, mut here) = <(Blocks, Blocks, Blocks)>::default();
        for extent in payload.extents.range(0, PAYLOAD_BYTES_MAX) {
            // A block counts by its worst state: dirty before local before remote.
            let mut done = 0;
            while extent.start() + done < extent.end() {
                let left = (extent.end() - extent.start() - done) as u32;
                let at = extent.at().advance(done as u32);
                let (kind, len) = self.kind_of(at, left, state);
                let (first, end) = (extent.start() + done, extent.start() + done + len);
                let blocks = first / block_bytes..=(end - 1) / block_bytes;
                all.add(&blocks);
                match kind {
                    ExtentKind::Dirty => {
                        dirty.add(&blocks);
                        here.add(&blocks);
                    }
                    ExtentKind::Local => here.add(&blocks),
                    ExtentKind::Remote | ExtentKind::Hole => {}
                }
                done += len;
            }
        }
        payload.blocks.set(Some(all.count));
        stats.blocks_total += all.count;
        stats.blocks_dirty += dirty.count;
        stats.blocks_local += here.count - dirty.count;
        stats.blocks_remote += all.count - here.count;
    }

    fn count_shard(&self, stats: &mut Stats) {
        let state = self.0.state.borrow();
        let params = &self.0.params;
        let config = &params.config;
        let share = |bytes: u64| bytes / params.shards as u64;
        let files = state.segments.files() + usize::from(state.space.has_spare());
        let segments = files as u64 * params.segment_bytes();
        stats.file_count = state.map.len() as u64;
        stats.content_count = stats.file_count;
        stats.local_disk_used = segments
            + state.kept.bytes()
            + state.upkeep.checkpoint_bytes().max(CHECKPOINT_BYTES_MIN);
        stats.kept_bytes = state.kept.bytes();
        stats.local_disk_max = share(config.local_bytes_max.unwrap_or(0));
        stats.local_mem_used =
            state.tail.bytes() + u64::from(state.log.has_open_batch()) * state.log.batch_bytes();
        stats.local_mem_max = share(config.dirty_bytes_max);
        stats.read_buffer_max = params.read_buffer_bytes();
        stats.read_buffer_entries = state.buffer.entries();
        stats.read_buffer_used = state.buffer.used();
        stats.read_bytes += params.table.hits.bytes();
        stats.prefetch_used_bytes = params.table.hits.prefetched();
        stats.total_size = stats.local_disk_max;
        stats.available_size = stats.total_size.saturating_sub(stats.local_disk_used);
        stats.driver = self.0.driver.name().to_owned();
        stats.shards = 1;
        let load = self.0.driver.load();
        stats.shard_stalls = load.stalls;
        stats.shard_busy_seconds = load.busy.as_secs_f64();
        stats.live_bytes = state.map.live.total();
        stats.checkpoints_running = u64::from(state.upkeep.is_checkpointing());
        stats.segments = state.segments.len() as u64;
        self.count_log(&state, stats);
        stats.segments_free =
            state.segments.files_free() as u64 + u64::from(state.space.has_spare());
        stats.extents = state.map.live.extents();
        stats.map_bytes = state.map.live.memory();
        stats.stalled_writers = state.space.stalled() as u64;
        stats.shards_poisoned = u64::from(state.commit.poison.is_some());
        if let Some(tier) = &state.tier {
            tier.count(&state.segments, self.now(), stats);
        }
    }

    /// What was found at the opening counts its age from here, and as used now: nobody knows
    /// better.
    pub(super) fn begin_ages(&self) {
        let (state, now) = (self.0.state.borrow(), self.now());
        for held in state.segments.iter() {
            held.began.set(now);
            held.used.set(now);
        }
    }

    /// What of the log is for nothing, and what only this machine has.
    fn count_log(&self, state: &super::State, stats: &mut Stats) {
        for held in state.segments.iter() {
            let pages = match held.is_sealed() {
                true => held.pages.get(),
                false => state.log.end().pages,
            };
            let bytes = u64::from(pages) * PAGE as u64;
            stats.segments_sealed += u64::from(held.is_sealed());
            if held.file().is_some() {
                stats.garbage_bytes += bytes.saturating_sub(state.map.live.bytes(held.id));
            }
            if state.tier.is_some() && !held.is_uploaded() {
                stats.unsynced_bytes += bytes;
                let age = self.now().since(held.began.get()).as_secs_f64();
                stats.oldest_unsynced_seconds = stats.oldest_unsynced_seconds.max(age);
            }
        }
    }

    /// How long everything took, those operations included that callers served themselves.
    pub(super) fn latency(&self) -> LatencySnapshot {
        let mut snapshot = self.0.state.borrow().latencies.snapshot();
        for (span, count) in self.0.params.table.hits.spans() {
            snapshot.add(Op::ReadHit, span, count);
        }
        // All shards share one uploader: one of them tells what it has asked.
        if let Some(client) = self.client().filter(|_| self.0.params.shard == ShardId(0)) {
            snapshot.set_requests(client.requests());
        }
        snapshot
    }

    pub(super) fn health(&self) -> Health {
        let state = self.0.state.borrow();
        let mut reasons = Vec::new();
        let mut local = HealthStatus::Healthy;
        if state.stats.batches_lost > 0 || state.stats.checksum_failures > 0 {
            local = HealthStatus::Degraded;
            reasons.push(format!(
                "bytes failed their checksum, run verify: shard={} pages={} batches={}",
                self.0.params.shard.0, state.stats.checksum_failures, state.stats.batches_lost
            ));
        }
        if let Some(poison) = &state.commit.poison {
            local = HealthStatus::Unhealthy;
            reasons.push(poison.to_string());
        }
        let trouble = state.tier.as_ref().map(super::tier::Tier::trouble);
        let remote = trouble.as_ref().map(|trouble| match trouble {
            Some(_) => HealthStatus::Degraded,
            None => HealthStatus::Healthy,
        });
        reasons.extend(trouble.flatten());
        Health {
            status: local,
            local,
            remote,
            reasons,
        }
    }

    /// A store at rest asks nothing of its remote; whoever asks for its health is to hear of it all
    /// the same, the next time.
    pub(super) async fn look_at_remote(&self) {
        if let Some(client) = self.client() {
            client.look().await;
        }
    }

    /// Lets everything else that is ready run.
    pub(super) async fn yield_now(&self) {
        let mut yielded = false;
        std::future::poll_fn(|context| match std::mem::replace(&mut yielded, true) {
            true => std::task::Poll::Ready(()),
            false => {
                context.waker().wake_by_ref();
                std::task::Poll::Pending
            }
        })
        .await;
    }
}
