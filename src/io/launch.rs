//! How a shard comes to life and ends: its thread, its core, its driver.
//!
//! Invariants:
//! 1. A driver is built, used and ended on its shard's own thread; nothing of it is ever elsewhere.
//! 2. However the shard's main ends, also by a panic, its tasks are dropped first, and then the
//!    driver drains: no memory is freed that the kernel may still write to.
//! 3. A fall-back is never silent: it is logged here, and the driver's name tells it in the stats.
//!
//! Threads are started here and in `threads`, nowhere else. Deliberately not here: how many shards
//! there are, and what they do.

use crate::buf::BufPool;
use crate::config::DriverKind;
use crate::error::{Error, ErrorKind, Result};
use crate::io::Driver;
use crate::io::clock::Clock;
use crate::io::executor::{Executor, Park};
use crate::io::lock::DirLock;
use crate::io::threads::Threads;
#[cfg(test)]
use crate::io::uring;
use crate::io::uring::{Refusal, Unbuilt, Uring};
use crate::types::ShardId;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// What a shard does with its life.
pub(crate) trait ShardMain: Send + 'static {
    /// Whether it moves so many bytes that an arena is worth its while: the kernel clears all of it
    /// first, which takes tens of milliseconds.
    const MOVES_MUCH: bool = true;

    /// Lives on the shard's thread, with its driver; when it ends, so do all tasks and the thread.
    fn run<D: Driver>(self, driver: D) -> impl Future<Output = ()>;

    /// Called instead, on the same thread, when there is no driver.
    fn refused(self, error: Error);
}

/// A driver that can be run and ended, as only the launcher does it.
pub(super) trait Resident: Driver + Park {
    fn executor(&self) -> &Executor;

    /// Ends everything that is in flight; nothing can be started any more.
    fn drain(&self);
}

/// Where and how a shard runs.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) kind: DriverKind,
    /// The store's directory, which must exist.
    pub(crate) root: PathBuf,
    pub(crate) shard: ShardId,
    /// The core that its thread is pinned to.
    pub(crate) core: Option<usize>,
    /// How long it spins, each time, before it parks.
    pub(crate) idle_spin: Duration,
    /// Size of the huge-page arena that its buffers come from; 0 for none.
    pub(crate) arena_bytes: usize,
    /// Held until the driver has drained: before that, the directory is not anybody else's.
    #[expect(dead_code, reason = "it is held, not read")]
    pub(crate) lock: Option<Arc<DirLock>>,
}

/// A shard's running thread.
#[derive(Debug)]
pub(crate) struct ShardThread(JoinHandle<()>);

impl ShardThread {
    /// Waits for the thread to end. `Internal`, if it panicked.
    pub(crate) fn join(self) -> Result<()> {
        self.0
            .join()
            .map_err(|_| Error::internal("a shard's thread has panicked"))
    }
}

/// Starts a shard on a thread of its own.
///
/// Fails only where there can be no thread. That there is no driver is told to `main`.
pub(crate) fn launch<M: ShardMain>(launch: Launch, main: M) -> Result<ShardThread> {
    let builder = std::thread::Builder::new().name(format!("ringstore-{}", launch.shard.0));
    let thread = builder.spawn(move || live(&launch, main));
    thread.map(ShardThread).map_err(|error| {
        let message = format!("no thread can be started, raise the limit: cause={error}");
        Error::with_source(ErrorKind::Full, message, error)
    })
}

/// Whether an io_uring can be had here and now, and if not, why.
#[cfg(test)]
pub(crate) fn probe_uring() -> std::result::Result<(), Refusal> {
    uring::probe()
}

/// The life of a shard's thread.
fn live<M: ShardMain>(launch: &Launch, main: M) {
    match launch.kind {
        DriverKind::Threads => live_on_threads(launch, main),
        #[cfg(feature = "glommio")]
        DriverKind::Glommio => crate::io::glommio::live(launch, main),
        #[cfg(feature = "tokio-uring")]
        DriverKind::TokioUring => crate::io::tokio_uring::live(launch, main),
        #[cfg(not(all(feature = "glommio", feature = "tokio-uring")))]
        DriverKind::Glommio | DriverKind::TokioUring => match launch.kind.check() {
            Ok(()) => unreachable!("a driver that is built has an arm of its own"),
            Err(error) => main.refused(error),
        },
        DriverKind::Uring | DriverKind::Auto => match build_uring(launch) {
            Ok(driver) => inhabit(driver, launch, main),
            Err(Unbuilt::Disk(error)) => main.refused(error),
            Err(Unbuilt::Refused(refusal)) if launch.kind == DriverKind::Uring => {
                main.refused(refusal.into());
            }
            Err(Unbuilt::Refused(refusal)) => {
                warn_of_fallback(&refusal);
                live_on_threads(launch, main);
            }
        },
    }
}

