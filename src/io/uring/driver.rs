//! The driver on io_uring: operations as futures over the ring.
//!
//! Invariants:
//! 1. A handle that the ring's operations hold (`OpenFile`) knows the driver weakly, so that
//!    dropping the last driver handle drains the ring.
//! 2. The ring is borrowed for one call at a time, and what that call leaves to drop or to wake is
//!    dropped and woken after the borrow.
//!
//! Deliberately not here: `unsafe`, and with it the entries.

use super::request::{FileName, Request};
use super::{Event, Outcome, Polled, Ring};
use crate::buf::{AlignedBuf, BufPool};
use crate::error::Error;
use crate::io::clock::Clock;
use crate::io::disk::{self, DIR_FLAGS, Dice, FILE_MODE, RESOLVE, Root};
use crate::io::executor::{Executor, Park};
use crate::io::launch::Resident;
use crate::io::{DirEntry, Driver, DriverFile, Durability, Load, OpenMode};
use crate::types::Nanos;
use bytes::Bytes;
use io_uring::types::OpenHow;
use rustix::fs::OFlags;
use std::cell::{Cell, RefCell};
use std::ffi::CString;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

/// The driver on io_uring; clones are handles to the same ring.
#[derive(Clone)]
pub(crate) struct Uring(Rc<Inner>);

struct Inner {
    /// Before `pool`: it is dropped, and drained, first.
    ring: RefCell<Ring>,
    executor: Executor,
    root: Root,
    /// The store's directory once more, for the operations to share.
    root_dir: Rc<OwnedFd>,
    pool: BufPool,
    dice: Dice,
    /// What a turn leaves to do, kept for its memory.
    events: RefCell<Vec<Event>>,
}

/// Why the driver cannot be built.
#[derive(Debug)]
pub(crate) enum Unbuilt {
    /// The kernel gives us no ring.
    Refused(super::Refusal),
    /// The directory is at fault, whatever the driver.
    Disk(Error),
}

impl Uring {
    /// A driver for the store in `root`, on the thread that will run it.
    pub(crate) fn build(
        root: &Path,
        clock: Clock,
        pool: BufPool,
        warns: bool,
    ) -> Result<Uring, Unbuilt> {
        let root = Root::open(root, warns).map_err(Unbuilt::Disk)?;
        let root_dir = root.as_fd().try_clone_to_owned().map_err(|error| {
            let message = format!("no second handle of the store's directory: cause={error}");
            Unbuilt::Disk(Error::with_source(crate::ErrorKind::Full, message, error))
        })?;
        let ring = Ring::new(pool.clone(), warns).map_err(Unbuilt::Refused)?;
        let executor = Executor::new(clock, ring.kicker());
        Ok(Uring(Rc::new(Inner {
            ring: RefCell::new(ring),
            executor,
            root,
            root_dir: Rc::new(root_dir),
            pool,
            dice: Dice::new(),
            events: RefCell::default(),
        })))
    }

    fn run(&self, request: Request) -> Operation {
        Operation {
            inner: Rc::clone(&self.0),
            stage: Stage::Fresh(Some(request)),
        }
    }

    async fn open_raw(self, dir: Rc<OwnedFd>, path: CString, flags: OFlags) -> io::Result<OwnedFd> {
        let mode = match flags.contains(OFlags::CREATE) {
            true => FILE_MODE,
            false => 0,
        };
        let how = OpenHow::new()
            .flags(flags.bits().into())
            .mode(mode.into())
            .resolve(RESOLVE.bits());
        let how = Box::new(how);
        match self.run(Request::Open { dir, path, how }).await.1? {
            Outcome::Opened(fd) => Ok(fd),
            Outcome::Done => unreachable!("an open gives a descriptor"),
        }
    }

    /// Opens a directory, the store's own for the empty path.
    async fn open_dir(self, path: String) -> io::Result<Rc<OwnedFd>> {
        let root_dir = Rc::clone(&self.0.root_dir);
        if path.is_empty() {
            return Ok(root_dir);
        }
        let fd = self.open_raw(root_dir, c_string(&path)?, DIR_FLAGS).await?;
        Ok(Rc::new(fd))
    }

    /// Opens the directory of a checked path; also the name in it.
    async fn open_parent(self, path: String) -> io::Result<(Rc<OwnedFd>, CString)> {
        let (dir, name) = disk::split(&path);
        let name = c_string(name)?;
        Ok((self.open_dir(dir.to_owned()).await?, name))
    }

