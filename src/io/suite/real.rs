//! What takes a real directory, real time and real threads, and the runs of the whole suite.

use super::{all, check, fresh, write};
use crate::config::DriverKind;
use crate::error::Error;
use crate::io::launch::{Launch, ShardMain, launch};
use crate::io::{Driver, OpenMode};
use crate::types::{PAGE, ShardId};
use std::future::poll_fn;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;

/// Checks what only a driver for real disks can show; `root` is its directory.
async fn real<D: Driver>(driver: D, root: PathBuf) {
    links_are_not_followed(&driver, &root).await;
    modes_are_private(&driver, &root).await;
    wakes_from_another_thread(&driver).await;
    idle_is_free(&driver).await;
    open_files_beyond_any_table(&driver).await;
}

async fn links_are_not_followed<D: Driver>(driver: &D, root: &Path) {
    use std::os::unix::fs::symlink;
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "secret").unwrap();
    symlink(outside.path().join("secret"), root.join("link")).unwrap();
    symlink(outside.path(), root.join("link-dir")).unwrap();
    std::fs::write(root.join("target"), "target").unwrap();
    symlink("target", root.join("link-inside")).unwrap();

    for path in ["link", "link-inside", "link-dir/secret"] {
        assert!(
            driver.open(path, OpenMode::Existing).await.is_err(),
            "{path}"
        );
        assert!(
            driver.open(path, OpenMode::CreateNew).await.is_err(),
            "{path}"
        );
    }
    assert!(
        driver
            .open("link-dir/new", OpenMode::CreateNew)
            .await
            .is_err()
    );
    assert!(driver.create_dir("link-dir").await.is_err());
    assert!(driver.create_dir("link-dir/new").await.is_err());
    assert!(driver.list("link-dir").await.is_err());
    assert!(driver.sync_dir("link-dir").await.is_err());
    assert!(driver.unlink("link-dir/secret").await.is_err());
    assert!(driver.rename("link-dir/secret", "stolen").await.is_err());
    assert!(driver.rename("target", "link-dir/new").await.is_err());
    assert_eq!(
        std::fs::read(outside.path().join("secret")).unwrap(),
        b"secret"
    );
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    // The link itself may go.
    for name in ["link", "link-dir", "link-inside", "target"] {
        driver.unlink(name).await.unwrap();
    }
}

async fn modes_are_private<D: Driver>(driver: &D, root: &Path) {
    driver.create_dir("private").await.unwrap();
    fresh(driver, "private/file").await;
    let mode = |path: &str| root.join(path).metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("private"), 0o700);
    assert_eq!(mode("private/file"), 0o600);
}

#[expect(
    clippy::disallowed_methods,
    reason = "the wake-up has to come from another thread"
)]
async fn wakes_from_another_thread<D: Driver>(driver: &D) {
    for round in 0..200 {
        let state = Arc::new(Mutex::new((false, None::<Waker>)));
        let remote = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            // Sometimes the shard is parked by then, and sometimes about to.
            std::thread::sleep(Duration::from_micros(round * 10));
            let mut state = remote.lock().unwrap();
            state.0 = true;
            if let Some(waker) = state.1.take() {
                drop(state);
                waker.wake();
            }
        });
        poll_fn(|context| {
            let mut state = state.lock().unwrap();
            if state.0 {
                return Poll::Ready(());
            }
            state.1 = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
        thread.join().unwrap();
    }
    // Both sides at once: a completion and a kick.
    driver.sleep(Duration::from_millis(1)).await;
}

/// Processor time of this thread.
fn thread_cpu() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;
    let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(micros as u64)
}

async fn idle_is_free<D: Driver>(driver: &D) {
    let before = thread_cpu();
    driver.sleep(Duration::from_millis(300)).await;
    let spent = thread_cpu() - before;
    assert!(spent < Duration::from_millis(20), "{spent:?}");
}

async fn open_files_beyond_any_table<D: Driver>(driver: &D) {
    // The ring's table has 1024 places; the usual limit of descriptors is 1024 too.
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    let (soft, _) = limit.unwrap();
    let count = 1100.min(soft.saturating_sub(200)) as usize;
    let file = fresh(driver, "table").await;
    write(driver, &file, 8, 0, PAGE).await;
    for _ in 0..2 {
        let mut files = Vec::new();
        for _ in 0..count {
            files.push(driver.open("table", OpenMode::Existing).await.unwrap());
        }
        for file in &files {
            check(driver, file, 8, 0, PAGE).await;
        }
    }
    driver.unlink("table").await.unwrap();
}

/// Where, and on what, the suite is run.
struct Stage {
    kind: DriverKind,
    dir: tempfile::TempDir,
    idle_spin: Duration,
    arena_bytes: usize,
}

