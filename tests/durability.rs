//! What flushes, closes and reopenings promise on real files. Contract section 4, scenarios 30 to
//! 40, 111, 116, 120 and 133. Kills of the process are in `crash.rs`.

mod common;

use bytes::Bytes;
use common::*;
use ringstore::{ErrorKind, HealthStatus, PayloadId, RetentionPolicy, Store};

async fn write(store: &Store, id: &PayloadId, offset: u64, data: &[u8]) {
    let data = Bytes::copy_from_slice(data);
    store.write_at(id, offset, data).await.unwrap();
}

// scenario 31, scenario 32
// S-15, S-20
#[test]
fn flushed_bytes_survive_a_store_that_is_just_dropped() {
    each(setups(), async |bench| {
        let mut store = bench.open().await;
        for (index, len) in [1, 4096, 64 * KIB, 8 * MIB].into_iter().enumerate() {
            let (name, data) = (id(&format!("p{index}")), pattern(index as u64, len));
            write(&store, &name, 100, &data).await;
            assert!(!store.flush(&name).await.unwrap().finalized);
            store = bench.crash(store).await;
            let mut model = vec![0; 100];
            model.extend_from_slice(&data);
            assert_payload(&store, &name, &model).await;
        }
        store.close().await.unwrap();
    });
}

// scenario 40
// S-17, S-20
#[test]
fn unflushed_bytes_vanish_or_stand_where_they_were_written() {
    each(setups(), async |bench| {
        let mut store = bench.open().await;
        for round in 0..5u64 {
            let names: Vec<PayloadId> = (0..10).map(|n| id(&format!("{round}/{n}"))).collect();
            for (n, name) in names.iter().enumerate() {
                write(&store, name, 500, &pattern(n as u64, 3000)).await;
            }
            store = bench.crash(store).await;
            for (n, name) in names.iter().enumerate() {
                let mut model = vec![0; 500];
                model.extend_from_slice(&pattern(n as u64, 3000));
                match read_all(&store, name).await {
                    Ok(found) => assert_bytes(&found, &model, name),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound),
                }
            }
        }
        store.close().await.unwrap();
    });
}

// scenario 35, scenario 116
// S-16
#[test]
fn flushes_are_numbered_upwards_across_reopenings() {
    each(setups(), async |bench| {
        let mut store = bench.open().await;
        let a = id("a");
        assert_kind(store.flush(&a).await, ErrorKind::NotFound);
        let mut last = 0;
        for round in 0..30u8 {
            write(&store, &a, 0, &[round; 100]).await;
            let flushed = store.flush(&a).await.unwrap();
            assert!(flushed.lsn > last, "{} after {last}", flushed.lsn);
            assert!(!flushed.finalized);
            last = flushed.lsn;
            store = match round % 10 {
                3 => bench.reopen(store).await,
                7 => bench.crash(store).await,
                _ => store,
            };
        }
        store.close().await.unwrap();
    });
}

// scenario 36
// S-15
#[test]
fn a_flush_with_nothing_dirty_writes_nothing() {
    each(setups(), async |bench| {
        let store = bench.open().await;
        let a = id("a");
        write(&store, &a, 0, &pattern(1, 10_000)).await;
        store.flush(&a).await.unwrap();
        // What upkeep writes beside is no part of a flush: only the log's batches are counted.
        let before = store.stats().await.unwrap().batches;
        for _ in 0..20 {
            store.flush(&a).await.unwrap();
            store.flush_all().await.unwrap();
        }
        assert_eq!(store.stats().await.unwrap().batches, before);
        store.close().await.unwrap();
    });
}

// scenario 38
// S-15
#[test]
fn concurrent_flushes_share_their_syncs() {
    each(setups(), async |bench| {
        let store = bench.open().await;
        let names: Vec<PayloadId> = (0..128).map(|n| id(&format!("p{n}"))).collect();
        let write_all = async |tag: u64| {
            let writes = names.iter().zip(tag..).map(async |(name, tag)| {
                write(&store, name, 0, &pattern(tag, 500)).await;
            });
            futures_util::future::join_all(writes).await;
        };
        // What is made on first use is made now, and does not count.
        write_all(0).await;
        store.flush_all().await.unwrap();
        write_all(1000).await;
        let before = store.stats().await.unwrap();
        let flushes = names.iter().map(|name| store.flush(name));
        for flushed in futures_util::future::join_all(flushes).await {
            flushed.unwrap();
        }
        let after = store.stats().await.unwrap();
        let syncs = after.device_syncs - before.device_syncs;
        let batches = after.batches - before.batches;
        println!("{syncs} syncs, {batches} batches");
        // One for what had been written, one for what came while that was under way, and one for
        // either if a segment ended there.
        assert!(syncs <= 4 * after.shards, "{syncs} syncs for 128 flushes");
        let store = bench.crash(store).await;
        for (name, tag) in names.iter().zip(1000..) {
            assert_payload(&store, name, &pattern(tag, 500)).await;
        }
        store.close().await.unwrap();
    });
}

