//! The remote tier, on real files: what is uploaded, evicted, read back and rebuilt.

mod common;

use bytes::Bytes;
use common::{id, run};
use ringstore::{
    Config, ErrorKind, ExtentKind, HealthStatus, PayloadId, RemoteConfig, RetentionPolicy, Store,
};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A small store whose remote is in memory, under a name of its own.
fn config(dir: &std::path::Path, bucket: &str) -> Config {
    let mut config = Config::new(dir);
    config.shards = Some(2);
    config.segment_bytes = 64 << 10;
    config.seal_after = Duration::from_millis(200);
    config.remote = Some(RemoteConfig::Memory(bucket.to_owned()));
    config
}

fn bytes(seed: u8, len: usize) -> Bytes {
    let byte = |index: usize| (index as u8).wrapping_mul(31) ^ (index >> 8) as u8 ^ seed;
    (0..len).map(byte).collect::<Vec<u8>>().into()
}

/// A store that has this payload.
async fn store_with(config: Config, name: &str, data: &Bytes) -> Store {
    let store = Store::open(config).await.unwrap();
    store.write_at(&id(name), 0, data.clone()).await.unwrap();
    store
}

async fn read(store: &Store, id: &PayloadId) -> Bytes {
    let size = store.size(id).await.unwrap();
    let read = store.read_at(id, 0, size as usize).await.unwrap();
    read.into_bytes()
}

// scenario 89: after a drain the bucket alone has everything
// scenario 110: an empty node has the same list, sizes, contents and clones; deleted stay deleted
// S-18
#[test]
fn bucket_alone_is_a_store() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    run(async {
        let store = Store::open(config(dirs[0].path(), "alone")).await.unwrap();
        for index in 0..20u8 {
            let name = id(&format!("p-{index}"));
            let data = bytes(index, 30_000 + usize::from(index) * 1111);
            store
                .write_at(&name, u64::from(index) * 500, data)
                .await
                .unwrap();
        }
        store.copy(&id("p-3"), &id("clone")).await.unwrap();
        store
            .write_at(&id("p-3"), 700, bytes(99, 5000))
            .await
            .unwrap();
        store.truncate(&id("p-5"), 100).await.unwrap();
        store.punch_hole(&id("p-6"), 4096, 8192).await.unwrap();
        store.delete(&id("p-7")).await.unwrap();
        store.drain_uploads().await.unwrap();
        let mut expected = Vec::new();
        for name in store.list(None, 100).await.unwrap() {
            expected.push((name.clone(), read(&store, &name).await));
        }
        assert_eq!(expected.len(), 20);
        drop(store);

        let store = Store::rebuild(config(dirs[1].path(), "alone"))
            .await
            .unwrap();
        let names = store.list(None, 100).await.unwrap();
        let known: Vec<PayloadId> = expected.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(names, known);
        for (name, content) in &expected {
            assert_eq!(&read(&store, name).await, content, "{name}");
        }
        let report = store.verify().await.unwrap();
        assert!(report.corrupt.is_empty());
        // The new node goes on where the old one was.
        store.write_at(&id("p-8"), 3, bytes(1, 9000)).await.unwrap();
        store.wait_remote(&id("p-8")).await.unwrap();
        assert!(store.flush(&id("p-8")).await.unwrap().finalized);
        store.close().await.unwrap();
    });
}

// scenario 80: evicted bytes come from the remote, also after a restart
// S-31
#[test]
fn evicted_bytes_come_back() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let data = bytes(7, 300_000);
        let store = store_with(config(dir.path(), "evicted"), "a", &data).await;
        let freed = store.evict(&id("a")).await.unwrap();
        assert!(freed >= 300_000, "{freed}");
        let remote: u64 = store
            .extents(&id("a"), 0, 1 << 20)
            .await
            .unwrap()
            .iter()
            .filter(|extent| extent.kind == ExtentKind::Remote)
            .map(|extent| extent.len)
            .sum();
        assert_eq!(remote, 300_000);
        assert_eq!(read(&store, &id("a")).await, data);
        store.close().await.unwrap();

        let store = Store::open(config(dir.path(), "evicted")).await.unwrap();
        assert_eq!(store.size(&id("a")).await.unwrap(), 300_000);
        assert_eq!(read(&store, &id("a")).await, data);
        store.close().await.unwrap();
    });
}

/// Opened without its remote, a store would be without its evicted bytes; it takes no harm.
#[test]
fn store_with_evicted_bytes_is_not_opened_without_its_remote() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let data = bytes(7, 300_000);
        let store = store_with(config(dir.path(), "left-out"), "a", &data).await;
        store.evict(&id("a")).await.unwrap();
        store.close().await.unwrap();

        let mut without = config(dir.path(), "left-out");
        without.remote = None;
        let error = Store::open(without).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("remote"), "{error}");

        let store = Store::open(config(dir.path(), "left-out")).await.unwrap();
        assert_eq!(read(&store, &id("a")).await, data);
        store.close().await.unwrap();
    });
}

