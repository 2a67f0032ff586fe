//! What needs a disk that fails or a crash at a chosen I/O, on the simulator: crashes at *every*
//! I/O of small programs, disks that refuse, and what happens while the device is at it. Contract
//! sections 2 to 4 and 6, scenarios 26, 31 to 34, 36, 37, 40, 50, 59, 73, 74, 118 and 119. Random
//! plans are for the simulator's own tests.

mod common;

use common::*;
use ringstore::sim::{Faults, Simulation, Stuck};
use ringstore::{Config, Error, ErrorKind, HealthStatus, PayloadId, Store};
use std::cell::Cell;
use std::time::Duration;

/// The directory, and so the disk, of every store here.
const DIR: &str = "store";

/// A machine, and how its store is opened.
struct Rig {
    machine: Simulation,
    config: Config,
}

impl Rig {
    fn new(seed: u64, shards: usize) -> Rig {
        let mut config = Config::new(DIR);
        config.shards = Some(shards);
        config.segment_bytes = 64 << 10;
        config.dirty_bytes_max = (1 << 20) * shards as u64;
        Rig {
            machine: Simulation::new(seed),
            config,
        }
    }

    fn run<F: Future>(&self, future: F) -> F::Output {
        self.machine.run(future).unwrap()
    }

    fn try_open(&self) -> Result<Store, Error> {
        self.run(self.machine.open(self.config.clone()))
    }

    fn open(&self) -> Store {
        self.try_open().unwrap()
    }

    /// Every I/O that `change` names fails from now on.
    fn fail(&self, change: impl FnOnce(&mut Faults)) {
        let mut faults = Faults::default();
        change(&mut faults);
        self.machine.set_faults(DIR, &faults);
    }

    fn repair(&self) {
        self.machine.set_faults(DIR, &Faults::default());
    }

    /// The power fails, and the store is opened again.
    fn cut_power(&self, store: Store) -> Store {
        drop(store);
        self.machine.stop_at_io(None);
        self.machine.cut_power();
        self.repair();
        self.open()
    }
}

/// Runs `program` on a prepared store, each time with the power cut as one more I/O is about to
/// complete, and `check` on what is left; the last time it comes to its end. Says how often.
fn cut_at_every_io(
    shards: usize,
    seed: u64,
    prepare: impl AsyncFn(&Store),
    program: impl AsyncFn(&Rig, &Store, &Cell<u64>),
    check: impl AsyncFn(&Store, u64),
) -> u64 {
    for io in 1.. {
        let rig = Rig::new(seed.wrapping_add(io), shards);
        let store = rig.open();
        rig.run(prepare(&store));
        let done = Cell::new(0);
        rig.machine.stop_at_io(Some(rig.machine.ios() + io));
        let end = rig.machine.run(program(&rig, &store, &done));
        let store = rig.cut_power(store);
        rig.run(check(&store, done.get()));
        // What has been recovered once is recovered again.
        let store = rig.cut_power(store);
        rig.run(async {
            check(&store, done.get()).await;
            assert!(store.verify().await.unwrap().corrupt.is_empty());
            assert_eq!(store.stats().await.unwrap().batches_lost, 0);
            store.close().await.unwrap();
        });
        match end {
            Ok(()) => return io,
            Err(stop) => assert_eq!(stop, Stuck::AtIo),
        }
    }
    unreachable!("the loop above has no end")
}

fn part(n: u64) -> PayloadId {
    id(&format!("part-{n}"))
}

async fn put(store: &Store, name: &PayloadId, tag: u64, len: usize) {
    store.write_at(name, 0, pattern(tag, len)).await.unwrap();
}

/// Which of some states a payload is in; `None`: it does not exist.
async fn state_of(store: &Store, name: &PayloadId, states: &[(u64, usize)]) -> Option<usize> {
    let found = match read_all(store, name).await {
        Ok(found) => found,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
            return None;
        }
    };
    let state = states
        .iter()
        .position(|&(tag, len)| found == pattern(tag, len));
    Some(state.unwrap_or_else(|| panic!("{name}: {} bytes of no known state", found.len())))
}

