//! Payloads of which a part is in the remote only: cuts, clones and copy-on-write reads over it,
//! and reads while it goes. Contract sections 2, 3 and 6, scenarios 2, 10, 27, 48, 60, 66, 67, 70
//! and 71.

mod common;

use common::*;
use ringstore::{Config, ErrorKind, ExtentKind, PayloadId, RemoteConfig, Store};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A store of one shard whose bucket is a directory, and which keeps nothing that it has read.
struct Rig {
    dirs: [tempfile::TempDir; 2],
}

impl Rig {
    fn new() -> Rig {
        Rig {
            dirs: [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()],
        }
    }

    fn bucket(&self) -> PathBuf {
        self.dirs[1].path().join("bucket")
    }

    fn config(&self) -> Config {
        let mut config = Setup::tiny(best_driver(), 1).config(&self.dirs[0].path().join("store"));
        config.read_buffer_bytes = 0;
        config.prefetch_bytes_max = 0;
        config.seal_after = Duration::from_millis(200);
        config.remote = Some(RemoteConfig::Dir(self.bucket()));
        config
    }

    async fn open(&self) -> Store {
        open(self.config()).await.unwrap()
    }

    async fn crash(&self, store: Store) -> Store {
        drop(store);
        self.open().await
    }
}

async fn write(store: &Store, name: &str, offset: u64, data: &[u8]) {
    let data = bytes::Bytes::copy_from_slice(data);
    store.write_at(&id(name), offset, data).await.unwrap();
}

async fn fetched(store: &Store) -> u64 {
    store.stats().await.unwrap().remote_read_bytes
}

/// Where the bytes of a payload are, without holes.
async fn kinds(store: &Store, id: &PayloadId) -> Vec<ExtentKind> {
    let extents = store.extents(id, 0, 1 << 40).await.unwrap();
    let mut kinds: Vec<_> = extents.iter().map(|extent| extent.kind).collect();
    kinds.retain(|kind| *kind != ExtentKind::Hole);
    kinds.dedup();
    kinds
}

// scenario 2, scenario 10
// S-4, S-10
#[test]
fn what_is_not_there_costs_no_request() {
    let rig = Rig::new();
    run(async {
        let store = rig.open().await;
        write(&store, "a", 0, &pattern(1, 50_000)).await;
        store.truncate(&id("a"), 90_000).await.unwrap();
        store.evict(&id("a")).await.unwrap();
        let before = fetched(&store).await;
        for away in [false, true] {
            if away {
                std::fs::rename(rig.bucket(), rig.dirs[1].path().join("away")).unwrap();
            }
            let end = store.read_at(&id("a"), 90_000, 10).await.unwrap();
            assert!(end.is_empty());
            let hole = store.read_at(&id("a"), 60_000, 5000).await.unwrap();
            assert!(hole.into_bytes().iter().all(|byte| *byte == 0));
            assert_eq!(store.size(&id("a")).await.unwrap(), 90_000);
            assert_eq!(kinds(&store, &id("a")).await, [ExtentKind::Remote]);
            let none = store.read_at(&id("none"), 0, 10).await;
            assert_kind(none, ErrorKind::NotFound);
            assert_eq!(store.list(None, 9).await.unwrap(), [id("a")]);
        }
        assert_eq!(fetched(&store).await, before);
        drop(store);
    });
}

// scenario 27
// S-6, S-31
#[test]
fn reads_go_on_while_what_they_read_is_evicted() {
    let rig = Rig::new();
    run_threaded(async {
        let store = rig.open().await;
        let data = pattern(27, 600_000);
        write(&store, "a", 0, &data).await;
        let readers: Vec<_> = (0..4)
            .map(|n| {
                let (store, data) = (store.clone(), data.clone());
                tokio::spawn(async move {
                    let mut rng = Rng(n);
                    for _ in 0..150 {
                        let from = rng.edgy(590_000) as usize;
                        let read = store.read_at(&id("a"), from as u64, 9000).await.unwrap();
                        assert_bytes(&read.into_bytes(), &data[from..from + 9000], from);
                    }
                })
            })
            .collect();
        let mut evicted = 0;
        for round in 0..6 {
            evicted += u64::from(store.evict(&id("a")).await.unwrap() > 0);
            // The same bytes in another place, and so local again.
            let from = round * 100_000;
            write(&store, "a", from as u64, &data[from..from + 100_000]).await;
            store.flush(&id("a")).await.unwrap();
        }
        for reader in readers {
            reader.await.unwrap();
        }
        assert!(evicted > 3, "only {evicted} evictions found something");
        assert_payload(&store, &id("a"), &data).await;
        store.close().await.unwrap();
    });
}

