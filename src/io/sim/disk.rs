//! A simulated disk at work: operations in flight, how long they take, and which of them go wrong.
//!
//! Invariants:
//! 1. An operation belongs to the disk from its submission to its completion. The future only holds
//!    the slot that the answer goes to, and may be dropped at any time.
//! 2. It takes effect at its completion, at one point of virtual time. Until then the platter holds
//!    it as in flight, so that reads can race with it and a crash can tear it.
//! 3. Answers, buffers and handles are dropped, and wakers woken, while nothing here is borrowed.
//! 4. Operations of a dead process are not submitted, and never answered.
//!
//! Deliberately not here: what tests do to a disk from outside; see `hands`.

use super::driver::Handle;
use super::faults::{Chance, DiskFaults, Draw, Fates, Fault, Latency, Span, mix, name_hash};
use super::image::{Page, Write};
use super::names::{NameRequest, check_dir_path, check_path};
use super::platter::{Change, CrashReport, InFlight, InodeId, Platter};
use super::runtime::{Completes, Group, Runtime, TimerKey};
use crate::buf::{AlignedBuf, BufPool};
use crate::io::{DirEntry, Durability, OpenMode};
use crate::marks::planted;
use crate::types::PAGE;
use bytes::Bytes;
use fastrand::Rng;
use rustix::io::Errno;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// What a read buffer holds until it is filled, so that unfilled bytes show.
pub(super) const POISON: u8 = 0xDB;

/// A disk; clones share it.
#[derive(Clone)]
pub(crate) struct Disk(pub(super) Rc<DiskInner>);

pub(super) struct DiskInner {
    pub(super) name: String,
    seed: u64,
    pub(super) runtime: Rc<Runtime>,
    pub(super) state: RefCell<State>,
    /// Handles that were dropped, by boot and file; worked off at the next opportunity, because a
    /// handle may be dropped anywhere.
    closed: RefCell<Vec<(u64, InodeId)>>,
}

pub(super) struct State {
    pub(super) platter: Platter,
    pub(super) faults: DiskFaults,
    pub(super) latency: Latency,
    pub(super) damage: Vec<Damage>,
    /// Processes that have a driver on this disk.
    pub(super) attached: Vec<Rc<Group>>,
    /// Process that holds the directory's lock, and the number of its guard. A dead one's is void.
    pub(super) lock: Option<(Rc<Group>, u64)>,
    pub(super) lock_last: u64,
    pub(super) rng: Rng,
    ops: BTreeMap<u64, Op>,
    op_last: u64,
    /// How many I/Os each name has seen.
    streams: BTreeMap<String, Stream>,
    /// How often power has failed; handles of an earlier boot are void.
    pub(super) boot: u64,
    /// How many times fates were drawn, so that each time is another.
    fates_drawn: u64,
}

/// Where a name's faults come from.
#[derive(Clone)]
pub(super) struct Stream {
    name_hash: u64,
    count: Rc<Cell<u64>>,
}

/// A silent fault that has damaged a file's content: what an oracle has to allow for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Damage {
    pub(crate) kind: DamageKind,
    /// The file's name when it was opened.
    pub(crate) file: String,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DamageKind {
    /// What should be here is not.
    Lost,
    /// What is here should be elsewhere.
    Misdirected,
    Rotten,
    Unreadable,
}

/// What is asked of the disk.
pub(super) enum Request {
    Read(AlignedBuf),
    Write(Bytes, Durability),
    Sync,
    Allocate(u64),
    Open(String, OpenMode),
    List(String),
    Names(NameRequest),
    SyncDir(String),
}

impl Request {
    /// Its number in the trace.
    pub(super) fn code(&self) -> u64 {
        match self {
            Request::Read(_) => 1,
            Request::Write(_, Durability::Visible) => 2,
            Request::Write(_, Durability::Synced) => 3,
            Request::Sync => 4,
            Request::Allocate(_) => 5,
            Request::Open(_, OpenMode::Existing) => 6,
            Request::Open(_, OpenMode::CreateNew) => 7,
            Request::List(_) => 8,
            Request::Names(NameRequest::Create(_)) => 9,
            Request::Names(NameRequest::MakeDir(_)) => 10,
            Request::Names(NameRequest::Rename(..)) => 11,
            Request::Names(NameRequest::Unlink(_)) => 12,
            Request::SyncDir(_) => 13,
        }
    }

