//! The ring: what is in flight with the kernel, and the memory that the kernel may touch meanwhile.
//!
//! Invariants:
//! 1. Everything that an entry points to belongs to its [`Request`], which lies in `ops` from
//!    before the entry is pushed until its completion has been reaped. Nothing takes it out
//!    earlier: a dropped future only marks its operation as orphaned.
//! 2. What a request owns does not move when the request does: its memory is on the heap.
//! 3. An entry has exactly one last completion, and `user_data` is its key in `ops`, so `in_ring`
//!    counts what the kernel may still touch. The ring is dropped at 0; a disk that never answers
//!    makes us leak the memory instead. Only the entry that tells of kicks has others before.
//! 4. No more entries are in the ring than its completion queue holds; the others wait in
//!    `backlog`, unseen by the kernel, and may simply be taken out.
//! 5. Nothing is dropped and nobody woken while the ring is borrowed: both are handed out in
//!    [`Event`].
//!
//! One of the two files with `unsafe`. Deliberately not here: what the operations are for
//! (`driver`).

mod driver;
mod refusal;
mod request;

pub(crate) use driver::{Unbuilt, Uring};
pub(crate) use refusal::Refusal;
#[cfg(any(test, feature = "glommio", feature = "tokio-uring"))]
pub(crate) use refusal::probe;

use crate::buf::{Arena, BufPool};
use crate::io::disk::{Step, Transfer};
use crate::io::executor::Kick;
use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use nix::sys::eventfd::{EfdFlags, EventFd};
use request::{FileName, Request};
use slab::Slab;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

/// Entries of the submission queue; the completion queue has twice as many.
///
/// A shard has fewer operations than that in flight unless it is flooded, and then it waits anyhow.
const ENTRIES: u32 = 256;

/// Entries that are pushed before the kernel is entered at most, while there is something else to
/// run.
///
/// Measured at queue depth 32: chunks of 4 to 8 gave 0.98 of fio's reads, one chunk of 32 gave
/// 0.88.
const SUBMIT_BATCH: usize = 8;

/// Entries that the kernel has for each that is pushed and waits for company: a disk that has
/// little to do gets its work at once. Else disk and shard take turns, each waiting for the other.
const BUSY_FACTOR: usize = 2;

/// Rounds of tasks that a started batch waits for company.
const ROUNDS_MAX: u32 = 4;

/// Files that can be registered; the others go by their descriptor, which costs a look-up a call.
const FILES_MAX: u32 = 1024;

/// How long a drain waits for the disk before it gives up and leaks. `Config::close_timeout`'s
/// default.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// How long a drain waits at a time.
const DRAIN_STEP: Duration = Duration::from_millis(100);

/// Longest wait that a kick could not end, because the kernel took no entry for it.
const DEAF_MAX: Duration = Duration::from_millis(10);

/// `user_data` of an entry that cancels another one, and owns nothing.
const CANCEL_KEY: u64 = u64::MAX;

/// What came of an operation.
enum Outcome {
    Done,
    /// Closed when nobody takes it.
    Opened(OwnedFd),
}

/// Who waits for an operation.
enum State {
    Waiting(Waker),
    /// Its future is gone; it ends by itself.
    Orphaned,
    Over(io::Result<Outcome>),
}

struct Op {
    request: Request,
    transfer: Transfer,
    state: State,
}

/// What a completion means for its operation.
enum Settled {
    Again,
    Over(io::Result<Outcome>),
}

impl Op {
    fn settle(&mut self, result: i32) -> Settled {
        let result = match result {
            0.. => Ok(result as usize),
            _ => Err(io::Error::from_raw_os_error(-result)),
        };
        if let (Request::Open { .. }, Ok(fd)) = (&self.request, &result) {
            // SAFETY: the kernel has just made this descriptor for us and told nobody else; one
            // completion is settled once (invariant 3).
            let fd = unsafe { OwnedFd::from_raw_fd(*fd as i32) };
            return Settled::Over(Ok(Outcome::Opened(fd)));
        }
        match self.transfer.note(result) {
            Step::Again => Settled::Again,
            Step::Failed(error) => Settled::Over(Err(error)),
            Step::Done => {
                self.request.note_done();
                Settled::Over(Ok(Outcome::Done))
            }
        }
    }
}

/// What is left to do when the ring is no longer borrowed.
enum Event {
    Wake(Waker),
    /// An operation that nobody waits for any more.
    Forget(Op),
    /// Its future is dropped, or has found another waker.
    Unheard(Waker),
}

