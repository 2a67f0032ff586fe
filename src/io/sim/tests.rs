//! Tests of the universe itself: each promise of the stage that the engine's tests stand on.

use super::*;
use crate::buf::AlignedBuf;
use crate::io::{Driver, DriverFile, Durability, OpenMode};
use crate::types::PAGE;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::Poll;

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

/// Polls once, so that an operation is submitted, and hands the future back.
async fn submitted<F: Future>(future: F) -> Pin<Box<F>> {
    let mut future = Box::pin(future);
    std::future::poll_fn(|context| {
        assert!(
            future.as_mut().poll(context).is_pending(),
            "it cannot be done yet"
        );
        Poll::Ready(())
    })
    .await;
    future
}

/// Latencies that make syncs slow and all else fast.
fn slow_syncs() -> Latency {
    let fast = Span {
        min_ns: 1000,
        spread_ns: 1000,
    };
    Latency {
        read: fast,
        write: fast,
        sync: Span {
            min_ns: 1_000_000,
            spread_ns: 0,
        },
        metadata: fast,
        long: 0,
    }
}

/// Cuts the power so that nothing survives but what is durable.
fn cut_keeping_nothing(disk: &Disk) -> CrashReport {
    let mask = vec![false; disk.pending(Grain::Write)];
    disk.power_cut_keeping(Grain::Write, &mask)
}

/// The first byte of each page of a file.
fn page_bytes(disk: &Disk, name: &str) -> Vec<u8> {
    let bytes = disk.read_file(name).unwrap();
    bytes.chunks(PAGE).map(|page| page[0]).collect()
}

/// A run with several shards, clients, faults and crashes: its trace hash and counters.
fn busy_run(seed: u64) -> (u64, Counters) {
    let universe = Universe::new(seed);
    let disk = universe.disk("d");
    disk.set_faults(DiskFaults {
        read_error: 20,
        write_error: 20,
        sync_error: 20,
        metadata_error: 5,
        lost_write: 10,
        misdirected_write: 10,
        bit_rot: 10,
        garbled: 50,
        ..DiskFaults::default()
    });
    for _ in 0..3 {
        let process = universe.process();
        for shard in 0..3 {
            let driver = process.driver(&disk, ShardId(shard));
            drop(process.spawn(busy_shard(driver, shard)));
        }
        universe.run_for(Duration::from_millis(20)).unwrap();
        match seed % 2 {
            0 => process.kill(),
            _ => drop(disk.power_cut()),
        }
    }
    (universe.trace_hash(), universe.counters())
}

async fn busy_shard(driver: SimDriver, shard: u16) {
    for round in 0u64.. {
        let name = format!("s{shard}-{}", driver.random() % 4);
        let mode = match driver.random() % 2 {
            0 => OpenMode::CreateNew,
            _ => OpenMode::Existing,
        };
        let Ok(file) = driver.open(&name, mode).await else {
            continue;
        };
        let bytes = pages(&driver, 1 + (round % 3) as usize, round as u8);
        let page = driver.random() % 8;
        let _ = file.write(page * P, bytes, Durability::Visible).await;
        let _ = first_byte(&driver, &file, driver.random() % 8).await;
        let _ = file.sync().await;
        let _ = driver.sync_dir("").await;
        driver
            .sleep(Duration::from_micros(driver.random() % 100))
            .await;
    }
}

#[test]
fn a_seed_replays_a_run_and_seeds_differ() {
    let mut hashes = BTreeSet::new();
    let mut total = 0;
    for seed in 0..40 {
        let first = busy_run(seed);
        assert_eq!(first, busy_run(seed), "seed={seed}");
        hashes.insert(first.0);
        total += first.1.writes;
    }
    assert_eq!(hashes.len(), 40);
    assert!(total > 1000, "only {total} writes");
}

#[test]
fn the_scheduler_draws_every_order() {
    let mut orders = BTreeSet::new();
    for seed in 0..200 {
        let universe = Universe::new(seed);
        let order = Rc::new(RefCell::new(Vec::new()));
        let task = |name: char| {
            let order = Rc::clone(&order);
            universe.spawn(async move { order.borrow_mut().push(name) })
        };
        let (a, b, c) = (task('a'), task('b'), task('c'));
        universe
            .run_until(async { (a.await, b.await, c.await) })
            .unwrap();
        orders.insert(order.take());
    }
    assert_eq!(orders.len(), 6);
}

#[test]
fn only_the_synced_survives() {
    let (universe, disk, _process, driver) = stage(3);
    universe
        .run_until(async {
            let file = create(&driver, "f").await;
            driver.sync_dir("").await.unwrap();
            put(&driver, &file, 0, 1).await;
            file.sync().await.unwrap();
            put(&driver, &file, 0, 2).await;
            put(&driver, &file, 1, 2).await;
            let bytes = pages(&driver, 1, 3);
            file.write(2 * P, bytes, Durability::Synced).await.unwrap();
        })
        .unwrap();
    assert_eq!(page_bytes(&disk, "f"), [2, 2, 3]);
    assert_eq!(disk.pending(Grain::Write), 2);
    assert_eq!(disk.pending(Grain::Sector), 16);
    cut_keeping_nothing(&disk);
    assert_eq!(page_bytes(&disk, "f"), [1, 0, 3]);
    assert_eq!(disk.pending(Grain::Write), 0);
}