    pub(super) fn len(&self) -> u64 {
        match self {
            Request::Read(buf) => buf.len() as u64,
            Request::Write(bytes, _) => bytes.len() as u64,
            Request::Allocate(len) => *len,
            _ => 0,
        }
    }

    fn span(&self, latency: &Latency) -> Span {
        match self {
            Request::Read(_) => latency.read,
            Request::Write(..) => latency.write,
            Request::Sync | Request::SyncDir(_) => latency.sync,
            _ => latency.metadata,
        }
    }

    /// The name that decides its faults, where it is not about an open file.
    fn path(&self) -> &str {
        match self {
            Request::Open(path, _) | Request::List(path) | Request::SyncDir(path) => path,
            Request::Names(request) => match request {
                NameRequest::Create(path)
                | NameRequest::MakeDir(path)
                | NameRequest::Rename(path, _)
                | NameRequest::Unlink(path) => path,
            },
            _ => "",
        }
    }

    fn check(&self) -> Result<(), Errno> {
        match self {
            Request::Open(path, _) => check_path(path),
            Request::List(path) | Request::SyncDir(path) => check_dir_path(path),
            Request::Names(NameRequest::Rename(from, to)) => check_path(from).and(check_path(to)),
            Request::Names(_) => check_path(self.path()),
            _ => Ok(()),
        }
    }

    /// The change of names that it will make.
    pub(super) fn names(&self) -> Option<NameRequest> {
        match self {
            Request::Open(path, OpenMode::CreateNew) => Some(NameRequest::Create(path.clone())),
            Request::Names(request) => Some(request.clone()),
            _ => None,
        }
    }
}

/// What the disk answers.
pub(super) enum Reply {
    Done,
    Filled(AlignedBuf),
    Opened(Rc<Handle>),
    Entries(Vec<DirEntry>),
}

/// An operation in flight.
pub(super) struct Op {
    pub(super) process: Rc<Group>,
    pub(super) task: u64,
    pub(super) file: Option<Rc<Handle>>,
    pub(super) offset: u64,
    pub(super) request: Request,
    pub(super) draw: Draw,
    pub(super) name_hash: u64,
    /// The pages that a read would have seen when it was submitted.
    pub(super) before: Vec<Option<Page>>,
    /// What had completed when it was submitted has a lower number.
    pub(super) cut: u64,
    slot: Rc<RefCell<Slot>>,
    timer: TimerKey,
    /// Where its bytes land although that memory is not its own any more; see [`Lease`].
    pub(super) stray: Option<usize>,
    /// What has landed in its buffer, out of turn.
    pub(super) scribble: Vec<u8>,
}

/// A future's claim on its operation's buffer: none, for the buffer is the operation's (invariant
/// 1). Planted bug: a dropped future takes the buffer of its read back, and the device, which knows
/// nothing of it, goes on to fill memory that is someone else's by then.
struct Lease {
    disk: Disk,
    op: Option<u64>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(op) = self.op.filter(|_| planted("dropped_read_frees_buffer")) {
            self.disk.free_early(op);
        }
    }
}

#[derive(Default)]
struct Slot {
    reply: Option<io::Result<Reply>>,
    waker: Option<Waker>,
}

/// An operation that was taken out of flight, and its answer.
struct Finished {
    op: Op,
    reply: io::Result<Reply>,
}

impl Disk {
    pub(super) fn new(name: &str, seed: u64, runtime: &Rc<Runtime>) -> Disk {
        let seed = mix(seed ^ name_hash(name));
        Disk(Rc::new(DiskInner {
            name: name.to_owned(),
            seed,
            runtime: Rc::clone(runtime),
            state: RefCell::new(State {
                platter: Platter::new(),
                faults: DiskFaults::default(),
                latency: Latency::default(),
                damage: Vec::new(),
                attached: Vec::new(),
                lock: None,
                lock_last: 0,
                rng: Rng::with_seed(mix(seed)),
                ops: BTreeMap::new(),
                op_last: 0,
                streams: BTreeMap::new(),
                boot: 0,
                fates_drawn: 0,
            }),
            closed: RefCell::default(),
        }))
    }

    /// Submits an operation and awaits its answer.
    pub(super) async fn perform(
        self,
        process: Rc<Group>,
        file: Option<Rc<Handle>>,
        offset: u64,
        request: Request,
    ) -> io::Result<Reply> {
        let slot = Rc::new(RefCell::new(Slot::default()));
        let mut lease = Lease {
            disk: self.clone(),
            op: None,
        };
        if process.is_alive() {
            request.check()?;
            lease.op = Some(self.submit(process, file, offset, request, &slot));
        }
        let claimed = &mut lease.op;
        poll_fn(move |context| {
            let mut slot = slot.borrow_mut();
            if let Some(reply) = slot.reply.take() {
                *claimed = None;
                return Poll::Ready(reply);
            }
            let old = slot.waker.replace(context.waker().clone());
            drop(slot);
            drop(old);
            Poll::Pending
        })
        .await
    }