// scenario 39, scenario 111
// S-20
#[test]
fn close_persists_what_was_never_flushed() {
    each(setups(), async |bench| {
        let mut store = bench.open().await;
        let mut models = Vec::new();
        for n in 0..20u64 {
            let data = pattern(n, 7_000 * n as usize);
            let name = id(&format!("p{n:02}"));
            store.truncate(&name, 10).await.unwrap();
            write(&store, &name, 0, &data).await;
            models.push((name, data.len().max(10)));
        }
        for _ in 0..3 {
            store = bench.reopen(store).await;
            let names: Vec<PayloadId> = models.iter().map(|(name, _)| name.clone()).collect();
            assert_eq!(store.list(None, 100).await.unwrap(), names);
            for (n, (name, len)) in models.iter().enumerate() {
                let mut model = pattern(n as u64, 7_000 * n).to_vec();
                model.resize(*len, 0);
                assert_payload(&store, name, &model).await;
            }
            let stats = store.stats().await.unwrap();
            assert_eq!((stats.blocks_dirty, stats.file_count), (0, 20));
        }
        store.close().await.unwrap();
    });
}

// scenario 28, scenario 39, scenario 127
// S-20
#[test]
fn a_closed_store_says_so() {
    each(setups(), async |bench| {
        let store = bench.open().await;
        let (a, again) = (id("a"), store.clone());
        write(&store, &a, 0, b"abc").await;
        store.close().await.unwrap();
        again.clone().close().await.unwrap();
        let closed = ErrorKind::Closed;
        assert_kind(again.read_at(&a, 0, 1).await, closed);
        assert_kind(again.write_at(&a, 0, "x".into()).await, closed);
        assert_kind(again.flush(&a).await, closed);
        assert_kind(again.flush_all().await, closed);
        assert_kind(again.copy(&a, &id("b")).await, closed);
        assert_kind(again.delete(&a).await, closed);
        assert_kind(again.truncate(&a, 1).await, closed);
        assert_kind(again.punch_hole(&a, 0, 1).await, closed);
        assert_kind(again.punch_hole(&a, 0, 0).await, closed);
        assert_kind(again.size(&a).await, closed);
        assert_kind(again.exists(&a).await, closed);
        assert_kind(again.list(None, 1).await, closed);
        assert_kind(again.extents(&a, 0, 1).await, closed);
        assert_kind(again.stats().await, closed);
        assert_kind(again.latency().await, closed);
        assert_kind(again.verify().await, closed);
        assert_kind(again.drain_uploads().await, closed);
        assert_kind(again.evict_read_buffer().await, closed);
        assert_kind(again.set_eviction_enabled(true).await, closed);
        assert_kind(
            again.set_retention(None, RetentionPolicy::Pin).await,
            closed,
        );
        assert_eq!(again.health().await.status, HealthStatus::Unknown);
    });
}

// scenario 120
// S-22
#[test]
fn a_second_engine_is_refused_and_told_who_is_there() {
    each(setups(), async |bench| {
        let store = bench.open().await;
        write(&store, &id("a"), 0, b"abc").await;
        let error = Store::open(bench.config()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        let holder = format!("pid={}", std::process::id());
        assert!(error.to_string().contains(&holder), "{error}");
        assert_payload(&store, &id("a"), b"abc").await;
        let store = bench.reopen(store).await;
        assert_payload(&store, &id("a"), b"abc").await;
        store.close().await.unwrap();
    });
}

// scenario 133
// S-15
#[test]
fn flushing_costs_the_same_at_any_size() {
    let bench = Bench::small();
    run(async {
        let store = bench.open().await;
        let (small, large) = (id("small"), id("large"));
        write(&store, &small, 0, &pattern(1, 4096)).await;
        write(&store, &large, 0, &pattern(2, 32 * MIB)).await;
        let store = bench.reopen(store).await;
        let mut costs = Vec::new();
        for name in [&small, &large] {
            let before = store.stats().await.unwrap();
            for round in 0..10 {
                write(&store, name, 0, &pattern(round, 4096)).await;
                store.flush(name).await.unwrap();
            }
            let after = store.stats().await.unwrap();
            let written = after.device_written_bytes - before.device_written_bytes;
            costs.push((after.batches - before.batches, written));
        }
        assert!(costs[1].0 <= costs[0].0 + 2, "{costs:?}");
        // Upkeep may write beside it, but by far less than the large payload has.
        assert!(costs[1].1 < costs[0].1 + MIB as u64, "{costs:?}");
        store.close().await.unwrap();
    });
}

// scenario 35
// S-16, S-23, S-31
#[test]
fn without_a_remote_its_operations_say_so() {
    each(few_setups(), async |bench| {
        let store = bench.open().await;
        let a = id("a");
        write(&store, &a, 0, b"abc").await;
        assert!(!store.has_remote());
        let invalid = ErrorKind::InvalidInput;
        assert_kind(store.evict(&a).await, invalid);
        assert_kind(store.wait_remote(&a).await, invalid);
        assert_kind(Store::rebuild(bench.config()).await, invalid);
        store.drain_uploads().await.unwrap();
        store.set_eviction_enabled(false).await.unwrap();
        store
            .set_retention(None, RetentionPolicy::Lru)
            .await
            .unwrap();
        store
            .set_retention(Some(&a), RetentionPolicy::Pin)
            .await
            .unwrap();
        let missing = store
            .set_retention(Some(&id("none")), RetentionPolicy::Pin)
            .await;
        assert_kind(missing, ErrorKind::NotFound);
        let health = store.health().await;
        assert_eq!(
            (health.status, health.remote),
            (HealthStatus::Healthy, None)
        );
        assert_payload(&store, &a, b"abc").await;
        store.close().await.unwrap();
    });
}