// scenario 84: with a remote, a store that is written to far beyond its limit goes on
// S-29
#[test]
fn limit_is_kept_by_evicting() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let mut config = config(dir.path(), "limit");
        config.local_bytes_max = Some(2 << 20);
        config.dirty_bytes_max = 1 << 20;
        let store = Store::open(config).await.unwrap();
        for index in 0..100u8 {
            let name = id(&format!("p-{index}"));
            store
                .write_at(&name, 0, bytes(index, 100_000))
                .await
                .unwrap();
            let used = store.stats().await.unwrap().local_disk_used;
            // A segment for each shard, and two checkpoints of a few pages.
            assert!(
                used <= (2 << 20) + 2 * (64 << 10) + 2 * 2 * (16 << 10),
                "{used}"
            );
        }
        for index in 0..100u8 {
            let name = id(&format!("p-{index}"));
            assert_eq!(read(&store, &name).await, bytes(index, 100_000));
        }
        store.close().await.unwrap();
    });
}

// scenario 102: a store that was made without a remote uploads everything when it has one
#[test]
fn remote_that_comes_later_gets_everything() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    run(async {
        let mut local = config(dirs[0].path(), "later");
        local.remote = None;
        let store = Store::open(local).await.unwrap();
        for round in 0..30u8 {
            store
                .write_at(&id("a"), 0, bytes(round, 50_000))
                .await
                .unwrap();
        }
        store.close().await.unwrap();
        let store = Store::open(config(dirs[0].path(), "later")).await.unwrap();
        store.drain_uploads().await.unwrap();
        store.close().await.unwrap();
        let store = Store::rebuild(config(dirs[1].path(), "later"))
            .await
            .unwrap();
        assert_eq!(read(&store, &id("a")).await, bytes(29, 50_000));
        store.close().await.unwrap();
    });
}

// S-24: who has lost the remote is told so, and corrupts nothing
#[test]
fn old_engine_is_fenced() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    run(async {
        let old = Store::open(config(dirs[0].path(), "fenced")).await.unwrap();
        old.write_at(&id("a"), 0, bytes(1, 10_000)).await.unwrap();
        old.drain_uploads().await.unwrap();
        let new = Store::rebuild(config(dirs[1].path(), "fenced"))
            .await
            .unwrap();
        old.write_at(&id("a"), 0, bytes(2, 10_000)).await.unwrap();
        let error = old.wait_remote(&id("a")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Poisoned, "{error}");
        assert_eq!(read(&new, &id("a")).await, bytes(1, 10_000));
        new.write_at(&id("a"), 5, bytes(3, 10_000)).await.unwrap();
        new.drain_uploads().await.unwrap();
        new.close().await.unwrap();
        drop(old);
    });
}

// scenario 74: what is pinned is not evicted; scenario 77: once it is not, eviction works
#[test]
fn pinned_bytes_stay() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let mut config = config(dir.path(), "pinned");
        config.shards = Some(1);
        config.local_bytes_max = Some(1 << 20);
        config.dirty_bytes_max = 1 << 20;
        config.retention = RetentionPolicy::Pin;
        config.stall_timeout = Duration::from_secs(1);
        let store = Store::open(config).await.unwrap();
        let mut full = None;
        for index in 0..40u8 {
            let name = id(&format!("p-{index}"));
            if let Err(error) = store.write_at(&name, 0, bytes(index, 50_000)).await {
                full = Some(error);
                break;
            }
        }
        assert_eq!(
            full.expect("it fits in no megabyte").kind(),
            ErrorKind::Full
        );
        assert_eq!(store.stats().await.unwrap().evicted_segments, 0);
        store
            .set_retention(None, RetentionPolicy::Lru)
            .await
            .unwrap();
        for index in 0..40u8 {
            let name = id(&format!("p-{index}"));
            store
                .write_at(&name, 0, bytes(index, 50_000))
                .await
                .unwrap();
        }
        assert!(store.stats().await.unwrap().evicted_segments > 0);
        store.close().await.unwrap();
    });
}

/// The same with a directory as its bucket, which can be looked into.
fn config_with_dir(dir: &Path, bucket: &Path) -> Config {
    let mut config = config(dir, "");
    config.shards = Some(1);
    config.remote = Some(RemoteConfig::Dir(bucket.to_owned()));
    config
}

