//! Clones on real files: what `copy` and copy-on-write reads promise, through flushes, cleaning and
//! restarts. Contract section 3, scenarios 62 to 72.

mod common;

use bytes::Bytes;
use common::*;
use ringstore::{ErrorKind, ExtentKind, PayloadId, Store};

async fn write(store: &Store, id: &PayloadId, offset: u64, data: &[u8]) {
    let data = Bytes::copy_from_slice(data);
    store.write_at(id, offset, data).await.unwrap();
}

/// Pairs of names that live on one shard of three, and on two.
const PAIRS: [(&str, &str); 4] = [("a", "b"), ("a", "c"), ("b", "d"), ("x/1", "x/2")];

// scenario 62
// S-11
#[test]
fn a_clone_equals_its_source() {
    each(setups(), async |bench| {
        let store = bench.open().await;
        for (source, target) in PAIRS.map(|(a, b)| (id(a), id(b))) {
            let data = pattern(62, 47);
            write(&store, &source, 0, &data).await;
            store.truncate(&source, 47).await.unwrap();
            assert_eq!(store.copy(&source, &target).await.unwrap(), 1);
            assert_payload(&store, &target, &data).await;
            assert_payload(&store, &source, &data).await;
        }
        let blocks = bench.config().block_bytes;
        store.truncate(&id("sized"), 3 * blocks + 1).await.unwrap();
        assert_eq!(store.copy(&id("sized"), &id("a")).await.unwrap(), 4);
        store.truncate(&id("sized"), 0).await.unwrap();
        assert_eq!(store.copy(&id("sized"), &id("a")).await.unwrap(), 0);
        assert_payload(&store, &id("a"), &[]).await;
        store.close().await.unwrap();
    });
}

// scenario 63, scenario 64
// S-12
#[test]
fn copies_of_nothing_and_onto_itself_change_nothing() {
    each(setups(), async |bench| {
        let store = bench.open().await;
        let (a, none) = (id("a"), id("none"));
        write(&store, &a, 0, b"kept").await;
        store.flush_all().await.unwrap();
        assert_kind(store.copy(&none, &a).await, ErrorKind::NotFound);
        assert_kind(store.copy(&none, &none).await, ErrorKind::NotFound);
        assert_kind(store.copy(&none, &id("other")).await, ErrorKind::NotFound);
        let before = store.stats().await.unwrap().batches;
        assert_eq!(store.copy(&a, &a).await.unwrap(), 1);
        store.flush_all().await.unwrap();
        assert_eq!(store.stats().await.unwrap().batches, before);
        assert_payload(&store, &a, b"kept").await;
        assert_eq!(store.list(None, 9).await.unwrap(), [a]);
        store.close().await.unwrap();
    });
}

// scenario 65
// S-5, S-12
#[test]
fn a_larger_target_is_replaced_whole() {
    each(setups(), async |bench| {
        let mut store = bench.open().await;
        for (source, target) in PAIRS.map(|(a, b)| (id(a), id(b))) {
            for flush in [false, true] {
                write(&store, &target, 0, &pattern(1, 300 * KIB)).await;
                let small = pattern(2, 5000);
                store.delete(&source).await.unwrap();
                write(&store, &source, 0, &small).await;
                if flush {
                    store.flush_all().await.unwrap();
                }
                store.copy(&source, &target).await.unwrap();
                assert_payload(&store, &target, &small).await;
                store.truncate(&target, 20_000).await.unwrap();
                let mut model = small.to_vec();
                model.resize(20_000, 0);
                assert_payload(&store, &target, &model).await;
                if flush {
                    store = bench.reopen(store).await;
                    assert_payload(&store, &target, &model).await;
                    assert_payload(&store, &source, &small).await;
                }
            }
        }
        store.close().await.unwrap();
    });
}

// scenario 66
// S-11
#[test]
fn clones_of_mixed_ranges_share_data_and_keep_holes() {
    each(setups(), async |bench| {
        let store = bench.open().await;
        let (a, b) = (id("a"), id("c"));
        let mut model = Vec::new();
        for (tag, offset, len) in [(1, 0, 10_000), (2, 500_000, 30_000)] {
            model_write(&mut model, offset, &pattern(tag, len));
            write(&store, &a, offset as u64, &pattern(tag, len)).await;
        }
        store.flush(&a).await.unwrap();
        store.punch_hole(&a, 504_000, 9_000).await.unwrap();
        model_punch(&mut model, 504_000, 9_000);
        model_write(&mut model, 5_000, &pattern(3, 3_000));
        write(&store, &a, 5_000, &pattern(3, 3_000)).await;
        let before = store.stats().await.unwrap();
        store.copy(&a, &b).await.unwrap();
        let after = store.stats().await.unwrap();
        assert_eq!(after.written_bytes, before.written_bytes);
        assert_payload(&store, &b, &model).await;
        let (one, other) = (extents(&store, &a).await, extents(&store, &b).await);
        assert_eq!(one, other);
        assert!(one.iter().any(|(_, len, hole)| *hole && *len >= 4096));
        store.flush_all().await.unwrap();
        let store = bench.crash(store).await;
        assert_payload(&store, &a, &model).await;
        assert_payload(&store, &b, &model).await;
        assert_eq!(extents(&store, &b).await, one);
        store.close().await.unwrap();
    });
}

