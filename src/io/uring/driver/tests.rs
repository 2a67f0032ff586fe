//! What is the ring's own; the rest is in the conformance suite.

use super::*;
use crate::io::suite::has_uring;
use crate::types::PAGE;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;

/// More operations than the completion queue of 512 holds.
const FLOOD: usize = 700;

fn build(dir: &tempfile::TempDir) -> Uring {
    Uring::build(dir.path(), Clock::Real, BufPool::with_arena(2 << 20), false).unwrap()
}

/// Runs a future on a driver of this thread.
fn block_on<T: 'static>(driver: &Uring, future: impl Future<Output = T> + 'static) -> T {
    let result = Rc::new(Cell::new(None));
    let put = Rc::clone(&result);
    let main = async move { put.set(Some(future.await)) };
    driver.executor().run(driver, Duration::ZERO, main);
    result.take().unwrap()
}

fn poll_once<F: Future + Unpin>(mut future: F) -> Poll<F::Output> {
    Pin::new(&mut future).poll(&mut Context::from_waker(Waker::noop()))
}

fn file(driver: &Uring, pages: usize) -> UringFile {
    let opened = block_on(driver, driver.open("file", OpenMode::CreateNew));
    let file = opened.unwrap();
    let bytes = driver.pool().take(pages * PAGE).freeze();
    block_on(driver, file.write(0, bytes, Durability::Visible)).unwrap();
    file
}

fn in_flight(driver: &Uring) -> usize {
    driver.0.ring.borrow().in_flight()
}

#[test]
fn flood_waits_outside_of_the_ring_and_may_be_taken_back() {
    if !has_uring() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let driver = build(&dir);
    let file = file(&driver, 1);
    let mut reads: Vec<_> = (0..FLOOD)
        .map(|_| Box::pin(file.read(0, driver.pool().take(PAGE))))
        .collect();
    assert!(reads.iter_mut().all(|read| poll_once(read).is_pending()));
    assert_eq!(in_flight(&driver), FLOOD);
    // Those that the kernel does not know of go at once, the others when it is done.
    drop(reads.split_off(FLOOD - 100));
    assert_eq!(in_flight(&driver), FLOOD - 100);
    drop(reads);
    assert!(in_flight(&driver) < FLOOD - 100);
    block_on(&driver, driver.sleep(Duration::from_millis(20)));
    assert_eq!(in_flight(&driver), 0);
}

/// Memory that counts how much of it is left.
struct Counted(AlignedBuf, Arc<AtomicUsize>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::Relaxed);
    }
}

#[test]
fn dropping_the_driver_drains_and_frees_everything() {
    if !has_uring() {
        return;
    }
    for drains in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let driver = build(&dir);
        let file = file(&driver, 64);
        let left = Arc::new(AtomicUsize::new(FLOOD));
        let mut writes: Vec<_> = (0..FLOOD)
            .map(|index| {
                let mut buf = driver.pool().take(PAGE);
                buf.fill(5);
                let bytes = Bytes::from_owner(Counted(buf, Arc::clone(&left)));
                let offset = (index % 64 * PAGE) as u64;
                Box::pin(file.write(offset, bytes, Durability::Visible))
            })
            .collect();
        assert!(writes.iter_mut().all(|write| poll_once(write).is_pending()));
        assert_eq!(left.load(Ordering::Relaxed), FLOOD);
        let mut kept = Box::pin(file.read(0, driver.pool().take(PAGE)));
        assert!(poll_once(&mut kept).is_pending());
        drop(file);
        if drains {
            driver.drain();
            assert!(matches!(poll_once(&mut kept), Poll::Ready(Err(_))));
            let late = driver.open("file", OpenMode::Existing);
            assert!(
                poll_once(&mut Box::pin(late)).is_ready(),
                "nothing starts any more"
            );
        }
        drop((writes, kept));
        let inner = Rc::downgrade(&driver.0);
        drop(driver);
        assert!(inner.upgrade().is_none(), "no operation keeps the driver");
        assert_eq!(left.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn names_of_files_are_given_back() {
    if !has_uring() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let driver = build(&dir);
    let free = |driver: &Uring| driver.0.ring.borrow().file_slots.len();
    let before = free(&driver);
    let file = file(&driver, 1);
    assert_eq!(free(&driver), before - 1);
    let mut read = Box::pin(file.read(0, driver.pool().take(PAGE)));
    assert!(poll_once(&mut read).is_pending());
    drop(file);
    drop(read);
    assert_eq!(
        free(&driver),
        before - 1,
        "the read still goes by that name"
    );
    block_on(&driver, driver.sleep(Duration::from_millis(20)));
    assert_eq!(free(&driver), before);
}

#[test]
fn dropped_open_closes_its_descriptor() {
    if !has_uring() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let driver = build(&dir);
    drop(file(&driver, 1));
    let mine = || {
        let fds = std::fs::read_dir("/proc/self/fd").unwrap();
        let links = fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        links
            .filter(|link| link.starts_with(dir.path().join("file")))
            .count()
    };
    for _ in 0..50 {
        let mut open = Box::pin(driver.open("file", OpenMode::Existing));
        assert!(poll_once(&mut open).is_pending());
    }
    block_on(&driver, driver.sleep(Duration::from_millis(20)));
    assert_eq!((in_flight(&driver), mine()), (0, 0));
}

#[test]
fn memory_of_the_arena_goes_registered() {
    if !has_uring() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let driver = build(&dir);
    let len = 64 << 10;
    let file = file(&driver, len / PAGE);
    let mut buf = driver.pool().take(len);
    buf.fill(3);
    let is_inside = driver
        .pool()
        .arena()
        .is_some_and(|arena| arena.contains(&buf));
    assert!(is_inside);
    if !driver.0.ring.borrow().is_arena_registered {
        eprintln!("skipped: no memory may be locked");
        return;
    }
    block_on(&driver, file.write(0, buf.freeze(), Durability::Synced)).unwrap();
    let buf = driver.pool().take(len);
    let read = block_on(&driver, file.read(0, buf)).unwrap();
    assert!(read.iter().all(|&byte| byte == 3));
}