impl Event {
    fn settle(self) {
        match self {
            Event::Wake(waker) => waker.wake(),
            Event::Forget(op) => drop(op),
            Event::Unheard(waker) => drop(waker),
        }
    }
}

/// An operation as its future finds it.
enum Polled {
    Pending(Option<Event>),
    Ready(Request, io::Result<Outcome>),
}

/// An io_uring with its operations.
struct Ring {
    uring: IoUring,
    ops: Slab<Op>,
    /// Its arena, if it has one, may be registered, and must then outlive `uring`.
    pool: BufPool,
    is_arena_registered: bool,
    /// Keys that the kernel has not been told of.
    backlog: VecDeque<usize>,
    /// Entries that were pushed and not reaped.
    in_ring: usize,
    /// Rounds of tasks since the oldest entry was pushed that the kernel has not been told of.
    rounds: u32,
    /// Free slots in the table of registered files.
    file_slots: Vec<u32>,
    event: Arc<EventFd>,
    /// Whether the poll of `event` is in flight.
    armed: bool,
    /// Completions of one turn, kept for its memory.
    reaped: Vec<cqueue::Entry>,
    closed: bool,
}

/// Kicks a ring out of its wait.
struct EventKick(Arc<EventFd>);

impl Kick for EventKick {
    fn kick(&self) {
        // It fails only with a counter of 2^64 - 2, and then it is readable as it is.
        let _ = self.0.write(1);
    }
}