impl Stage {
    fn new(kind: DriverKind) -> Stage {
        Stage {
            kind,
            dir: tempfile::tempdir().unwrap(),
            idle_spin: Duration::ZERO,
            arena_bytes: 0,
        }
    }

    fn launch(&self) -> Launch {
        Launch {
            kind: self.kind,
            root: self.dir.path().to_owned(),
            shard: ShardId(0),
            core: None,
            idle_spin: self.idle_spin,
            arena_bytes: self.arena_bytes,
            lock: None,
        }
    }

    /// Runs the suite on a thread of its own.
    fn run(self) {
        let main = Suite(self.dir.path().to_owned());
        launch(self.launch(), main).unwrap().join().unwrap();
    }
}

struct Suite(PathBuf);

impl ShardMain for Suite {
    async fn run<D: Driver>(self, driver: D) {
        all(driver.clone()).await;
        real(driver, self.0).await;
    }

    fn refused(self, error: Error) {
        panic!("{error}");
    }
}

/// Whether there is an io_uring to test; where there is none, the tests say so and pass.
pub(crate) fn has_uring() -> bool {
    let probe = crate::io::launch::probe_uring();
    if let Err(refusal) = &probe {
        eprintln!("skipped: io_uring is {refusal}");
    }
    probe.is_ok()
}

/// The drivers on runtimes of others that this build has, where there is an io_uring.
pub(crate) fn hosted() -> Vec<DriverKind> {
    let kinds = [DriverKind::Glommio, DriverKind::TokioUring];
    let is_built = |kind: &DriverKind| kind.check().is_ok() && has_uring();
    kinds.into_iter().filter(is_built).collect()
}

#[test]
fn uring_conforms() {
    if has_uring() {
        Stage::new(DriverKind::Uring).run();
    }
}

#[test]
fn uring_with_arena_and_spinning_conforms() {
    if has_uring() {
        let mut stage = Stage::new(DriverKind::Uring);
        // Less than the suite uses, so that both kinds of memory are in flight.
        stage.arena_bytes = 4 << 20;
        stage.idle_spin = Duration::from_micros(50);
        stage.run();
    }
}

#[test]
fn threads_conform() {
    Stage::new(DriverKind::Threads).run();
}

#[cfg(any(feature = "glommio", feature = "tokio-uring"))]
#[test]
fn hosted_conform() {
    for kind in hosted() {
        Stage::new(kind).run();
    }
}

#[cfg(any(feature = "glommio", feature = "tokio-uring"))]
#[test]
fn hosted_with_arena_and_spinning_conform() {
    for kind in hosted() {
        let mut stage = Stage::new(kind);
        stage.arena_bytes = 4 << 20;
        stage.idle_spin = Duration::from_micros(50);
        stage.run();
    }
}

/// What a life in a runtime leaves behind: no descriptor, in the process or among its threads.
#[cfg(any(feature = "glommio", feature = "tokio-uring"))]
#[test]
fn hosted_leave_no_descriptor() {
    struct Dropper;

    impl ShardMain for Dropper {
        async fn run<D: Driver>(self, driver: D) {
            let file = fresh(&driver, "left").await;
            write(&driver, &file, 1, 0, PAGE).await;
            for _ in 0..100 {
                let (file, buf) = (file.clone(), driver.pool().take(PAGE));
                let read = crate::io::DriverFile::read(&file, 0, buf);
                driver.spawn(async move { drop(read.await) });
                driver.spawn(std::future::pending());
            }
            driver.sleep(Duration::from_micros(10)).await;
            driver.unlink("left").await.unwrap();
        }

        fn refused(self, error: Error) {
            panic!("{error}");
        }
    }

    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap();
        let links = links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok());
        links.filter(|link| link.starts_with(dir.path())).count()
    };
    for kind in hosted() {
        for _ in 0..5 {
            let mut stage = Stage::new(kind).launch();
            stage.root = dir.path().to_owned();
            launch(stage, Dropper).unwrap().join().unwrap();
            assert_eq!(open(), 0, "{kind}");
        }
    }
}

#[test]
fn all_conform_without_direct_io() {
    const MEMORY: &str = "/dev/shm";
    for kind in [DriverKind::Auto, DriverKind::Threads]
        .into_iter()
        .chain(hosted())
    {
        let mut stage = Stage::new(kind);
        let Ok(dir) = tempfile::tempdir_in(MEMORY) else {
            eprintln!("skipped: no {MEMORY}");
            return;
        };
        stage.dir = dir;
        stage.idle_spin = Duration::from_micros(50);
        stage.run();
    }
}
