//! The conformance suite: what every driver does, whichever it is.
//!
//! Each check is small, makes its own files, and can be called alone. [`all`] holds for every
//! driver, also the simulated one; `real` adds what takes a real directory, real time and real
//! threads.

mod real;

pub(crate) use real::{has_uring, hosted};

use crate::buf::AlignedBuf;
use crate::io::{Driver, DriverFile, Durability, OpenMode};
use crate::types::PAGE;
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io::{ErrorKind, Result};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Checks everything that holds for any driver.
pub(crate) async fn all<D: Driver>(driver: D) {
    round_trips(&driver).await;
    reads_past_the_end(&driver).await;
    many_at_once(&driver).await;
    durable_writes(&driver).await;
    allocation(&driver).await;
    opening(&driver).await;
    names(&driver).await;
    directories(&driver).await;
    paths_that_leave(&driver).await;
    dropped_futures(&driver).await;
    shared_handles(&driver).await;
    sleeps(&driver).await;
    tasks(&driver).await;
    random_numbers(&driver);
}

/// The content of a buffer as a function of a tag and of its place in the file.
fn fill(tag: u64, offset: u64, bytes: &mut [u8]) {
    for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
        let place = offset + 8 * index as u64;
        let value = (place ^ tag.rotate_left(40)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        word.copy_from_slice(&value.to_le_bytes());
    }
}

fn filled<D: Driver>(driver: &D, tag: u64, offset: u64, len: usize) -> Bytes {
    let mut buf = driver.pool().take(len);
    fill(tag, offset, &mut buf);
    buf.freeze()
}

fn assert_filled(tag: u64, offset: u64, bytes: &[u8]) {
    let mut expected = vec![0; bytes.len()];
    fill(tag, offset, &mut expected);
    let wrong = bytes
        .iter()
        .zip(&expected)
        .position(|(is, should)| is != should);
    assert_eq!(wrong, None, "tag={tag} offset={offset} len={}", bytes.len());
}

async fn write<D: Driver>(driver: &D, file: &D::File, tag: u64, offset: u64, len: usize) {
    let bytes = filled(driver, tag, offset, len);
    file.write(offset, bytes, Durability::Visible)
        .await
        .unwrap();
}

async fn check<D: Driver>(driver: &D, file: &D::File, tag: u64, offset: u64, len: usize) {
    let read = file.read(offset, driver.pool().take(len)).await.unwrap();
    assert_eq!(read.len(), len);
    assert_filled(tag, offset, &read);
}

async fn fresh<D: Driver>(driver: &D, path: &str) -> D::File {
    driver.open(path, OpenMode::CreateNew).await.unwrap()
}

/// Polls a future once and drops it; whether it was pending.
fn poll_and_drop<T>(future: impl Future<Output = T>) -> bool {
    let mut future = Box::pin(future);
    let mut context = Context::from_waker(Waker::noop());
    future.as_mut().poll(&mut context).is_pending()
}

/// Is pending once, and woken by itself.
async fn yield_now() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Runs futures as tasks, and waits for them all.
async fn join<D: Driver, F: Future<Output = ()> + 'static>(
    driver: &D,
    futures: impl IntoIterator<Item = F>,
) {
    let left = Rc::new(Cell::new(0));
    let waker = Rc::new(RefCell::new(None::<Waker>));
    for future in futures {
        left.set(left.get() + 1);
        let (left, waker) = (Rc::clone(&left), Rc::clone(&waker));
        driver.spawn(async move {
            future.await;
            left.set(left.get() - 1);
            if let Some(waker) = waker.take() {
                waker.wake();
            }
        });
    }
    poll_fn(|context| {
        *waker.borrow_mut() = Some(context.waker().clone());
        match left.get() {
            0 => Poll::Ready(()),
            _ => Poll::Pending,
        }
    })
    .await;
}