    fn submit(
        &self,
        process: Rc<Group>,
        file: Option<Rc<Handle>>,
        offset: u64,
        mut request: Request,
        slot: &Rc<RefCell<Slot>>,
    ) -> u64 {
        let disk = &self.0;
        let mut state = disk.state.borrow_mut();
        let state = &mut *state;
        state.op_last += 1;
        let id = state.op_last;
        let stream = match &file {
            Some(file) => file.stream.clone(),
            None => state.stream(request.path()),
        };
        let draw = Draw::new(disk.seed, stream.name_hash, stream.count.get());
        stream.count.set(stream.count.get() + 1);
        let mut before = Vec::new();
        match (&mut request, &file) {
            (Request::Read(buf), Some(file)) => {
                buf.fill(POISON);
                before = state.pages(file.inode, offset, buf.len());
            }
            (_, Some(file)) => disk.announce(state, &process, file, id, offset, &request),
            (_, None) => {
                if let Some(change) = request.names() {
                    let process = process.id;
                    let flying = &mut state.platter.names.in_flight;
                    flying.push(InFlight {
                        op: id,
                        process,
                        change,
                    });
                }
            }
        }
        let span = request.span(&state.latency);
        let bytes = request.len().min(1 << 20);
        let mut delay = state.latency.draw(span, bytes, &mut state.rng);
        if draw.hit(Fault::Slow, state.faults.slow) {
            disk.runtime.counters.borrow_mut().slow += 1;
            delay += u64::try_from(state.faults.slow_for.as_nanos()).unwrap_or(u64::MAX / 2);
        }
        let due = disk.runtime.now().after(Duration::from_nanos(delay));
        let timer = disk
            .runtime
            .complete_at(due, Rc::clone(disk) as Rc<dyn Completes>, id);
        let op = Op {
            process,
            task: disk.runtime.current(),
            file,
            offset,
            request,
            draw,
            name_hash: stream.name_hash,
            before,
            cut: state.platter.seq_next,
            slot: Rc::clone(slot),
            timer,
            stray: None,
            scribble: Vec::new(),
        };
        state.ops.insert(id, op);
        id
    }

    /// The planted bug of [`Lease`].
    fn free_early(&self, id: u64) {
        let mut state = self.0.state.borrow_mut();
        let Some(op) = state.ops.get_mut(&id) else {
            return;
        };
        let Request::Read(buf) = &mut op.request else {
            return;
        };
        op.stray = Some(buf.as_ptr().addr());
        let freed = std::mem::replace(buf, BufPool::new().take(buf.len()));
        drop(state);
        drop(freed);
    }

    /// The fates of the next failure of power or process.
    pub(super) fn chance(&self, state: &mut State) -> Chance {
        state.fates_drawn += 1;
        Chance::new(mix(self.0.seed ^ mix(state.fates_drawn)), &state.faults)
    }

    /// Ends what a process was doing here: `process` has been killed.
    pub(super) fn end_process(&self, process: u64) {
        self.0.reap();
        let mut state = self.0.state.borrow_mut();
        let ended = state.take_ops(|op| op.process.id == process);
        let chance = self.chance(&mut state).without_garbling();
        let report = state
            .platter
            .kill(Some(process), &mut Fates::Chance(chance));
        state.attached.retain(|group| group.id != process);
        drop(state);
        self.tally(&report);
        self.0.drop_ops(ended);
    }

    /// Ends all operations without an effect, and voids all handles.
    pub(super) fn cut_ops(&self) {
        self.0.reap();
        let mut state = self.0.state.borrow_mut();
        let ended = state.take_ops(|_| true);
        state.boot += 1;
        state.lock = None;
        state.attached.clear();
        drop(state);
        self.0.drop_ops(ended);
    }

    pub(super) fn tally(&self, report: &CrashReport) {
        let mut counters = self.0.runtime.counters.borrow_mut();
        counters.writes_kept += report.writes_kept;
        counters.writes_dropped += report.writes_dropped;
        counters.writes_torn += report.writes_torn;
        counters.writes_garbled += report.writes_garbled;
        counters.names_kept += report.names_kept;
        counters.names_undone += report.names_undone;
    }
}