/// A payload's data and holes, without regard to where the data is.
async fn extents(store: &Store, id: &PayloadId) -> Vec<(u64, u64, bool)> {
    let extents = store.extents(id, 0, 1 << 62).await.unwrap();
    let mut merged: Vec<(u64, u64, bool)> = Vec::new();
    for extent in extents {
        let hole = extent.kind == ExtentKind::Hole;
        match merged.last_mut() {
            Some(last) if last.2 == hole => last.1 += extent.len,
            _ => merged.push((extent.offset, extent.len, hole)),
        }
    }
    merged
}

// scenario 66
// S-11
#[test]
fn copying_costs_the_same_at_any_size() {
    let bench = Bench::small();
    run(async {
        let store = bench.open().await;
        let (small, large) = (id("small"), id("large"));
        write(&store, &small, 0, &pattern(1, 4096)).await;
        write(&store, &large, 0, &pattern(2, 32 * MIB)).await;
        store.flush_all().await.unwrap();
        let mut costs = Vec::new();
        for source in [&small, &large] {
            let before = store.stats().await.unwrap().device_written_bytes;
            store.copy(source, &id("clone")).await.unwrap();
            store.flush(&id("clone")).await.unwrap();
            costs.push(store.stats().await.unwrap().device_written_bytes - before);
        }
        // Upkeep may write beside it, but by far less than the bytes that are shared.
        assert!(costs[1] < MIB as u64, "{costs:?}");
        store.close().await.unwrap();
    });
}

// scenario 67
// S-13
#[test]
fn either_side_changes_without_the_other() {
    each(setups(), async |bench| {
        let mut store = bench.open().await;
        for (index, (a, b)) in PAIRS.map(|(a, b)| (id(a), id(b))).into_iter().enumerate() {
            let data = pattern(index as u64 + 10, 200 * KIB);
            store.delete(&a).await.unwrap();
            write(&store, &a, 0, &data).await;
            if index % 2 == 0 {
                store.flush(&a).await.unwrap();
            }
            store.copy(&a, &b).await.unwrap();
            let (mut one, mut other) = (data.to_vec(), data.to_vec());
            model_write(&mut one, 10_000, &pattern(1, 9_000));
            write(&store, &a, 10_000, &pattern(1, 9_000)).await;
            model_write(&mut other, 12_000, &pattern(2, 9_000));
            write(&store, &b, 12_000, &pattern(2, 9_000)).await;
            store.punch_hole(&a, 100_000, 8192).await.unwrap();
            model_punch(&mut one, 100_000, 8192);
            assert_payload(&store, &a, &one).await;
            assert_payload(&store, &b, &other).await;
            store.truncate(&a, 500).await.unwrap();
            assert_payload(&store, &b, &other).await;
            store.delete(&a).await.unwrap();
            assert_payload(&store, &b, &other).await;
            store.flush_all().await.unwrap();
            store = bench.crash(store).await;
            assert_payload(&store, &b, &other).await;
            assert!(!store.exists(&a).await.unwrap());
        }
        store.close().await.unwrap();
    });
}

// scenario 67
// S-13, S-32
#[test]
fn clones_survive_cleaning_and_restart_without_their_source() {
    each(few_setups(), async |bench| {
        let mut store = bench.open().await;
        let (source, clone, churn) = (id("a"), id("c"), id("churn"));
        let data = pattern(67, 300 * KIB);
        // Between the source's pages stands what is deleted later, so that cleaning moves the
        // pages.
        for (index, part) in data.chunks(4096).enumerate() {
            write(&store, &source, index as u64 * 4096, part).await;
            write(&store, &churn, index as u64 * 4096, part).await;
        }
        store.flush_all().await.unwrap();
        store.copy(&source, &clone).await.unwrap();
        store.truncate(&source, 100_000).await.unwrap();
        store.delete(&source).await.unwrap();
        store.delete(&churn).await.unwrap();
        for round in 0..3 {
            for index in 0..30 {
                write(&store, &churn, 0, &pattern(index, 100 * KIB)).await;
            }
            store.flush_all().await.unwrap();
            assert_payload(&store, &clone, &data).await;
            store = match round {
                1 => bench.reopen(store).await,
                _ => bench.crash(store).await,
            };
            assert_payload(&store, &clone, &data).await;
            assert!(store.verify().await.unwrap().corrupt.is_empty());
        }
        store.close().await.unwrap();
    });
}