pub(crate) async fn round_trips<D: Driver>(driver: &D) {
    const MIB: usize = 1 << 20;
    let file = fresh(driver, "round-trips").await;
    let sizes = [
        PAGE,
        2 * PAGE,
        16 << 10,
        60 << 10,
        64 << 10,
        256 << 10,
        MIB,
        MIB + PAGE,
        5 * MIB,
    ];
    let mut offset = 0;
    for (tag, &len) in sizes.iter().enumerate() {
        write(driver, &file, tag as u64, offset, len).await;
        offset += len as u64;
        assert_eq!(file.len(), offset);
    }
    let mut offset = 0;
    for (tag, &len) in sizes.iter().enumerate() {
        check(driver, &file, tag as u64, offset, len).await;
        offset += len as u64;
    }
    // In the middle of what is there, and far behind its end, which leaves a hole of zeros.
    write(driver, &file, 77, PAGE as u64, PAGE).await;
    check(driver, &file, 0, 0, PAGE).await;
    check(driver, &file, 77, PAGE as u64, PAGE).await;
    check(driver, &file, 1, 2 * PAGE as u64, PAGE).await;
    let far = 1 << 33;
    write(driver, &file, 78, far, PAGE).await;
    check(driver, &file, 78, far, PAGE).await;
    assert_eq!(file.len(), far + PAGE as u64);
    let hole = file
        .read(far - 2 * PAGE as u64, driver.pool().take(2 * PAGE))
        .await
        .unwrap();
    assert!(hole.iter().all(|&byte| byte == 0));
    // A part of a shared allocation, as a batch's parts are.
    let whole = filled(driver, 79, 0, 4 * PAGE);
    let part = whole.slice(PAGE..3 * PAGE);
    file.write(PAGE as u64, part, Durability::Visible)
        .await
        .unwrap();
    check(driver, &file, 79, PAGE as u64, 2 * PAGE).await;
    driver.unlink("round-trips").await.unwrap();
}

pub(crate) async fn reads_past_the_end<D: Driver>(driver: &D) {
    let file = fresh(driver, "end").await;
    let read = |offset, len| file.read(offset, driver.pool().take(len));
    let kind = |read: Result<AlignedBuf>| read.map(|_| ()).unwrap_err().kind();
    assert_eq!(kind(read(0, PAGE).await), ErrorKind::UnexpectedEof);
    write(driver, &file, 1, 0, 2 * PAGE).await;
    assert_eq!(kind(read(0, 3 * PAGE).await), ErrorKind::UnexpectedEof);
    assert_eq!(
        kind(read(2 * PAGE as u64, PAGE).await),
        ErrorKind::UnexpectedEof
    );
    assert_eq!(kind(read(1 << 40, PAGE).await), ErrorKind::UnexpectedEof);
    check(driver, &file, 1, 0, 2 * PAGE).await;
    driver.unlink("end").await.unwrap();
}

pub(crate) async fn many_at_once<D: Driver>(driver: &D) {
    // 64 is the depth of a busy shard; 1500 is more than a ring of 256 takes in at once.
    for depth in [64_u64, 1500] {
        let file = fresh(driver, "many").await;
        let writes = (0..depth).map(|slot| {
            let (driver, file) = (driver.clone(), file.clone());
            async move { write(&driver, &file, slot, slot * PAGE as u64, PAGE).await }
        });
        join(driver, writes).await;
        let reads = (0..depth).map(|slot| {
            // From the end, so that order does not help.
            let slot = depth - 1 - slot;
            let (driver, file) = (driver.clone(), file.clone());
            async move { check(&driver, &file, slot, slot * PAGE as u64, PAGE).await }
        });
        join(driver, reads).await;
        assert_eq!(file.len(), depth * PAGE as u64);
        driver.unlink("many").await.unwrap();
    }
}

pub(crate) async fn durable_writes<D: Driver>(driver: &D) {
    let file = fresh(driver, "durable").await;
    for tag in 0..4_u64 {
        let offset = tag * PAGE as u64;
        let bytes = filled(driver, tag, offset, PAGE);
        file.write(offset, bytes, Durability::Synced).await.unwrap();
        check(driver, &file, tag, offset, PAGE).await;
    }
    write(driver, &file, 9, 0, 4 * PAGE).await;
    file.sync().await.unwrap();
    file.sync().await.unwrap();
    check(driver, &file, 9, 0, 4 * PAGE).await;
    driver.sync_dir("").await.unwrap();
    driver.unlink("durable").await.unwrap();
}

