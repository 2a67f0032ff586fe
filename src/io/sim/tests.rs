//! Tests of the universe itself: each promise of the stage that the engine's tests stand on.

use super::*;
use crate::buf::AlignedBuf;
use crate::io::{Driver, DriverFile, Durability, OpenMode};
use crate::types::PAGE;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::io::{self, ErrorKind};

const P: u64 = PAGE as u64;

/// `pages` pages of memory full of `byte`.
fn pages(driver: &SimDriver, pages: usize, byte: u8) -> Bytes {
    let mut buf = driver.pool().take(pages * PAGE);
    buf.fill(byte);
    buf.freeze()
}

fn page_buf(driver: &SimDriver) -> AlignedBuf {
    driver.pool().take(PAGE)
}

async fn create(driver: &SimDriver, name: &str) -> SimFile {
    driver.open(name, OpenMode::CreateNew).await.unwrap()
}

async fn put(driver: &SimDriver, file: &SimFile, page: u64, byte: u8) {
    let bytes = pages(driver, 1, byte);
    file.write(page * P, bytes, Durability::Visible)
        .await
        .unwrap();
}

async fn first_byte(driver: &SimDriver, file: &SimFile, page: u64) -> io::Result<u8> {
    Ok(file.read(page * P, page_buf(driver)).await?[0])
}

/// A universe with a disk "d" and a driver on it.
fn stage(seed: u64) -> (Universe, Disk, Process, SimDriver) {
    let universe = Universe::new(seed);
    let disk = universe.disk("d");
    let process = universe.process();
    let driver = process.driver(&disk, ShardId(0));
    (universe, disk, process, driver)
}

#[test]
fn write_then_read_and_eof() {
    let (universe, disk, _process, driver) = stage(1);
    let read = universe.run_until(async {
        let file = create(&driver, "f").await;
        put(&driver, &file, 0, 7).await;
        put(&driver, &file, 2, 9).await;
        assert_eq!(file.len(), 3 * P);
        assert_eq!(first_byte(&driver, &file, 0).await.unwrap(), 7);
        assert_eq!(first_byte(&driver, &file, 1).await.unwrap(), 0);
        let past = first_byte(&driver, &file, 3).await.unwrap_err();
        assert_eq!(past.kind(), ErrorKind::UnexpectedEof);
        first_byte(&driver, &file, 2).await.unwrap()
    });
    assert_eq!(read, Ok(9));
    assert_eq!(disk.files(), [("f".to_owned(), 3 * P)]);
    assert_eq!(disk.used(), 3 * P);
}

#[test]
fn deadlock_and_deadline() {
    let universe = Universe::new(1);
    let stuck = universe.run_until(std::future::pending::<()>());
    assert_eq!(stuck, Err(Stop::Deadlock));
    let before = universe.now();
    universe.run_for(Duration::from_secs(5)).unwrap();
    assert!(universe.now().since(before) >= Duration::from_secs(5));
    let late = universe.run_until_within(
        Duration::from_secs(1),
        universe.sleep(Duration::from_secs(2)),
    );
    assert_eq!(late, Err(Stop::Deadline));
    // The dropped sleep has left no timer behind.
    assert_eq!(
        universe.run_until(std::future::pending::<()>()),
        Err(Stop::Deadlock)
    );
}
