//! The driver on blocking calls: a few threads that each do one operation at a time.
//!
//! For where io_uring is refused. Slower, and otherwise the same: it keeps the same rules.
//!
//! Invariants:
//! 1. A job owns all that it touches, and runs to its end once it is queued; a dropped future only
//!    drops the answer.
//! 2. Every queued job gives an answer, also one that panics or comes too late: [`Answer`] answers
//!    when it is dropped.
//! 3. After `drain` the queue is empty and the threads have ended.
//!
//! Deliberately not here: order. Four threads finish in whatever order they like, as a ring does.

use crate::buf::{AlignedBuf, BufPool};
use crate::error::{Error, ErrorKind, Result};
use crate::io::beneath::{self, again};
use crate::io::clock::Clock;
use crate::io::disk::{self, Dice, Direction, Root, Step, Transfer};
use crate::io::executor::{Executor, Kick, Park};
use crate::io::launch::Resident;
use crate::io::{DirEntry, Driver, DriverFile, Durability, Load, OpenMode};
use crate::types::Nanos;
use bytes::Bytes;
use rustix::fs::FallocateFlags;
use rustix::io::ReadWriteFlags;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

/// Threads of one shard's pool: enough to keep an SSD busy, few enough for many shards.
const WORKERS: usize = 4;

/// The driver on threads; clones are handles to the same pool.
#[derive(Clone)]
pub(crate) struct Threads(Rc<Inner>);

struct Inner {
    executor: Executor,
    bell: Arc<Bell>,
    jobs: Arc<Jobs>,
    workers: RefCell<Vec<JoinHandle<()>>>,
    root: Arc<Root>,
    pool: BufPool,
    dice: Dice,
}

impl Threads {
    /// A driver for the store in `root`, on the thread that will run it.
    pub(crate) fn build(root: &Path, clock: Clock, pool: BufPool, warns: bool) -> Result<Threads> {
        let root = Arc::new(Root::open(root, warns)?);
        let jobs = Arc::new(Jobs::default());
        let bell = Arc::new(Bell::default());
        let inner = Inner {
            executor: Executor::new(clock, BellKick(Arc::clone(&bell))),
            bell,
            jobs,
            workers: RefCell::default(),
            root,
            pool,
            dice: Dice::new(),
        };
        // Should one of them fail, dropping `inner` ends those before it.
        for number in 0..WORKERS {
            let jobs = Arc::clone(&inner.jobs);
            let name = format!("ringstore-io{number}");
            let worker = std::thread::Builder::new()
                .name(name)
                .spawn(move || jobs.work());
            let worker = worker.map_err(|error| {
                let message = format!("no thread can be started, raise the limit: cause={error}");
                Error::with_source(ErrorKind::Full, message, error)
            })?;
            inner.workers.borrow_mut().push(worker);
        }
        Ok(Threads(Rc::new(inner)))
    }

    /// Has a worker do something, from the first poll on.
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Offloaded<T> {
        Offloaded {
            jobs: Arc::clone(&self.0.jobs),
            stage: Stage::Fresh(Some(Box::new(work))),
        }
    }

    /// The same with the store's directory.
    fn run_beneath<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Root) -> io::Result<T> + Send + 'static,
    ) -> Offloaded<T> {
        let root = Arc::clone(&self.0.root);
        self.run(move || work(&root))
    }
}

impl Inner {
    fn drain(&self) {
        self.jobs.close();
        for worker in self.workers.take() {
            // A worker that panicked has answered with an error, and says no more here.
            let _ = worker.join();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.drain();
    }
}

/// What the executor waits on.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

struct BellKick(Arc<Bell>);

impl Kick for BellKick {
    fn kick(&self) {
        *lock(&self.0.rung) = true;
        self.0.changed.notify_one();
    }
}

impl Park for Threads {
    fn turn(&self, _more_to_run: bool) {}

