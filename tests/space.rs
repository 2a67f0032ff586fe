//! Space on real files: what comes back, what limits hold, what a full store does. Contract section
//! 6, scenarios 17, 53, 60, 74, 84, 85, 87, 88, 131 and 132.

mod common;

use bytes::Bytes;
use common::loop_fs::LoopFs;
use common::*;
use ringstore::{Config, ErrorKind, RetentionPolicy, Store};
use std::path::Path;
use std::time::Duration;

/// Waits until a store at rest is within what it promises: 1.5 times the live bytes and two
/// segments per shard. Cleaning runs by itself, so this only looks; the watchdog ends it if it
/// never comes.
async fn rests_within_bounds(store: &Store, config: &Config) {
    let shards = config.shards.unwrap() as u64;
    loop {
        let stats = store.stats().await.unwrap();
        let files = stats.segments + stats.segments_free;
        let held = files * config.segment_bytes;
        if held <= stats.live_bytes * 3 / 2 + 2 * shards * config.segment_bytes {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

// scenario 17, scenario 53
// S-9, S-32
#[test]
fn overwritten_and_deleted_bytes_come_back() {
    each(few_setups(), async |bench| {
        let store = bench.open().await;
        let a = id("a");
        for round in 0..1000 {
            let data = pattern(round, 20_000);
            store.write_at(&a, 0, data).await.unwrap();
        }
        store.flush_all().await.unwrap();
        rests_within_bounds(&store, &bench.config()).await;
        assert_payload(&store, &a, &pattern(999, 20_000)).await;
        for n in 0..20 {
            let name = id(&format!("gone-{n}"));
            store.write_at(&name, 0, pattern(n, 200_000)).await.unwrap();
            store.delete(&name).await.unwrap();
        }
        store.flush_all().await.unwrap();
        rests_within_bounds(&store, &bench.config()).await;
        let store = bench.reopen(store).await;
        assert_payload(&store, &a, &pattern(999, 20_000)).await;
        store.close().await.unwrap();
    });
}

/// How far a store is with giving segments back, and what it holds.
async fn numbers_held(store: &Store) -> Vec<u64> {
    let segments = store.segments().await.unwrap();
    segments.into_iter().filter_map(|it| it.number).collect()
}

// scenario 88
// S-7, S-9, S-32
#[test]
fn what_was_deleted_stays_so_when_the_segment_that_said_so_is_gone() {
    for (driver, tail) in drivers()
        .iter()
        .flat_map(|driver| [(driver, 0), (driver, 1)])
    {
        let bench = Bench::new(Setup::tiny(*driver, 1));
        run(async {
            let mut store = bench.open().await;
            let names = ["deleted", "cut", "punched", "kept"].map(id);
            for name in &names {
                store.write_at(name, 0, pattern(1, 40_000)).await.unwrap();
            }
            store.flush_all().await.unwrap();
            // So the payloads stand in checkpoints, and what follows in the log alone.
            store = bench.reopen(store).await;
            store.delete(&names[0]).await.unwrap();
            store.truncate(&names[1], 10).await.unwrap();
            store.punch_hole(&names[2], 10, 30_000).await.unwrap();
            store.flush_all().await.unwrap();
            let said_in = numbers_held(&store).await.into_iter().max().unwrap();
            // Until the segment that says so has been freed, and its file used for another. What is
            // kept is written again each time, for the cleaner may have moved it there.
            let mut round = 0;
            while numbers_held(&store).await.contains(&said_in) {
                round += 1;
                let kept = pattern(1, 40_000);
                for (name, range) in [(1, 0..10), (2, 0..10), (2, 30_010..40_000), (3, 0..40_000)] {
                    let bytes = kept.slice(range.clone());
                    let write = store.write_at(&names[name], range.start as u64, bytes);
                    write.await.unwrap();
                }
                let data = pattern(round, 60_000);
                store.write_at(&id("churn"), 0, data).await.unwrap();
                store.flush_all().await.unwrap();
            }
            for n in 0..tail {
                store
                    .write_at(&id("tail"), n, pattern(n, 100))
                    .await
                    .unwrap();
            }
            store.flush_all().await.unwrap();
            println!("gone after {round} rounds");
            for _ in 0..2 {
                store = bench.crash(store).await;
                assert!(!store.exists(&names[0]).await.unwrap());
                assert_payload(&store, &names[1], &pattern(1, 10)).await;
                let mut punched = pattern(1, 40_000).to_vec();
                model_punch(&mut punched, 10, 30_000);
                assert_payload(&store, &names[2], &punched).await;
                assert_payload(&store, &names[3], &pattern(1, 40_000)).await;
            }
            store.close().await.unwrap();
        });
    }
}

// scenario 60
// S-9, S-32
#[test]
fn creating_and_deleting_for_ever_grows_nothing() {
    each(few_setups(), async |bench| {
        let store = bench.open().await;
        for n in 0..100_000u64 {
            let name = id(&format!("p{}", n % 1000));
            store.write_at(&name, 0, "x".into()).await.unwrap();
            store.delete(&name).await.unwrap();
            if n % 10_000 == 9_999 {
                let held = disk_bytes(&bench.dir());
                assert!(held < 3 * (20 << 20), "{held} bytes after {n} cycles");
            }
        }
        assert!(store.list(None, 10).await.unwrap().is_empty());
        store.flush_all().await.unwrap();
        let stats = exact_stats(&store).await;
        assert_eq!(
            (stats.file_count, stats.live_bytes, stats.extents),
            (0, 0, 0)
        );
        // Without new bytes the log moves on only by 16 MiB between checkpoints.
        let store = bench.reopen(store).await;
        assert!(store.list(None, 10).await.unwrap().is_empty());
        assert!(disk_bytes(&bench.dir()) < 3 * (20 << 20));
        store.close().await.unwrap();
    });
}

/// Writes until the store is full, and checks that deleting makes room again.
async fn fill_and_empty(store: &Store, stall: Duration) {
    let name = |n: u64| id(&format!("fill-{n}"));
    let mut count = 0;
    // Nothing may be evicted, least of all what is nowhere else.
    let pin = RetentionPolicy::Pin;
    store.set_retention(None, pin).await.unwrap();
    let mut waiting = tokio::time::Instant::now();
    let error = loop {
        match store
            .write_at(&name(count), 0, pattern(count, 50_000))
            .await
        {
            Ok(()) => count += 1,
            Err(error) => break error,
        }
        assert!(count < 2000, "it never fills");
        waiting = tokio::time::Instant::now();
    };
    assert!(
        waiting.elapsed() >= stall,
        "refused after {:?}",
        waiting.elapsed()
    );
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    assert!(error.is_retryable());
    assert!(!store.exists(&name(count)).await.unwrap(), "half a write");
    assert!(count > 3, "full after {count}");
    for n in 0..count {
        assert_payload(store, &name(n), &pattern(n, 50_000)).await;
    }
    store.truncate(&name(0), 10).await.unwrap();
    for n in 1..count {
        store.delete(&name(n)).await.unwrap();
    }
    // Room comes back by cleaning, in its own time.
    let data = Bytes::from(vec![7; 50_000]);
    loop {
        match store.write_at(&id("after"), 0, data.clone()).await {
            Ok(()) => break,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Full, "{error}"),
        }
    }
    store.flush_all().await.unwrap();
    assert_payload(store, &id("after"), &data).await;
    assert_payload(store, &name(0), &pattern(0, 10)).await;
}

// scenario 74, scenario 84
// S-29, S-30
#[test]
fn a_store_at_its_limit_is_full_until_something_is_deleted() {
    for driver in drivers() {
        let bench = Bench::new(Setup::tiny(*driver, 1));
        run(async {
            let mut config = bench.config();
            config.local_bytes_max = Some(1 << 20);
            config.stall_timeout = Duration::from_millis(200);
            let store = open(config.clone()).await.unwrap();
            fill_and_empty(&store, config.stall_timeout).await;
            let files = segment_bytes(&bench.dir());
            assert!(files <= (1 << 20) + (64 << 10), "{files}");
            store.close().await.unwrap();
            let store = open(config).await.unwrap();
            assert_payload(&store, &id("after"), &[7; 50_000]).await;
            store.close().await.unwrap();
        });
    }
}

// scenario 84
// S-29, S-30
#[test]
fn writers_far_beyond_the_limit_go_on_while_room_comes_back() {
    for driver in drivers() {
        let bench = Bench::new(Setup::tiny(*driver, 1));
        run(async {
            let mut config = bench.config();
            config.local_bytes_max = Some(2 << 20);
            let store = open(config).await.unwrap();
            // Each byte that is kept makes another one garbage: 40 times the limit, in all.
            for round in 0..400 {
                let name = id(&format!("p{}", round % 4));
                let data = pattern(round, 200_000);
                store.write_at(&name, 0, data).await.unwrap();
                let files = segment_bytes(&bench.dir());
                assert!(files <= (2 << 20) + (64 << 10), "{files}");
            }
            for n in 0..4 {
                let name = id(&format!("p{n}"));
                assert_payload(&store, &name, &pattern(396 + n, 200_000)).await;
            }
            store.close().await.unwrap();
        });
    }
}

/// Bytes of the segment files of a store of one shard.
fn segment_bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir.join("shard-0000")).unwrap();
    let segments = entries.map(Result::unwrap);
    let segments = segments.filter(|e| e.file_name().to_string_lossy().starts_with("seg-"));
    segments
        .map(|e| e.metadata().map_or(0, |meta| meta.len()))
        .sum()
}

