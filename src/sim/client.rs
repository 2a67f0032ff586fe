//! What a client does: one operation against the store, and what its answer says about the model.
//!
//! Invariants:
//! 1. The model is told of a change before the store is, and of its answer in the same step in
//!    which the answer arrives, so that a crash in between finds the change unanswered.
//! 2. Every answer is judged. One that no possible state explains is a failure of the run.
//!
//! Deliberately not here: crashes and what is found behind them; see `run` and `observe`.

use super::content::{Change, State, cow_matches, fill, read_len};
use super::history::{Histories, PayloadIndex, Ticket, Watch};
use super::plan::{KINDS, Op, Settings};
use crate::chunks::Chunks;
use crate::error::{Error, ErrorKind, Result};
use crate::io::sim::Universe;
use crate::payload_id::PayloadId;
use crate::store::Store;
use crate::types::PAGE;
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

/// Largest end of a payload.
const END_MAX: u64 = 1 << 62;

/// What clients and the referee share.
pub(super) struct Shared {
    pub(super) universe: Universe,
    pub(super) settings: Settings,
    pub(super) ids: Vec<PayloadId>,
    pub(super) model: RefCell<Histories>,
    /// The first thing that was wrong.
    pub(super) failure: RefCell<Option<String>>,
    /// Successes by kind of operation.
    pub(super) successes: RefCell<[u64; KINDS.len()]>,
    pub(super) allowed: Cell<Allowed>,
    /// Every write so far: tag, offset, end.
    pub(super) writes: RefCell<Vec<(u32, u64, u64)>>,
    pub(super) dropped: Cell<u64>,
}

/// Which errors what has gone wrong so far can explain.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Allowed {
    pub(super) full: bool,
    pub(super) poisoned: bool,
    pub(super) corrupt: bool,
}

impl Shared {
    /// Notes what is wrong; the first word counts.
    pub(super) fn fail(&self, message: String) {
        self.failure.borrow_mut().get_or_insert(message);
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failure.borrow().is_some()
    }

    fn succeed(&self, op: Op) {
        self.successes.borrow_mut()[op.kind()] += 1;
    }

    /// Whether an error of this kind may be the disk's doing.
    pub(super) fn explains(&self, kind: ErrorKind) -> bool {
        let counters = self.universe.counters();
        let errors = counters.write_errors
            + counters.sync_errors
            + counters.metadata_errors
            + counters.unreadable_pages;
        let allowed = self.allowed.get();
        match kind {
            ErrorKind::Full => allowed.full || counters.out_of_space > 0,
            ErrorKind::Poisoned => {
                allowed.poisoned || errors + counters.read_errors + counters.out_of_space > 0
            }
            ErrorKind::Corrupt => self.is_damaged(),
            _ => false,
        }
    }

    /// Whether the disk has lied, or kept bytes back.
    pub(super) fn is_damaged(&self) -> bool {
        let counters = self.universe.counters();
        let silent = counters.lost_writes
            + counters.misdirected_writes
            + counters.rotten_bits
            + counters.unreadable_pages;
        self.allowed.get().corrupt || silent + counters.read_errors > 0
    }
}

/// A client of an open store.
pub(super) struct Client {
    pub(super) shared: Rc<Shared>,
    pub(super) store: Store,
}

/// Polls a future at most so many times; `None` if it was not done by then.
async fn poll_times<F: Future>(polls: Option<u64>, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        if left == Some(0) {
            return Poll::Ready(None);
        }
        let polled = future.as_mut().poll(context).map(Some);
        left = left.map(|left| left - 1);
        match polled {
            Poll::Pending if left == Some(0) => Poll::Ready(None),
            polled => polled,
        }
    })
    .await
}

