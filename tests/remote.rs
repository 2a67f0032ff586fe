//! The remote tier, on real files: what is uploaded, evicted, read back and rebuilt.

mod common;

use bytes::Bytes;
use common::{id, run};
use ringstore::{Config, ErrorKind, ExtentKind, PayloadId, RemoteConfig, RetentionPolicy, Store};
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
        let store = Store::open(config(dir.path(), "evicted")).await.unwrap();
        let data = bytes(7, 300_000);
        store.write_at(&id("a"), 0, data.clone()).await.unwrap();
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
