//! The driver of the simulator: what a shard holds, and what its files are.
//!
//! Invariants:
//! 1. Nothing is submitted before the first poll.
//! 2. What breaks the driver's rules (alignment, sizes) is a bug and panics, as real drivers would
//!    return EINVAL only sometimes.
//!
//! Deliberately not here: what happens to an operation; see `disk`.

use super::disk::{Damage, DamageKind, Disk, Reply, Request, Stream};
use super::faults::mix;
use super::names::NameRequest;
use super::platter::InodeId;
use super::runtime::{Group, Runtime};
use super::task;
use crate::buf::{AlignedBuf, BufPool};
use crate::io::{DirEntry, Driver, DriverFile, Durability, Load, OpenMode};
use crate::types::{Nanos, PAGE};
use bytes::Bytes;
use std::cell::Cell;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// How late a timer may be, at most: what a busy machine's are.
const TIMER_LATE_NS_MAX: u64 = 60_000;

/// A shard's access to the simulated world; clones share it.
#[derive(Clone)]
pub(crate) struct SimDriver(Rc<Inner>);

struct Inner {
    id: u64,
    runtime: Rc<Runtime>,
    process: Rc<Group>,
    disk: Disk,
    pool: BufPool,
    random: Cell<u64>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.runtime.drop_driver(self.id);
    }
}

impl SimDriver {
    /// `id` tells it from every other driver of the universe; `seed` is where its numbers start.
    pub(super) fn new(
        id: u64,
        seed: u64,
        process: &Rc<Group>,
        disk: &Disk,
        pool: &BufPool,
    ) -> SimDriver {
        SimDriver(Rc::new(Inner {
            id,
            runtime: Rc::clone(&disk.0.runtime),
            process: Rc::clone(process),
            disk: disk.clone(),
            pool: pool.clone(),
            random: Cell::new(seed),
        }))
    }

    /// Drops every task that this driver started, as a shard's thread does when its main has ended.
    pub(crate) fn end(&self) {
        self.0.runtime.drop_driver(self.0.id);
    }

    fn perform(&self, request: Request) -> impl Future<Output = io::Result<Reply>> + 'static {
        let process = Rc::clone(&self.0.process);
        self.0.disk.clone().perform(process, None, 0, request)
    }
}

fn expect_done(reply: Reply) {
    assert!(matches!(reply, Reply::Done), "an answer of another kind");
}

impl Driver for SimDriver {
    type File = SimFile;

    fn name(&self) -> &'static str {
        "sim"
    }

    fn now(&self) -> Nanos {
        self.0.runtime.now()
    }

    fn pass(&self) -> Nanos {
        // Every poll is a pass of its own.
        self.now()
    }

    fn load(&self) -> Load {
        Load {
            busy: self.0.runtime.busy(self.0.id),
            stalls: 0,
        }
    }

    fn sleep(&self, span: Duration) -> impl Future<Output = ()> + 'static {
        task::sleep(&self.0.runtime, span, TIMER_LATE_NS_MAX)
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.0.runtime.spawn(&self.0.process, self.0.id, task);
    }

    fn random(&self) -> u64 {
        let word = self.0.random.get().wrapping_add(1);
        self.0.random.set(word);
        mix(word)
    }

    fn pool(&self) -> &BufPool {
        &self.0.pool
    }

    fn open(
        &self,
        path: &str,
        mode: OpenMode,
    ) -> impl Future<Output = io::Result<SimFile>> + 'static {
        let process = Rc::clone(&self.0.process);
        let opening = self.perform(Request::Open(path.to_owned(), mode));
        async move {
            match opening.await? {
                Reply::Opened(handle) => Ok(SimFile { process, handle }),
                _ => unreachable!("an open answers with a handle"),
            }
        }
    }

    fn create_dir(&self, path: &str) -> impl Future<Output = io::Result<()>> + 'static {
        let making = self.perform(Request::Names(NameRequest::MakeDir(path.to_owned())));
        async move { making.await.map(expect_done) }
    }

    fn list(&self, path: &str) -> impl Future<Output = io::Result<Vec<DirEntry>>> + 'static {
        let listing = self.perform(Request::List(path.to_owned()));
        async move {
            match listing.await? {
                Reply::Entries(entries) => Ok(entries),
                _ => unreachable!("a list answers with entries"),
            }
        }
    }

    fn rename(&self, from: &str, to: &str) -> impl Future<Output = io::Result<()>> + 'static {
        let request = NameRequest::Rename(from.to_owned(), to.to_owned());
        let renaming = self.perform(Request::Names(request));
        async move { renaming.await.map(expect_done) }
    }

    fn unlink(&self, path: &str) -> impl Future<Output = io::Result<()>> + 'static {
        let unlinking = self.perform(Request::Names(NameRequest::Unlink(path.to_owned())));
        async move { unlinking.await.map(expect_done) }
    }

    fn sync_dir(&self, path: &str) -> impl Future<Output = io::Result<()>> + 'static {
        let syncing = self.perform(Request::SyncDir(path.to_owned()));
        async move { syncing.await.map(expect_done) }
    }
}