#[test]
fn a_synced_write_outlives_an_older_unsynced_one_of_its_page() {
    let (universe, disk, _process, driver) = stage(3);
    universe
        .run_until(async {
            let file = create(&driver, "f").await;
            driver.sync_dir("").await.unwrap();
            let old = pages(&driver, 2, 1);
            file.write(0, old, Durability::Visible).await.unwrap();
            let new = pages(&driver, 1, 2);
            file.write(0, new, Durability::Synced).await.unwrap();
        })
        .unwrap();
    assert_eq!(disk.pending(Grain::Page), 1);
    disk.power_cut_keeping(Grain::Page, &[true]);
    assert_eq!(page_bytes(&disk, "f"), [2, 1]);
}

#[test]
fn a_sync_covers_only_what_had_completed_when_it_was_submitted() {
    let (universe, disk, _process, driver) = stage(4);
    disk.set_latency(slow_syncs());
    universe
        .run_until(async {
            let file = create(&driver, "f").await;
            driver.sync_dir("").await.unwrap();
            put(&driver, &file, 0, 1).await;
            let sync = submitted(file.sync()).await;
            put(&driver, &file, 1, 2).await;
            sync.await.unwrap();
        })
        .unwrap();
    cut_keeping_nothing(&disk);
    assert_eq!(page_bytes(&disk, "f"), [1]);
}

#[test]
fn after_a_failed_sync_no_later_one_covers_the_same() {
    let (universe, disk, _process, driver) = stage(5);
    let failing = DiskFaults {
        sync_error: 1000,
        ..DiskFaults::default()
    };
    universe
        .run_until(async {
            let file = create(&driver, "f").await;
            driver.sync_dir("").await.unwrap();
            put(&driver, &file, 0, 1).await;
            put(&driver, &file, 1, 1).await;
            disk.set_faults(failing);
            file.sync().await.unwrap_err();
            disk.set_faults(DiskFaults::default());
            // Page 1 is written anew, and so it is proven; page 0 is not.
            put(&driver, &file, 1, 2).await;
            file.sync().await.unwrap();
            assert_eq!(first_byte(&driver, &file, 0).await.unwrap(), 1);
        })
        .unwrap();
    assert_eq!(disk.pending(Grain::Page), 1);
    let image = disk.clone_image();
    cut_keeping_nothing(&disk);
    assert_eq!(page_bytes(&disk, "f"), [0, 2]);
    disk.restore(&image);
    disk.power_cut_keeping(Grain::Page, &[true]);
    assert_eq!(page_bytes(&disk, "f"), [1, 2]);
}

#[test]
fn crashes_reach_every_subset_of_unsynced_writes() {
    let mut seen = BTreeSet::new();
    for seed in 0..300 {
        let (universe, disk, _process, driver) = stage(seed);
        disk.set_faults(DiskFaults {
            torn: 0,
            ..DiskFaults::default()
        });
        universe
            .run_until(async {
                let file = create(&driver, "f").await;
                file.allocate(4 * P).await.unwrap();
                file.sync().await.unwrap();
                driver.sync_dir("").await.unwrap();
                for page in 0..3 {
                    put(&driver, &file, page, 1).await;
                }
                // The fourth is in flight when the power fails.
                drop(submitted(file.write(3 * P, pages(&driver, 1, 1), Durability::Synced)).await);
            })
            .unwrap();
        disk.power_cut();
        seen.insert(page_bytes(&disk, "f"));
    }
    assert_eq!(seen.len(), 16);
}

#[test]
fn writes_tear_between_sectors_and_between_pages() {
    for (tear, by_sector) in [(Tear::Sector, true), (Tear::Page, false)] {
        let mut within_page = 0;
        let mut between_pages = 0;
        for seed in 0..100 {
            let (universe, disk, _process, driver) = stage(seed);
            disk.set_faults(DiskFaults {
                torn: 1000,
                tear,
                ..DiskFaults::default()
            });
            universe
                .run_until(async {
                    let file = create(&driver, "f").await;
                    file.allocate(2 * P).await.unwrap();
                    file.sync().await.unwrap();
                    driver.sync_dir("").await.unwrap();
                    let bytes = pages(&driver, 2, 1);
                    file.write(0, bytes, Durability::Visible).await.unwrap();
                })
                .unwrap();
            assert_eq!(disk.power_cut().writes_torn, 1);
            let bytes = disk.read_file("f").unwrap();
            let sectors: Vec<u8> = bytes.chunks(512).map(|sector| sector[0]).collect();
            assert!(
                bytes
                    .chunks(512)
                    .all(|sector| sector.iter().all(|b| *b == sector[0]))
            );
            let mixed = |page: &[u8]| page.iter().any(|b| *b != page[0]);
            within_page += u32::from(sectors.chunks(8).any(mixed));
            between_pages += u32::from(sectors[0] != sectors[8]);
        }
        assert_eq!(within_page > 0, by_sector);
        assert!(between_pages > 10);
    }
}