fn build_uring(launch: &Launch) -> std::result::Result<Uring, Unbuilt> {
    let pool = BufPool::with_arena(launch.arena_bytes);
    Uring::build(&launch.root, Clock::Real, pool, is_first(launch))
}

fn live_on_threads<M: ShardMain>(launch: &Launch, main: M) {
    let pool = BufPool::with_arena(launch.arena_bytes);
    match Threads::build(&launch.root, Clock::Real, pool, is_first(launch)) {
        Ok(driver) => inhabit(driver, launch, main),
        Err(error) => main.refused(error),
    }
}

/// Whether this shard speaks for its store in the log; they all see the same directory.
pub(super) fn is_first(launch: &Launch) -> bool {
    launch.shard == ShardId(0)
}

/// Runs a shard's main on its driver, then ends both.
fn inhabit<D: Resident, M: ShardMain>(driver: D, launch: &Launch, main: M) {
    // Only now, so that the driver's own threads keep the cores that they were given.
    pin(launch);
    let ending = Ending(driver);
    let driver = &ending.0;
    let main = main.run(driver.clone());
    driver.executor().run(driver, launch.idle_spin, main);
}

/// Ends a driver, also when the thread unwinds.
struct Ending<D: Resident>(D);

impl<D: Resident> Drop for Ending<D> {
    fn drop(&mut self) {
        self.0.executor().shutdown();
        self.0.drain();
    }
}

/// Pins this thread; one that cannot be pinned is as right, and maybe slower.
pub(super) fn pin(launch: &Launch) {
    let Some(core) = launch.core else { return };
    let mut cores = CpuSet::new();
    let pinned = cores
        .set(core)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &cores));
    if let Err(error) = pinned {
        tracing::warn!(shard = launch.shard.0, core, %error, "a shard cannot be pinned");
    }
}

/// Says why there is no io_uring: once, since the cause is the process's and not a shard's.
fn warn_of_fallback(refusal: &Refusal) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if !WARNED.swap(true, Ordering::Relaxed) {
        tracing::warn!(cause = %refusal, "no io_uring, using threads, which are slower");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::suite::hosted;
    use std::sync::mpsc::{Sender, channel};

    /// Reports what it was given.
    struct Reporter(Sender<std::result::Result<&'static str, ErrorKind>>);

    impl ShardMain for Reporter {
        async fn run<D: Driver>(self, driver: D) {
            let name = driver.name();
            // A task that never ends must not keep the thread from ending.
            driver.spawn(std::future::pending());
            driver.sleep(Duration::from_millis(1)).await;
            self.0.send(Ok(name)).unwrap();
        }

        fn refused(self, error: Error) {
            self.0.send(Err(error.kind())).unwrap();
        }
    }

    fn options(kind: DriverKind, root: PathBuf) -> Launch {
        Launch {
            kind,
            root,
            shard: ShardId(3),
            core: Some(0),
            idle_spin: Duration::ZERO,
            arena_bytes: 0,
            lock: None,
        }
    }

    #[test]
    fn each_kind_runs_or_refuses() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        let has_uring = probe_uring().is_ok();
        let own = [DriverKind::Auto, DriverKind::Uring, DriverKind::Threads];
        for kind in own.into_iter().chain(hosted()) {
            let (sender, reports) = channel();
            let reporter = Reporter(sender.clone());
            launch(options(kind, dir.path().to_owned()), reporter)
                .unwrap()
                .join()
                .unwrap();
            let name = reports.recv().unwrap().unwrap_or("refused");
            match (kind, has_uring) {
                (DriverKind::Threads, _) | (DriverKind::Auto, false) => assert_eq!(name, "threads"),
                (DriverKind::Glommio | DriverKind::TokioUring, _) => {
                    assert_eq!(name, kind.to_string());
                }
                (_, true) => assert_eq!(name, "uring"),
                (_, false) => assert_eq!(name, "refused"),
            }

            launch(options(kind, missing.clone()), Reporter(sender))
                .unwrap()
                .join()
                .unwrap();
            if has_uring || kind != DriverKind::Uring {
                assert_eq!(reports.recv().unwrap(), Err(ErrorKind::InvalidInput));
            }
        }
    }

    struct Panicker;

    impl ShardMain for Panicker {
        async fn run<D: Driver>(self, driver: D) {
            driver.sleep(Duration::from_millis(1)).await;
            panic!("as the test wants it");
        }

        fn refused(self, error: Error) {
            panic!("{error}");
        }
    }

    #[test]
    fn panic_ends_the_thread_and_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let own = [DriverKind::Auto, DriverKind::Threads];
        for kind in own.into_iter().chain(hosted()) {
            let thread = launch(options(kind, dir.path().to_owned()), Panicker).unwrap();
            assert_eq!(thread.join().unwrap_err().kind(), ErrorKind::Internal);
        }
    }
}