// scenario 31, scenario 32
// S-15, S-17
#[test]
fn what_was_flushed_survives_a_power_cut_at_once() {
    for (seed, len) in (0..12).flat_map(|seed| [4096, 64 * KIB, 8 * MIB].map(|len| (seed, len))) {
        let rig = Rig::new(seed, 1 + seed as usize % 3);
        let store = rig.open();
        rig.run(async {
            put(&store, &part(0), seed, len).await;
            store.flush(&part(0)).await.unwrap();
        });
        // At once, and when everything has come to rest.
        if seed % 2 == 1 {
            rig.run(rig.machine.sleep(Duration::from_millis(200)));
        }
        let store = rig.cut_power(store);
        rig.run(assert_payload(&store, &part(0), &pattern(seed, len)));
    }
}

/// Everything that changes a payload or promises durability.
async fn refusals(store: &Store, name: &PayloadId) -> Vec<(&'static str, Result<(), Error>)> {
    let other = id("other");
    vec![
        ("write", store.write_at(name, 0, "x".into()).await),
        ("punch", store.punch_hole(name, 0, 100).await),
        ("truncate", store.truncate(name, 10).await),
        ("delete", store.delete(name).await),
        ("copy", store.copy(name, &other).await.map(|_| ())),
        ("flush", store.flush(name).await.map(|_| ())),
        ("flush_all", store.flush_all().await),
    ]
}

// scenario 33
// S-19, S-28
#[test]
fn a_failed_sync_fails_every_flush_that_it_covers_and_stays_an_error() {
    type Change = fn(&mut Faults);
    let changes: [Change; 2] = [|f| f.sync_error = 1000, |f| f.write_error = 1000];
    for (seed, change) in (0..10).flat_map(|seed| changes.map(|change| (seed, change))) {
        let rig = Rig::new(seed, 1);
        let store = rig.open();
        rig.run(async {
            for n in 0..16 {
                put(&store, &part(n), n, 3000).await;
            }
            store.flush_all().await.unwrap();
        });
        rig.run(async {
            for n in 0..16 {
                put(&store, &part(n), 100 + n, 5000).await;
            }
        });
        rig.fail(change);
        let flushes = (0..16).map(async |n| store.flush(&part(n)).await);
        for result in rig.run(futures_util::future::join_all(flushes)) {
            assert_kind(result, ErrorKind::Poisoned);
        }
        // The disk is well again: what was promised on it before is not.
        rig.repair();
        rig.run(async {
            for n in 0..16 {
                for (what, result) in refusals(&store, &part(n)).await {
                    let error = result.expect_err(what);
                    assert_eq!(error.kind(), ErrorKind::Poisoned, "{what}: {error}");
                }
                // Whatever was refused has changed nothing, and reads go on.
                assert_payload(&store, &part(n), &pattern(100 + n, 5000)).await;
            }
            assert_eq!(store.stats().await.unwrap().shards_poisoned, 1);
            let health = store.health().await;
            assert_eq!(health.status, HealthStatus::Unhealthy, "{health:?}");
            assert_kind(store.clone().close().await, ErrorKind::Poisoned);
        });
        let store = rig.cut_power(store);
        rig.run(async {
            for n in 0..16 {
                let states = [(n, 3000), (100 + n, 5000)];
                assert!(state_of(&store, &part(n), &states).await.is_some());
            }
            assert_eq!(store.health().await.status, HealthStatus::Healthy);
            put(&store, &part(0), 7, 100).await;
            store.flush(&part(0)).await.unwrap();
        });
    }
}