    fn park(&self, timeout: Option<Duration>) {
        let bell = &self.0.bell;
        let rung = lock(&bell.rung);
        let mut rung = match timeout {
            None => {
                let waited = bell.changed.wait_while(rung, |rung| !*rung);
                waited.unwrap_or_else(PoisonError::into_inner)
            }
            Some(timeout) => {
                let waited = bell
                    .changed
                    .wait_timeout_while(rung, timeout, |rung| !*rung);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        *rung = false;
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// The queue between the shard and its workers. It is as long as the shard has operations in
/// flight.
#[derive(Default)]
struct Jobs {
    queue: Mutex<JobQueue>,
    changed: Condvar,
}

#[derive(Default)]
struct JobQueue {
    closed: bool,
    jobs: VecDeque<Job>,
}

impl Jobs {
    /// Queues a job; one that comes too late is dropped, which answers it.
    fn push(&self, job: Job) {
        let mut queue = lock(&self.queue);
        if queue.closed {
            drop(queue);
            return drop(job);
        }
        queue.jobs.push_back(job);
        drop(queue);
        self.changed.notify_one();
    }

    fn close(&self) {
        lock(&self.queue).closed = true;
        self.changed.notify_all();
    }

    /// A worker's life: it ends when the queue is closed and empty.
    fn work(&self) {
        let mut queue = lock(&self.queue);
        loop {
            match queue.jobs.pop_front() {
                Some(job) => {
                    drop(queue);
                    job();
                    queue = lock(&self.queue);
                }
                None if queue.closed => return,
                None => {
                    let waited = self.changed.wait(queue);
                    queue = waited.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a worker leaves a result and who it wakes then.
struct Slot<T> {
    result: Option<io::Result<T>>,
    waker: Option<Waker>,
}

/// The worker's end of a slot.
struct Answer<T>(Arc<Mutex<Slot<T>>>);

impl<T> Answer<T> {
    fn put(&self, result: io::Result<T>) {
        let mut slot = lock(&self.0);
        if slot.result.is_none() {
            slot.result = Some(result);
        }
        let waker = slot.waker.take();
        drop(slot);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        self.put(Err(io::Error::other("the driver has ended")));
    }
}

/// A worker's result as a future.
struct Offloaded<T> {
    jobs: Arc<Jobs>,
    stage: Stage<T>,
}

type Work<T> = Box<dyn FnOnce() -> io::Result<T> + Send>;

enum Stage<T> {
    /// Not polled yet. The option is only for taking it out.
    Fresh(Option<Work<T>>),
    Queued(Arc<Mutex<Slot<T>>>),
    Over,
}

impl<T: Send + 'static> Future for Offloaded<T> {
    type Output = io::Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        let this = &mut *self;
        if let Stage::Fresh(work) = &mut this.stage {
            let work = work.take().expect("taken only here");
            let slot = Arc::new(Mutex::new(Slot {
                result: None,
                waker: Some(context.waker().clone()),
            }));
            let answer = Answer(Arc::clone(&slot));
            this.stage = Stage::Queued(slot);
            this.jobs.push(Box::new(move || answer.put(work())));
        }
        let Stage::Queued(slot) = &this.stage else {
            panic!("an operation is polled after its end");
        };
        let mut guard = lock(slot);
        let Some(result) = guard.result.take() else {
            let old = guard.waker.replace(context.waker().clone());
            drop(guard);
            drop(old);
            return Poll::Pending;
        };
        drop(guard);
        this.stage = Stage::Over;
        Poll::Ready(result)
    }
}

impl Resident for Threads {
    fn executor(&self) -> &Executor {
        &self.0.executor
    }

    fn drain(&self) {
        self.0.drain();
    }
}

impl Driver for Threads {
    type File = ThreadsFile;

    fn name(&self) -> &'static str {
        "threads"
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
    ) -> impl Future<Output = io::Result<ThreadsFile>> + 'static {
        let (driver, path) = (self.clone(), path.to_owned());
        async move {
            let opened = driver.run_beneath(move |root| beneath::open(root, &path, mode));
            let (fd, len) = opened.await?;
            let len = AtomicU64::new(len);
            let file = Arc::new(OpenFile { fd, len });
            Ok(ThreadsFile { driver, file })
        }
    }

    fn create_dir(&self, path: &str) -> impl Future<Output = io::Result<()>> + 'static {
        let path = path.to_owned();
        self.run_beneath(move |root| beneath::create_dir(root, &path))
    }

    fn list(&self, path: &str) -> impl Future<Output = io::Result<Vec<DirEntry>>> + 'static {
        let path = path.to_owned();
        self.run_beneath(move |root| beneath::list(root, &path))
    }

    fn rename(&self, from: &str, to: &str) -> impl Future<Output = io::Result<()>> + 'static {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.run_beneath(move |root| beneath::rename(root, &from, &to))
    }

    fn unlink(&self, path: &str) -> impl Future<Output = io::Result<()>> + 'static {
        let path = path.to_owned();
        self.run_beneath(move |root| beneath::unlink(root, &path))
    }

    fn sync_dir(&self, path: &str) -> impl Future<Output = io::Result<()>> + 'static {
        let path = path.to_owned();
        self.run_beneath(move |root| beneath::sync_dir(root, &path))
    }
}

/// A file as the workers know it.
struct OpenFile {
    fd: OwnedFd,
    len: AtomicU64,
}

impl OpenFile {
    /// Something up to `end` is there now.
    fn grow(&self, end: u64) {
        self.len.fetch_max(end, Ordering::AcqRel);
    }