pub(crate) async fn allocation<D: Driver>(driver: &D) {
    let file = fresh(driver, "allocation").await;
    file.allocate(8 * PAGE as u64).await.unwrap();
    assert_eq!(file.len(), 8 * PAGE as u64);
    let zeros = file.read(0, driver.pool().take(8 * PAGE)).await.unwrap();
    assert!(zeros.iter().all(|&byte| byte == 0));
    write(driver, &file, 5, 2 * PAGE as u64, PAGE).await;
    // Less than there is changes nothing, more leaves what is there.
    file.allocate(PAGE as u64).await.unwrap();
    assert_eq!(file.len(), 8 * PAGE as u64);
    file.allocate(16 * PAGE as u64).await.unwrap();
    assert_eq!(file.len(), 16 * PAGE as u64);
    check(driver, &file, 5, 2 * PAGE as u64, PAGE).await;
    drop(file);
    let file = driver.open("allocation", OpenMode::Existing).await.unwrap();
    assert_eq!(file.len(), 16 * PAGE as u64);
    driver.unlink("allocation").await.unwrap();
}

pub(crate) async fn opening<D: Driver>(driver: &D) {
    let missing = driver.open("opening", OpenMode::Existing).await.map(|_| ());
    assert_eq!(missing.unwrap_err().kind(), ErrorKind::NotFound);
    let file = fresh(driver, "opening").await;
    assert_eq!(file.len(), 0);
    write(driver, &file, 3, 0, PAGE).await;
    let again = driver
        .open("opening", OpenMode::CreateNew)
        .await
        .map(|_| ());
    assert_eq!(again.unwrap_err().kind(), ErrorKind::AlreadyExists);
    let other = driver.open("opening", OpenMode::Existing).await.unwrap();
    assert_eq!(other.len(), PAGE as u64);
    check(driver, &other, 3, 0, PAGE).await;
    driver.unlink("opening").await.unwrap();
    // What is open outlives its name.
    check(driver, &other, 3, 0, PAGE).await;
    driver.create_dir("opening-dir").await.unwrap();
    let dir = driver.open("opening-dir", OpenMode::Existing).await;
    assert!(dir.is_err(), "a directory is no file");
}

async fn listed<D: Driver>(driver: &D, path: &str) -> Vec<(String, u64, bool)> {
    let entries = driver.list(path).await.unwrap().into_iter();
    entries
        .map(|entry| (entry.name, entry.len, entry.is_dir))
        .collect()
}

pub(crate) async fn names<D: Driver>(driver: &D) {
    driver.create_dir("names").await.unwrap();
    assert_eq!(listed(driver, "names").await, []);
    for (name, pages) in [("b", 2), ("a", 1), ("c", 0)] {
        let file = fresh(driver, &format!("names/{name}")).await;
        if pages > 0 {
            write(driver, &file, pages as u64, 0, pages * PAGE).await;
        }
    }
    driver.sync_dir("names").await.unwrap();
    let entry = |name: &str, pages: usize| (name.to_owned(), (pages * PAGE) as u64, false);
    let all = [entry("a", 1), entry("b", 2), entry("c", 0)];
    assert_eq!(listed(driver, "names").await, all);
    // A new name, then one that is taken.
    driver.rename("names/c", "names/d").await.unwrap();
    driver.rename("names/a", "names/b").await.unwrap();
    assert_eq!(
        listed(driver, "names").await,
        [entry("b", 1), entry("d", 0)]
    );
    let file = driver.open("names/b", OpenMode::Existing).await.unwrap();
    check(driver, &file, 1, 0, PAGE).await;
    // From one directory to another.
    driver.rename("names/d", "moved").await.unwrap();
    driver.unlink("moved").await.unwrap();
    driver.unlink("names/b").await.unwrap();
    assert_eq!(listed(driver, "names").await, []);
    driver.sync_dir("names").await.unwrap();

    let not_found =
        |result: Result<()>| assert_eq!(result.unwrap_err().kind(), ErrorKind::NotFound);
    not_found(driver.unlink("names/b").await);
    not_found(driver.rename("names/b", "names/x").await);
    not_found(driver.unlink("nowhere/b").await);
    not_found(driver.sync_dir("nowhere").await);
    not_found(driver.list("nowhere").await.map(|_| ()));
    not_found(
        driver
            .open("nowhere/b", OpenMode::CreateNew)
            .await
            .map(|_| ()),
    );
}

