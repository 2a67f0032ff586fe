//! What a client does: one operation against the store, and what its answer says about the model.
//!
//! Invariants:
//! 1. The model is told of a change before the store is, and of its answer in the same step in
//!    which the answer arrives, so that a crash in between finds the change unanswered.
//! 2. Every answer is judged. One that no possible state explains is a failure of the run.
//!
//! Deliberately not here: crashes and what is found behind them; see `run` and `observe`.

use super::content::{Change, State, fill};
use super::history::{Histories, PayloadIndex, Ticket, Watch};
use super::plan::{KINDS, Op, Settings};
use crate::error::{Error, ErrorKind, Result};
use crate::io::sim::Universe;
use crate::payload_id::PayloadId;
use crate::store::Store;
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

/// Largest end of a payload.
pub(super) const END_MAX: u64 = 1 << 62;

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
    /// Whether the remote has failed, or was away.
    pub(super) is_bucket_bad: Cell<bool>,
    /// Whether a file was harmed by hand.
    pub(super) is_harmed: Cell<bool>,
    /// Every write so far: tag, offset, end.
    pub(super) writes: RefCell<Vec<(u32, u64, u64)>>,
    pub(super) dropped: Cell<u64>,
}

/// Which errors what has gone wrong so far can explain.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Allowed {
    pub(super) full: bool,
    pub(super) poisoned: bool,
}

/// How much had gone wrong at some moment that passes again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Passing(u64);

impl Shared {
    /// Notes what is wrong; the first word counts.
    pub(super) fn fail(&self, message: String) {
        self.failure.borrow_mut().get_or_insert(message);
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failure.borrow().is_some()
    }

    pub(super) fn succeed(&self, op: Op) {
        self.successes.borrow_mut()[op.kind()] += 1;
    }

    /// Read errors so far, and files that did not open: they pass, and explain only what was asked
    /// before them and answered after.
    pub(super) fn passing(&self) -> Passing {
        let counters = self.universe.counters();
        Passing(counters.read_errors + counters.metadata_errors)
    }

    /// Whether an error of this kind, of something that began at `began`, may be the disk's doing.
    pub(super) fn explains(&self, kind: ErrorKind, began: Passing) -> bool {
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
            ErrorKind::Unavailable => self.is_bucket_bad.get(),
            ErrorKind::Corrupt => self.is_damaged() || self.passing() != began,
            _ => false,
        }
    }

    /// Whether the disk has lied, or keeps bytes back for good.
    pub(super) fn is_damaged(&self) -> bool {
        let counters = self.universe.counters();
        let silent = counters.lost_writes
            + counters.misdirected_writes
            + counters.rotten_bits
            + counters.unreadable_pages
            + counters.dir_sync_errors;
        self.is_harmed.get() || silent > 0
    }
}

/// A client of an open store.
pub(super) struct Client {
    pub(super) shared: Rc<Shared>,
    pub(super) store: Store,
    /// What had gone wrong when the present step began.
    pub(super) began: Cell<Passing>,
}

/// Polls a future at most so many times; `None` if it was not done by then.
pub(super) async fn poll_times<F: Future>(polls: Option<u64>, future: F) -> Option<F::Output> {
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
        self.began.set(self.shared.passing());
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
            Op::WaitRemote { .. } | Op::Drain => self.wait_remote(index, op).await,
            Op::Evict { id } => match self.store.evict(self.id(id)).await {
                Ok(_) => self.shared.succeed(op),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => self.tolerate_remote(index, op, &error),
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
            | Op::Drain
            | Op::Sleep { .. } => {}
            Op::Copy { .. } | Op::ReadCow { .. } => {
                numbers[0] %= payloads;
                numbers[1] %= payloads;
            }
            _ => numbers[0] %= payloads,
        })
    }

    pub(super) fn fail(&self, index: usize, message: String) {
        self.shared.fail(format!("step {index}: {message}"));
    }

    pub(super) fn unexpected(&self, index: usize, op: Op, error: &Error) {
        self.fail(
            index,
            format!("{op:?} failed, and nothing explains it: {error:?}"),
        );
    }

    pub(super) fn id(&self, payload: u64) -> &PayloadId {
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

    fn is_explained(&self, error: &Error) -> bool {
        self.shared.explains(error.kind(), self.began.get())
    }

    /// An error that changes nothing in the model.
    pub(super) fn tolerate(&self, index: usize, op: Op, error: &Error) {
        if !self.is_explained(error) {
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
                ErrorKind::Full if self.is_explained(&error) => model.failed(ticket),
                ErrorKind::Poisoned if self.is_explained(&error) => {
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

    async fn wait_remote(&self, index: usize, op: Op) {
        let since = self.shared.model.borrow().now();
        let (payloads, answer) = match op {
            Op::WaitRemote { id } => {
                let answer = self.store.wait_remote(self.id(id)).await;
                (id as usize..id as usize + 1, answer)
            }
            _ => (0..self.shared.ids.len(), self.store.drain_uploads().await),
        };
        match answer {
            Ok(()) => {
                self.shared.succeed(op);
                if !self.store.has_remote() {
                    // There was nothing to wait for.
                    return;
                }
                let mut model = self.shared.model.borrow_mut();
                for payload in payloads {
                    model.flushed(payload, since);
                    model.published(payload, since);
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => self.tolerate_remote(index, op, &error),
        }
    }

    /// The same for what needs a remote, in a plan that may have none.
    fn tolerate_remote(&self, index: usize, op: Op, error: &Error) {
        let has_none = self.shared.settings.remote == 0;
        if !(has_none && error.kind() == ErrorKind::InvalidInput) {
            self.tolerate(index, op, error);
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
                if finalized && self.shared.settings.remote == 0 {
                    self.fail(index, "a flush without a remote is final".to_owned());
                }
                if let Some(payload) = payload.filter(|_| finalized) {
                    model.published(payload, since);
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
