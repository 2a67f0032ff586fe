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
use super::faults::{Chance, DiskFaults, Draw, Fate, Fates, Fault, Latency, Span, WHOLE, mix};
use super::faults::{SECTORS, name_hash};
use super::names::{NameRequest, check_dir_path, check_path};
use super::platter::{Change, CrashReport, InFlight, InodeId, Landing, Page, Platter, Write};
use super::runtime::{Completes, Group, Runtime, TimerKey};
use crate::buf::AlignedBuf;
use crate::io::{DirEntry, Durability, OpenMode};
use crate::types::{Nanos, PAGE};
use bytes::Bytes;
use fastrand::Rng;
use rustix::io::Errno;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::hash::BuildHasher;
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// What a read buffer holds until it is filled, so that unfilled bytes show.
const POISON: u8 = 0xDB;

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
    /// Process that holds the directory's lock, and the number of its guard.
    pub(super) lock: Option<(u64, u64)>,
    pub(super) lock_last: u64,
    rng: Rng,
    ops: BTreeMap<u64, Op>,
    op_last: u64,
    /// How many I/Os each name has seen.
    streams: BTreeMap<String, Stream>,
    /// How often power has failed; handles of an earlier boot are void.
    boot: u64,
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
    fn code(&self) -> u64 {
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

    fn len(&self) -> u64 {
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
    fn names(&self) -> Option<NameRequest> {
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
struct Op {
    process: Rc<Group>,
    task: u64,
    file: Option<Rc<Handle>>,
    offset: u64,
    request: Request,
    draw: Draw,
    name_hash: u64,
    /// The pages that a read would have seen when it was submitted.
    before: Vec<Option<Page>>,
    /// What had completed when it was submitted has a lower number.
    cut: u64,
    slot: Rc<RefCell<Slot>>,
    timer: TimerKey,
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
        if process.is_alive() {
            request.check()?;
            self.submit(process, file, offset, request, &slot);
        }
        poll_fn(move |context| {
            let mut slot = slot.borrow_mut();
            if let Some(reply) = slot.reply.take() {
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
    ) {
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
        };
        state.ops.insert(id, op);
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
        state.lock = state.lock.filter(|(holder, _)| *holder != process);
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

    fn finish(self: &Rc<Self>, state: &mut State, id: u64, op: &mut Op) -> io::Result<Reply> {
        let request = std::mem::replace(&mut op.request, Request::Sync);
        self.trace_request(op, &request);
        let file = op.file.clone();
        match (request, file) {
            (Request::Read(mut buf), Some(file)) => {
                let result = self.read(state, op, &file, &mut buf);
                if result.is_err() {
                    buf.fill(POISON);
                }
                result?;
                self.runtime.trace(content_hash(&buf));
                Ok(Reply::Filled(buf))
            }
            (Request::Write(bytes, durability), Some(file)) => {
                let len = bytes.len() as u64;
                let result = self.write(state, id, op, &file, len, durability);
                op.request = Request::Write(bytes, durability);
                result?;
                file.len.set(file.len.get().max(op.offset + len));
                Ok(Reply::Done)
            }
            (Request::Sync, Some(file)) => Ok(self.sync(state, op, &file)?),
            (Request::Allocate(len), Some(file)) => Ok(self.allocate(state, id, op, &file, len)?),
            (request, _) => Ok(self.metadata(state, id, op, request)?),
        }
    }

    fn trace_request(&self, op: &Op, request: &Request) {
        let runtime = &self.runtime;
        let Nanos(now) = runtime.now();
        let words = [
            now,
            op.task,
            request.code(),
            op.name_hash,
            op.offset,
            request.len(),
        ];
        for word in words {
            runtime.trace(word);
        }
        let mut counters = runtime.counters.borrow_mut();
        match request {
            Request::Read(buf) => {
                counters.reads += 1;
                counters.read_bytes += buf.len() as u64;
            }
            Request::Write(bytes, _) => {
                runtime.trace(content_hash(bytes));
                counters.writes += 1;
                counters.written_bytes += bytes.len() as u64;
            }
            Request::Sync => counters.syncs += 1,
            _ => counters.metadata += 1,
        }
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

    fn read(
        &self,
        state: &mut State,
        op: &Op,
        file: &Handle,
        buf: &mut AlignedBuf,
    ) -> io::Result<()> {
        let State {
            platter,
            faults,
            rng,
            damage,
            ..
        } = state;
        let mut counters = self.runtime.counters.borrow_mut();
        let inode = platter.inode(file.inode);
        let end = op.offset + buf.len() as u64;
        if op.draw.hit(Fault::ReadError, faults.read_error) {
            counters.read_errors += 1;
            return Err(Errno::IO.into());
        }
        if end > inode.current.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let pages = op.offset / PAGE as u64..end / PAGE as u64;
        if op.draw.hit(Fault::Unreadable, faults.unreadable) {
            let no = pages.start + op.draw.detail(Fault::Unreadable) % (pages.end - pages.start);
            inode.unreadable.insert(no);
            counters.unreadable_pages += 1;
            damage.push(file.damage(DamageKind::Unreadable, no * PAGE as u64, PAGE as u64));
        }
        if inode.unreadable.range(pages.clone()).next().is_some() {
            return Err(Errno::IO.into());
        }
        if op.draw.hit(Fault::BitRot, faults.bit_rot) {
            let bit = op.offset * 8 + op.draw.detail(Fault::BitRot) % (buf.len() as u64 * 8);
            inode.rot(bit);
            counters.rotten_bits += 1;
            damage.push(file.damage(DamageKind::Rotten, bit / 8, 1));
        }
        let mut raced = false;
        for ((no, before), out) in pages.zip(&op.before).zip(buf.chunks_exact_mut(PAGE)) {
            raced |= inode.read_page(no, before.as_ref(), out, || rng.u8(..));
        }
        counters.read_races += u64::from(raced);
        Ok(())
    }

    fn write(
        &self,
        state: &mut State,
        id: u64,
        op: &Op,
        file: &Handle,
        len: u64,
        durability: Durability,
    ) -> Result<(), Errno> {
        let State {
            platter,
            faults,
            damage,
            ..
        } = state;
        let mut counters = self.runtime.counters.borrow_mut();
        let change = platter.land_in_flight(file.inode, id);
        let grows = platter.grows(file.inode, &change);
        let Change::Write(write) = change else {
            unreachable!("a write announced a write");
        };
        if op.draw.hit(Fault::WriteError, faults.write_error) {
            counters.write_errors += 1;
            let fate = partly(op.draw.detail(Fault::WriteError), write.pages.len());
            let base = &platter.inode(file.inode).current;
            if let Some(write) = write.befall(&fate, base) {
                platter.complete(file.inode, Change::Write(write), Landing::Forsaken)?;
            }
            return Err(Errno::IO);
        }
        if grows && op.draw.hit(Fault::NoSpace, faults.no_space) {
            counters.out_of_space += 1;
            return Err(Errno::NOSPC);
        }
        if op.draw.hit(Fault::LostWrite, faults.lost_write) {
            counters.lost_writes += 1;
            damage.push(file.damage(DamageKind::Lost, op.offset, len));
            return Ok(());
        }
        let landing = match durability {
            Durability::Visible => Landing::Pending,
            Durability::Synced => Landing::Durable,
        };
        if op
            .draw
            .hit(Fault::MisdirectedWrite, faults.misdirected_write)
            && let Some(elsewhere) = misdirect(platter, op, file, &write)
        {
            counters.misdirected_writes += 1;
            damage.push(file.damage(DamageKind::Lost, op.offset, len));
            let (inode, write, victim) = elsewhere;
            let offset = write.first_page * PAGE as u64;
            damage.push(Damage {
                kind: DamageKind::Misdirected,
                file: victim,
                offset,
                len: write.end() - offset,
            });
            return platter.complete(inode, Change::Write(write), landing);
        }
        let result = platter.complete(file.inode, Change::Write(write), landing);
        counters.out_of_space += u64::from(result.is_err());
        result
    }

    fn sync(&self, state: &mut State, op: &Op, file: &Handle) -> Result<Reply, Errno> {
        let inode = state.platter.inode(file.inode);
        if op.draw.hit(Fault::SyncError, state.faults.sync_error) {
            self.runtime.counters.borrow_mut().sync_errors += 1;
            inode.forsake(op.cut);
            return Err(Errno::IO);
        }
        inode.sync(op.cut);
        Ok(Reply::Done)
    }

    fn allocate(
        &self,
        state: &mut State,
        id: u64,
        op: &Op,
        file: &Handle,
        len: u64,
    ) -> Result<Reply, Errno> {
        let platter = &mut state.platter;
        let mut counters = self.runtime.counters.borrow_mut();
        let change = platter.land_in_flight(file.inode, id);
        let error = self.metadata_error(op, &state.faults, &mut counters.metadata_errors);
        if error == Some(false) {
            return Err(Errno::IO);
        }
        if platter.grows(file.inode, &change) {
            let refused = op.draw.hit(Fault::NoSpace, state.faults.no_space);
            let result = match refused {
                true => Err(Errno::NOSPC),
                false => platter.complete(file.inode, change, Landing::Pending),
            };
            counters.out_of_space += u64::from(result.is_err());
            result?;
        }
        if error.is_some() {
            return Err(Errno::IO);
        }
        file.len.set(file.len.get().max(len));
        Ok(Reply::Done)
    }

    /// Whether the operation fails, and if so, whether it has an effect nevertheless.
    fn metadata_error(&self, op: &Op, faults: &DiskFaults, count: &mut u64) -> Option<bool> {
        if !op.draw.hit(Fault::MetadataError, faults.metadata_error) {
            return None;
        }
        *count += 1;
        Some(op.draw.detail(Fault::MetadataError) & 1 == 1)
    }

    fn metadata(
        self: &Rc<Self>,
        state: &mut State,
        id: u64,
        op: &Op,
        request: Request,
    ) -> Result<Reply, Errno> {
        let mut counters = self.runtime.counters.borrow_mut();
        let faults = &state.faults;
        let platter = &mut state.platter;
        platter.names.in_flight.retain(|flying| flying.op != id);
        let error = self.metadata_error(op, faults, &mut counters.metadata_errors);
        if let (Request::SyncDir(path), Some(_)) = (&request, error) {
            platter.names.forsake(path, op.cut);
        }
        let reads_only = matches!(
            request,
            Request::List(_) | Request::SyncDir(_) | Request::Open(_, OpenMode::Existing)
        );
        if error == Some(false) || error.is_some() && reads_only {
            return Err(Errno::IO);
        }
        let is_create = matches!(request, Request::Open(_, OpenMode::CreateNew));
        if is_create && op.draw.hit(Fault::NoSpace, faults.no_space) {
            counters.out_of_space += 1;
            return Err(Errno::NOSPC);
        }
        let created = match request.names() {
            Some(change) => platter.perform(&change),
            None => Ok(None),
        };
        counters.out_of_space += u64::from(matches!(created, Err(Errno::NOSPC)));
        let created = created?;
        drop(counters);
        if error.is_some() {
            return Err(Errno::IO);
        }
        match request {
            Request::Open(path, OpenMode::Existing) => {
                let inode = platter.names.file(&path)?;
                Ok(Reply::Opened(self.open(state, path, inode)))
            }
            Request::Open(path, OpenMode::CreateNew) => {
                let inode = created.expect("a creation creates");
                Ok(Reply::Opened(self.open(state, path, inode)))
            }
            Request::List(path) => {
                let len = |id| platter.inodes.get(&id).map_or(0, |inode| inode.current.len);
                Ok(Reply::Entries(platter.names.list(&path, len)?))
            }
            Request::SyncDir(path) => {
                platter.names.check_sync_dir(&path)?;
                platter.sync_dir(&path, op.cut);
                Ok(Reply::Done)
            }
            _ => Ok(Reply::Done),
        }
    }

    fn open(self: &Rc<Self>, state: &mut State, path: String, inode: InodeId) -> Rc<Handle> {
        let stream = state.stream(&path);
        let boot = state.boot;
        let file = state.platter.inode(inode);
        file.opens += 1;
        let len = Cell::new(file.current.len);
        Rc::new(Handle {
            disk: Disk(Rc::clone(self)),
            boot,
            inode,
            path,
            stream,
            len,
        })
    }
}

/// What a failed write leaves: all, nothing, or some sectors.
fn partly(detail: u64, pages: usize) -> Fate {
    match detail % 3 {
        0 => Fate::Dropped,
        1 => Fate::Kept,
        _ => {
            let sectors = (detail >> 8) as usize % (pages * SECTORS);
            let mask = |page: usize| match sectors.saturating_sub(page * SECTORS) {
                count if count >= SECTORS => WHOLE,
                count => ((1u16 << count) - 1) as u8,
            };
            Fate::Torn((0..pages).map(mask).collect())
        }
    }
}

/// Where a misdirected write lands: in a file that has room for it, at pages that it is not for.
fn misdirect(
    platter: &mut Platter,
    op: &Op,
    file: &Handle,
    write: &Write,
) -> Option<(InodeId, Write, String)> {
    let detail = op.draw.detail(Fault::MisdirectedWrite);
    let files: Vec<(String, InodeId)> = {
        let files = platter.names.files();
        files.map(|(name, id)| (name.to_owned(), id)).collect()
    };
    let (name, inode) = match detail & 1 {
        0 => (file.path.clone(), file.inode),
        _ => files
            .get((detail >> 1) as usize % files.len().max(1))?
            .clone(),
    };
    let room = platter.inode(inode).current.len / PAGE as u64;
    let places = (room + 1).checked_sub(write.pages.len() as u64)?;
    let first_page = (detail >> 32).checked_rem(places)?;
    if inode == file.inode && first_page == write.first_page {
        return None;
    }
    let write = Write {
        first_page,
        pages: write.pages.clone(),
    };
    Some((inode, write, name))
}

fn content_hash(bytes: &[u8]) -> u64 {
    foldhash::fast::FixedState::with_seed(0).hash_one(bytes)
}