impl Ring {
    fn new(pool: BufPool, warns: bool) -> Result<Ring, Refusal> {
        let uring = refusal::build(ENTRIES)?;
        let is_arena_registered = pool
            .arena()
            .is_some_and(|it| register_arena(&uring, it, warns));
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC)
            .map_err(|errno| Refusal::from_setup(errno.into()))?;
        let mut file_slots = Vec::new();
        match uring.submitter().register_files_sparse(FILES_MAX) {
            Ok(()) => file_slots.extend((0..FILES_MAX).rev()),
            Err(error) => tracing::debug!(%error, "files cannot be registered with the ring"),
        }
        Ok(Ring {
            uring,
            pool,
            is_arena_registered,
            ops: Slab::with_capacity(ENTRIES as usize),
            backlog: VecDeque::new(),
            in_ring: 0,
            rounds: 0,
            file_slots,
            event: Arc::new(event),
            armed: false,
            reaped: Vec::new(),
            closed: false,
        })
    }

    fn kicker(&self) -> EventKick {
        EventKick(Arc::clone(&self.event))
    }

    /// Gives a file a registered name, if there is one left.
    fn register(&mut self, file: &OwnedFd) -> FileName {
        let plain = FileName::Plain(file.as_raw_fd());
        let Some(slot) = self.file_slots.pop() else {
            return plain;
        };
        let submitter = self.uring.submitter();
        match submitter.register_files_update(slot, &[file.as_raw_fd()]) {
            Ok(1) => FileName::Registered(slot),
            _ => {
                self.file_slots.push(slot);
                plain
            }
        }
    }

    /// Takes back a name that no operation uses any more.
    fn unregister(&mut self, slot: u32) {
        let submitter = self.uring.submitter();
        // A slot that cannot be emptied is not given out again.
        if matches!(submitter.register_files_update(slot, &[-1]), Ok(1)) {
            self.file_slots.push(slot);
        }
    }

    /// Starts an operation; its key.
    fn start(&mut self, request: Request, waker: Waker) -> usize {
        let transfer = request.transfer();
        let state = match self.closed {
            false => State::Waiting(waker),
            true => State::Over(Err(ended())),
        };
        let key = self.ops.insert(Op {
            request,
            transfer,
            state,
        });
        if !self.closed {
            self.push_or_wait(key);
        }
        key
    }

    /// The outcome of an operation, once; until then `waker` is remembered.
    fn finish(&mut self, key: usize, waker: &Waker) -> Polled {
        if let State::Waiting(known) = &mut self.ops[key].state {
            let is_new = !known.will_wake(waker);
            let old = is_new.then(|| std::mem::replace(known, waker.clone()));
            return Polled::Pending(old.map(Event::Unheard));
        }
        let op = self.ops.remove(key);
        let State::Over(outcome) = op.state else {
            unreachable!("only a dropped future orphans its operation")
        };
        Polled::Ready(op.request, outcome)
    }

    /// Forgets an operation whose future is dropped; what may be dropped with it.
    fn forget(&mut self, key: usize) -> Option<Event> {
        if matches!(self.ops[key].state, State::Over(_)) {
            return Some(Event::Forget(self.ops.remove(key)));
        }
        if let Some(place) = self.backlog.iter().position(|&waits| waits == key) {
            self.backlog.remove(place);
            return Some(Event::Forget(self.ops.remove(key)));
        }
        let old = std::mem::replace(&mut self.ops[key].state, State::Orphaned);
        match old {
            State::Waiting(waker) => Some(Event::Unheard(waker)),
            _ => None,
        }
    }

    /// Pushes an operation's next entry, or lets it wait where the ring is full.
    fn push_or_wait(&mut self, key: usize) {
        if !self.backlog.is_empty() || !self.push(key) {
            self.backlog.push_back(key);
        }
    }

    /// Whether there was room for an operation's next entry.
    fn push(&mut self, key: usize) -> bool {
        // One entry is kept for the poll that ends a wait.
        let room = self.uring.params().cq_entries() as usize - 1;
        let is_kick = matches!(self.ops[key].request, Request::Kicks { .. });
        if self.in_ring >= room && !is_kick {
            return false;
        }
        let arena = self.pool.arena().filter(|_| self.is_arena_registered);
        let op = &mut self.ops[key];
        let entry = op.request.entry(&op.transfer, arena).user_data(key as u64);
        if !self.push_entry(&entry) {
            return false;
        }
        self.in_ring += 1;
        let pushed = self.uring.submission().len();
        // Where the kernel took nothing at the last try, the poll is among what was pushed.
        let with_kernel = self
            .in_ring
            .saturating_sub(pushed + usize::from(self.armed));
        if pushed >= SUBMIT_BATCH || pushed * BUSY_FACTOR > with_kernel {
            self.submit();
        }
        true
    }

    fn push_entry(&mut self, entry: &squeue::Entry) -> bool {
        if self.uring.submission().is_full() {
            self.submit();
        }
        let mut queue = self.uring.submission();
        // SAFETY: all that the entry points to belongs to a request in `ops` and stays there until
        // the completion (invariants 1 and 2); an entry that cancels points to nothing.
        unsafe { queue.push(entry) }.is_ok()
    }

    /// Tells the kernel of what was pushed, and lets it post what has completed.
    fn submit(&mut self) {
        self.rounds = 0;
        note_enter(self.uring.submit());
    }

    /// See [`crate::io::executor::Park::turn`].
    fn turn(&mut self, more_to_run: bool, events: &mut Vec<Event>) {
        let (pushed, wants_enter) = {
            let queue = self.uring.submission();
            (queue.len(), queue.taskrun() || queue.cq_overflow())
        };
        self.rounds += u32::from(pushed > 0);
        let is_due = pushed > 0 && (!more_to_run || self.rounds >= ROUNDS_MAX);
        if is_due || wants_enter {
            self.submit();
        }
        self.reap(events);
    }

    /// See [`crate::io::executor::Park::park`].
    fn park(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) {
        self.arm();
        let is_waiting = self.uring.completion().is_empty();
        match (is_waiting, self.armed) {
            (true, true) => self.wait(timeout),
            (true, false) => self.wait(Some(timeout.map_or(DEAF_MAX, |it| it.min(DEAF_MAX)))),
            (false, _) => self.submit(),
        }
        self.reap(events);
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        self.rounds = 0;
        let submitter = self.uring.submitter();
        let result = match timeout {
            None => submitter.submit_and_wait(1),
            Some(timeout) => {
                let timeout = Timespec::from(timeout);
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&timeout))
            }
        };
        note_enter(result);
    }

    /// Makes sure that a kick ends the next wait.
    fn arm(&mut self) {
        if self.armed || self.closed {
            return;
        }
        let request = Request::Kicks {
            event: Arc::clone(&self.event),
        };
        let key = self.ops.insert(Op {
            transfer: request.transfer(),
            request,
            state: State::Orphaned,
        });
        self.armed = self.push(key);
        if !self.armed {
            // The kernel takes no entries just now; the next round tries again.
            self.ops.remove(key);
        }
    }

    /// Takes every completion that is there.
    fn reap(&mut self, events: &mut Vec<Event>) {
        let mut reaped = std::mem::take(&mut self.reaped);
        reaped.extend(self.uring.completion());
        for completion in reaped.drain(..) {
            let (key, goes_on) = (completion.user_data(), cqueue::more(completion.flags()));
            if key != CANCEL_KEY && !goes_on {
                self.in_ring -= 1;
                self.complete(key as usize, completion.result(), events);
            }
        }
        self.reaped = reaped;
        while let Some(&key) = self.backlog.front() {
            if !self.push(key) {
                break;
            }
            self.backlog.pop_front();
        }
    }

    fn complete(&mut self, key: usize, result: i32, events: &mut Vec<Event>) {
        let op = &mut self.ops[key];
        self.armed &= !matches!(op.request, Request::Kicks { .. });
        let is_orphan = matches!(op.state, State::Orphaned);
        let outcome = match op.settle(result) {
            // Nobody waits for the rest of an orphan.
            Settled::Again if is_orphan => Err(ended()),
            Settled::Again if self.closed => Err(ended()),
            Settled::Again => {
                self.backlog.push_back(key);
                return;
            }
            Settled::Over(outcome) => outcome,
        };
        let old = std::mem::replace(&mut op.state, State::Over(outcome));
        match old {
            State::Waiting(waker) => events.push(Event::Wake(waker)),
            State::Orphaned => events.push(Event::Forget(self.ops.remove(key))),
            State::Over(_) => unreachable!("an entry completes once"),
        }
    }

    /// Ends everything: cancels what may be, waits for the rest, and takes nothing new.
    fn drain(&mut self, events: &mut Vec<Event>) {
        self.closed = true;
        while let Some(key) = self.backlog.pop_front() {
            let state = &mut self.ops[key].state;
            if let State::Waiting(waker) = std::mem::replace(state, State::Over(Err(ended()))) {
                events.push(Event::Wake(waker));
            }
        }
        let harmless = self
            .ops
            .iter()
            .filter(|(_, op)| op.request.is_harmless() && !matches!(op.state, State::Over(_)));
        let keys: Vec<usize> = harmless.map(|(key, _)| key).collect();
        for key in keys {
            let cancel = opcode::AsyncCancel::new(key as u64).build();
            // One that finds no room is waited for instead.
            self.push_entry(&cancel.user_data(CANCEL_KEY));
        }
        let steps_max = DRAIN_MAX.as_millis() / DRAIN_STEP.as_millis();
        let mut idle_steps = 0;
        while self.in_ring > 0 {
            let before = self.in_ring;
            self.wait(Some(DRAIN_STEP));
            self.reap(events);
            idle_steps = if self.in_ring < before {
                0
            } else {
                idle_steps + 1
            };
            if idle_steps > steps_max {
                tracing::error!(
                    in_flight = self.in_ring,
                    "the disk does not answer: leaking the memory that it may still write to"
                );
                // In the kernel's hands for ever, as invariant 1 demands.
                std::mem::forget(std::mem::take(&mut self.ops));
                self.in_ring = 0;
            }
        }
    }

    /// Operations that are not over, apart from the poll that ends a wait.
    #[cfg(test)]
    fn in_flight(&self) -> usize {
        let is_live = |op: &Op| !matches!(op.request, Request::Kicks { .. });
        self.ops.iter().filter(|(_, op)| is_live(op)).count()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let mut events = Vec::new();
        self.drain(&mut events);
        events.into_iter().for_each(Event::settle);
    }
}