#[test]
fn garbled_writes_leave_what_nobody_wrote() {
    let (universe, disk, _process, driver) = stage(6);
    disk.set_faults(DiskFaults {
        torn: 0,
        garbled: 1000,
        tear: Tear::Page,
        ..DiskFaults::default()
    });
    universe
        .run_until(async {
            let file = create(&driver, "f").await;
            driver.sync_dir("").await.unwrap();
            for page in 0..16 {
                put(&driver, &file, page, 1).await;
            }
        })
        .unwrap();
    assert_eq!(disk.power_cut().writes_garbled, 16);
    let bytes = disk.read_file("f").unwrap();
    assert!(bytes.iter().any(|byte| *byte > 1));
}

#[test]
fn names_survive_only_with_their_directory_and_in_order() {
    let (universe, disk, _process, driver) = stage(7);
    universe
        .run_until(async {
            drop(create(&driver, "kept").await);
            driver.create_dir("dir").await.unwrap();
            driver.create_dir("dir").await.unwrap();
            driver.sync_dir("").await.unwrap();
            drop(create(&driver, "dir/new").await);
            driver.rename("kept", "moved").await.unwrap();
            driver.unlink("moved").await.unwrap();
            drop(create(&driver, "moved").await);
        })
        .unwrap();
    let image = disk.clone_image();
    assert_eq!(disk.pending(Grain::Write), 4);
    let mut seen = BTreeSet::new();
    for bits in 0..16u32 {
        disk.restore(&image);
        let mask: Vec<bool> = (0..4).map(|bit| bits >> bit & 1 == 1).collect();
        disk.power_cut_keeping(Grain::Write, &mask);
        let names: Vec<String> = disk.files().into_iter().map(|(name, _)| name).collect();
        seen.insert(names.join(" "));
    }
    // The rename, the unlink and the creation of "moved" are kept in that order or not at all.
    let expected = [
        "",
        "dir/new",
        "dir/new kept",
        "dir/new moved",
        "kept",
        "moved",
    ];
    assert!(seen.iter().eq(expected), "{seen:?}");
}

#[test]
fn a_directory_sync_covers_its_own_names_alone() {
    let (universe, disk, _process, driver) = stage(8);
    universe
        .run_until(async {
            driver.create_dir("a").await.unwrap();
            driver.sync_dir("").await.unwrap();
            drop(create(&driver, "a/x").await);
            drop(create(&driver, "y").await);
            driver.sync_dir("a").await.unwrap();
        })
        .unwrap();
    cut_keeping_nothing(&disk);
    assert_eq!(disk.files(), [("a/x".to_owned(), 0)]);
}

#[test]
fn names_under_a_lost_directory_are_lost() {
    let (universe, disk, _process, driver) = stage(8);
    universe
        .run_until(async {
            driver.create_dir("a").await.unwrap();
            drop(create(&driver, "a/x").await);
            driver.sync_dir("a").await.unwrap();
        })
        .unwrap();
    cut_keeping_nothing(&disk);
    assert_eq!(disk.files(), []);
}

#[test]
fn list_and_errors_of_names() {
    let (universe, disk, _process, driver) = stage(9);
    universe
        .run_until(async {
            driver.create_dir("dir").await.unwrap();
            let file = create(&driver, "dir/f").await;
            put(&driver, &file, 1, 1).await;
            drop(create(&driver, "dir-2").await);
            let kind = |result: io::Result<()>| result.unwrap_err().kind();
            let opened = driver.open("dir/f", OpenMode::CreateNew).await.map(drop);
            assert_eq!(kind(opened), ErrorKind::AlreadyExists);
            let opened = driver.open("none", OpenMode::Existing).await.map(drop);
            assert_eq!(kind(opened), ErrorKind::NotFound);
            let opened = driver.open("none/f", OpenMode::CreateNew).await.map(drop);
            assert_eq!(kind(opened), ErrorKind::NotFound);
            assert_eq!(kind(driver.unlink("dir").await), ErrorKind::IsADirectory);
            assert_eq!(kind(driver.rename("none", "x").await), ErrorKind::NotFound);
            assert_eq!(kind(driver.sync_dir("none").await), ErrorKind::NotFound);
            for path in ["/etc", "../x", "dir/../x", "a//b", "", "."] {
                let opened = driver.open(path, OpenMode::Existing).await.map(drop);
                assert_eq!(kind(opened), ErrorKind::InvalidInput, "path={path}");
            }
            let names = |entries: Vec<crate::io::DirEntry>| {
                let names = entries.into_iter().map(|e| (e.name, e.len, e.is_dir));
                names.collect::<Vec<_>>()
            };
            let top = names(driver.list("").await.unwrap());
            assert_eq!(top, [("dir".into(), 0, true), ("dir-2".into(), 0, false)]);
            let below = names(driver.list("dir").await.unwrap());
            assert_eq!(below, [("f".into(), 2 * P, false)]);
            driver.rename("dir/f", "dir-2").await.unwrap();
            assert_eq!(first_byte(&driver, &file, 1).await.unwrap(), 1);
        })
        .unwrap();
    assert_eq!(disk.files(), [("dir-2".to_owned(), 2 * P)]);
}

/// Memory of which one can tell whether it has been freed.
struct Watched(
    AlignedBuf,
    #[expect(dead_code, reason = "it is counted")] Arc<()>,
);