    async fn open_file(self, path: String, mode: OpenMode) -> io::Result<UringFile> {
        disk::check_path(&path)?;
        let root_dir = Rc::clone(&self.0.root_dir);
        let path = c_string(&path)?;
        let flags = self.0.root.flags(mode);
        let opened = self
            .clone()
            .open_raw(Rc::clone(&root_dir), path.clone(), flags);
        let fd = match opened.await {
            Ok(fd) => fd,
            Err(error) => match self.0.root.retry_mode(&error, flags) {
                Some(flags) => self.clone().open_raw(root_dir, path, flags).await?,
                None => return Err(error),
            },
        };
        self.adopt(fd)
    }

    fn adopt(self, fd: OwnedFd) -> io::Result<UringFile> {
        let facts = self.0.root.inspect(fd.as_fd())?;
        let name = self.0.ring.borrow_mut().register(&fd);
        let file = Rc::new(OpenFile {
            fd,
            name,
            len: Cell::new(facts.len),
            inner: Rc::downgrade(&self.0),
        });
        Ok(UringFile { driver: self, file })
    }

    async fn make_dir(self, path: String) -> io::Result<()> {
        disk::check_path(&path)?;
        let (dir, name) = self.clone().open_parent(path.clone()).await?;
        match self.run(Request::MakeDir { dir, name }).await.1 {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Fine for a directory, and only that can be opened as one.
                self.open_dir(path).await.map(drop)
            }
            outcome => outcome.map(drop),
        }
    }
}

impl Inner {
    /// Calls the ring, then drops and wakes what it says.
    fn with_ring<T>(&self, call: impl FnOnce(&mut Ring, &mut Vec<Event>) -> T) -> T {
        let mut events = self.events.take();
        let result = call(&mut self.ring.borrow_mut(), &mut events);
        events.drain(..).for_each(Event::settle);
        self.events.replace(events);
        result
    }
}

impl Park for Uring {
    fn turn(&self, more_to_run: bool) {
        self.0
            .with_ring(|ring, events| ring.turn(more_to_run, events));
    }

    fn park(&self, timeout: Option<Duration>) {
        self.0.with_ring(|ring, events| ring.park(timeout, events));
    }
}

impl Resident for Uring {
    fn executor(&self) -> &Executor {
        &self.0.executor
    }

    fn drain(&self) {
        self.0.with_ring(Ring::drain);
    }
}

impl Driver for Uring {
    type File = UringFile;

    fn name(&self) -> &'static str {
        "uring"
    }

    fn now(&self) -> Nanos {
        self.0.executor.now()
    }

    fn pass(&self) -> Nanos {
        self.0.executor.pass()
    }

    fn load(&self) -> Load {
        self.0.executor.load()
    }

    fn sleep(&self, span: Duration) -> impl Future<Output = ()> + 'static {
        self.0.executor.sleep(span)
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.0.executor.spawn(task);
    }

    fn random(&self) -> u64 {
        self.0.dice.throw()
    }

    fn pool(&self) -> &BufPool {
        &self.0.pool
    }

    fn open(
        &self,
        path: &str,
        mode: OpenMode,
    ) -> impl Future<Output = io::Result<UringFile>> + 'static {
        self.clone().open_file(path.to_owned(), mode)
    }

    fn create_dir(&self, path: &str) -> impl Future<Output = io::Result<()>> + 'static {
        self.clone().make_dir(path.to_owned())
    }

    fn list(&self, path: &str) -> impl Future<Output = io::Result<Vec<DirEntry>>> + 'static {
        let (driver, path) = (self.clone(), path.to_owned());
        async move {
            disk::check_dir_path(&path)?;
            let dir = driver.open_dir(path).await?;
            // The ring has no operation for this one; it is asked for when a store is opened.
            disk::list(dir.as_fd())
        }
    }

    fn rename(&self, from: &str, to: &str) -> impl Future<Output = io::Result<()>> + 'static {
        let (driver, from, to) = (self.clone(), from.to_owned(), to.to_owned());
        async move {
            disk::check_path(&from)?;
            disk::check_path(&to)?;
            let (from_dir, from) = driver.clone().open_parent(from).await?;
            let (to_dir, to) = driver.clone().open_parent(to).await?;
            let request = Request::Rename {
                from_dir,
                from,
                to_dir,
                to,
            };
            driver.run(request).await.1.map(drop)
        }
    }

    fn unlink(&self, path: &str) -> impl Future<Output = io::Result<()>> + 'static {
        let (driver, path) = (self.clone(), path.to_owned());
        async move {
            disk::check_path(&path)?;
            let (dir, name) = driver.clone().open_parent(path).await?;
            driver.run(Request::Unlink { dir, name }).await.1.map(drop)
        }
    }

    fn sync_dir(&self, path: &str) -> impl Future<Output = io::Result<()>> + 'static {
        let (driver, path) = (self.clone(), path.to_owned());
        async move {
            disk::check_dir_path(&path)?;
            let dir = driver.clone().open_dir(path).await?;
            driver.run(Request::SyncDir { dir }).await.1.map(drop)
        }
    }
}