/// Objects that hold payload bytes.
fn segments(bucket: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(bucket).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let is_segment = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with("d-")
    };
    paths.filter(is_segment).collect()
}

// scenario 105: a cold read of 4 KiB fetches at most 128 KiB
// scenario 107: concurrent readers of one cold range cause one request
// S-26
#[test]
fn cold_reads_fetch_little() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    run(async {
        let mut config = config_with_dir(dirs[0].path(), dirs[1].path());
        config.segment_bytes = 16 << 20;
        config.prefetch_bytes_max = 0;
        config.read_buffer_bytes = 0;
        let data = bytes(3, 8 << 20);
        let store = store_with(config, "a", &data).await;
        store.evict(&id("a")).await.unwrap();
        let read = store.read_at(&id("a"), 4 << 20, 4096).await.unwrap();
        assert_eq!(read.into_bytes(), data.slice(4 << 20..(4 << 20) + 4096));
        let first = store.stats().await.unwrap().remote_read_bytes;
        assert!((4096..=128 << 10).contains(&first), "{first}");
        let name = id("a");
        let readers = (0..16).map(|_| store.read_at(&name, 1 << 20, 4096));
        for read in futures_util::future::join_all(readers).await {
            assert_eq!(
                read.unwrap().into_bytes(),
                data.slice(1 << 20..(1 << 20) + 4096)
            );
        }
        let both = store.stats().await.unwrap().remote_read_bytes;
        assert!(both - first <= 64 << 10, "{}", both - first);
        store.close().await.unwrap();
    });
}

// scenario 103: an object that is missing although it is mapped is an error, never zeros
// scenario 104: altered bytes are an error, and with an intact local copy there is none
// S-27
#[test]
fn altered_objects_are_noticed() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    run(async {
        let mut config = config_with_dir(dirs[0].path(), dirs[1].path());
        config.read_buffer_bytes = 0;
        let store = Store::open(config).await.unwrap();
        let data = bytes(5, 40_000);
        store.write_at(&id("a"), 0, data.clone()).await.unwrap();
        store.drain_uploads().await.unwrap();
        for path in segments(dirs[1].path()) {
            let mut object = std::fs::read(&path).unwrap();
            object.iter_mut().for_each(|byte| *byte ^= 0x55);
            std::fs::write(&path, object).unwrap();
        }
        assert_eq!(read(&store, &id("a")).await, data);
        store.evict(&id("a")).await.unwrap();
        let error = store.read_at(&id("a"), 0, 4096).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        for path in segments(dirs[1].path()) {
            std::fs::remove_file(path).unwrap();
        }
        let error = store.read_at(&id("a"), 0, 4096).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        drop(store);
    });
}