/// Registers an arena as the only fixed buffer; whether that worked.
///
/// Unregistered memory is pinned anew for each transfer: twice the CPU from 128 KiB on.
fn register_arena(uring: &IoUring, arena: &Arena, warns: bool) -> bool {
    let vector = nix::libc::iovec {
        iov_base: arena.start().as_ptr().cast(),
        iov_len: arena.len(),
    };
    let submitter = uring.submitter();
    // SAFETY: the arena is mapped for as long as its pool lives, and the ring holds that until
    // after `uring` is dropped (the order of the fields).
    let registered = unsafe { submitter.register_buffers(&[vector]) };
    if let Err(error) = &registered
        && warns
    {
        tracing::warn!(
            %error,
            bytes = arena.len(),
            "buffers cannot be registered, large transfers take more CPU: raise RLIMIT_MEMLOCK"
        );
    }
    registered.is_ok()
}

/// The answer to who asks after the end.
fn ended() -> io::Error {
    io::Error::other("the driver has ended")
}

/// Entering fails when there is nothing within the timeout, on a signal, or while the kernel is
/// short of something; what was pushed stays pushed, and the next round tries again.
fn note_enter(result: io::Result<usize>) {
    use nix::libc::{EAGAIN, EBUSY, EINTR, ETIME};
    if let Err(error) = result
        && !matches!(error.raw_os_error(), Some(EAGAIN | EBUSY | EINTR | ETIME))
    {
        tracing::error!(%error, "the ring cannot be entered");
    }
}
