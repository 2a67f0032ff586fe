//! What the drivers on runtimes of others have in common: how a shard lives in one as a guest.
//!
//! The runtime has the thread: its rings, its parking, its timers and its wake-ups from other
//! threads are used. The shard's tasks stay with our executor, which is one task of the runtime, so
//! that tasks, panics and the end are the same on every driver. Names are resolved beneath the
//! store's directory, which neither runtime can, so what is done to names is done by blocking calls
//! on the runtime's own pool: a hop to a thread and back for each open, rename, unlink and sync of
//! a directory, and none for what moves bytes.
//!
//! Invariants:
//! 1. Operations start and are dropped in the runtime's context only: everything that can hold one
//!    is a task of the executor, and that is visited, and shut down, in there. A panic is caught in
//!    there as well, and goes on when the runtime has ended.
//! 2. A [`Flight`] is held by whatever the runtime, the kernel or a blocking thread still works on.
//!    The runtime ends when there is none left; where that does not come to be it is leaked, with
//!    the memory that the disk may still write to.
//! 3. No thread touches the runtime's waker after the end: [`Bell`] is emptied before, and then the
//!    runtime has one more turn to take in what was rung.
//!
//! Deliberately not here: operations on files, which are the runtime's. What a forgotten write adds
//! to a file, its length here does not show.

use crate::buf::{AlignedBuf, BufPool};
use crate::error::Result;
use crate::io::clock::Clock;
use crate::io::disk::{self, Dice, Root};
use crate::io::executor::{Executor, Kick, Visit};
use crate::io::launch::{self, Launch, ShardMain};
use crate::io::{DirEntry, Driver, DriverFile, Durability, Load, OpenMode, beneath};
use crate::types::Nanos;
use bytes::Bytes;
use std::any::Any;
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Rounds of tasks before the runtime has its turn: as many as a started batch waits in our ring.
const ROUNDS_MAX: u32 = 4;

/// How long the end waits for the disk before it gives up and leaks. `Config::close_timeout`'s
/// default.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// How long the end waits at a time.
const DRAIN_STEP: Duration = Duration::from_millis(1);

/// A wait of the runtime's.
pub(super) type Pause = Pin<Box<dyn Future<Output = ()>>>;

/// A runtime, as its guest needs it. All of this is called in its context.
///
/// An operation keeps its [`Flight`] until nothing of it is under way, dropped or not.
pub(super) trait Runtime: Sized + 'static {
    /// The driver's name.
    const NAME: &'static str;

    type File: 'static;

    /// Completes no earlier than `span` from now.
    fn pause(&self, span: Duration) -> Pause;

    /// Completes when the runtime has submitted what is due, and seen what has completed.
    fn turn(&self) -> Pause;

    /// Has a thread do something that may block.
    fn block<T: Send + 'static>(
        &self,
        flight: Flight,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> impl Future<Output = io::Result<T>> + 'static;

    /// Makes a file of the runtime's out of a descriptor.
    fn adopt(
        &self,
        flight: Flight,
        fd: OwnedFd,
    ) -> impl Future<Output = io::Result<Self::File>> + 'static;

    fn read(
        &self,
        flight: Flight,
        file: OpenFile<Self>,
        offset: u64,
        buf: AlignedBuf,
    ) -> impl Future<Output = io::Result<AlignedBuf>> + 'static;

    fn write(
        &self,
        flight: Flight,
        file: OpenFile<Self>,
        offset: u64,
        bytes: Bytes,
        durability: Durability,
    ) -> impl Future<Output = io::Result<()>> + 'static;

    fn sync(
        &self,
        flight: Flight,
        file: OpenFile<Self>,
    ) -> impl Future<Output = io::Result<()>> + 'static;

    fn allocate(
        &self,
        flight: Flight,
        file: OpenFile<Self>,
        len: u64,
    ) -> impl Future<Output = io::Result<()>> + 'static;
}

/// How much is under way.
#[derive(Clone, Default)]
pub(super) struct Flights(Arc<AtomicUsize>);

impl Flights {
    pub(super) fn enter(&self) -> Flight {
        self.0.fetch_add(1, Ordering::Relaxed);
        Flight(self.clone())
    }

    fn count(&self) -> usize {
        // Acquire, to be after all that was done under way.
        self.0.load(Ordering::Acquire)
    }
}

/// Says while it lives that something is under way.
pub(super) struct Flight(Flights);

impl Flight {
    /// What it is counted by.
    #[cfg(feature = "glommio")]
    pub(super) fn flights(&self) -> Flights {
        self.0.clone()
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Release);
    }
}

/// Wakes the task that the executor lives in.
#[derive(Clone, Default)]
struct Bell(Arc<Mutex<Option<Waker>>>);