// scenario 97: with the remote away, writes, flushes and local reads go on, a read that needs it
// fails fast and is counted, and everything is uploaded when it is back
// scenario 99: a store opens while its remote is away
// S-25
#[test]
fn outage_is_survived() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let rebuilt = tempfile::tempdir().unwrap();
    let bucket = dirs[1].path().join("bucket");
    let away = dirs[1].path().join("away");
    run(async {
        let mut config = config_with_dir(dirs[0].path(), &bucket);
        config.read_buffer_bytes = 0;
        let store = store_with(config.clone(), "cold", &bytes(1, 30_000)).await;
        store.evict(&id("cold")).await.unwrap();
        std::fs::rename(&bucket, &away).unwrap();
        store
            .write_at(&id("warm"), 0, bytes(2, 30_000))
            .await
            .unwrap();
        store.flush(&id("warm")).await.unwrap();
        assert_eq!(read(&store, &id("warm")).await, bytes(2, 30_000));
        let error = store.read_at(&id("cold"), 0, 100).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        let error = store.wait_remote(&id("warm")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        let stats = store.stats().await.unwrap();
        assert!(stats.offline_reads_blocked >= 1);
        assert!(!stats.remote_healthy && stats.eviction_suspended);
        assert_eq!(store.health().await.status, HealthStatus::Degraded);
        drop(store);

        let store = common::open(config.clone()).await.unwrap();
        assert_eq!(read(&store, &id("warm")).await, bytes(2, 30_000));
        assert!(!bucket.exists(), "a bucket that is away is not made anew");
        std::fs::rename(&away, &bucket).unwrap();
        let mut tries = 0;
        while let Err(error) = store.drain_uploads().await {
            tries += 1;
            assert!(tries < 600, "the remote is back: {error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(read(&store, &id("cold")).await, bytes(1, 30_000));
        store.close().await.unwrap();
        config.dir = rebuilt.path().to_owned();
        let store = Store::rebuild(config).await.unwrap();
        assert_eq!(read(&store, &id("warm")).await, bytes(2, 30_000));
        store.close().await.unwrap();
    });
}

// S-24: an empty directory never takes a bucket that holds a store
#[test]
fn bucket_is_not_taken_by_accident() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    run(async {
        let store = Store::open(config(dirs[0].path(), "accident"))
            .await
            .unwrap();
        store.write_at(&id("a"), 0, bytes(1, 5000)).await.unwrap();
        store.close().await.unwrap();
        let other = Store::open(config(dirs[1].path(), "accident"))
            .await
            .unwrap();
        other.write_at(&id("b"), 0, bytes(2, 5000)).await.unwrap();
        let error = other.wait_remote(&id("b")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        drop(other);
        let store = Store::open(config(dirs[0].path(), "accident"))
            .await
            .unwrap();
        store.write_at(&id("a"), 0, bytes(3, 5000)).await.unwrap();
        store.drain_uploads().await.unwrap();
        store.close().await.unwrap();
    });
}

/// A directory is not a bucket of a store because it is empty.
#[test]
fn empty_bucket_is_not_taken_for_the_one_that_was() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let bucket = dirs[1].path().join("bucket");
    run(async {
        let config = config_with_dir(dirs[0].path(), &bucket);
        let store = store_with(config.clone(), "cold", &bytes(1, 30_000)).await;
        store.evict(&id("cold")).await.unwrap();
        store.close().await.unwrap();
        std::fs::rename(&bucket, dirs[1].path().join("away")).unwrap();
        std::fs::create_dir(&bucket).unwrap();
        // Nothing is left in it that would let it pass at the next opening.
        for _ in 0..2 {
            let store = Store::open(config.clone()).await.unwrap();
            store.write_at(&id("b"), 0, bytes(2, 100)).await.unwrap();
            let error = store.wait_remote(&id("b")).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            store.close().await.unwrap_err();
            assert!(std::fs::read_dir(&bucket).unwrap().next().is_none());
        }
    });
}

/// Names of signs that mean something in a path, a URL or a request.
const ODD: [&str; 8] = [
    "a b",
    "c+d",
    "e?f=g&h",
    "i%20j",
    "../k",
    "l/m",
    "#n",
    "\u{fc}\u{1f980}",
];

// scenario 125: a payload's name may have any signs, whatever its remote is
#[test]
fn names_of_any_signs_go_through_the_remote() {
    let bucket = tempfile::tempdir().unwrap();
    for remote in [
        RemoteConfig::Memory("odd names".to_owned()),
        RemoteConfig::Dir(bucket.path().join("b c+d?e%20")),
    ] {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        run(async {
            let mut config = config(dirs[0].path(), "");
            config.remote = Some(remote);
            let store = Store::open(config.clone()).await.unwrap();
            let clone = |name: &str| id(&format!("{name} clone"));
            for name in ODD {
                let data = bytes(name.len() as u8, 9000);
                store.write_at(&id(name), 0, data).await.unwrap();
                store.copy(&id(name), &clone(name)).await.unwrap();
                store.evict(&id(name)).await.unwrap();
                let read = read(&store, &clone(name)).await;
                assert_eq!(read, bytes(name.len() as u8, 9000), "{name}");
            }
            assert_eq!(store.list(None, 100).await.unwrap().len(), 2 * ODD.len());
            store.delete(&id(ODD[0])).await.unwrap();
            store.drain_uploads().await.unwrap();
            drop(store);
            config.dir = dirs[1].path().to_owned();
            let store = Store::rebuild(config).await.unwrap();
            for name in ODD {
                let there = store.exists(&id(name)).await.unwrap();
                assert_eq!(there, name != ODD[0], "{name}");
                let read = read(&store, &clone(name)).await;
                assert_eq!(read, bytes(name.len() as u8, 9000), "{name}");
            }
            store.close().await.unwrap();
        });
    }
}

// scenario 127: what needs the remote is refused by a closed store, too
#[test]
fn closed_store_asks_no_remote() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let data = bytes(7, 30_000);
        let store = store_with(config(dir.path(), "closed"), "a", &data).await;
        let again = store.clone();
        store.close().await.unwrap();
        let closed = |error: ringstore::Error| assert_eq!(error.kind(), ErrorKind::Closed);
        closed(again.wait_remote(&id("a")).await.unwrap_err());
        closed(again.drain_uploads().await.unwrap_err());
        closed(again.evict(&id("a")).await.unwrap_err());
        let policy = RetentionPolicy::Pin;
        closed(
            again
                .set_retention(Some(&id("a")), policy)
                .await
                .unwrap_err(),
        );
        assert_eq!(again.health().await.status, HealthStatus::Unknown);
    });
}