impl State {
    pub(super) fn stream(&mut self, path: &str) -> Stream {
        if let Some(stream) = self.streams.get(path) {
            return stream.clone();
        }
        let stream = Stream {
            name_hash: name_hash(path),
            count: Rc::default(),
        };
        self.streams.insert(path.to_owned(), stream.clone());
        stream
    }

    fn pages(&mut self, id: InodeId, offset: u64, len: usize) -> Vec<Option<Page>> {
        let pages = &self.platter.inode(id).current.pages;
        let first = offset / PAGE as u64;
        let numbers = first..first + (len / PAGE) as u64;
        numbers.map(|no| pages.get(&no).cloned()).collect()
    }

    /// Bytes land at an address: in whatever an operation in flight has there.
    pub(super) fn land_astray(&mut self, address: usize, landing: &[u8]) {
        for (id, op) in &mut self.ops {
            match (&op.request, &op.file) {
                (Request::Read(buf), _) if buf.as_ptr().addr() == address => {
                    op.scribble = landing.to_vec();
                }
                (Request::Write(bytes, _), Some(file)) if bytes.as_ptr().addr() == address => {
                    let mut bytes = bytes.to_vec();
                    let len = bytes.len().min(landing.len());
                    bytes[..len].copy_from_slice(&landing[..len]);
                    let written = Change::Write(Write::new(op.offset, &bytes));
                    let flying = &mut self.platter.inode(file.inode).in_flight;
                    let own = flying.iter_mut().filter(|flying| flying.op == *id);
                    own.for_each(|flying| flying.change = written.clone());
                }
                _ => {}
            }
        }
    }

    fn take_ops(&mut self, ended: impl Fn(&Op) -> bool) -> Vec<Op> {
        self.ops
            .extract_if(.., |_, op| ended(op))
            .map(|(_, op)| op)
            .collect()
    }
}

impl Completes for DiskInner {
    fn complete(self: Rc<Self>, id: u64) {
        self.reap();
        let mut state = self.state.borrow_mut();
        let Some(mut op) = state.ops.remove(&id) else {
            return;
        };
        let reply = self.finish(&mut state, id, &mut op);
        drop(state);
        self.answer(Finished { op, reply });
    }
}

impl DiskInner {
    /// Notes that the last clone of a handle is gone.
    pub(super) fn note_closed(&self, boot: u64, inode: InodeId) {
        self.closed.borrow_mut().push((boot, inode));
    }

    /// Works off the handles that were dropped.
    pub(super) fn reap(&self) {
        if self.closed.borrow().is_empty() {
            return;
        }
        let closed = self.closed.take();
        let mut state = self.state.borrow_mut();
        let boot = state.boot;
        for (_, inode) in closed
            .into_iter()
            .filter(|(closed_boot, _)| *closed_boot == boot)
        {
            state.platter.close(inode);
        }
    }

    fn drop_ops(&self, ended: Vec<Op>) {
        for op in &ended {
            self.runtime.cancel(op.timer);
        }
        drop(ended);
    }

    /// Puts a change of a file in flight.
    fn announce(
        &self,
        state: &mut State,
        process: &Group,
        file: &Handle,
        op: u64,
        offset: u64,
        request: &Request,
    ) {
        let inode = state.platter.inode(file.inode);
        let change = match request {
            Request::Write(bytes, _) => Change::Write(Write::new(offset, bytes)),
            Request::Allocate(len) => Change::Allocate(*len),
            _ => return,
        };
        if let Change::Write(write) = &change
            && inode.is_writing(write.first_page, write.pages.len() as u64)
        {
            self.runtime.counters.borrow_mut().write_races += 1;
        }
        let process = process.id;
        inode.in_flight.push(InFlight {
            op,
            process,
            change,
        });
    }

    fn answer(&self, finished: Finished) {
        let Finished { op, reply } = finished;
        let result = match &reply {
            Ok(_) => 0,
            Err(error) => 1 + error.raw_os_error().unwrap_or(0) as u64,
        };
        self.runtime.trace(result);
        if result != 0 {
            self.runtime.counters.borrow_mut().failed += 1;
        }
        let slot = Rc::clone(&op.slot);
        // The buffer of a write comes home before anyone hears that it has completed.
        drop(op);
        let waker = {
            let mut slot = slot.borrow_mut();
            slot.reply = Some(reply);
            slot.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