// scenario 34
// S-19
#[test]
fn whichever_sync_fails_no_later_flush_of_new_bytes_succeeds() {
    // Enough to seal three segments, so that one of the I/Os is a seal's, whichever it is.
    const ROUNDS: u64 = 12;
    const LEN: usize = 20_000;
    for io in 1.. {
        let rig = Rig::new(io, 1);
        let store = rig.open();
        let flushed = Cell::new(0);
        rig.machine.stop_at_io(Some(rig.machine.ios() + io));
        let end = rig.machine.run(async {
            for round in 1..=ROUNDS {
                put(&store, &part(0), round, LEN).await;
                store.flush(&part(0)).await.unwrap();
                flushed.set(round);
            }
        });
        rig.machine.stop_at_io(None);
        if end == Ok(()) {
            assert!(io > 30, "only {io} I/Os");
            return;
        }
        rig.fail(|faults| (faults.sync_error, faults.write_error) = (1000, 1000));
        rig.run(async {
            // It may be refused already.
            let written = store.write_at(&part(0), 0, pattern(99, LEN)).await;
            let result = match written {
                Ok(()) => store.flush(&part(0)).await.map(|_| ()),
                Err(error) => Err(error),
            };
            // `Full` if it needed a file: one that cannot be made promises nothing.
            let error = result.expect_err("no sync can have succeeded");
            let kinds = [ErrorKind::Poisoned, ErrorKind::Full];
            assert!(kinds.contains(&error.kind()), "{error}");
        });
        let store = rig.cut_power(store);
        rig.run(async {
            let rounds: Vec<_> = (1..=ROUNDS).chain([99]).map(|tag| (tag, LEN)).collect();
            let state = state_of(&store, &part(0), &rounds).await;
            let reached = state.map_or(0, |state| state as u64 + 1);
            assert!(reached >= flushed.get(), "{reached} of {flushed:?}");
        });
    }
}

// scenario 34
// S-19
#[test]
fn when_the_disk_fails_every_flush_under_way_is_told_the_truth() {
    // Enough for six seals, so that the flushes of several clients wait for one again and again.
    const CLIENTS: u64 = 6;
    const ROUNDS: u64 = 8;
    const LEN: usize = 9000;
    for io in 1.. {
        let rig = Rig::new(io, 1);
        let store = rig.open();
        let flushed: Vec<Cell<u64>> = (0..CLIENTS).map(|_| Cell::new(0)).collect();
        let failed = Cell::new(0);
        let client = async |n: u64| {
            for round in 1..=ROUNDS {
                let data = pattern(n * 100 + round, LEN);
                let written = store.write_at(&part(n), 0, data).await;
                let done = match written {
                    Ok(()) => store.flush(&part(n)).await.map(drop),
                    Err(error) => Err(error),
                };
                let Err(error) = done else {
                    flushed[n as usize].set(round);
                    continue;
                };
                // `Full` if it needed a file: one that cannot be made promises nothing.
                let kinds = [ErrorKind::Poisoned, ErrorKind::Full];
                assert!(kinds.contains(&error.kind()), "{error}");
                return failed.set(failed.get() + 1);
            }
        };
        let mut clients = Box::pin(futures_util::future::join_all((0..CLIENTS).map(client)));
        rig.machine.stop_at_io(Some(rig.machine.ios() + io));
        let ended = rig.machine.run(clients.as_mut()).is_ok();
        rig.machine.stop_at_io(None);
        if ended {
            assert!(io > 100, "only {io} I/Os");
            return;
        }
        rig.fail(|faults| (faults.sync_error, faults.write_error) = (1000, 1000));
        rig.run(clients.as_mut());
        drop(clients);
        let done = flushed.iter().filter(|it| it.get() == ROUNDS).count() as u64;
        assert_eq!(failed.get() + done, CLIENTS, "whoever was not done is told");
        let store = rig.cut_power(store);
        rig.run(async {
            for (n, flushed) in (0..).zip(&flushed) {
                let rounds: Vec<_> = (1..=ROUNDS).map(|tag| (n * 100 + tag, LEN)).collect();
                let state = state_of(&store, &part(n), &rounds).await;
                let reached = state.map_or(0, |state| state as u64 + 1);
                assert!(reached >= flushed.get(), "{n}: {reached} of {flushed:?}");
            }
        });
    }
}

