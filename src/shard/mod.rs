//! A shard: one thread, one ring, a slice of the payloads, and nothing shared but its mailbox.
//!
//! This file is the loop and what all flows stand on; each flow has a file of its own. State is in
//! [`State`], sync and pure of I/O; flows borrow it between awaits, never across one.
//!
//! Invariants:
//! 1. A mutation is placed in the log and applied to the map in one step, without an await between.
//! 2. A shard executes an operation on a payload only while `routes` says that it is the owner.
//! 3. Requests that are being worked on are bounded, writes and others apart; beyond that the
//!    mailbox fills and callers wait.

pub(crate) mod request;

mod ahead;
mod cached;
mod candidates;
mod checkpoint;
mod clean;
mod close;
mod cold;
mod commit;
mod evict;
mod files;
mod heal;
mod inspect;
mod kept;
mod loading;
mod meta;
mod pace;
mod read;
mod recover;
mod replay;
pub(crate) mod restore;
mod space;
mod spare;
mod tail;
mod takeover;
mod tier;
mod times;
mod upkeep;
mod verify;
mod write;

use crate::cache::read_buffer::ReadBuffer;
use crate::cache::table::Table;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::io::Driver;
use crate::log::checksum::StoreId;
use crate::log::writer::Log;
use crate::map::Map;
use crate::payload_id::PayloadId;
use crate::residency::Segments;
use crate::stats::{Latencies, Op, Spent, Stage, Stats};
use crate::sync::mailbox::{Receiver, Sender};
use crate::sync::signal::Signal;
use crate::types::{Epoch, Generation, Location, Lsn, Nanos, PAGE, ShardId};
use crate::upload::{Cause, Client};
use files::Files;
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use request::{Request, Work};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use tail::Tail;

#[cfg(any(fuzzing, test))]
pub(crate) use loading::load_checkpoint;
pub(crate) use recover::Claim;
pub(crate) use request::{Answer, Control, Routes};

/// Requests that a mailbox holds, and that a shard works on at once, at most. Enough to keep a
/// device busy many times over; small enough that a burst is pushed back to its callers.
pub(crate) const REQUESTS_MAX: usize = 1024;

/// What came of closing a shard, for those who ask when it is gone.
pub(crate) type Outcome = Arc<OnceLock<Result<()>>>;

/// What a shard is told about itself.
#[derive(Clone)]
pub(crate) struct Params {
    pub(crate) store: StoreId,
    pub(crate) shard: ShardId,
    pub(crate) shards: usize,
    pub(crate) epoch: Epoch,
    pub(crate) config: Config,
    pub(crate) routes: Arc<Routes>,
    /// How to speak to the uploader, if there is a remote.
    pub(crate) remote: Option<Client>,
    /// What is in its read buffer, for all to look up.
    pub(crate) table: crate::sync::Arc<Table>,
    /// Files that it keeps open at most.
    pub(crate) files_open_max: usize,
}

impl Params {
    /// The shard's directory, beneath the store's.
    pub(crate) fn dir(&self) -> String {
        dir_name(self.shard)
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.dir())
    }

    fn segment_bytes(&self) -> u64 {
        self.config.segment_bytes
    }

    fn read_buffer_bytes(&self) -> u64 {
        self.config.read_buffer_bytes / self.shards as u64
    }

    fn dirty_bytes_max(&self) -> u64 {
        self.config.dirty_bytes_max / self.shards as u64
    }

    /// Segments that as many bytes would fill; part of one counts as none.
    fn segments_of(&self, bytes: u64) -> usize {
        (bytes / self.segment_bytes()) as usize
    }

    /// Segment files that this shard may have, the last of which is a reserve.
    fn files_max(&self) -> usize {
        match self.config.local_bytes_max {
            None => usize::MAX,
            Some(bytes) => (bytes / self.shards as u64 / self.segment_bytes()) as usize,
        }
    }
}