impl AsRef<[u8]> for Watched {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[test]
fn a_dropped_write_happens_and_its_buffer_comes_home() {
    let (universe, disk, _process, driver) = stage(10);
    universe
        .run_until(async {
            let file = create(&driver, "f").await;
            let watched = Arc::new(());
            let mut buf = page_buf(&driver);
            buf.fill(5);
            let bytes = Bytes::from_owner(Watched(buf, Arc::clone(&watched)));
            drop(file.write(P, bytes.clone(), Durability::Visible));
            drop(submitted(file.write(0, bytes, Durability::Visible)).await);
            assert_eq!(Arc::strong_count(&watched), 2, "the operation owns it");
            driver.sleep(Duration::from_millis(10)).await;
            assert_eq!(Arc::strong_count(&watched), 1, "it came home");
        })
        .unwrap();
    assert_eq!(
        page_bytes(&disk, "f"),
        [5],
        "the one that was never polled did not happen"
    );
}

#[test]
fn a_dropped_open_closes_and_a_dropped_read_is_forgotten() {
    let (universe, disk, _process, driver) = stage(10);
    universe
        .run_until(async {
            let file = create(&driver, "f").await;
            put(&driver, &file, 0, 1).await;
            drop(submitted(file.read(0, page_buf(&driver))).await);
            drop(submitted(driver.open("f", OpenMode::Existing)).await);
            drop(file);
            driver.unlink("f").await.unwrap();
            driver.sleep(Duration::from_millis(10)).await;
        })
        .unwrap();
    assert_eq!(disk.used(), 0);
    assert_eq!(universe.counters().reads, 1);
}

#[test]
fn a_killed_process_keeps_what_completed_and_stops_where_it_stands() {
    let mut seen = BTreeSet::new();
    for seed in 0..100 {
        let (universe, disk, process, driver) = stage(seed);
        let steps = Rc::new(Cell::new(0));
        let counted = Rc::clone(&steps);
        let task = driver.clone();
        driver.spawn(async move {
            let file = create(&task, "f").await;
            put(&task, &file, 0, 1).await;
            counted.set(1);
            let bytes = pages(&task, 2, 2);
            let _ = file.write(0, bytes, Durability::Visible).await;
            counted.set(2);
        });
        while steps.get() == 0 {
            universe.run_for(Duration::from_nanos(500)).unwrap();
        }
        assert_eq!(steps.get(), 1);
        process.kill();
        assert_eq!(Rc::strong_count(&steps), 1, "its tasks are gone");
        universe.run_for(Duration::from_secs(1)).unwrap();
        let bytes = page_bytes(&disk, "f");
        assert!(bytes[0] == 1 || bytes[0] == 2);
        seen.insert(bytes);
        let after = universe.run_until(driver.open("f", OpenMode::Existing));
        assert_eq!(
            after.map(drop),
            Err(Stop::Deadlock),
            "the dead hear nothing"
        );
    }
    assert!(seen.len() >= 3, "kept, dropped, torn: {seen:?}");
}

#[test]
fn the_client_of_a_killed_process_hears_of_it() {
    let (universe, _disk, process, _driver) = stage(11);
    let task = process.spawn(std::future::pending::<()>());
    universe.run_for(Duration::from_millis(1)).unwrap();
    assert!(!task.is_ended());
    process.kill();
    assert_eq!(universe.run_until(task), Ok(None));
}

#[test]
fn a_paused_process_stands_still_and_goes_on() {
    let (universe, _disk, process, driver) = stage(12);
    let beats = Rc::new(Cell::new(0));
    let counted = Rc::clone(&beats);
    let task = driver.clone();
    driver.spawn(async move {
        loop {
            task.sleep(Duration::from_millis(1)).await;
            counted.set(counted.get() + 1);
        }
    });
    universe.run_for(Duration::from_millis(10)).unwrap();
    let before = beats.get();
    assert!(before > 5);
    process.pause();
    universe.run_for(Duration::from_millis(100)).unwrap();
    assert_eq!(beats.get(), before);
    process.resume();
    universe.run_for(Duration::from_millis(10)).unwrap();
    assert!(beats.get() > before);
}

#[test]
fn without_space_files_do_not_grow() {
    let (universe, disk, _process, driver) = stage(13);
    disk.set_capacity(4 * P);
    universe
        .run_until(async {
            let full = |result: io::Result<()>| {
                assert_eq!(result.unwrap_err().kind(), ErrorKind::StorageFull);
            };
            let file = create(&driver, "f").await;
            file.allocate(3 * P).await.unwrap();
            full(file.allocate(5 * P).await);
            assert_eq!(file.len(), 3 * P);
            put(&driver, &file, 3, 1).await;
            let bytes = pages(&driver, 1, 1);
            full(file.write(4 * P, bytes, Durability::Visible).await);
            put(&driver, &file, 0, 1).await;
            full(driver.open("g", OpenMode::CreateNew).await.map(drop));
            driver.unlink("f").await.unwrap();
            full(driver.open("g", OpenMode::CreateNew).await.map(drop));
            drop(file);
            drop(create(&driver, "g").await);
        })
        .unwrap();
    assert_eq!(disk.used(), 0);
    assert_eq!(universe.counters().out_of_space, 4);
}

#[test]
fn an_unsynced_allocation_may_vanish() {
    let (universe, disk, _process, driver) = stage(14);
    universe
        .run_until(async {
            let file = create(&driver, "f").await;
            driver.sync_dir("").await.unwrap();
            file.allocate(2 * P).await.unwrap();
            file.sync().await.unwrap();
            file.allocate(8 * P).await.unwrap();
            assert_eq!(first_byte(&driver, &file, 7).await.unwrap(), 0);
        })
        .unwrap();
    cut_keeping_nothing(&disk);
    assert_eq!(disk.files(), [("f".to_owned(), 2 * P)]);
}

/// Runs `act` on a file with pages 1, 2, 3, 4 (all durable) under `faults`.
fn with_faults<T>(
    seed: u64,
    faults: DiskFaults,
    act: impl AsyncFnOnce(&SimDriver, &SimFile) -> T,
) -> (Disk, Universe, T) {
    let (universe, disk, process, driver) = stage(seed);
    let output = universe
        .run_until(async {
            let file = create(&driver, "f").await;
            for page in 0..4 {
                put(&driver, &file, page, page as u8 + 1).await;
            }
            file.sync().await.unwrap();
            driver.sync_dir("").await.unwrap();
            disk.set_faults(faults);
            act(&driver, &file).await
        })
        .unwrap();
    drop(process);
    (disk, universe, output)
}

#[test]
fn a_failed_write_is_applied_or_not_or_in_part_and_never_synced() {
    let faults = DiskFaults {
        write_error: 1000,
        ..DiskFaults::default()
    };
    let mut seen = BTreeSet::new();
    for seed in 0..60 {
        let (disk, _universe, ()) = with_faults(seed, faults.clone(), async |driver, file| {
            let bytes = pages(driver, 4, 9);
            file.write(0, bytes, Durability::Synced).await.unwrap_err();
            file.sync().await.unwrap();
        });
        seen.insert(page_bytes(&disk, "f"));
        cut_keeping_nothing(&disk);
        assert_eq!(page_bytes(&disk, "f"), [1, 2, 3, 4]);
    }
    assert!(seen.contains(&vec![1, 2, 3, 4]) && seen.contains(&vec![9; 4]));
    assert!(seen.len() > 3, "{seen:?}");
}

#[test]
fn lost_and_misdirected_writes_are_acknowledged_and_listed() {
    let lost = DiskFaults {
        lost_write: 1000,
        ..DiskFaults::default()
    };
    let (disk, ..) = with_faults(1, lost, async |driver, file| put(driver, file, 1, 9).await);
    assert_eq!(page_bytes(&disk, "f"), [1, 2, 3, 4]);
    let damage = disk.take_damage();
    assert_eq!((damage[0].kind, damage[0].offset), (DamageKind::Lost, P));
    let misdirected = DiskFaults {
        misdirected_write: 1000,
        ..DiskFaults::default()
    };
    let mut elsewhere = 0;
    for seed in 0..20 {
        let act = async |driver: &SimDriver, file: &SimFile| put(driver, file, 1, 9).await;
        let (disk, ..) = with_faults(seed, misdirected.clone(), act);
        let bytes = page_bytes(&disk, "f");
        if bytes[1] != 9 {
            elsewhere += 1;
            assert!(bytes.contains(&9));
            let damage = disk.take_damage();
            assert_eq!(damage[1].kind, DamageKind::Misdirected);
            assert_eq!(bytes[(damage[1].offset / P) as usize], 9);
        }
    }
    assert!(elsewhere > 10);
}

#[test]
fn rot_stays_and_unreadable_pages_heal_when_written() {
    let rot = DiskFaults {
        bit_rot: 1000,
        ..DiskFaults::default()
    };
    let (disk, ..) = with_faults(1, rot, async |driver, file| {
        file.read(0, page_buf(driver)).await.unwrap();
    });
    let ones = |disk: &Disk| {
        disk.read_file("f").unwrap()[..PAGE]
            .iter()
            .filter(|b| **b != 1)
            .count()
    };
    assert_eq!(ones(&disk), 1);
    cut_keeping_nothing(&disk);
    assert_eq!(ones(&disk), 1);
    assert_eq!(disk.take_damage()[0].kind, DamageKind::Rotten);
    let unreadable = DiskFaults {
        unreadable: 1000,
        ..DiskFaults::default()
    };
    let (disk, universe, file) = with_faults(1, unreadable, async |driver, file| {
        first_byte(driver, file, 2).await.unwrap_err();
        file.clone()
    });
    disk.set_faults(DiskFaults::default());
    let driver = universe.process().driver(&disk, ShardId(1));
    let reads = universe.run_until(async {
        let broken = first_byte(&driver, &file, 2).await.is_err();
        put(&driver, &file, 2, 7).await;
        (broken, first_byte(&driver, &file, 2).await.unwrap())
    });
    assert_eq!(reads, Ok((true, 7)));
}

#[test]
fn failed_reads_slow_ones_and_failed_names() {
    let faults = DiskFaults {
        read_error: 1000,
        slow: 1000,
        ..DiskFaults::default()
    };
    let (_, universe, span) = with_faults(1, faults, async |driver, file| {
        let before = driver.now();
        first_byte(driver, file, 0).await.unwrap_err();
        driver.now().since(before)
    });
    assert!(span >= Duration::from_secs(3));
    assert_eq!(universe.counters().read_errors, 1);
    let faults = DiskFaults {
        metadata_error: 1000,
        ..DiskFaults::default()
    };
    let mut seen = BTreeSet::new();
    for seed in 0..20 {
        let (disk, ..) = with_faults(seed, faults.clone(), async |driver, _| {
            driver.rename("f", "g").await.unwrap_err();
            driver.sync_dir("").await.unwrap_err();
            driver.list("").await.unwrap_err();
        });
        seen.insert(disk.files());
        // What the failed sync left behind, no later one covers: here there is none.
        cut_keeping_nothing(&disk);
        assert_eq!(disk.files()[0].0, "f");
    }
    assert_eq!(seen.len(), 2, "applied or not");
}

#[test]
fn faults_of_a_file_do_not_depend_on_other_files() {
    let run = |with_other: bool| {
        let (universe, disk, _process, driver) = stage(15);
        let faults = DiskFaults {
            read_error: 300,
            ..DiskFaults::default()
        };
        let outcomes = universe.run_until(async {
            let file = create(&driver, "f").await;
            put(&driver, &file, 0, 1).await;
            disk.set_faults(faults);
            let mut outcomes = Vec::new();
            for _ in 0..64 {
                if with_other {
                    let _ = driver.open("other", OpenMode::CreateNew).await;
                }
                outcomes.push(first_byte(&driver, &file, 0).await.is_ok());
            }
            outcomes
        });
        outcomes.unwrap()
    };
    let outcomes = run(false);
    assert_eq!(outcomes, run(true));
    assert!(outcomes.contains(&true) && outcomes.contains(&false));
}

#[test]
fn a_read_that_races_with_a_write_sees_either_in_each_sector() {
    let mut mixed = 0;
    for seed in 0..100 {
        let (universe, _disk, _process, driver) = stage(seed);
        let sectors = universe.run_until(async {
            let file = create(&driver, "f").await;
            put(&driver, &file, 0, 1).await;
            let bytes = pages(&driver, 1, 2);
            let writing = submitted(file.write(0, bytes, Durability::Visible)).await;
            let read = file.read(0, page_buf(&driver)).await.unwrap();
            writing.await.unwrap();
            assert_eq!(first_byte(&driver, &file, 0).await.unwrap(), 2);
            read.chunks(512).map(|sector| sector[0]).collect::<Vec<_>>()
        });
        let sectors = sectors.unwrap();
        assert!(sectors.iter().all(|byte| *byte == 1 || *byte == 2));
        mixed += u32::from(sectors.iter().any(|byte| *byte != sectors[0]));
        assert_eq!(universe.counters().read_races, 1);
    }
    assert!(mixed > 50);
}

#[test]
fn one_process_holds_the_lock() {
    let (universe, disk, first, _driver) = stage(16);
    let second = universe.process();
    let guard = first.try_lock(&disk).unwrap();
    assert_eq!(second.try_lock(&disk).map(drop), Err(first.id()));
    drop(guard);
    let guard = second.try_lock(&disk).unwrap();
    second.kill();
    let third = universe.process();
    let held = third.try_lock(&disk).unwrap();
    // The guard of a dead process releases nothing.
    drop(guard);
    assert_eq!(first.try_lock(&disk).map(drop), Err(third.id()));
    drop(held);
}

#[test]
fn the_power_can_be_cut_before_every_io() {
    let work = |universe: &Universe, driver: &SimDriver| {
        universe.run_until(async {
            let file = create(driver, "f").await;
            driver.sync_dir("").await.unwrap();
            put(driver, &file, 0, 1).await;
            put(driver, &file, 1, 2).await;
            file.sync().await.unwrap();
        })
    };
    let (universe, _disk, _process, driver) = stage(17);
    work(&universe, &driver).unwrap();
    let total = universe.ios();
    assert_eq!(total, 5);
    let mut seen = BTreeSet::new();
    for io in 1..=total {
        let (universe, disk, _process, driver) = stage(17);
        universe.stop_at_io(Some(io));
        assert_eq!(work(&universe, &driver), Err(Stop::AtIo));
        assert_eq!(universe.ios(), io - 1);
        let image = disk.clone_image();
        let units = disk.pending(Grain::Write);
        for bits in 0..1u32 << units {
            disk.restore(&image);
            let mask: Vec<bool> = (0..units).map(|bit| bits >> bit & 1 == 1).collect();
            disk.power_cut_keeping(Grain::Write, &mask);
            let content = disk.read_file("f").map(|bytes| bytes.len());
            seen.insert((io, bits, content.unwrap_or(usize::MAX)));
        }
    }
    let states: Vec<(u64, usize)> = seen.iter().map(|(io, _, len)| (*io, *len)).collect();
    let none = usize::MAX;
    assert_eq!(
        states,
        [
            (1, none),
            (1, 0),
            (2, none),
            (2, 0),
            (3, 0),
            (3, PAGE),
            (4, 0),
            (4, PAGE),
            (4, 2 * PAGE),
            (4, 2 * PAGE),
            (5, 0),
            (5, PAGE),
            (5, 2 * PAGE),
            (5, 2 * PAGE),
        ]
    );
}

#[test]
fn a_run_goes_on_after_its_stop() {
    let (universe, disk, _process, driver) = stage(18);
    universe.stop_at_io(Some(2));
    let mut work = Box::pin(async {
        let file = create(&driver, "f").await;
        put(&driver, &file, 0, 1).await;
    });
    assert_eq!(universe.run_until(work.as_mut()), Err(Stop::AtIo));
    assert_eq!(disk.files(), [("f".to_owned(), 0)]);
    assert_eq!(universe.run_until(work), Ok(()));
    assert_eq!(page_bytes(&disk, "f"), [1]);
}

#[test]
fn hands_reach_everything() {
    let (universe, disk, process, _driver) = stage(19);
    disk.write_file("f", &[1; 5000]).unwrap();
    disk.overwrite("f", 4990, &[2; 20]).unwrap();
    disk.flip_bit("f", 9).unwrap();
    let bytes = disk.read_file("f").unwrap();
    assert_eq!(
        (bytes.len(), bytes[1], bytes[4989], bytes[5009]),
        (5010, 3, 1, 2)
    );
    disk.truncate_file("f", 100).unwrap();
    disk.truncate_file("f", 200).unwrap();
    assert_eq!(disk.read_file("f").unwrap()[99..102], [1, 0, 0]);
    assert_eq!(disk.used(), P);
    disk.rename("f", "g").unwrap();
    let image = disk.clone_image();
    disk.remove_file("g").unwrap();
    assert!(disk.read_file("g").is_err());
    assert_eq!(disk.used(), 0);
    disk.restore(&image);
    assert!(!process.is_alive());
    cut_keeping_nothing(&disk);
    assert_eq!(disk.files(), [("g".to_owned(), 200)]);
    let driver = universe.process().driver(&disk, ShardId(0));
    let read = universe.run_until(async {
        let file = driver.open("g", OpenMode::Existing).await.unwrap();
        first_byte(&driver, &file, 0).await.unwrap_err().kind()
    });
    assert_eq!(read, Ok(ErrorKind::UnexpectedEof));
    disk.wipe();
    assert_eq!((disk.files().len(), disk.used()), (0, 0));
}

#[test]
fn a_universe_ends_with_its_first_handle() {
    let flag = Rc::new(());
    let held = Rc::clone(&flag);
    let (universe, disk, process, driver) = stage(20);
    let task = driver.clone();
    let handle = universe.clone();
    drop(process.spawn(async move {
        let file = create(&task, "f").await;
        loop {
            put(&task, &file, 0, Rc::strong_count(&held) as u8).await;
            handle.sleep(Duration::from_micros(1)).await;
        }
    }));
    universe.run_for(Duration::from_millis(1)).unwrap();
    assert_eq!(Rc::strong_count(&flag), 2);
    let world = Rc::downgrade(&universe.world);
    let medium = Rc::downgrade(&disk.0);
    drop(universe);
    assert_eq!(Rc::strong_count(&flag), 1);
    drop((disk, process, driver));
    assert_eq!(
        (world.strong_count(), medium.strong_count()),
        (0, 0),
        "nothing leaks"
    );
}

#[test]
fn a_drivers_tasks_go_with_its_last_handle() {
    let flag = Rc::new(());
    let held = Rc::clone(&flag);
    let (_universe, _disk, _process, driver) = stage(21);
    driver.spawn(async move {
        std::future::pending::<()>().await;
        drop(held);
    });
    assert_eq!(Rc::strong_count(&flag), 2);
    drop(driver);
    assert_eq!(Rc::strong_count(&flag), 1);
}

/// Processor time of this thread, in seconds.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanos = stat.split(' ').next().unwrap();
    nanos.parse::<f64>().unwrap() / 1e9
}