// scenario 68
// S-13, S-32
#[test]
fn long_chains_of_clones_hold_and_free_their_bytes() {
    each(few_setups(), async |bench| {
        let mut store = bench.open().await;
        let link = |n: u64| id(&format!("link-{n}"));
        let mut model = pattern(68, 100 * KIB).to_vec();
        write(&store, &link(0), 0, &model).await;
        let mut kept = vec![(0, model.clone())];
        for n in 1..=1000 {
            store.copy(&link(n - 1), &link(n)).await.unwrap();
            if n % 10 == 0 {
                let data = pattern(n, 300);
                model_write(&mut model, n as usize * 90, &data);
                write(&store, &link(n), n * 90, &data).await;
            }
            if n % 250 == 0 {
                kept.push((n, model.clone()));
            }
        }
        for n in (0..1000).filter(|n| n % 250 != 0) {
            store.delete(&link(n)).await.unwrap();
        }
        for _ in 0..2 {
            for (n, model) in &kept {
                assert_payload(&store, &link(*n), model).await;
            }
            store = bench.reopen(store).await;
        }
        for (n, _) in &kept {
            store.delete(&link(*n)).await.unwrap();
        }
        let stats = exact_stats(&store).await;
        assert_eq!((stats.live_bytes, stats.extents), (0, 0));
        store.close().await.unwrap();
    });
}

async fn cow(store: &Store, id: &PayloadId, source: &PayloadId, offset: u64, len: usize) -> Bytes {
    let chunks = store.read_with_cow_source(id, source, offset, len).await;
    chunks.unwrap().into_bytes()
}

// scenario 69, scenario 71
// S-14
#[test]
fn cow_reads_lay_the_payload_over_its_source() {
    each(setups(), async |bench| {
        let mut store = bench.open().await;
        for (upper, lower) in PAIRS.map(|(a, b)| (id(a), id(b))) {
            let base = pattern(1, 20_000);
            store.delete(&upper).await.unwrap();
            store.delete(&lower).await.unwrap();
            write(&store, &lower, 0, &base).await;
            assert_bytes(
                &cow(&store, &upper, &lower, 0, 30_000).await,
                &base,
                "missing",
            );
            assert!(!store.exists(&upper).await.unwrap());
            let mut model = base.to_vec();
            for (tag, offset, len) in [(2, 100, 50), (3, 4096, 4096), (4, 9_999, 2)] {
                model_write(&mut model, offset, &pattern(tag, len));
                write(&store, &upper, offset as u64, &pattern(tag, len)).await;
            }
            store.punch_hole(&upper, 5_000, 20).await.unwrap();
            model_punch(&mut model, 5_000, 20);
            for flush in [false, true] {
                if flush {
                    store.flush_all().await.unwrap();
                }
                let before = (store.size(&upper).await, extents(&store, &upper).await);
                let found = cow(&store, &upper, &lower, 0, 30_000).await;
                assert_bytes(&found, &model, "layered");
                let found = cow(&store, &upper, &lower, 4_000, 6_100).await;
                assert_bytes(&found, &model[4_000..10_100], "part");
                assert!(cow(&store, &upper, &lower, 20_000, 5).await.is_empty());
                let after = (store.size(&upper).await, extents(&store, &upper).await);
                assert_eq!(before.0.unwrap(), after.0.unwrap());
                assert_eq!(before.1, after.1);
            }
            store = bench.crash(store).await;
            let found = cow(&store, &upper, &lower, 0, 30_000).await;
            assert_bytes(&found, &model, "after a restart");
            // The payload may be the longer one, and the source may be missing.
            write(&store, &upper, 25_000, b"end").await;
            model_write(&mut model, 25_000, b"end");
            let found = cow(&store, &upper, &lower, 0, 30_000).await;
            assert_bytes(&found, &model, "longer");
            let alone = read_all(&store, &upper).await.unwrap();
            store.delete(&lower).await.unwrap();
            let found = cow(&store, &upper, &lower, 0, 30_000).await;
            assert_bytes(&found, &alone, "without a source");
        }
        store.close().await.unwrap();
    });
}