/// What the shard knows. Changed between awaits only.
struct State {
    map: Map,
    log: Log,
    tail: Tail,
    segments: Segments,
    buffer: ReadBuffer,
    ahead: ahead::Ahead,
    commit: commit::Commit,
    space: space::Space,
    upkeep: checkpoint::Upkeep,
    stats: Stats,
    latencies: Latencies,
    /// Payloads that are being moved to another shard; operations on them wait.
    moving: BTreeSet<PayloadId>,
    /// Payloads that changes are under way on, and how many; a move waits for them.
    changing: HashMap<PayloadId, usize, FixedState>,
    /// With several shards: payloads that were deleted here, and in which batch, until it is
    /// durable.
    deleted: BTreeMap<PayloadId, Lsn>,
    tier: Option<tier::Tier>,
    /// Chunks that are on their way from the remote.
    fetches: cold::Fetches,
    kept: kept::Kept,
    retention: evict::Retention,
    closing: bool,
}

impl State {
    /// The first place of the log that is not yet durable. Places grow along the log.
    fn first_dirty(&self) -> Option<Location> {
        self.tail.first_place().or_else(|| self.log.open_place())
    }
}

struct Inner<D: Driver> {
    driver: D,
    params: Params,
    state: RefCell<State>,
    files: Files<D>,
    /// Durability moved on, or the shard was poisoned.
    committed: Signal,
    /// There may be room: a batch left the tail, a file was made or freed, a limit was lifted.
    room: Signal,
    /// The committer has something to look at.
    commit_due: Signal,
    /// The upkeep task has something to look at.
    upkeep_due: Signal,
    /// What was read ahead has come.
    fetched: Signal,
    /// A request was finished, or a payload stopped moving.
    finished: Signal,
    /// The remote has more, or less is known to be needed of it.
    tier_changed: Signal,
    /// How to ask the other shards, by number.
    peers: Vec<Sender<Control>>,
    /// Requests that are being worked on: writes, and all others.
    writing: Cell<usize>,
    working: Cell<usize>,
    /// Nothing more is begun: the store is being closed.
    ending: Cell<bool>,
    /// What the operation that is being polled has spent in stages; nobody's while none is.
    spent: Cell<Spent>,
    /// Everything is durable on this machine, and nothing more will come.
    persisted: Cell<bool>,
    /// When somebody's operation used the device last, if it did.
    used_at: Cell<Nanos>,
}

/// A shard; clones share it, on one thread.
pub(crate) struct Shard<D: Driver>(Rc<Inner<D>>);

impl<D: Driver> Clone for Shard<D> {
    fn clone(&self) -> Shard<D> {
        Shard(self.0.clone())
    }
}

impl<D: Driver> Shard<D> {
    /// Serves requests until the store is closed or its last handle is gone.
    pub(crate) async fn serve(
        self,
        mut mailbox: Receiver<Request>,
        writes: Receiver<Request>,
        control: Receiver<Control>,
        outcome: Outcome,
    ) {
        self.begin_ages();
        self.spawn_upkeep();
        self.spawn_committer();
        self.spawn_tier();
        self.start_ttl_timer();
        self.start_looking_at_kept();
        self.0.driver.spawn(self.clone().serve_writes(writes));
        self.0.driver.spawn(self.clone().serve_control(control));
        let mut batch = VecDeque::new();
        let mut closing = Vec::new();
        while closing.is_empty() {
            self.room_for_request(|inner| &inner.working).await;
            if !mailbox.drain(&mut batch).await {
                return;
            }
            for request in batch.drain(..) {
                match request.work {
                    Work::Close(reply) => {
                        self.0.ending.set(true);
                        closing.push(reply);
                    }
                    _ => self.start(request, |inner| &inner.working),
                }
            }
        }
        let result = self.end().await;
        let result = outcome.get_or_init(|| result).clone();
        // The mailbox goes first: whoever sees the answer finds the store closed.
        drop(mailbox);
        self.0.params.table.close();
        closing
            .into_iter()
            .for_each(|reply| reply.send(result.clone()));
    }

    /// Serves writes, which a full store holds back: everything else has to go on meanwhile, above
    /// all the deletions that make room.
    async fn serve_writes(self, mut mailbox: Receiver<Request>) {
        let mut batch = VecDeque::new();
        loop {
            self.room_for_request(|inner| &inner.writing).await;
            let more = mailbox.drain(&mut batch).await;
            if !more || self.0.ending.get() {
                return;
            }
            for request in batch.drain(..) {
                self.start(request, |inner| &inner.writing);
            }
        }
    }

    /// Waits until one more request may be worked on.
    async fn room_for_request(&self, count: fn(&Inner<D>) -> &Cell<usize>) {
        let free = || (count(&self.0).get() < REQUESTS_MAX).then_some(());
        self.0.finished.until(free).await;
    }