/// An open file; clones share it.
#[derive(Clone)]
pub(crate) struct SimFile {
    process: Rc<Group>,
    handle: Rc<Handle>,
}

/// What the clones of a file share.
pub(super) struct Handle {
    pub(super) disk: Disk,
    pub(super) boot: u64,
    pub(super) inode: InodeId,
    /// Its name when it was opened.
    pub(super) path: String,
    pub(super) stream: Stream,
    pub(super) len: Cell<u64>,
}

impl Handle {
    pub(super) fn damage(&self, kind: DamageKind, offset: u64, len: u64) -> Damage {
        Damage {
            kind,
            file: self.path.clone(),
            offset,
            len,
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.disk.0.note_closed(self.boot, self.inode);
    }
}

impl SimFile {
    fn perform(
        &self,
        offset: u64,
        request: Request,
    ) -> impl Future<Output = io::Result<Reply>> + 'static {
        let disk = self.handle.disk.clone();
        let handle = Rc::clone(&self.handle);
        disk.perform(Rc::clone(&self.process), Some(handle), offset, request)
    }
}

impl DriverFile for SimFile {
    fn read(
        &self,
        offset: u64,
        buf: AlignedBuf,
    ) -> impl Future<Output = io::Result<AlignedBuf>> + 'static {
        assert!(offset.is_multiple_of(PAGE as u64), "unaligned read");
        let reading = self.perform(offset, Request::Read(buf));
        async move {
            match reading.await? {
                Reply::Filled(buf) => Ok(buf),
                _ => unreachable!("a read answers with its buffer"),
            }
        }
    }

    fn write(
        &self,
        offset: u64,
        bytes: Bytes,
        durability: Durability,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        assert!(offset.is_multiple_of(PAGE as u64), "unaligned write");
        assert!(!bytes.is_empty(), "an empty write");
        assert!(bytes.len().is_multiple_of(PAGE), "a write of half a page");
        let address = bytes.as_ptr().addr();
        assert!(
            address.is_multiple_of(PAGE),
            "a write from unaligned memory"
        );
        let writing = self.perform(offset, Request::Write(bytes, durability));
        async move { writing.await.map(expect_done) }
    }

    fn sync(&self) -> impl Future<Output = io::Result<()>> + 'static {
        let syncing = self.perform(0, Request::Sync);
        async move { syncing.await.map(expect_done) }
    }

    fn allocate(&self, len: u64) -> impl Future<Output = io::Result<()>> + 'static {
        let allocating = self.perform(0, Request::Allocate(len));
        async move { allocating.await.map(expect_done) }
    }

    fn len(&self) -> u64 {
        self.handle.len.get()
    }
}