impl Client {
    /// Does one step.
    pub(super) async fn perform(&self, index: usize, op: Op, drop_after: Option<u64>) {
        let op = self.within_bounds(op);
        match op {
            Op::Write { .. } | Op::Punch { .. } | Op::Truncate { .. } | Op::Delete { .. } => {
                self.change(index, op, drop_after).await;
            }
            Op::Copy { id, target } => {
                self.copy(index, id as usize, target as usize, drop_after)
                    .await;
            }
            Op::Flush { .. } | Op::FlushAll => self.flush(index, op).await,
            Op::Read { .. } | Op::ReadInto { .. } => self.read(index, op, drop_after).await,
            Op::ReadCow { .. } => self.read_cow(index, op).await,
            Op::Size { .. } | Op::Exists { .. } => self.size(index, op).await,
            Op::List { limit } => self.list(index, limit as usize).await,
            Op::Extents { .. } => self.extents(index, op).await,
            Op::Verify => self.verify(index).await,
            Op::Stats => self.stats(index).await,
            Op::EvictBuffer => match self.store.evict_read_buffer().await {
                Ok(_) => self.shared.succeed(op),
                Err(error) => self.unexpected(index, op, &error),
            },
            Op::Sleep { us } => {
                self.shared.universe.sleep(Duration::from_micros(us)).await;
                self.shared.succeed(op);
            }
        }
    }

    /// The same with payloads that exist in this plan.
    fn within_bounds(&self, op: Op) -> Op {
        let payloads = self.shared.ids.len() as u64;
        op.with_numbers(|numbers| match op {
            Op::FlushAll
            | Op::List { .. }
            | Op::Verify
            | Op::Stats
            | Op::EvictBuffer
            | Op::Sleep { .. } => {}
            Op::Copy { .. } | Op::ReadCow { .. } => {
                numbers[0] %= payloads;
                numbers[1] %= payloads;
            }
            _ => numbers[0] %= payloads,
        })
    }

    fn fail(&self, index: usize, message: String) {
        self.shared.fail(format!("step {index}: {message}"));
    }

    fn unexpected(&self, index: usize, op: Op, error: &Error) {
        self.fail(
            index,
            format!("{op:?} failed, and nothing explains it: {error:?}"),
        );
    }

    fn id(&self, payload: u64) -> &PayloadId {
        &self.shared.ids[payload as usize]
    }

    /// Waits until the model can take one more unanswered operation. False: give up this step.
    async fn may_issue(&self, payload: PayloadIndex, source: Option<usize>) -> bool {
        for _ in 0..2000 {
            if self.shared.model.borrow().may_issue(payload, source) {
                return true;
            }
            if self.shared.model.borrow().has_orphans(payload) || self.shared.has_failed() {
                return false;
            }
            self.shared.universe.sleep(Duration::from_millis(1)).await;
        }
        false
    }

    async fn change(&self, index: usize, op: Op, drop_after: Option<u64>) {
        let (payload, change) = change_of(index, op);
        if !self.may_issue(payload, None).await {
            return;
        }
        let id = self.id(payload as u64);
        let (offset, len) = match op {
            Op::Write { offset, len, .. } | Op::Punch { offset, len, .. } => (offset, len),
            Op::Truncate { size, .. } => (size, 0),
            _ => (0, 0),
        };
        let data = match change {
            Change::Write { tag, .. } => self.data(tag, offset, len),
            _ => Bytes::new(),
        };
        let asked = async {
            match op {
                Op::Write { .. } => self.store.write_at(id, offset, data).await,
                Op::Punch { .. } => self.store.punch_hole(id, offset, len).await,
                Op::Truncate { .. } => self.store.truncate(id, offset).await,
                _ => self.store.delete(id).await,
            }
        };
        if drop_after == Some(0) {
            drop(asked);
            return;
        }
        let watch = self.shared.model.borrow_mut().watch(payload);
        let ticket = self.shared.model.borrow_mut().issue(payload, change);
        let answer = poll_times(drop_after, asked).await;
        let invalid = offset.checked_add(len).is_none_or(|end| end > END_MAX);
        let counts = len > 0 || matches!(op, Op::Truncate { .. });
        self.settle(index, op, ticket, watch, answer, invalid && counts);
    }

    fn data(&self, tag: u32, offset: u64, len: u64) -> Bytes {
        let mut data = vec![0; len as usize];
        fill(tag, offset, &mut data);
        let mut writes = self.shared.writes.borrow_mut();
        writes.push((tag, offset, offset.saturating_add(len)));
        Bytes::from(data)
    }