    /// Begins a request, as a task of its own.
    fn start(&self, request: Request, count: fn(&Inner<D>) -> &Cell<usize>) {
        count(&self.0).set(count(&self.0).get() + 1);
        let shard = self.clone();
        let done = move |shard: Shard<D>| {
            let count = count(&shard.0);
            count.set(count.get() - 1);
            shard.0.finished.notify();
        };
        let Request { at, work } = request;
        self.note_stage(Stage::QueueWait, at);
        match work {
            // A task takes the memory of the largest that it may do: reads, which are many and
            // small, have tasks of their own size.
            Work::Read {
                id,
                offset,
                len,
                reply,
            } => self.0.driver.spawn(async move {
                let flow = || shard.read(&id, offset, len);
                reply.send(shard.owned(&id, at, Op::ReadLocal, flow).await);
                done(shard);
            }),
            work => self.0.driver.spawn(async move {
                shard.work(at, work).await;
                done(shard);
            }),
        }
    }

    async fn work(&self, at: Nanos, work: Work) {
        match work {
            Work::ReadLayer {
                id,
                offset,
                len,
                reply,
            } => {
                let flow = || self.read_layer(&id, offset, len);
                reply.send(self.owned(&id, at, Op::CowRead, flow).await);
            }
            Work::Write {
                id,
                offset,
                data,
                reply,
            } => {
                let flow = || self.write(&id, offset, &data);
                reply.send(self.owned(&id, at, Op::Write, flow).await);
            }
            Work::Punch {
                id,
                offset,
                len,
                reply,
            } => {
                let flow = || self.punch(&id, offset, len);
                reply.send(self.owned(&id, at, Op::Punch, flow).await);
            }
            Work::Truncate { id, size, reply } => {
                let flow = || self.truncate(&id, size);
                reply.send(self.owned(&id, at, Op::Truncate, flow).await);
            }
            Work::Delete { id, reply } => {
                reply.send(self.owned(&id, at, Op::Delete, || self.delete(&id)).await);
            }
            Work::Copy {
                source,
                target,
                reply,
            } => {
                let copy = pin!(self.copy(&source, &target));
                reply.send(self.timed(Op::Copy, at, copy).await);
            }
            Work::Flush { id, reply } => {
                reply.send(self.owned(&id, at, Op::Flush, || self.flush(&id)).await);
            }
            Work::FlushAll(reply) => reply.send(self.flush_all().await),
            Work::WaitRemote { id, reply } => {
                let flow = || self.wait_remote(&id);
                reply.send(self.owned(&id, at, Op::Meta, flow).await);
            }
            Work::Drain(reply) => reply.send(self.drain().await),
            Work::Evict { id, reply } => {
                reply.send(self.owned(&id, at, Op::Meta, || self.evict(&id)).await);
            }
            Work::SetRetention { id, policy, reply } => {
                let flow = || self.set_retention(&id, policy);
                reply.send(self.owned(&id, at, Op::Meta, flow).await);
            }
            Work::SetDefaultRetention { policy, reply } => {
                self.set_default_retention(policy);
                reply.send(Ok(()));
            }
            Work::SetEviction { enabled, reply } => {
                self.set_eviction_enabled(enabled);
                reply.send(Ok(()));
            }
            Work::Size { id, reply } => {
                reply.send(self.owned(&id, at, Op::Meta, async || self.size(&id)).await);
            }
            Work::Extents {
                id,
                offset,
                len,
                reply,
            } => {
                let flow = async || self.extents(&id, offset, len);
                reply.send(self.owned(&id, at, Op::Meta, flow).await);
            }
            Work::List {
                after,
                limit,
                reply,
            } => reply.send(Ok(self.list(after.as_ref(), limit))),
            Work::Stats(reply) => reply.send(Ok(self.stats().await)),
            Work::Latency(reply) => {
                reply.send(Ok(self.latency()));
            }
            Work::AtEdge { id, offset, len } => self.note_read(&id, offset, len, true),
            Work::EvictReadBuffer(reply) => reply.send(Ok(self.state().buffer.clear())),
            Work::Verify(reply) => reply.send(self.verify().await),
            Work::Segments(reply) => reply.send(Ok(self.segments())),
            Work::DumpSegment { number, reply } => reply.send(self.dump_segment(number).await),
            Work::Read { .. } | Work::Close(_) => unreachable!("they were taken before"),
        }
    }