impl Bell {
    fn hang(&self, waker: Option<&Waker>) {
        let mut hung = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (&mut *hung, waker) {
            (Some(hung), Some(waker)) => hung.clone_from(waker),
            (hung, waker) => *hung = waker.cloned(),
        }
    }
}

impl Kick for Bell {
    fn kick(&self) {
        let hung = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waker) = &*hung {
            waker.wake_by_ref();
        }
    }
}

/// The driver on a runtime; clones are handles to the same one.
pub(super) struct Hosted<R: Runtime>(Rc<Inner<R>>);

struct Inner<R: Runtime> {
    runtime: R,
    executor: Executor,
    bell: Bell,
    flights: Flights,
    closed: Cell<bool>,
    root: Arc<Root>,
    pool: BufPool,
    dice: Dice,
}

impl<R: Runtime> Clone for Hosted<R> {
    fn clone(&self) -> Hosted<R> {
        Hosted(Rc::clone(&self.0))
    }
}

/// How a shard's life in a runtime ended.
pub(super) struct End {
    is_drained: bool,
    panic: Option<Box<dyn Any + Send>>,
}

impl End {
    /// The end of what never began.
    pub(super) fn unborn() -> End {
        End {
            is_drained: true,
            panic: None,
        }
    }

    /// Ends the runtime, then goes on with the panic, if there was one.
    pub(super) fn settle<T>(self, runtime: T) {
        match self.is_drained {
            true => drop(runtime),
            false => std::mem::forget(runtime),
        }
        if let Some(panic) = self.panic {
            resume_unwind(panic);
        }
    }
}

impl<R: Runtime> Hosted<R> {
    /// A driver for the store that is launched, in the runtime's context.
    pub(super) fn build(runtime: R, launch: &Launch) -> Result<Hosted<R>> {
        let root = Root::open(&launch.root, launch::is_first(launch))?;
        let bell = Bell::default();
        Ok(Hosted(Rc::new(Inner {
            runtime,
            executor: Executor::new(Clock::Real, bell.clone()),
            bell,
            flights: Flights::default(),
            closed: Cell::new(false),
            root: Arc::new(root),
            pool: BufPool::with_arena(launch.arena_bytes),
            dice: Dice::new(),
        })))
    }

    #[cfg(feature = "glommio")]
    pub(super) fn root(&self) -> &Root {
        &self.0.root
    }

    /// Begins something that the end has to wait for.
    pub(super) fn enter(&self) -> io::Result<Flight> {
        if self.0.closed.get() {
            return Err(io::Error::other("the driver has ended"));
        }
        Ok(self.0.flights.enter())
    }

    /// Runs a shard's main to its end, and ends the driver; the runtime may end then.
    pub(super) async fn live(self, launch: &Launch, main: impl ShardMain) -> End {
        // Only now, so that the runtime's own threads keep the cores that they were given.
        launch::pin(launch);
        let done = self.0.executor.spawn_main(main.run(self.clone()));
        let panic = self.reside(launch.idle_spin, &done).await.err();
        self.0.closed.set(true);
        self.0.executor.shutdown();
        let is_drained = self.drain().await;
        self.0.bell.hang(None);
        self.0.runtime.pause(DRAIN_STEP).await;
        End { is_drained, panic }
    }

    /// Visits the executor whenever there is something for it, until main is over or has panicked.
    async fn reside(
        &self,
        idle_spin: Duration,
        done: &Cell<bool>,
    ) -> std::result::Result<(), Box<dyn Any + Send>> {
        let mut turn: Option<Pause> = None;
        let mut alarm = Alarm::default();
        poll_fn(|context| {
            self.0.bell.hang(Some(context.waker()));
            loop {
                if let Some(pause) = &mut turn {
                    std::task::ready!(pause.as_mut().poll(context));
                    turn = None;
                }
                // What has completed is seen by the runtime alone, which must not wait for us then.
                let idle_spin = match self.0.flights.count() {
                    0 => idle_spin,
                    _ => Duration::ZERO,
                };
                let visit = || self.0.executor.visit(ROUNDS_MAX, idle_spin, done);
                match catch_unwind(AssertUnwindSafe(visit)) {
                    Err(panic) => return Poll::Ready(Err(panic)),
                    Ok(Visit::Over) => return Poll::Ready(Ok(())),
                    Ok(Visit::Ready) => turn = Some(self.0.runtime.turn()),
                    Ok(Visit::Idle(until)) => {
                        std::task::ready!(alarm.poll(self, until, context));
                    }
                }
            }
        })
        .await
    }