// scenario 85
// S-30
#[test]
fn a_full_file_system_harms_nothing_and_is_served_when_there_is_room() {
    let Some(fs) = LoopFs::make("ext4", 16) else {
        return;
    };
    run(async {
        let mut config = Setup::tiny(best_driver(), 1).config(&fs.dir().join("store"));
        config.stall_timeout = Duration::from_millis(500);
        let store = open(config.clone()).await.unwrap();
        fill_and_empty(&store, config.stall_timeout).await;
        store.close().await.unwrap();
        let store = open(config).await.unwrap();
        assert_payload(&store, &id("after"), &[7; 50_000]).await;
        store.close().await.unwrap();
    });
}

// scenario 87
// S-34
#[test]
fn used_bytes_are_those_of_the_files() {
    let bench = Bench::small();
    run(async {
        let store = bench.open().await;
        let mut rng = Rng(87);
        for n in 0..10_000 {
            let name = id(&format!("p{}", rng.below(50)));
            match rng.below(8) {
                0 => store.delete(&name).await.unwrap(),
                _ => {
                    let data = pattern(n, rng.below(2000) as usize + 1);
                    store
                        .write_at(&name, rng.below(50_000), data)
                        .await
                        .unwrap();
                }
            }
        }
        store.flush_all().await.unwrap();
        // Upkeep goes on for a moment: the two are compared until nothing moves between them.
        loop {
            let used = store.stats().await.unwrap().local_disk_used;
            let files = disk_bytes(&bench.dir().join("shard-0000"));
            if used == files {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        store.close().await.unwrap();
    });
}

// scenario 131
// S-29
#[test]
fn random_small_reads_read_their_pages_and_nothing_else() {
    each(few_setups(), async |bench| {
        const READS: u64 = 1000;
        let mut config = bench.config();
        config.read_buffer_bytes = 0;
        let store = open(config.clone()).await.unwrap();
        let data = pattern(131, 8 * MIB);
        store.write_at(&id("a"), 0, data.clone()).await.unwrap();
        store.flush_all().await.unwrap();
        store.close().await.unwrap();
        let store = open(config).await.unwrap();
        // The first read of a segment reads its checksums.
        assert_payload(&store, &id("a"), &data).await;
        let mut rng = Rng(131);
        // The cleaner reads, too, and may still be at it: its share is known, and what it has just
        // moved is in memory. What callers cost is exact as soon as it does nothing.
        loop {
            let before = store.stats().await.unwrap();
            for _ in 0..READS {
                let page = rng.below(2048) as usize * 4096;
                let found = store.read_at(&id("a"), page as u64, 4096).await.unwrap();
                assert_bytes(&found.into_bytes(), &data[page..page + 4096], page);
            }
            let after = store.stats().await.unwrap();
            let read = after.device_read_bytes - before.device_read_bytes;
            let cleaning = after.cleaning_read_bytes - before.cleaning_read_bytes;
            println!("{READS} reads: {read} bytes read, {cleaning} of them by the cleaner");
            assert!(read - cleaning <= READS * 4096, "{read} {cleaning}");
            if cleaning == 0 {
                assert_eq!(read, READS * 4096);
                break;
            }
        }
        store.close().await.unwrap();
    });
}

// scenario 132
// S-29
#[test]
fn tiny_payloads_take_dirty_memory_by_budget_not_by_count() {
    let bench = Bench::small();
    run(async {
        let store = bench.open().await;
        for n in 0..100_000u64 {
            let name = id(&format!("tiny-{n}"));
            store.write_at(&name, 0, "x".into()).await.unwrap();
            if n % 5000 == 0 {
                let stats = store.stats().await.unwrap();
                assert!(stats.local_mem_used <= bench.config().dirty_bytes_max);
            }
        }
        let stats = store.stats().await.unwrap();
        assert_eq!(stats.file_count, 100_000);
        assert!(stats.map_bytes <= 100_000 * 256, "{}", stats.map_bytes);
        let store = bench.reopen(store).await;
        assert_eq!(store.stats().await.unwrap().file_count, 100_000);
        assert_payload(&store, &id("tiny-77777"), b"x").await;
        store.close().await.unwrap();
    });
}