    async fn copy(&self, index: usize, source: usize, target: usize, drop_after: Option<u64>) {
        let op = Op::Copy {
            id: source as u64,
            target: target as u64,
        };
        if source == target {
            return self.copy_onto_itself(index, op, source).await;
        }
        if !self.may_issue(target, Some(source)).await {
            return;
        }
        let (from, to) = (self.id(source as u64), self.id(target as u64));
        let asked = self.store.copy(from, to);
        if drop_after == Some(0) {
            drop(asked);
            return;
        }
        let watch = self.shared.model.borrow_mut().watch(source);
        let ticket = self.shared.model.borrow_mut().issue_copy(source, target);
        let answer = poll_times(drop_after, asked).await;
        let blocks = match &answer {
            Some(Ok(blocks)) => Some(*blocks),
            _ => None,
        };
        let answer = answer.map(|answer| answer.map(|_| ()));
        if let Some(blocks) = blocks {
            let states = self.shared.model.borrow().since(source, watch.since());
            let block_bytes = super::run::BLOCK_BYTES;
            let right = |state: &Rc<State>| {
                let size = (**state).as_ref().map(|content| content.size);
                size.is_some_and(|size| size.div_ceil(block_bytes) == blocks)
            };
            if !states.iter().any(right) {
                self.fail(
                    index,
                    format!("{op:?} shares an impossible {blocks} blocks"),
                );
            }
        }
        self.settle(index, op, ticket, watch, answer, false);
    }