/// Prints how fast the stage is; `cargo test --release` for figures that mean something.
#[test]
fn speed() {
    let (universe, disk, _process, driver) = stage(22);
    let start = cpu_seconds();
    let tasks: Vec<_> = (0..16)
        .map(|_| universe.spawn(yield_often(20_000)))
        .collect();
    let done = universe.run_until(async {
        for task in tasks {
            task.await;
        }
    });
    done.unwrap();
    let polls = universe.counters().polls;
    println!(
        "{:.0} task switches per CPU second",
        polls as f64 / (cpu_seconds() - start)
    );
    let start = cpu_seconds();
    let workers: Vec<_> = (0..16)
        .map(|worker| universe.spawn(io_loop(driver.clone(), worker, 3000)))
        .collect();
    let done = universe.run_until(async {
        for worker in workers {
            worker.await;
        }
    });
    done.unwrap();
    let ios = universe.ios();
    println!(
        "{:.0} I/Os of 4 KiB per CPU second",
        ios as f64 / (cpu_seconds() - start)
    );
    let start = cpu_seconds();
    let image = disk.clone_image();
    for _ in 0..1000 {
        disk.restore(&image);
        disk.power_cut();
    }
    println!(
        "{:.0} crashes per CPU second",
        1000.0 / (cpu_seconds() - start)
    );
}