// scenario 48
// S-5, S-7
#[test]
fn what_is_cut_off_evicted_bytes_stays_cut_off() {
    let rig = Rig::new();
    run(async {
        let mut store = rig.open().await;
        let mut model = pattern(48, 300_000).to_vec();
        write(&store, "a", 0, &model).await;
        for evict_first in [true, false] {
            if evict_first {
                store.evict(&id("a")).await.unwrap();
            }
            let size = model.len() as u64;
            store.truncate(&id("a"), size / 2).await.unwrap();
            store.evict(&id("a")).await.unwrap();
            // Until the cleaner has been past what was cut off.
            for round in 0..20 {
                write(&store, "churn", 0, &pattern(round, 100_000)).await;
            }
            store.flush_all().await.unwrap();
            store = rig.crash(store).await;
            assert_eq!(store.size(&id("a")).await.unwrap(), size / 2);
            store.truncate(&id("a"), size).await.unwrap();
            model[size as usize / 2..].fill(0);
            assert_payload(&store, &id("a"), &model).await;
        }
        store.close().await.unwrap();
    });
}

// scenario 66, scenario 67
// S-11, S-13
#[test]
fn a_clone_of_dirty_flushed_evicted_and_hole_ranges_outlives_its_source() {
    let rig = Rig::new();
    run(async {
        let mut store = rig.open().await;
        let (a, clone) = (id("a"), id("clone"));
        let mut model = pattern(66, 200_000).to_vec();
        write(&store, "a", 0, &model).await;
        store.punch_hole(&a, 50_000, 20_000).await.unwrap();
        model_punch(&mut model, 50_000, 20_000);
        store.evict(&a).await.unwrap();
        for (tag, offset) in [(1, 100_000), (2, 150_000)] {
            model_write(&mut model, offset, &pattern(tag, 10_000));
            write(&store, "a", offset as u64, &pattern(tag, 10_000)).await;
            if tag == 1 {
                store.flush(&a).await.unwrap();
            }
        }
        let before = store.stats().await.unwrap();
        store.copy(&a, &clone).await.unwrap();
        let after = store.stats().await.unwrap();
        assert_eq!(after.remote_read_bytes, before.remote_read_bytes);
        assert_eq!(after.written_bytes, before.written_bytes);
        let extents = store.extents(&a, 0, 1 << 40).await.unwrap();
        assert_eq!(store.extents(&clone, 0, 1 << 40).await.unwrap(), extents);
        assert!(extents.iter().any(|it| it.kind == ExtentKind::Remote));
        assert_payload(&store, &clone, &model).await;
        write(&store, "a", 0, &[7; 5000]).await;
        store.truncate(&a, 60_000).await.unwrap();
        assert_payload(&store, &clone, &model).await;
        store.delete(&a).await.unwrap();
        store.evict(&clone).await.unwrap();
        for round in 0..20 {
            write(&store, "churn", 0, &pattern(round, 100_000)).await;
        }
        store.drain_uploads().await.unwrap();
        for _ in 0..2 {
            store = rig.crash(store).await;
            assert!(!store.exists(&a).await.unwrap());
            assert_payload(&store, &clone, &model).await;
        }
        store.close().await.unwrap();
    });
}

async fn cow(store: &Store, upper: &str, lower: &str, len: usize) -> bytes::Bytes {
    let (upper, lower) = (id(upper), id(lower));
    let read = store.read_with_cow_source(&upper, &lower, 0, len);
    read.await.unwrap().into_bytes()
}

/// A payload's size, and how much there is to flush and to look up.
async fn state_of(store: &Store, name: &str) -> (u64, u64, u64) {
    let stats = store.stats().await.unwrap();
    let size = store.size(&id(name)).await.unwrap();
    (size, stats.unsynced_bytes, stats.extents)
}