/// Cuts, punches, deletes and copies, each of a payload that was flushed.
async fn mark_all(store: &Store) -> Vec<Result<(), Error>> {
    vec![
        store.truncate(&part(0), 1000).await,
        store.punch_hole(&part(1), 0, 30_000).await,
        store.delete(&part(2)).await,
        store.copy(&part(4), &part(3)).await.map(drop),
    ]
}

/// Whether each of what [`mark_all`] does has happened; anything in between is a failure.
async fn marked(store: &Store) -> Vec<bool> {
    let old = |n| pattern(n, 30_000);
    let is_new = async |n, new: &[u8]| {
        let found = read_all(store, &part(n)).await.unwrap();
        assert!(found == old(n) || found == new, "{n}: neither old nor new");
        found == new
    };
    let deleted = !store.exists(&part(2)).await.unwrap();
    if !deleted {
        assert_payload(store, &part(2), &old(2)).await;
    }
    vec![
        is_new(0, &old(0)[..1000]).await,
        is_new(1, &[0; 30_000]).await,
        deleted,
        is_new(3, &old(4)).await,
    ]
}

// scenario 50, scenario 59
// S-7, S-8, S-9, S-19
#[test]
fn a_change_whose_record_is_not_written_leaves_the_payload_as_it_was() {
    let mut outcomes = [0; 2];
    for seed in 0..60 {
        let rig = Rig::new(seed, 1);
        let store = rig.open();
        rig.run(async {
            for n in 0..5 {
                put(&store, &part(n), n, 30_000).await;
            }
            store.flush_all().await.unwrap();
        });
        rig.fail(|faults| faults.write_error = 1000);
        rig.run(async {
            let done = mark_all(&store).await.iter().all(Result::is_ok);
            assert_eq!(marked(&store).await, [done; 4], "visible or refused");
            assert_kind(store.flush_all().await, ErrorKind::Poisoned);
            // Refused from now on, with no effect.
            assert_kind(store.truncate(&part(4), 1).await, ErrorKind::Poisoned);
            assert_kind(store.delete(&part(4)).await, ErrorKind::Poisoned);
            assert_payload(&store, &part(4), &pattern(4, 30_000)).await;
        });
        let store = rig.cut_power(store);
        rig.run(async {
            let marked = marked(&store).await;
            // Batches are applied in order: what came later is not there without what came before.
            assert!(
                marked.is_sorted_by(|before, after| before >= after),
                "{marked:?}"
            );
            outcomes[usize::from(marked[0])] += 1;
            assert!(store.verify().await.unwrap().corrupt.is_empty());
        });
    }
    // A failed write may have been applied, or not.
    assert!(outcomes.iter().all(|count| *count > 5), "{outcomes:?}");
}

// scenario 36
// S-15
#[test]
fn a_flush_with_nothing_dirty_costs_no_io() {
    for shards in [1, 3] {
        let rig = Rig::new(36, shards);
        let store = rig.open();
        rig.run(async {
            for n in 0..6 {
                put(&store, &part(n), n, 10_000).await;
            }
            store.flush_all().await.unwrap();
            // What upkeep does of its own accord is over.
            rig.machine.sleep(Duration::from_secs(60)).await;
            let before = rig.machine.ios();
            for _ in 0..20 {
                for n in 0..6 {
                    store.flush(&part(n)).await.unwrap();
                }
                store.flush_all().await.unwrap();
            }
            rig.machine.sleep(Duration::from_secs(60)).await;
            assert_eq!(rig.machine.ios(), before);
            store.close().await.unwrap();
        });
    }
}

/// Changes a payload of two pages, by one of five means; returns what it holds then.
async fn change_by(store: &Store, means: u64) -> Vec<u8> {
    let (a, new) = (part(0), pattern(2, 8192));
    let mut bytes = pattern(1, 8192).to_vec();
    match means {
        0 => {
            store.write_at(&a, 0, new.slice(..4096)).await.unwrap();
            bytes[..4096].copy_from_slice(&new[..4096]);
        }
        1 => {
            store.punch_hole(&a, 100, 5000).await.unwrap();
            bytes[100..5100].fill(0);
        }
        2 => {
            store.truncate(&a, 100).await.unwrap();
            store.truncate(&a, 8192).await.unwrap();
            bytes[100..].fill(0);
        }
        3 => {
            store.delete(&a).await.unwrap();
            store.write_at(&a, 4096, new.slice(..4096)).await.unwrap();
            bytes = [&[0; 4096], &new[..4096]].concat();
        }
        _ => {
            store.copy(&part(1), &a).await.unwrap();
            bytes = new.to_vec();
        }
    }
    bytes
}