async fn yield_often(times: u32) {
    for _ in 0..times {
        let mut yielded = false;
        std::future::poll_fn(|context| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

/// Half reads, half writes, a sync every 64.
async fn io_loop(driver: SimDriver, worker: u64, rounds: u64) {
    let file = create(&driver, &format!("f{worker}")).await;
    let bytes = pages(&driver, 1, 1);
    put(&driver, &file, 255, 1).await;
    for round in 0..rounds {
        let offset = driver.random() % 256 * P;
        let bytes = bytes.clone();
        file.write(offset, bytes, Durability::Visible)
            .await
            .unwrap();
        let offset = driver.random() % 256 * P;
        file.read(offset, page_buf(&driver)).await.unwrap();
        if round % 64 == 0 {
            file.sync().await.unwrap();
        }
    }
}

const SECTOR: usize = 512;
const MODEL_PAGES: usize = 6;

/// What each sector of a file may hold after a crash.
struct SectorModel {
    /// Values by sector; the first is durable, the others may or may not have survived.
    allowed: Vec<Vec<u8>>,
    /// How many of them no later sync proves, because one has failed.
    forsaken: Vec<usize>,
}

impl SectorModel {
    fn new(durable: &[u8]) -> SectorModel {
        let sectors = durable.chunks(SECTOR).map(|sector| vec![sector[0]]);
        let allowed: Vec<Vec<u8>> = sectors.collect();
        let forsaken = vec![0; allowed.len()];
        SectorModel { allowed, forsaken }
    }

    fn write(&mut self, first_page: usize, pages: usize, value: u8, synced: bool) {
        for sector in first_page * 8..(first_page + pages) * 8 {
            self.allowed[sector].push(value);
            if synced {
                self.prove(sector);
            }
        }
    }

    /// The newest value is durable: no older one comes back.
    fn prove(&mut self, sector: usize) {
        let values = &mut self.allowed[sector];
        values.drain(..values.len() - 1);
        self.forsaken[sector] = 0;
    }

    fn sync(&mut self, failed: bool) {
        for sector in 0..self.allowed.len() {
            if failed {
                self.forsaken[sector] = self.allowed[sector].len();
            } else if self.allowed[sector].len() > self.forsaken[sector] {
                self.prove(sector);
            }
        }
    }

    fn check(&self, bytes: &[u8], seed: u64) {
        for (number, (sector, allowed)) in bytes.chunks(SECTOR).zip(&self.allowed).enumerate() {
            assert!(sector.iter().all(|byte| *byte == sector[0]));
            let value = sector[0];
            assert!(
                allowed.contains(&value),
                "seed={seed} sector={number} {value} {allowed:?}"
            );
        }
    }
}

/// Random writes and syncs, some failing, in several lives of one file.
#[test]
fn after_any_crash_every_sector_holds_what_it_may() {
    let failing = DiskFaults {
        sync_error: 1000,
        ..DiskFaults::default()
    };
    for seed in 0..200 {
        let universe = Universe::new(seed);
        let disk = universe.disk("d");
        let mut value = 0;
        disk.write_file("f", &[0; MODEL_PAGES * PAGE]).unwrap();
        for _life in 0..4 {
            let mut model = SectorModel::new(&disk.read_file("f").unwrap());
            let driver = universe.driver("d", ShardId(0));
            let life = universe.run_until(async {
                let file = driver.open("f", OpenMode::Existing).await.unwrap();
                for _step in 0..driver.random() % 30 {
                    if driver.random().is_multiple_of(4) {
                        let fails = driver.random().is_multiple_of(3);
                        disk.set_faults(if fails {
                            failing.clone()
                        } else {
                            DiskFaults::default()
                        });
                        assert_eq!(file.sync().await.is_err(), fails);
                        model.sync(fails);
                        continue;
                    }
                    let first_page = driver.random() as usize % MODEL_PAGES;
                    let count = 1 + driver.random() as usize % (MODEL_PAGES - first_page);
                    value += 1;
                    let synced = driver.random().is_multiple_of(4);
                    let durability = match synced {
                        true => Durability::Synced,
                        false => Durability::Visible,
                    };
                    let bytes = pages(&driver, count, value);
                    let offset = first_page as u64 * P;
                    file.write(offset, bytes, durability).await.unwrap();
                    model.write(first_page, count, value, synced);
                }
            });
            life.unwrap();
            disk.power_cut();
            model.check(&disk.read_file("f").unwrap(), seed);
        }
    }
}

#[test]
fn a_lock_does_not_outlive_a_process_that_another_disk_took_along() {
    let (universe, disk, process, _driver) = stage(23);
    let other = universe.disk("other");
    let _guard = process.try_lock(&other).unwrap();
    disk.power_cut();
    assert!(universe.process().try_lock(&other).is_ok());
}

#[test]
fn a_read_buffer_of_a_failed_read_is_poisoned() {
    let faults = DiskFaults {
        read_error: 1000,
        ..DiskFaults::default()
    };
    let (_, _, byte) = with_faults(24, faults, async |driver, file| {
        let buf = page_buf(driver);
        file.read(0, buf).await.map(drop).unwrap_err();
        page_buf(driver)[0]
    });
    assert_eq!(byte, 0xDB);
}