pub(crate) async fn directories<D: Driver>(driver: &D) {
    driver.create_dir("directories").await.unwrap();
    driver.create_dir("directories").await.unwrap();
    driver.create_dir("directories/inner").await.unwrap();
    driver.sync_dir("directories").await.unwrap();
    driver.sync_dir("").await.unwrap();
    let inner = [("inner".to_owned(), 0, true)];
    assert_eq!(listed(driver, "directories").await, inner);
    let root = listed(driver, "").await;
    assert!(
        root.contains(&("directories".to_owned(), 0, true)),
        "{root:?}"
    );
    assert!(root.is_sorted());
    fresh(driver, "directories/inner/file").await;
    assert!(driver.create_dir("directories/inner/file").await.is_err());
    driver.unlink("directories/inner/file").await.unwrap();
    assert!(driver.create_dir("nowhere/inner").await.is_err());
}

pub(crate) async fn paths_that_leave<D: Driver>(driver: &D) {
    fresh(driver, "inside").await;
    let invalid = |result: Result<()>, path: &str| {
        let kind = result.map_err(|error| error.kind());
        assert_eq!(kind, Err(ErrorKind::InvalidInput), "{path:?}");
    };
    for path in [
        "..",
        "../x",
        "/etc/passwd",
        "a/../../x",
        "./x",
        "a//x",
        "x/",
        "x\0y",
    ] {
        invalid(
            driver.open(path, OpenMode::Existing).await.map(|_| ()),
            path,
        );
        invalid(
            driver.open(path, OpenMode::CreateNew).await.map(|_| ()),
            path,
        );
        invalid(driver.create_dir(path).await, path);
        invalid(driver.unlink(path).await, path);
        invalid(driver.rename("inside", path).await, path);
        invalid(driver.rename(path, "inside").await, path);
        invalid(driver.sync_dir(path).await, path);
        invalid(driver.list(path).await.map(|_| ()), path);
    }
    invalid(driver.open("", OpenMode::Existing).await.map(|_| ()), "");
    invalid(driver.unlink("").await, "");
    driver.unlink("inside").await.unwrap();
}

/// Drops every kind of future after its first poll; then memory and driver must be sound.
pub(crate) async fn dropped_futures<D: Driver>(driver: &D) {
    const PAGES: u64 = 64;
    let span = PAGES as usize * PAGE;
    driver.create_dir("dropped").await.unwrap();
    let file = fresh(driver, "dropped/file").await;
    write(driver, &file, 1, 0, span).await;
    for round in 0..20_u64 {
        drop(file.read(0, driver.pool().take(span)));
        for page in 0..PAGES {
            poll_and_drop(file.read(page * PAGE as u64, driver.pool().take(PAGE)));
        }
        // The pool gives memory of dropped reads only after their end: none of these may change.
        let mut bufs: Vec<AlignedBuf> = (0..PAGES).map(|_| driver.pool().take(PAGE)).collect();
        bufs.iter_mut().for_each(|buf| fill(2, round, buf));
        // The bytes are the same, as a dropped write may still happen, at any time.
        poll_and_drop(file.write(0, filled(driver, 1, 0, span), Durability::Visible));
        poll_and_drop(file.write(0, filled(driver, 1, 0, PAGE), Durability::Synced));
        poll_and_drop(file.sync());
        poll_and_drop(file.allocate(span as u64));
        poll_and_drop(driver.open("dropped/file", OpenMode::Existing));
        poll_and_drop(driver.open(&format!("dropped/new-{round}"), OpenMode::CreateNew));
        poll_and_drop(driver.open("dropped/none", OpenMode::Existing));
        poll_and_drop(driver.create_dir("dropped/dir"));
        poll_and_drop(driver.list("dropped"));
        poll_and_drop(driver.rename("dropped/none", "dropped/other"));
        poll_and_drop(driver.unlink("dropped/none"));
        poll_and_drop(driver.sync_dir("dropped"));
        assert!(poll_and_drop(driver.sleep(Duration::from_secs(3600))));
        check(driver, &file, 1, 0, span).await;
        driver.sleep(Duration::from_millis(1)).await;
        bufs.iter().for_each(|buf| assert_filled(2, round, buf));
    }
    file.sync().await.unwrap();
    check(driver, &file, 1, 0, span).await;
}