// scenario 26
// S-6
#[test]
fn what_changes_while_the_device_reads_is_what_the_next_read_sees() {
    let mut raced = [0; 5];
    for (seed, means) in (0..60).flat_map(|seed| (0..5).map(move |means| (seed, means))) {
        let rig = Rig::new(seed, 1 + seed as usize % 2);
        let store = rig.open();
        rig.run(async {
            put(&store, &part(0), 1, 8192).await;
            put(&store, &part(1), 2, 8192).await;
            store.close().await.unwrap();
        });
        // Nothing of it is in memory from here on.
        let store = rig.open();
        rig.run(async {
            // There is a segment to write to, so that a change waits for nothing.
            put(&store, &part(2), 3, 100).await;
            store.flush(&part(2)).await.unwrap();
            let changed = Cell::new(false);
            let reading = async {
                match store.read_at(&part(0), 0, 8192).await {
                    Ok(read) => (read.into_bytes(), changed.get()),
                    // Behind the deletion there was nothing to read.
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
                        (Default::default(), false)
                    }
                }
            };
            let changing = async {
                // Less than the device takes.
                rig.machine.sleep(Duration::from_micros(seed % 40)).await;
                let new = change_by(&store, means).await;
                changed.set(true);
                new
            };
            let ((read, behind), new) = futures_util::future::join(reading, changing).await;
            let old = pattern(1, 8192);
            raced[means as usize] += u64::from(behind && read == old);
            for _ in 0..2 {
                assert_payload(&store, &part(0), &new).await;
            }
            store.close().await.unwrap();
        });
    }
    assert!(raced.iter().all(|count| *count > 10), "{raced:?}");
}

// scenario 37
// S-5, S-17
#[test]
fn a_crash_in_an_overwrite_leaves_the_old_bytes_or_the_new() {
    let cuts = cut_at_every_io(
        1,
        37,
        async |store| {
            put(store, &part(0), 1, 50_000).await;
            store.flush(&part(0)).await.unwrap();
        },
        async |_, store, done| {
            for round in 2..=6 {
                put(store, &part(0), round, 50_000).await;
                store.flush(&part(0)).await.unwrap();
                done.set(round);
            }
        },
        async |store, done| {
            let states: Vec<_> = (1..=6).map(|tag| (tag, 50_000)).collect();
            let state = state_of(store, &part(0), &states).await.unwrap();
            assert!(state as u64 + 1 >= done, "{state} of {done}");
        },
    );
    assert!(cuts > 10, "{cuts}");
}

// scenario 40
// S-5, S-17
#[test]
fn unflushed_bytes_never_stand_under_another_name() {
    let states = |n| [(n, 100), (n, 9000)];
    let cuts = cut_at_every_io(
        2,
        40,
        async |_| {},
        async |_, store, _| {
            for n in 0..10 {
                put(store, &part(n), n, 100).await;
                put(store, &part(n), n, 9000).await;
            }
            store.flush_all().await.unwrap();
        },
        async |store, _| {
            for n in 0..10 {
                state_of(store, &part(n), &states(n)).await;
            }
        },
    );
    assert!(cuts > 5, "{cuts}");
}