    fn fill(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        transfer(Direction::Read, buf.len(), |start, piece| {
            let part = &mut buf[start..start + piece];
            Ok(rustix::io::pread(&self.fd, part, offset + start as u64)?)
        })
    }

    fn store(&self, offset: u64, bytes: &[u8], durability: Durability) -> io::Result<()> {
        let flags = match durability {
            Durability::Visible => ReadWriteFlags::empty(),
            Durability::Synced => ReadWriteFlags::DSYNC,
        };
        transfer(Direction::Write, bytes.len(), |start, piece| {
            let parts = [IoSlice::new(&bytes[start..start + piece])];
            let offset = offset + start as u64;
            Ok(rustix::io::pwritev2(&self.fd, &parts, offset, flags)?)
        })?;
        self.grow(offset + bytes.len() as u64);
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        again(|| {
            Ok(rustix::fs::fallocate(
                &self.fd,
                FallocateFlags::empty(),
                0,
                len,
            )?)
        })?;
        self.grow(len);
        Ok(())
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Calls, with where to go on and how much to ask for, until the transfer is whole or failed.
fn transfer(
    direction: Direction,
    len: usize,
    mut call: impl FnMut(usize, usize) -> io::Result<usize>,
) -> io::Result<()> {
    let mut transfer = Transfer::new(direction, len);
    loop {
        let result = call(transfer.start(), transfer.piece());
        match transfer.note(result) {
            Step::Again => {}
            Step::Done => return Ok(()),
            Step::Failed(error) => return Err(error),
        }
    }
}

/// An open file; clones share it.
#[derive(Clone)]
pub(crate) struct ThreadsFile {
    driver: Threads,
    file: Arc<OpenFile>,
}

impl DriverFile for ThreadsFile {
    fn read(
        &self,
        offset: u64,
        mut buf: AlignedBuf,
    ) -> impl Future<Output = io::Result<AlignedBuf>> + 'static {
        disk::assert_aligned(offset, &buf);
        let file = Arc::clone(&self.file);
        self.driver
            .run(move || file.fill(offset, &mut buf).map(|()| buf))
    }

    fn write(
        &self,
        offset: u64,
        bytes: Bytes,
        durability: Durability,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        disk::assert_aligned(offset, &bytes);
        let file = Arc::clone(&self.file);
        self.driver
            .run(move || file.store(offset, &bytes, durability))
    }

    fn sync(&self) -> impl Future<Output = io::Result<()>> + 'static {
        let file = Arc::clone(&self.file);
        // Once interrupted it has not failed, and nothing was given up.
        self.driver
            .run(move || again(|| Ok(rustix::fs::fdatasync(&*file)?)))
    }

    fn allocate(&self, len: u64) -> impl Future<Output = io::Result<()>> + 'static {
        let file = Arc::clone(&self.file);
        self.driver.run(move || file.allocate(len))
    }

    fn len(&self) -> u64 {
        self.file.len.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_too_late_or_panics_is_answered() {
        let dir = tempfile::tempdir().unwrap();
        let build = || Threads::build(dir.path(), Clock::Real, BufPool::new(), false).unwrap();
        let driver = build();
        driver.drain();
        let result = poll_once(driver.run(|| Ok(7)));
        assert!(matches!(result, Poll::Ready(Err(_))));

        let driver = build();
        let mut job = driver.run::<()>(|| panic!("as the test wants it"));
        let early = poll_once(&mut job);
        driver.drain();
        // The worker may have been quicker than the first look.
        let result = match early {
            Poll::Pending => poll_once(&mut job),
            ready => ready,
        };
        assert!(matches!(result, Poll::Ready(Err(_))));
    }

    fn poll_once<F: Future + Unpin>(mut future: F) -> Poll<F::Output> {
        Pin::new(&mut future).poll(&mut Context::from_waker(Waker::noop()))
    }
}