    /// Serves what other shards ask, for as long as there is anybody to ask.
    async fn serve_control(self, mut mailbox: Receiver<Control>) {
        let mut batch = VecDeque::new();
        while mailbox.drain(&mut batch).await {
            for control in batch.drain(..) {
                let shard = self.clone();
                self.0.driver.spawn(async move {
                    match control {
                        Control::Hold { id, reply } => reply.send(shard.hold(&id).await),
                        Control::Release { id, end, reply } => {
                            reply.send(shard.release(&id, end).await);
                        }
                        Control::Settle { claims, reply } => {
                            reply.send(shard.settle_claims(&claims).await);
                        }
                        Control::Health(reply) => {
                            reply.send(shard.health());
                            shard.look_at_remote().await;
                        }
                        Control::Disown { ids, reply } => reply.send(shard.give_up(&ids).await),
                    }
                });
            }
        }
    }

    /// Runs an operation if the payload lives here now, and notes how long it took.
    async fn owned<T, F: Future<Output = Result<T>>>(
        &self,
        id: &PayloadId,
        at: Nanos,
        op: Op,
        flow: impl FnOnce() -> F,
    ) -> Result<Answer<T>> {
        let Some(_changing) = self.claim(id).await else {
            return Ok(Answer::Elsewhere);
        };
        let flow = pin!(flow());
        let result = self.timed(op, at, flow).await;
        result.map(Answer::Done)
    }

    /// Waits until the payload is not being moved, and keeps it from being moved while the result
    /// lives. `None`: it lives on another shard.
    async fn claim(&self, id: &PayloadId) -> Option<Changing<D>> {
        let settled = || (!self.0.state.borrow().moving.contains(id)).then_some(());
        self.0.finished.until(settled).await;
        if self.0.params.routes.shard_of(id) != self.0.params.shard {
            return None;
        }
        // A store with one shard moves nothing, and pays nothing for it.
        let id = (self.0.params.shards > 1).then(|| id.clone());
        if let Some(id) = &id {
            *self
                .0
                .state
                .borrow_mut()
                .changing
                .entry(id.clone())
                .or_insert(0) += 1;
        }
        Some(Changing {
            id,
            shard: self.clone(),
        })
    }

    /// The state, to be changed before the next await.
    fn state(&self) -> std::cell::RefMut<'_, State> {
        self.0.state.borrow_mut()
    }

    fn now(&self) -> Nanos {
        self.0.driver.now()
    }

    fn next_generation(&self) -> Generation {
        self.0.params.routes.next_generation()
    }

    /// What writes and flushes say once a device write or sync has failed.
    fn check_poison(&self) -> Result<()> {
        match &self.0.state.borrow().commit.poison {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// A device write or sync failed: writes and flushes fail from now on, reads go on.
    fn poison(&self, what: &str, error: std::io::Error) {
        let message = format!(
            "{what} failed, check the disk and reopen: shard={}",
            self.0.params.shard.0
        );
        tracing::error!(shard = self.0.params.shard.0, %error, "{what} failed");
        let error = Error::with_source(ErrorKind::Poisoned, message, error);
        self.note_obstacle(Cause::Poison, &error);
        self.state().commit.poison.get_or_insert(error);
        self.0.committed.notify();
        self.0.room.notify();
        self.0.upkeep_due.notify();
    }
}

/// Keeps a payload on its shard.
struct Changing<D: Driver> {
    id: Option<PayloadId>,
    shard: Shard<D>,
}

impl<D: Driver> Drop for Changing<D> {
    fn drop(&mut self) {
        let Some(id) = &self.id else { return };
        let mut state = self.shard.state();
        let count = state
            .changing
            .get_mut(id)
            .expect("counted when it was claimed");
        *count -= 1;
        if *count == 0 {
            state.changing.remove(id);
        }
        drop(state);
        self.shard.0.finished.notify();
    }
}

/// Name of a shard's directory, beneath the store's.
fn dir_name(shard: ShardId) -> String {
    format!("shard-{:04}", shard.0)
}

/// Pages that a range of bytes touches: the first, and how many.
fn pages_of(offset: u32, len: u32) -> (u32, u32) {
    let first = offset / PAGE as u32;
    let end = (u64::from(offset) + u64::from(len)).div_ceil(PAGE as u64) as u32;
    (first, end - first)
}