// scenario 73
// S-11, S-17
#[test]
fn a_crash_between_the_steps_of_a_clone_leaves_the_whole_old_target_or_the_whole_new() {
    // Several pairs, so that some are on one shard and some on two.
    const PAIRS: u64 = 6;
    let target = |n| id(&format!("target-{n}"));
    for shards in [1, 3] {
        let cuts = cut_at_every_io(
            shards,
            73,
            async |store| {
                for n in 0..PAIRS {
                    put(store, &part(n), n, 9000).await;
                    put(store, &target(n), 100 + n, 30_000).await;
                }
                store.flush_all().await.unwrap();
            },
            async |_, store, done| {
                for n in 0..PAIRS {
                    store.copy(&part(n), &target(n)).await.unwrap();
                    store.flush(&target(n)).await.unwrap();
                    done.set(n + 1);
                }
            },
            async |store, done| {
                for n in 0..PAIRS {
                    assert_payload(store, &part(n), &pattern(n, 9000)).await;
                    let states = [(100 + n, 30_000), (n, 9000)];
                    let state = state_of(store, &target(n), &states).await;
                    let least = usize::from(n < done);
                    assert!(state.is_some_and(|state| state >= least), "{n}: {state:?}");
                }
                assert_eq!(store.list(None, 100).await.unwrap().len() as u64, 2 * PAIRS);
            },
        );
        println!("{cuts} cuts");
        assert!(cuts > PAIRS, "{cuts}");
    }
}

// scenario 119
// S-13, S-17, S-32
#[test]
fn a_crash_at_any_step_of_cleaning_loses_and_doubles_nothing() {
    const PAGES: u64 = 24;
    let (kept, clone, churn) = (id("kept"), id("clone"), id("churn"));
    let moved = Cell::new(0);
    let model: Vec<u8> = (0..PAGES).flat_map(|page| pattern(page, 4096)).collect();
    let cuts = cut_at_every_io(
        1,
        119,
        async |store| {
            // Between the pages that stay stand those that go.
            for page in 0..PAGES {
                for name in [&kept, &churn] {
                    let write = store.write_at(name, page * 4096, pattern(page, 4096));
                    write.await.unwrap();
                }
            }
            store.copy(&kept, &clone).await.unwrap();
            store.flush_all().await.unwrap();
        },
        async |rig, store, done| {
            store.delete(&churn).await.unwrap();
            store.flush_all().await.unwrap();
            done.set(1);
            // It cleans, writes checkpoints and gives files back, by itself, and comes to rest.
            rig.machine.sleep(Duration::from_secs(20)).await;
            let stats = store.stats().await.unwrap();
            let files = stats.segments + stats.segments_free;
            assert!(files <= 6, "{files} files for {} bytes", stats.live_bytes);
            moved.set(stats.cleaned_bytes);
        },
        async |store, done| {
            assert_payload(store, &kept, &model).await;
            assert_payload(store, &clone, &model).await;
            if done == 1 {
                assert!(!store.exists(&churn).await.unwrap());
            }
        },
    );
    println!("{cuts} cuts, {} bytes moved", moved.get());
    assert!(moved.get() > 0 && cuts > 20, "{cuts}");
}

// What others write while the cleaner moves takes more than it frees.
// S-9
#[test]
fn garbage_made_while_the_cleaner_moves_is_cleaned_too() {
    const PAGES: u64 = 128;
    let (kept, churn, large) = (id("kept"), id("churn"), id("large"));
    let rig = Rig::new(17, 1);
    let store = rig.open();
    rig.run(async {
        for page in 0..PAGES {
            for name in [&kept, &churn] {
                let write = store.write_at(name, page * 4096, pattern(page, 4096));
                write.await.unwrap();
            }
        }
        store.delete(&churn).await.unwrap();
        while store.stats().await.unwrap().cleaned_bytes == 0 {
            rig.machine.sleep(Duration::from_millis(1)).await;
        }
        // Some of what is moved comes to stand between it.
        for page in 0..4 * PAGES {
            let write = store.write_at(&large, page * 4096, pattern(page, 4096));
            write.await.unwrap();
        }
        store.flush_all().await.unwrap();
        store.delete(&large).await.unwrap();
        store.flush_all().await.unwrap();
        rig.machine.sleep(Duration::from_secs(60)).await;
        let stats = store.stats().await.unwrap();
        let held = (stats.segments + stats.segments_free) * rig.config.segment_bytes;
        let most = stats.live_bytes * 3 / 2 + 2 * rig.config.segment_bytes;
        assert!(held <= most, "{held} bytes of at most {most}");
        store.close().await.unwrap();
    });
}