/// A file as the ring's operations know it.
pub(super) struct OpenFile {
    #[expect(
        dead_code,
        reason = "it is held, not read: dropping it closes the file"
    )]
    fd: OwnedFd,
    name: FileName,
    len: Cell<u64>,
    inner: Weak<Inner>,
}

impl OpenFile {
    pub(super) fn name(&self) -> FileName {
        self.name
    }

    /// Something up to `end` is there now.
    pub(super) fn grow(&self, end: u64) {
        self.len.set(self.len.get().max(end));
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        // The last operation has ended, since each holds the file, so the name is free.
        if let (FileName::Registered(slot), Some(inner)) = (self.name, self.inner.upgrade()) {
            inner.ring.borrow_mut().unregister(slot);
        }
    }
}

/// An open file; clones share it.
#[derive(Clone)]
pub(crate) struct UringFile {
    driver: Uring,
    file: Rc<OpenFile>,
}

impl DriverFile for UringFile {
    fn read(
        &self,
        offset: u64,
        buf: AlignedBuf,
    ) -> impl Future<Output = io::Result<AlignedBuf>> + 'static {
        disk::assert_aligned(offset, &buf);
        let file = Rc::clone(&self.file);
        let read = self.driver.run(Request::Read { file, offset, buf });
        async move {
            match read.await {
                (Request::Read { buf, .. }, outcome) => outcome.map(|_| buf),
                _ => unreachable!("the request comes back as it went"),
            }
        }
    }

    fn write(
        &self,
        offset: u64,
        bytes: Bytes,
        durability: Durability,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        disk::assert_aligned(offset, &bytes);
        let write = self.driver.run(Request::Write {
            file: Rc::clone(&self.file),
            offset,
            bytes,
            durability,
        });
        async move { write.await.1.map(drop) }
    }

    fn sync(&self) -> impl Future<Output = io::Result<()>> + 'static {
        let file = Rc::clone(&self.file);
        let sync = self.driver.run(Request::SyncFile { file });
        async move { sync.await.1.map(drop) }
    }

    fn allocate(&self, len: u64) -> impl Future<Output = io::Result<()>> + 'static {
        let file = Rc::clone(&self.file);
        let allocate = self.driver.run(Request::Allocate { file, len });
        async move { allocate.await.1.map(drop) }
    }

    fn len(&self) -> u64 {
        self.file.len.get()
    }
}

/// An operation as a future: it gives back its request, with what came of it.
struct Operation {
    inner: Rc<Inner>,
    stage: Stage,
}

enum Stage {
    /// Not polled yet, so nobody but us knows of it. The option is only for taking it out.
    Fresh(Option<Request>),
    /// In the ring, under this key.
    Started(usize),
    Over,
}

impl Future for Operation {
    type Output = (Request, io::Result<Outcome>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Stage::Fresh(request) = &mut this.stage {
            let request = request.take().expect("taken only here");
            let waker = context.waker().clone();
            let key = this.inner.ring.borrow_mut().start(request, waker);
            this.stage = Stage::Started(key);
        }
        let Stage::Started(key) = this.stage else {
            panic!("an operation is polled after its end");
        };
        let polled = this.inner.ring.borrow_mut().finish(key, context.waker());
        match polled {
            Polled::Pending(event) => {
                event.into_iter().for_each(Event::settle);
                Poll::Pending
            }
            Polled::Ready(request, outcome) => {
                this.stage = Stage::Over;
                Poll::Ready((request, outcome))
            }
        }
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if let Stage::Started(key) = self.stage {
            let event = self.inner.ring.borrow_mut().forget(key);
            event.into_iter().for_each(Event::settle);
        }
    }
}

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

#[cfg(test)]
mod tests;