// scenario 70
// S-14
#[test]
fn a_cow_read_takes_the_payloads_own_bytes_from_the_remote() {
    let rig = Rig::new();
    run(async {
        let mut store = rig.open().await;
        let mut model = pattern(1, 60_000).to_vec();
        write(&store, "lower", 0, &model).await;
        for (tag, offset, len) in [(2, 100, 50), (3, 8192, 20_000), (4, 59_990, 300)] {
            model_write(&mut model, offset, &pattern(tag, len));
            write(&store, "upper", offset as u64, &pattern(tag, len)).await;
        }
        store.punch_hole(&id("upper"), 40_000, 1000).await.unwrap();
        model_punch(&mut model, 40_000, 1000);
        for (upper, lower) in [(true, false), (false, true), (true, true)] {
            for (name, is_cold) in [("upper", upper), ("lower", lower)] {
                if is_cold {
                    store.evict(&id(name)).await.unwrap();
                }
            }
            let before = fetched(&store).await;
            let state = state_of(&store, "upper").await;
            let found = cow(&store, "upper", "lower", 100_000).await;
            assert_bytes(&found, &model, (upper, lower));
            assert!(fetched(&store).await > before, "nothing had to be fetched");
            // It is a read: nothing has changed by it, but that what was fetched may be here now.
            assert_eq!(state_of(&store, "upper").await, state);
            store = rig.crash(store).await;
            let found = cow(&store, "upper", "lower", 100_000).await;
            assert_bytes(&found, &model, "after a restart");
        }
        store.close().await.unwrap();
    });
}

// scenario 71
// S-14, S-25
#[test]
fn a_cow_read_over_a_cold_source_fetches_it_or_says_that_it_cannot() {
    let rig = Rig::new();
    run(async {
        let store = rig.open().await;
        let base = pattern(71, 30_000);
        write(&store, "lower", 0, &base).await;
        store.evict(&id("lower")).await.unwrap();
        write(&store, "upper", 0, &pattern(2, 100)).await;
        let mut model = base.to_vec();
        model_write(&mut model, 0, &pattern(2, 100));
        // Before anything was fetched, which would be kept for the next time.
        let away = rig.dirs[1].path().join("away");
        std::fs::rename(rig.bucket(), &away).unwrap();
        // What the payload itself has can be had, and the rest is an error and no zeros.
        let own = cow(&store, "upper", "lower", 100).await;
        assert_bytes(&own, &model[..100], "its own");
        let (upper, lower) = (id("upper"), id("lower"));
        let read = store.read_with_cow_source(&upper, &lower, 0, 20_000).await;
        assert_kind(read, ErrorKind::Unavailable);
        let alone = cow(&store, "upper", "none", 50_000).await;
        assert_bytes(&alone, &model[..100], "no source");
        std::fs::rename(&away, rig.bucket()).unwrap();
        let mut tries = 0;
        let cold = loop {
            match store.read_with_cow_source(&upper, &lower, 0, 50_000).await {
                Ok(cold) => break cold.into_bytes(),
                Err(error) => assert_kind::<()>(Err(error), ErrorKind::Unavailable),
            }
            tries += 1;
            assert!(tries < 600, "the remote is back");
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        assert_bytes(&cold, &model, "cold");
        drop(store);
    });
}

/// Bytes of all objects of a bucket.
fn object_bytes(bucket: &Path) -> u64 {
    let objects = std::fs::read_dir(bucket).unwrap();
    let sizes = objects.filter_map(|entry| entry.unwrap().metadata().ok());
    sizes.map(|meta| meta.len()).sum()
}

// scenario 60
// S-9, S-32
#[test]
fn creating_and_deleting_for_ever_grows_no_bucket() {
    let rig = Rig::new();
    run(async {
        let mut most = 0;
        for opening in 0..4 {
            let store = rig.open().await;
            for n in 0..25_000u64 {
                let name = id(&format!("p{}", n % 100));
                store.write_at(&name, 0, "x".into()).await.unwrap();
                store.delete(&name).await.unwrap();
                if n % 5000 == 4999 {
                    store.drain_uploads().await.unwrap();
                    most = most.max(object_bytes(&rig.bucket()));
                }
            }
            assert!(store.list(None, 1).await.unwrap().is_empty());
            store.close().await.unwrap();
            // Two segments, two checkpoints, and what manifests are kept.
            let held = object_bytes(&rig.bucket());
            assert!(held < 1 << 20, "opening {opening} leaves {held} bytes");
        }
        println!("{most} bytes at most");
        assert!(most < 64 << 20, "{most}");
    });
}