// More extents than are lost as they are given up.
// S-32
#[test]
fn what_large_payloads_gave_up_comes_back() {
    const PAGES: u64 = 2000;
    let (large, clone, kept) = (id("large"), id("clone"), id("kept"));
    let rig = Rig::new(23, 1);
    let store = rig.open();
    rig.run(async {
        for page in 0..PAGES {
            // Two in turn, so that no extent continues the one before.
            for name in [&large, &kept] {
                let write = store.write_at(name, page * 4096, pattern(page, 4096));
                write.await.unwrap();
            }
        }
        store.copy(&large, &clone).await.unwrap();
        for page in (0..PAGES).step_by(100) {
            let write = store.write_at(&clone, page * 4096, pattern(page + 1, 4096));
            write.await.unwrap();
        }
        store.flush_all().await.unwrap();
        store.delete(&large).await.unwrap();
        store.truncate(&kept, 4096).await.unwrap();
        store.delete(&clone).await.unwrap();
        store.flush_all().await.unwrap();
        rig.machine.sleep(Duration::from_secs(20)).await;
        let stats = store.stats().await.unwrap();
        assert_eq!((stats.live_bytes, stats.extents), (4096, 1));
        let files = stats.segments + stats.segments_free;
        assert!(files <= 3, "{files} files");
        assert_payload(&store, &kept, &pattern(0, 4096)).await;
        store.close().await.unwrap();
    });
}

// scenario 118
// S-33
#[test]
fn opening_reads_the_checkpoint_and_the_tail_and_not_the_payloads() {
    let rig = Rig::new(118, 1);
    let mut opening = Vec::new();
    for mib in [1, 8] {
        let store = rig.open();
        rig.run(async {
            put(&store, &part(0), mib, mib as usize * MIB).await;
            store.flush_all().await.unwrap();
            store.close().await.unwrap();
        });
        let before = rig.machine.ios();
        let store = rig.open();
        let ios = rig.machine.ios() - before;
        let stats = rig.run(store.stats()).unwrap();
        rig.run(assert_payload(
            &store,
            &part(0),
            &pattern(mib, mib as usize * MIB),
        ));
        rig.run(store.close()).unwrap();
        // The head of every file, one page of its sixteen, says what it is.
        let files = stats.segments + stats.segments_free;
        println!("{mib} MiB: {ios} I/Os for {files} files");
        assert!(ios <= files + 40, "{ios} I/Os for {files} files");
        opening.push(files);
    }
    assert!(opening[1] > opening[0] + 80, "{opening:?}");
}

// scenario 74
// S-30
#[test]
fn a_full_disk_refuses_after_the_stall_and_serves_again_when_it_has_room() {
    let mut rig = Rig::new(74, 1);
    rig.config.stall_timeout = Duration::from_secs(5);
    let store = rig.open();
    rig.machine.set_capacity(DIR, Some(1 << 20));
    rig.run(async {
        let mut count = 0;
        let (waited, error) = loop {
            let began = rig.machine.now();
            match store
                .write_at(&part(count), 0, pattern(count, 40_000))
                .await
            {
                Ok(()) => count += 1,
                Err(error) => break (rig.machine.now() - began, error),
            }
        };
        assert_eq!(error.kind(), ErrorKind::Full, "{error}");
        assert!(waited >= rig.config.stall_timeout, "{waited:?}");
        assert!(!store.exists(&part(count)).await.unwrap(), "half a write");
        store.flush_all().await.unwrap();
        for n in 0..count {
            assert_payload(&store, &part(n), &pattern(n, 40_000)).await;
        }
        rig.machine.set_capacity(DIR, None);
        put(&store, &part(count), count, 40_000).await;
        store.flush(&part(count)).await.unwrap();
    });
}