    /// Waits until nothing is under way; whether that came to be.
    async fn drain(&self) -> bool {
        let from = self.now();
        loop {
            let left = self.0.flights.count();
            if left == 0 {
                return true;
            }
            if self.now().since(from) > DRAIN_MAX {
                tracing::error!(
                    in_flight = left,
                    "the disk does not answer: leaking the memory that it may still write to"
                );
                return false;
            }
            self.0.runtime.pause(DRAIN_STEP).await;
        }
    }

    /// Has a thread do something with the store's directory.
    fn run_beneath<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Root) -> io::Result<T> + Send + 'static,
    ) -> impl Future<Output = io::Result<T>> + 'static {
        let host = self.clone();
        async move {
            let flight = host.enter()?;
            let root = Arc::clone(&host.0.root);
            host.0.runtime.block(flight, move || work(&root)).await
        }
    }
}

/// The runtime's timer for the executor's first one.
#[derive(Default)]
struct Alarm(Option<(Nanos, Pause)>);

impl Alarm {
    /// Is ready at `until`, or a little earlier, since the clocks are two.
    fn poll<R: Runtime>(
        &mut self,
        host: &Hosted<R>,
        until: Option<Nanos>,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        let Some(until) = until else {
            self.0 = None;
            return Poll::Pending;
        };
        if self.0.as_ref().is_none_or(|(set, _)| *set != until) {
            let pause = host.0.runtime.pause(until.since(host.now()));
            self.0 = Some((until, pause));
        }
        let (_, pause) = self.0.as_mut().expect("set just now");
        std::task::ready!(pause.as_mut().poll(context));
        self.0 = None;
        Poll::Ready(())
    }
}

impl<R: Runtime> Driver for Hosted<R> {
    type File = HostedFile<R>;

    fn name(&self) -> &'static str {
        R::NAME
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
    ) -> impl Future<Output = io::Result<HostedFile<R>>> + 'static {
        let (host, path) = (self.clone(), path.to_owned());
        async move {
            let opened = host.run_beneath(move |root| beneath::open(root, &path, mode));
            let (fd, len) = opened.await?;
            let file = host.0.runtime.adopt(host.enter()?, fd).await?;
            let len = Cell::new(len);
            let file = OpenFile(Rc::new(OpenInner { file, len }));
            Ok(HostedFile { host, file })
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

/// A file as the operations know it.
pub(super) struct OpenFile<R: Runtime>(Rc<OpenInner<R>>);

struct OpenInner<R: Runtime> {
    file: R::File,
    len: Cell<u64>,
}

impl<R: Runtime> Clone for OpenFile<R> {
    fn clone(&self) -> OpenFile<R> {
        OpenFile(Rc::clone(&self.0))
    }
}

impl<R: Runtime> OpenFile<R> {
    pub(super) fn file(&self) -> &R::File {
        &self.0.file
    }

    /// Something up to `end` is there now.
    fn grow(&self, end: u64) {
        self.0.len.set(self.0.len.get().max(end));
    }
}

/// An open file; clones share it.
pub(super) struct HostedFile<R: Runtime> {
    host: Hosted<R>,
    file: OpenFile<R>,
}

impl<R: Runtime> Clone for HostedFile<R> {
    fn clone(&self) -> HostedFile<R> {
        HostedFile {
            host: self.host.clone(),
            file: self.file.clone(),
        }
    }
}

impl<R: Runtime> DriverFile for HostedFile<R> {
    fn read(
        &self,
        offset: u64,
        buf: AlignedBuf,
    ) -> impl Future<Output = io::Result<AlignedBuf>> + 'static {
        disk::assert_aligned(offset, &buf);
        let HostedFile { host, file } = self.clone();
        async move {
            let flight = host.enter()?;
            host.0.runtime.read(flight, file, offset, buf).await
        }
    }

    fn write(
        &self,
        offset: u64,
        bytes: Bytes,
        durability: Durability,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        disk::assert_aligned(offset, &bytes);
        let HostedFile { host, file } = self.clone();
        async move {
            let (flight, len) = (host.enter()?, bytes.len() as u64);
            let runtime = &host.0.runtime;
            let write = runtime.write(flight, file.clone(), offset, bytes, durability);
            write.await?;
            file.grow(offset + len);
            Ok(())
        }
    }

    fn sync(&self) -> impl Future<Output = io::Result<()>> + 'static {
        let HostedFile { host, file } = self.clone();
        async move { host.0.runtime.sync(host.enter()?, file).await }
    }

    fn allocate(&self, len: u64) -> impl Future<Output = io::Result<()>> + 'static {
        let HostedFile { host, file } = self.clone();
        async move {
            let flight = host.enter()?;
            host.0.runtime.allocate(flight, file.clone(), len).await?;
            file.grow(len);
            Ok(())
        }
    }

    fn len(&self) -> u64 {
        self.file.0.len.get()
    }
}