    async fn copy_onto_itself(&self, index: usize, op: Op, payload: usize) {
        let watch = self.shared.model.borrow_mut().watch(payload);
        let id = self.id(payload as u64);
        let answer = self.store.copy(id, id).await;
        let states = self.shared.model.borrow_mut().seen(watch);
        match answer {
            Ok(_) if states.iter().any(|state| state.is_some()) => self.shared.succeed(op),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if states.iter().all(|state| state.is_some()) {
                    self.fail(index, format!("{op:?} does not find what exists"));
                }
            }
            Ok(_) => self.fail(index, format!("{op:?} copies what does not exist")),
            Err(error) => self.tolerate(index, op, &error),
        }
    }

    /// An error that changes nothing in the model.
    fn tolerate(&self, index: usize, op: Op, error: &Error) {
        if !self.shared.explains(error.kind()) {
            self.unexpected(index, op, error);
        }
    }

    /// Tells the model how a change was answered; `watch` is on the payload that had to exist.
    fn settle(
        &self,
        index: usize,
        op: Op,
        ticket: Ticket,
        watch: Watch,
        answer: Option<Result<()>>,
        is_invalid: bool,
    ) {
        let mut model = self.shared.model.borrow_mut();
        let states = model.seen(watch);
        match answer {
            None => {
                self.shared.dropped.set(self.shared.dropped.get() + 1);
                model.forgotten(ticket);
            }
            Some(Ok(())) if is_invalid => {
                drop(model);
                return self.fail(index, format!("{op:?} succeeded past the end of payloads"));
            }
            Some(Ok(())) => {
                self.shared.succeed(op);
                model.succeeded(ticket);
            }
            Some(Err(error)) => match error.kind() {
                ErrorKind::InvalidInput if is_invalid => model.failed(ticket),
                ErrorKind::NotFound if matches!(op, Op::Punch { .. } | Op::Copy { .. }) => {
                    model.failed(ticket);
                    if states.iter().all(|state| state.is_some()) {
                        self.fail(index, format!("{op:?} does not find what exists"));
                    }
                }
                ErrorKind::Full if self.shared.explains(ErrorKind::Full) => model.failed(ticket),
                ErrorKind::Poisoned if self.shared.explains(ErrorKind::Poisoned) => {
                    model.forgotten(ticket);
                }
                _ => {
                    self.unexpected(index, op, &error);
                    model.forgotten(ticket);
                }
            },
        }
        if model.current(ticket.payload()).is_empty() {
            self.fail(index, format!("{op:?} was answered as it cannot have been"));
        }
    }

    async fn flush(&self, index: usize, op: Op) {
        let payload = match op {
            Op::Flush { id } => Some(id as usize),
            _ => None,
        };
        let since = self.shared.model.borrow().now();
        let watch = payload.map(|payload| self.shared.model.borrow_mut().watch(payload));
        let answer = match payload {
            Some(payload) => {
                let flushed = self.store.flush(self.id(payload as u64)).await;
                flushed.map(|flushed| flushed.finalized)
            }
            None => self.store.flush_all().await.map(|()| false),
        };
        let mut model = self.shared.model.borrow_mut();
        let states = watch.map(|watch| model.seen(watch));
        match answer {
            Ok(finalized) => {
                self.shared.succeed(op);
                let all = 0..model.len();
                let covered = payload.map_or(all, |payload| payload..payload + 1);
                covered.for_each(|payload| model.flushed(payload, since));
                if finalized {
                    self.fail(index, "a flush without a remote is final".to_owned());
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound && payload.is_some() => {
                if states.is_some_and(|states| states.iter().all(|state| state.is_some())) {
                    self.fail(index, format!("{op:?} does not find what exists"));
                }
            }
            Err(error) if error.kind() == ErrorKind::Poisoned => self.tolerate(index, op, &error),
            Err(error) => self.unexpected(index, op, &error),
        }
    }

    async fn read(&self, index: usize, op: Op, drop_after: Option<u64>) {
        let (Op::Read { id, offset, len } | Op::ReadInto { id, offset, len }) = op else {
            return;
        };
        let (offset, len) = (offset.min(END_MAX - len), len);
        let payload = id as usize;
        let watch = self.shared.model.borrow_mut().watch(payload);
        let answer = if matches!(op, Op::Read { .. }) {
            let read = self.store.read_at(self.id(id), offset, len as usize);
            poll_times(drop_after, read)
                .await
                .map(|answer| answer.map(Chunks::into_bytes))
        } else {
            let mut target = vec![0xEE; len as usize];
            let read = self.store.read_into(self.id(id), offset, &mut target);
            let answer = poll_times(drop_after, read).await;
            answer.map(|answer| {
                answer.map(|count| {
                    if target[count..].iter().any(|byte| *byte != 0xEE) {
                        self.fail(index, format!("{op:?} wrote behind what it read"));
                    }
                    target.truncate(count);
                    Bytes::from(target)
                })
            })
        };
        let alone = self.shared.model.borrow().was_alone(watch);
        let states = self.shared.model.borrow_mut().seen(watch);
        let Some(answer) = answer else { return };
        match answer {
            Ok(_) if len == 0 => self.shared.succeed(op),
            Ok(bytes) => {
                let fits = |state: &State| is_read(state, offset, len, &bytes);
                let any = states.iter().any(|state| fits(state));
                if any && alone {
                    self.shared.model.borrow_mut().narrow(payload, fits);
                }
                let racing = !alone || states.len() > 1;
                let torn = racing && pages_fit(&states, offset, len, &bytes);
                if !any && !torn {
                    let what = self.shared.explain(&states, offset, &bytes);
                    self.fail(index, format!("{op:?} read wrong bytes: {what}"));
                }
                self.shared.succeed(op);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if states.iter().all(|state| state.is_some()) {
                    self.fail(index, format!("{op:?} does not find what exists"));
                } else if alone {
                    let mut model = self.shared.model.borrow_mut();
                    model.narrow(payload, |state| state.is_none());
                }
            }
            Err(error) if error.kind() == ErrorKind::Corrupt => self.tolerate(index, op, &error),
            Err(error) => self.unexpected(index, op, &error),
        }
    }

    async fn read_cow(&self, index: usize, op: Op) {
        let Op::ReadCow {
            id,
            source,
            offset,
            len,
        } = op
        else {
            return;
        };
        let offset = offset.min(END_MAX - len);
        let (upper, lower) = (id as usize, source as usize);
        let (above, below) = {
            let mut model = self.shared.model.borrow_mut();
            (model.watch(upper), model.watch(lower))
        };
        let read =
            self.store
                .read_with_cow_source(self.id(id), self.id(source), offset, len as usize);
        let answer = read.await.map(Chunks::into_bytes);
        let mut model = self.shared.model.borrow_mut();
        let (uppers, lowers) = (model.seen(above), model.seen(below));
        drop(model);
        let pairs: Vec<(&State, &State)> = uppers
            .iter()
            .flat_map(|upper| lowers.iter().map(move |lower| (&**upper, &**lower)))
            .collect();
        let size = |state: &State| state.as_ref().map_or(0, |content| content.size);
        match answer {
            Ok(_) if len == 0 => self.shared.succeed(op),
            Ok(bytes) => {
                let got = bytes.len() as u64;
                let sized = |pair: &&(&State, &State)| {
                    read_len(size(pair.0).max(size(pair.1)), offset, len) == got
                };
                let fits = pairs
                    .iter()
                    .filter(sized)
                    .any(|pair| cow_matches(pair.0, pair.1, offset, &bytes));
                let mixed = || {
                    let byte = |at: usize| {
                        let byte = &bytes[at..=at];
                        let at = offset + at as u64;
                        pairs
                            .iter()
                            .any(|pair| cow_matches(pair.0, pair.1, at, byte))
                    };
                    pairs.iter().any(|pair| sized(&pair)) && (0..bytes.len()).all(byte)
                };
                let torn = pairs.len() > 1 && mixed();
                if !fits && !torn {
                    self.fail(index, {
                        let above = self.shared.explain(&uppers, offset, &bytes);
                        let below = self.shared.explain(&lowers, offset, &bytes);
                        format!(
                            "{op:?} read wrong {got} bytes:\n    {above}\n  source:\n    {below}"
                        )
                    });
                }
                self.shared.succeed(op);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let missing = |pair: &(&State, &State)| pair.0.is_none() && pair.1.is_none();
                if !pairs.iter().any(missing) {
                    self.fail(index, format!("{op:?} does not find what exists"));
                }
            }
            Err(error) if error.kind() == ErrorKind::Corrupt => self.tolerate(index, op, &error),
            Err(error) => self.unexpected(index, op, &error),
        }
    }

    async fn size(&self, index: usize, op: Op) {
        let (Op::Size { id } | Op::Exists { id }) = op else {
            return;
        };
        let watch = self.shared.model.borrow_mut().watch(id as usize);
        let (answer, with_size) = match op {
            Op::Size { .. } => (self.store.size(self.id(id)).await, true),
            _ => match self.store.exists(self.id(id)).await {
                Ok(true) => (Ok(0), false),
                Ok(false) => (Err(Error::not_found()), false),
                Err(error) => (Err(error), false),
            },
        };
        let alone = self.shared.model.borrow().was_alone(watch);
        let states = self.shared.model.borrow_mut().seen(watch);
        let found = match answer {
            Ok(size) => Some(size),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return self.unexpected(index, op, &error),
        };
        let fits = |state: &State| match (state, found) {
            (Some(content), Some(size)) => !with_size || content.size == size,
            (None, None) => true,
            _ => false,
        };
        match states.iter().any(|state| fits(state)) {
            true if alone => self.shared.model.borrow_mut().narrow(id as usize, fits),
            true => {}
            false => {
                let sizes: Vec<Option<u64>> = states
                    .iter()
                    .map(|state| (**state).as_ref().map(|content| content.size))
                    .collect();
                self.fail(
                    index,
                    format!("{op:?}: found {found:?}, possible {sizes:?}"),
                );
            }
        }
        self.shared.succeed(op);
    }

    async fn list(&self, index: usize, limit: usize) {
        let op = Op::List {
            limit: limit as u64,
        };
        let watches: Vec<Watch> = {
            let mut model = self.shared.model.borrow_mut();
            (0..self.shared.ids.len())
                .map(|payload| model.watch(payload))
                .collect()
        };
        let answer = self.store.list(None, limit).await;
        let mut model = self.shared.model.borrow_mut();
        let states: Vec<Vec<Rc<State>>> =
            watches.into_iter().map(|watch| model.seen(watch)).collect();
        drop(model);
        let names = match answer {
            Ok(names) => names,
            Err(error) => return self.unexpected(index, op, &error),
        };
        let possible = |name: &PayloadId| {
            let payload = self.shared.ids.iter().position(|id| id == name);
            payload.is_some_and(|payload| states[payload].iter().any(|state| state.is_some()))
        };
        let sorted = names.is_sorted() && names.len() <= limit;
        if !sorted || !names.iter().all(possible) {
            self.fail(index, format!("{op:?}: impossible names {names:?}"));
        }
        for (id, states) in self.shared.ids.iter().zip(&states) {
            let within = names.len() < limit || names.last().is_some_and(|last| id <= last);
            let surely = states.iter().all(|state| state.is_some());
            if surely && within && !names.contains(id) {
                self.fail(index, format!("{op:?}: {id} is missing from {names:?}"));
            }
        }
        self.shared.succeed(op);
    }

    async fn extents(&self, index: usize, op: Op) {
        let Op::Extents { id, offset, len } = op else {
            return;
        };
        let offset = offset.min(END_MAX - len);
        let watch = self.shared.model.borrow_mut().watch(id as usize);
        let answer = self.store.extents(self.id(id), offset, len).await;
        let states = self.shared.model.borrow_mut().seen(watch);
        match answer {
            Ok(extents) => {
                if !states
                    .iter()
                    .any(|state| super::observe::extents_fit(state, offset, len, &extents))
                {
                    self.fail(index, format!("{op:?}: impossible extents {extents:?}"));
                }
                self.shared.succeed(op);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if states.iter().all(|state| state.is_some()) {
                    self.fail(index, format!("{op:?} does not find what exists"));
                }
            }
            Err(error) => self.unexpected(index, op, &error),
        }
    }

    async fn verify(&self, index: usize) {
        match self.store.verify().await {
            Ok(report) if report.corrupt.is_empty() || self.shared.is_damaged() => {
                self.shared.succeed(Op::Verify);
            }
            Ok(report) => self.fail(index, format!("verify finds bad bytes: {report:?}")),
            Err(error) => self.unexpected(index, Op::Verify, &error),
        }
    }

    async fn stats(&self, index: usize) {
        match self.store.stats().await {
            Ok(stats) => {
                // One batch per shard may be open whatever the budget.
                let slack = self.shared.settings.shards * (257 << 12);
                if stats.local_mem_used > stats.local_mem_max + slack {
                    let (used, max) = (stats.local_mem_used, stats.local_mem_max);
                    self.fail(
                        index,
                        format!("dirty memory {used} is above its limit {max}"),
                    );
                }
                self.shared.succeed(Op::Stats);
            }
            Err(error) => self.unexpected(index, Op::Stats, &error),
        }
    }
}

fn change_of(index: usize, op: Op) -> (PayloadIndex, Change) {
    let tag = index as u32 + 1;
    match op {
        Op::Write { id, offset, len } => (id as usize, Change::Write { offset, len, tag }),
        Op::Punch { id, offset, len } => (id as usize, Change::Punch { offset, len }),
        Op::Truncate { id, size } => (id as usize, Change::Truncate { size }),
        Op::Delete { id } => (id as usize, Change::Delete),
        _ => unreachable!("not a change of one payload"),
    }
}

/// Whether a state explains what a read of `[offset, offset + len)` gave.
fn is_read(state: &State, offset: u64, len: u64, bytes: &[u8]) -> bool {
    let Some(content) = state else { return false };
    read_len(content.size, offset, len) == bytes.len() as u64 && content.matches(offset, bytes)
}

/// Whether each page is one of the states', as a read that raced with writes may have it.
fn pages_fit(states: &[Rc<State>], offset: u64, len: u64, bytes: &[u8]) -> bool {
    let contents = || states.iter().filter_map(|state| (**state).as_ref());
    let sized = contents().any(|content| read_len(content.size, offset, len) == bytes.len() as u64);
    let mut at = offset;
    let mut rest = bytes;
    while !rest.is_empty() {
        let to_edge = PAGE - (at % PAGE as u64) as usize;
        let (page, tail) = rest.split_at(to_edge.min(rest.len()));
        if !contents().any(|content| content.matches(at, page)) {
            return false;
        }
        at += page.len() as u64;
        rest = tail;
    }
    sized
}