// scenario 69
// S-14
#[test]
fn a_source_shows_only_below_the_smallest_truncation() {
    each(setups(), async |bench| {
        let mut store = bench.open().await;
        for (upper, lower) in PAIRS.map(|(a, b)| (id(a), id(b))) {
            store.delete(&upper).await.unwrap();
            let base = pattern(1, 20_000);
            write(&store, &lower, 0, &base).await;
            store.truncate(&lower, 20_000).await.unwrap();
            // A truncation is one, whether it cuts off or grows.
            write(&store, &upper, 0, b"x").await;
            store.truncate(&upper, 15_000).await.unwrap();
            let mut model = base.to_vec();
            model[0] = b'x';
            model[15_000..].fill(0);
            assert_bytes(
                &cow(&store, &upper, &lower, 0, 30_000).await,
                &model,
                "grown",
            );
            store.truncate(&upper, 7_000).await.unwrap();
            store.truncate(&upper, 12_000).await.unwrap();
            model[7_000..].fill(0);
            for flush in [false, true] {
                let found = cow(&store, &upper, &lower, 0, 30_000).await;
                assert_bytes(&found, &model, (flush, "cut"));
                store.flush_all().await.unwrap();
            }
            store = match bench.setup.shards {
                Some(1) => bench.reopen(store).await,
                _ => bench.crash(store).await,
            };
            let found = cow(&store, &upper, &lower, 0, 30_000).await;
            assert_bytes(&found, &model, "cut, after a restart");
        }
        store.close().await.unwrap();
    });
}

// scenario 72
// S-6, S-11
#[test]
fn a_clone_of_a_changing_source_is_one_point_in_time() {
    each_threaded(setups(), async |bench| {
        let store = bench.open().await;
        for (source, target) in PAIRS.map(|(a, b)| (id(a), id(b))) {
            write(&store, &source, 0, &[1; 60_000]).await;
            let (writer, name) = (store.clone(), source.clone());
            let writing = tokio::spawn(async move {
                for round in 2..60u8 {
                    writer
                        .write_at(&name, 0, vec![round; 60_000].into())
                        .await
                        .unwrap();
                }
            });
            let mut last = 1;
            while !writing.is_finished() {
                store.copy(&source, &target).await.unwrap();
                let found = read_all(&store, &target).await.unwrap();
                assert_eq!(found.len(), 60_000);
                assert!(found.iter().all(|byte| *byte == found[0]), "a torn clone");
                assert!(found[0] >= last, "a clone of the past");
                last = found[0];
            }
            writing.await.unwrap();
        }
        store.close().await.unwrap();
    });
}

// S-11, S-12
#[test]
fn copies_in_opposite_directions_do_not_wait_for_each_other() {
    each_threaded(setups(), async |bench| {
        let store = bench.open().await;
        let names = ["a", "b", "c", "d", "e"].map(id);
        for (index, name) in names.iter().enumerate() {
            write(&store, name, 0, &[index as u8 + 1; 10_000]).await;
        }
        let tasks: Vec<_> = (0..4)
            .map(|task| {
                let (store, names) = (store.clone(), names.clone());
                tokio::spawn(async move {
                    let mut rng = Rng(task);
                    for _ in 0..100 {
                        let source = &names[rng.below(5) as usize];
                        let target = &names[rng.below(5) as usize];
                        store.copy(source, target).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        store.flush_all().await.unwrap();
        let store = bench.crash(store).await;
        for name in &names {
            let found = read_all(&store, name).await.unwrap();
            assert_eq!(found.len(), 10_000);
            assert!(found.iter().all(|byte| *byte == found[0]));
        }
        assert_eq!(store.list(None, 10).await.unwrap(), names);
        store.close().await.unwrap();
    });
}

#[test]
fn verify_reads_what_clones_share_once() {
    const LEN: u64 = 3 * MIB as u64 + 5000;
    each(setups(), async |bench| {
        let store = bench.open().await;
        write(&store, &id("a"), 0, &pattern(1, LEN as usize)).await;
        for clone in ["b", "c"] {
            store.copy(&id("a"), &id(clone)).await.unwrap();
        }
        store.flush_all().await.unwrap();
        assert_eq!(store.verify().await.unwrap().bytes_checked, LEN);
        // Where they differ, both sides are read; what lies around that is still read once.
        write(&store, &id("b"), MIB as u64 + 4096, &pattern(2, 8192)).await;
        write(&store, &id("c"), 2 * MIB as u64, &pattern(3, 4096)).await;
        store.flush_all().await.unwrap();
        let report = store.verify().await.unwrap();
        assert_eq!((report.payloads, report.corrupt.len()), (3, 0));
        assert_eq!(report.bytes_checked, LEN + 8192 + 4096);
        store.close().await.unwrap();
    });
}