pub(crate) async fn shared_handles<D: Driver>(driver: &D) {
    let file = fresh(driver, "shared").await;
    let other = file.clone();
    write(driver, &other, 4, 0, 2 * PAGE).await;
    assert_eq!(file.len(), 2 * PAGE as u64);
    // Started before the handle is dropped, and from a handle that is gone.
    let read = other.read(0, driver.pool().take(PAGE));
    drop(other);
    assert_filled(4, 0, &read.await.unwrap());
    let read = file.read(PAGE as u64, driver.pool().take(PAGE));
    drop(file);
    assert_filled(4, PAGE as u64, &read.await.unwrap());
    driver.unlink("shared").await.unwrap();
}

pub(crate) async fn sleeps<D: Driver>(driver: &D) {
    let log = Rc::new(RefCell::new(Vec::new()));
    let start = driver.now();
    let sleepers = [30, 5, 20, 5, 10]
        .into_iter()
        .enumerate()
        .map(|(index, ms)| {
            let (driver, log) = (driver.clone(), Rc::clone(&log));
            async move {
                let span = Duration::from_millis(ms);
                driver.sleep(span).await;
                assert!(driver.now().since(start) >= span);
                log.borrow_mut().push((ms, index));
            }
        });
    join(driver, sleepers).await;
    let spans: Vec<u64> = log.borrow().iter().map(|&(ms, _)| ms).collect();
    assert_eq!(spans, [5, 5, 10, 20, 30]);
    // It counts from its first poll.
    let late = driver.sleep(Duration::from_millis(10));
    driver.sleep(Duration::from_millis(15)).await;
    let start = driver.now();
    late.await;
    assert!(driver.now().since(start) >= Duration::from_millis(10));
    driver.sleep(Duration::ZERO).await;
}

pub(crate) async fn tasks<D: Driver>(driver: &D) {
    let count = Rc::new(Cell::new(0));
    let outer = (0..10).map(|_| {
        let (driver, count) = (driver.clone(), Rc::clone(&count));
        async move {
            let inner = (0..10).map(|_| {
                let count = Rc::clone(&count);
                async move {
                    yield_now().await;
                    count.set(count.get() + 1);
                }
            });
            join(&driver, inner).await;
        }
    });
    join(driver, outer).await;
    assert_eq!(count.get(), 100);
    // A task that is always ready must not keep completions away.
    let is_over = Rc::new(Cell::new(false));
    let watched = Rc::clone(&is_over);
    driver.spawn(async move {
        while !watched.get() {
            yield_now().await;
        }
    });
    let file = fresh(driver, "busy").await;
    write(driver, &file, 6, 0, PAGE).await;
    check(driver, &file, 6, 0, PAGE).await;
    driver.sleep(Duration::from_millis(1)).await;
    is_over.set(true);
    driver.unlink("busy").await.unwrap();
}

pub(crate) fn random_numbers<D: Driver>(driver: &D) {
    let mut numbers: Vec<u64> = (0..1000).map(|_| driver.random()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 1000);
}
