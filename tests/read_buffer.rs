//! The read buffer: what is served from memory, and that it is never anything else than what the
//! payload holds; and what is read ahead into it. Contract clauses 4, 5, 6, 11 and 13, scenarios 5,
//! 26 and 128 to 131.

mod common;

use bytes::Bytes;
use common::*;
use ringstore::{ErrorKind, PayloadId, Store};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const PAGE: usize = 4096;

async fn read(store: &Store, id: &PayloadId, offset: u64, len: usize) -> Bytes {
    let chunks = store.read_at(id, offset, len).await.unwrap();
    chunks.into_bytes()
}

/// Reads that callers served themselves.
async fn hits(store: &Store) -> u64 {
    store.latency().await.unwrap().count("read_hit")
}

/// Whether a read is served from the read buffer, with the right bytes.
async fn is_hit(store: &Store, id: &PayloadId, offset: u64, expected: &[u8]) -> bool {
    let before = hits(store).await;
    let bytes = read(store, id, offset, expected.len()).await;
    assert_bytes(&bytes, expected, (id, offset));
    hits(store).await > before
}

/// A bench whose store prefetches nothing, with a read buffer of so many bytes.
fn bench(shards: usize, read_buffer_bytes: u64) -> (Bench, ringstore::Config) {
    let bench = Bench::new(Setup::tiny(best_driver(), shards));
    let mut config = bench.config();
    config.read_buffer_bytes = read_buffer_bytes;
    config.prefetch_bytes_max = 0;
    (bench, config)
}

// scenario 5, scenario 128
// S-4
#[test]
fn the_second_read_is_a_hit() {
    run(async {
        let (_bench, config) = bench(1, 1 << 20);
        let store = open(config).await.unwrap();
        let hex = id("hex");
        let data = Bytes::from_static(b"0123456789abcdef");
        store.write_at(&hex, 0, data.clone()).await.unwrap();
        for flushed in [false, true] {
            assert!(!is_hit(&store, &hex, 4, b"456789ab").await || flushed);
            assert!(is_hit(&store, &hex, 4, b"456789ab").await);
            assert!(
                is_hit(&store, &hex, 0, &data).await,
                "all of the page is kept"
            );
            // The end is part of what is kept: it is short, and not asked for.
            let before = hits(&store).await;
            assert_eq!(read(&store, &hex, 10, 1000).await, "abcdef");
            assert_eq!(hits(&store).await, before + 1);
            store.flush(&hex).await.unwrap();
        }
        let stats = store.stats().await.unwrap();
        assert_eq!(stats.read_buffer_entries, 1);
        assert_eq!(stats.read_buffer_used, PAGE as u64);
        assert_eq!(stats.read_buffer_max, 1 << 20);
        assert_eq!(store.evict_read_buffer().await.unwrap(), 1);
        assert_eq!(store.stats().await.unwrap().read_buffer_used, 0);
        assert!(!is_hit(&store, &hex, 4, b"456789ab").await);
        let mut target = [0; 6];
        assert_eq!(store.read_into(&hex, 12, &mut target).await.unwrap(), 4);
        assert_eq!(&target, b"cdef\0\0");
        store.close().await.unwrap();
    });
}

// scenario 5
// S-4
#[test]
fn what_a_flush_found_in_memory_is_a_hit() {
    run(async {
        let (_bench, config) = bench(1, 1 << 20);
        let store = open(config).await.unwrap();
        let a = id("a");
        let mut model = pattern(1, 4 * PAGE + 100).to_vec();
        let written = Bytes::from(model.clone());
        store.write_at(&a, 0, written).await.unwrap();
        assert_eq!(store.stats().await.unwrap().read_buffer_entries, 0);
        store.flush(&a).await.unwrap();
        assert_eq!(store.stats().await.unwrap().read_buffer_entries, 5);
        assert!(is_hit(&store, &a, 0, &model).await);

        // What changes leaves, and comes back with the next flush: alone, where the rest of a page
        // is at hand.
        let changed = pattern(2, PAGE);
        model[2 * PAGE..3 * PAGE].copy_from_slice(&changed);
        store.write_at(&a, 2 * PAGE as u64, changed).await.unwrap();
        let punched = 3 * PAGE as u64;
        store.punch_hole(&a, punched, PAGE as u64).await.unwrap();
        model[3 * PAGE..4 * PAGE].fill(0);
        store.flush(&a).await.unwrap();
        assert_eq!(store.stats().await.unwrap().read_buffer_entries, 4);
        assert!(is_hit(&store, &a, 0, &model[..3 * PAGE]).await);
        let (before, clone) = (store.stats().await.unwrap(), id("clone"));
        store.copy(&a, &clone).await.unwrap();
        read(&store, &clone, 0, 3 * PAGE).await;
        let after = store.stats().await.unwrap();
        assert_eq!(after.device_read_bytes, before.device_read_bytes);
        store.delete(&clone).await.unwrap();
        assert!(!is_hit(&store, &a, 0, &model).await, "nothing was written");

        // A part of a page, of which the rest would have to be read.
        store.evict_read_buffer().await.unwrap();
        model[5] = 1;
        let byte = Bytes::from_static(&[1]);
        store.write_at(&a, 5, byte).await.unwrap();
        store.flush(&a).await.unwrap();
        assert_eq!(store.stats().await.unwrap().read_buffer_entries, 0);
        let bytes = read(&store, &a, 0, model.len()).await;
        assert_bytes(&bytes, &model, "after all");

        // More than one read copies is left to its readers.
        let large = id("large");
        let data = pattern(3, 64 * KIB + 1);
        store.write_at(&large, 0, data.clone()).await.unwrap();
        store.flush(&large).await.unwrap();
        assert!(!is_hit(&store, &large, 0, &data[..PAGE]).await);
        store.close().await.unwrap();
    });
}

// scenario 128
#[test]
fn without_a_budget_and_for_what_is_too_large_nothing_is_kept() {
    run(async {
        for (budget, large_hits) in [(0, false), (64 << 10, false), (8 << 20, true)] {
            let (_bench, config) = bench(1, budget);
            let store = open(config).await.unwrap();
            let (a, data) = (id("a"), pattern(1, 256 * KIB));
            store.write_at(&a, 0, data.clone()).await.unwrap();
            store.flush(&a).await.unwrap();
            assert!(!is_hit(&store, &a, 0, &data).await);
            assert_eq!(is_hit(&store, &a, 0, &data).await, large_hits, "{budget}");
            let stats = store.stats().await.unwrap();
            assert_eq!(stats.read_buffer_max, budget);
            assert!(stats.read_buffer_used <= budget, "{stats:?}");
            assert!(stats.read_buffer_entries > 0 || !large_hits);
            assert!(stats.read_buffer_entries == 0 || budget > 0);
            store.close().await.unwrap();
        }
    });
}

// scenario 129
// S-6, S-7, S-8, S-9
#[test]
fn what_changes_leaves_and_nothing_else() {
    run(async {
        let (_bench, config) = bench(1, 1 << 20);
        let store = open(config).await.unwrap();
        let (a, b) = (id("a"), id("b"));
        let mut model = pattern(1, 8 * PAGE + 100).to_vec();
        let other = pattern(2, 4 * PAGE);
        store.write_at(&a, 0, model.clone().into()).await.unwrap();
        store.write_at(&b, 0, other.clone()).await.unwrap();
        let warm = async |model: &[u8]| {
            read(&store, &a, 0, model.len()).await;
            read(&store, &b, 0, other.len()).await;
            assert!(is_hit(&store, &a, 0, model).await);
            assert!(is_hit(&store, &b, 0, &other).await);
        };
        warm(&model).await;
        // A write over the border of two pages takes these two.
        let data = pattern(3, 200);
        store
            .write_at(&a, 3 * PAGE as u64 - 100, data.clone())
            .await
            .unwrap();
        model_write(&mut model, 3 * PAGE - 100, &data);
        assert!(is_hit(&store, &a, 0, &model[..2 * PAGE]).await);
        assert!(is_hit(&store, &a, 4 * PAGE as u64, &model[4 * PAGE..]).await);
        for page in [2, 3] {
            let bytes = &model[page * PAGE..(page + 1) * PAGE];
            assert!(
                !is_hit(&store, &a, (page * PAGE) as u64, bytes).await,
                "{page}"
            );
        }
        warm(&model).await;
        store
            .punch_hole(&a, PAGE as u64, PAGE as u64)
            .await
            .unwrap();
        model_punch(&mut model, PAGE, PAGE);
        let zeros = &model[PAGE..2 * PAGE];
        assert!(!is_hit(&store, &a, PAGE as u64, zeros).await);
        assert!(is_hit(&store, &a, 0, &model[..PAGE]).await);
        warm(&model).await;
        // Truncating, also at the very border of a page, to smaller and to larger.
        for size in [
            8 * PAGE,
            8 * PAGE,
            7 * PAGE + 5,
            9 * PAGE,
            2 * PAGE,
            3 * PAGE + 1,
        ] {
            store.truncate(&a, size as u64).await.unwrap();
            model.resize(size, 0);
            let end = store.read_at(&a, 0, 20 * PAGE).await.unwrap();
            assert_bytes(&end.into_bytes(), &model, size);
            warm(&model).await;
        }
        store.delete(&a).await.unwrap();
        assert_kind(store.read_at(&a, 0, 10).await, ErrorKind::NotFound);
        store.write_at(&a, 5, pattern(4, 10)).await.unwrap();
        let mut again = vec![0; 5];
        again.extend_from_slice(&pattern(4, 10));
        assert!(!is_hit(&store, &a, 0, &again).await);
        assert!(
            is_hit(&store, &b, 0, &other).await,
            "the other is as it was"
        );
        // The target of a copy is another payload, also for who looks in memory.
        store.copy(&b, &a).await.unwrap();
        assert_payload(&store, &a, &other).await;
        store.close().await.unwrap();
    });
}

// scenario 129
// S-11, S-13
#[test]
fn a_clone_finds_what_its_source_has_read() {
    run(async {
        let (_bench, config) = bench(1, 1 << 20);
        let store = open(config).await.unwrap();
        let (a, b) = (id("a"), id("b"));
        let data = pattern(1, 16 * PAGE);
        store.write_at(&a, 0, data.clone()).await.unwrap();
        store.flush(&a).await.unwrap();
        read(&store, &a, 0, data.len()).await;
        let before = store.stats().await.unwrap();
        store.copy(&a, &b).await.unwrap();
        assert!(
            !is_hit(&store, &b, 0, &data).await,
            "the shard has to be asked"
        );
        assert!(is_hit(&store, &b, 0, &data).await);
        let after = store.stats().await.unwrap();
        assert_eq!(
            after.device_read_bytes, before.device_read_bytes,
            "but no device"
        );
        assert_eq!(
            after.read_buffer_used, before.read_buffer_used,
            "nor memory"
        );
        assert_eq!(after.read_buffer_entries, 2 * before.read_buffer_entries);
        let new = pattern(2, PAGE);
        store.write_at(&a, 0, new.clone()).await.unwrap();
        assert!(is_hit(&store, &b, 0, &data).await, "the clone is as it was");
        assert!(!is_hit(&store, &a, 0, &new).await);
        store.delete(&a).await.unwrap();
        assert!(is_hit(&store, &b, 0, &data).await);
        store.close().await.unwrap();
    });
}

// scenario 131
#[test]
fn reads_that_miss_cost_a_page_each() {
    run(async {
        let (_bench, config) = bench(1, 8 * PAGE as u64);
        let store = open(config).await.unwrap();
        let (a, pages) = (id("a"), 512);
        let data = pattern(1, pages * PAGE);
        store.write_at(&a, 0, data.clone()).await.unwrap();
        store.flush(&a).await.unwrap();
        read(&store, &a, 0, 1).await;
        store.evict_read_buffer().await.unwrap();
        let before = store.stats().await.unwrap();
        let mut rng = Rng(7);
        for _ in 0..400 {
            let page = rng.below(pages as u64) as usize * PAGE;
            let bytes = read(&store, &a, page as u64, PAGE).await;
            assert_bytes(&bytes, &data[page..page + PAGE], page);
        }
        let after = store.stats().await.unwrap();
        let pages_read = (after.device_read_bytes - before.device_read_bytes) / PAGE as u64;
        // Sums of segments that are not at hand would be read, too; they are, since the writes.
        assert!((300..=400).contains(&pages_read), "{pages_read}");
        assert!(after.read_buffer_used <= 8 * PAGE as u64);
        store.close().await.unwrap();
    });
}

// S-20
#[test]
fn a_closed_store_serves_nothing() {
    run(async {
        let (_bench, config) = bench(2, 1 << 20);
        let store = open(config).await.unwrap();
        let a = id("a");
        store.write_at(&a, 0, pattern(1, PAGE)).await.unwrap();
        read(&store, &a, 0, 10).await;
        assert!(is_hit(&store, &a, 0, &pattern(1, PAGE)).await);
        let other = store.clone();
        store.close().await.unwrap();
        assert_kind(other.read_at(&a, 0, 10).await, ErrorKind::Closed);
        assert_kind(other.evict_read_buffer().await, ErrorKind::Closed);
    });
}

/// What callers keep alive counts, and does not grow the buffer.
#[test]
fn what_callers_pin_counts_against_the_budget() {
    run(async {
        let budget = 64 * PAGE as u64;
        let (_bench, config) = bench(1, budget);
        let store = open(config).await.unwrap();
        let a = id("a");
        let data = pattern(1, 256 * PAGE);
        store.write_at(&a, 0, data.clone()).await.unwrap();
        store.flush(&a).await.unwrap();
        let mut pinned = Vec::new();
        for page in 0..256 {
            let offset = page * PAGE as u64;
            pinned.push(store.read_at(&a, offset, PAGE).await.unwrap());
            let used = store.stats().await.unwrap().read_buffer_used;
            assert!(used <= budget, "{used}");
        }
        assert_eq!(store.stats().await.unwrap().read_buffer_used, budget);
        store.evict_read_buffer().await.unwrap();
        let stats = store.stats().await.unwrap();
        assert_eq!(
            (stats.read_buffer_entries, stats.read_buffer_used),
            (0, budget)
        );
        for (page, chunks) in pinned.into_iter().enumerate() {
            let expected = &data[page * PAGE..(page + 1) * PAGE];
            assert_bytes(&chunks.into_bytes(), expected, page);
        }
        assert_eq!(store.stats().await.unwrap().read_buffer_used, 0);
        store.close().await.unwrap();
    });
}

/// One payload's states, in the order of the operations of its one writer.
struct History {
    id: PayloadId,
    /// `None`: it does not exist.
    states: Mutex<Vec<Option<Vec<u8>>>>,
    /// The last operation that was begun, and the last that has returned.
    begun: AtomicUsize,
    done: AtomicUsize,
}

impl History {
    fn new(name: &str) -> History {
        History {
            id: id(name),
            states: Mutex::new(vec![None]),
            begun: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
        }
    }

    fn last(&self) -> Option<Vec<u8>> {
        self.states.lock().unwrap().last().unwrap().clone()
    }

    fn begin(&self, state: Option<Vec<u8>>) {
        self.states.lock().unwrap().push(state);
        self.begun.fetch_add(1, Ordering::SeqCst);
    }

    fn end(&self) {
        self.done.fetch_add(1, Ordering::SeqCst);
    }

    /// Reads, and checks that it is what the payload held at one moment of the read.
    async fn check(&self, store: &Store, rng: &mut Rng) {
        let (offset, len) = (rng.edgy(STRESS_BYTES), 1 + rng.edgy(3 * PAGE as u64));
        let first = self.done.load(Ordering::SeqCst);
        let result = store.read_at(&self.id, offset, len as usize).await;
        let last = self.begun.load(Ordering::SeqCst);
        let bytes = match result {
            Ok(chunks) => Some(chunks.into_bytes()),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => panic!("{error}"),
        };
        let states = self.states.lock().unwrap();
        let fits = |state: &Option<Vec<u8>>| match (state, &bytes) {
            (Some(state), Some(bytes)) => {
                let from = (offset as usize).min(state.len());
                let to = ((offset + len) as usize).min(state.len());
                state[from..to] == bytes[..]
            }
            (state, bytes) => state.is_none() && bytes.is_none(),
        };
        assert!(
            states[first..=last].iter().any(fits),
            "{}: [{offset}, +{len}) is at no moment from {first} to {last} what was read",
            self.id
        );
    }
}

const STRESS_BYTES: u64 = 12 * PAGE as u64;

/// Sources of copies, which never change.
async fn templates(store: &Store) -> Vec<(PayloadId, Vec<u8>)> {
    let mut all = Vec::new();
    for n in 0..3 {
        let (name, data) = (
            id(&format!("template-{n}")),
            pattern(900 + n, 9 * PAGE + 77),
        );
        store.write_at(&name, 0, data.clone()).await.unwrap();
        all.push((name, data.to_vec()));
    }
    store.flush_all().await.unwrap();
    all
}

/// Changes a payload again and again.
async fn change(store: &Store, history: &History, sources: &[(PayloadId, Vec<u8>)], rng: &mut Rng) {
    let id = &history.id;
    let before = history.last();
    let mut state = before.clone().unwrap_or_default();
    match rng.below(20) {
        0 => {
            history.begin(None);
            store.delete(id).await.unwrap();
        }
        1..=3 => {
            let size = rng.edgy(STRESS_BYTES);
            state.resize(size as usize, 0);
            history.begin(Some(state));
            store.truncate(id, size).await.unwrap();
        }
        4 | 5 if before.is_some() => {
            let (offset, len) = (rng.edgy(STRESS_BYTES), 1 + rng.edgy(3 * PAGE as u64));
            model_punch(&mut state, offset as usize, len as usize);
            history.begin(Some(state));
            store.punch_hole(id, offset, len).await.unwrap();
        }
        6 | 7 => {
            let (source, data) = &sources[rng.below(3) as usize];
            history.begin(Some(data.clone()));
            store.copy(source, id).await.unwrap();
        }
        _ => {
            let offset = rng.edgy(STRESS_BYTES - 3 * PAGE as u64);
            let data = pattern(rng.next(), 1 + rng.edgy(3 * PAGE as u64) as usize);
            model_write(&mut state, offset as usize, &data);
            history.begin(Some(state));
            store.write_at(id, offset, data).await.unwrap();
        }
    }
    history.end();
    if rng.one_in(6) && history.last().is_some() {
        store.flush(id).await.unwrap();
    }
}

// scenario 26
// S-5, S-6, S-11
#[test]
fn readers_on_threads_see_every_change_that_was_acknowledged() {
    for (shards, budget) in [(1, 4 * PAGE as u64), (3, 3 << 20)] {
        let (_bench, config) = bench(shards, budget);
        run_threaded(async {
            let store = open(config).await.unwrap();
            let sources = Arc::new(templates(&store).await);
            let over = Arc::new(AtomicBool::new(false));
            let reads = Arc::new(AtomicU64::new(0));
            let history = |n: u64| Arc::new(History::new(&format!("p{n}")));
            let histories: Vec<_> = (0..3).map(history).collect();
            let readers: Vec<_> = (0..4)
                .map(|n| {
                    let (store, over, reads) = (store.clone(), over.clone(), reads.clone());
                    let histories = histories.clone();
                    tokio::spawn(async move {
                        let mut rng = Rng(n);
                        while !over.load(Ordering::Relaxed) {
                            for _ in 0..8 {
                                let history = &histories[rng.below(3) as usize];
                                history.check(&store, &mut rng).await;
                            }
                            reads.fetch_add(8, Ordering::Relaxed);
                            // A hit never waits, so a loop of hits would keep its thread.
                            tokio::task::yield_now().await;
                        }
                    })
                })
                .collect();
            let writers: Vec<_> = histories
                .iter()
                .enumerate()
                .map(|(n, history)| {
                    let (store, history) = (store.clone(), history.clone());
                    let sources = sources.clone();
                    tokio::spawn(async move {
                        let mut rng = Rng(100 + n as u64);
                        for round in 0..500 {
                            change(&store, &history, &sources, &mut rng).await;
                            if round % 100 == 99 {
                                store.evict_read_buffer().await.unwrap();
                            }
                        }
                    })
                })
                .collect();
            for writer in writers {
                writer.await.unwrap();
            }
            over.store(true, Ordering::Relaxed);
            for reader in readers {
                reader.await.unwrap();
            }
            let served = hits(&store).await;
            let reads = reads.load(Ordering::Relaxed);
            assert!(served > 100, "hits were tested: {served} of {reads}");
            store.close().await.unwrap();
        });
    }
}

/// A store that reads ahead, with a flushed payload of 4 MiB that nothing has read.
async fn streams(read_buffer: u64, prefetch: u64) -> (Bench, Store, PayloadId, Bytes) {
    let bench = Bench::new(Setup {
        driver: best_driver(),
        shards: Some(1),
        tiny: false,
    });
    let mut config = bench.config();
    (config.read_buffer_bytes, config.prefetch_bytes_max) = (read_buffer, prefetch);
    let store = open(config).await.unwrap();
    let (name, data) = (id("stream"), pattern(1, 4 * MIB));
    store.write_at(&name, 0, data.clone()).await.unwrap();
    store.flush(&name).await.unwrap();
    (bench, store, name, data)
}

/// Waits until what was read ahead is in the buffer, so that figures are exact.
async fn settled(store: &Store) -> ringstore::Stats {
    let mut last = store.stats().await.unwrap();
    loop {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        let stats = store.stats().await.unwrap();
        if stats.prefetched_bytes == last.prefetched_bytes {
            return stats;
        }
        last = stats;
    }
}

// scenario 130
#[test]
fn a_stream_through_more_than_the_buffer_holds_is_read_once() {
    run(async {
        // A quarter of the payload fits. Passing over it again and again leaves nothing behind that
        // takes the room of what the reader is coming to.
        let (_bench, store, name, data) = streams(MIB as u64, 8 << 20).await;
        let (len, rounds) = (64 * KIB, 4);
        for offset in (0..rounds * data.len()).step_by(len) {
            let offset = offset % data.len();
            let bytes = read(&store, &name, offset as u64, len).await;
            assert_bytes(&bytes, &data[offset..offset + len], offset);
        }
        let stats = settled(&store).await;
        let all = (rounds * data.len()) as u64;
        assert!(
            stats.device_read_bytes <= all + all / 32,
            "{} bytes were read for {all}: {stats:?}",
            stats.device_read_bytes
        );
        store.close().await.unwrap();
    });
}

// scenario 130
#[test]
fn streams_are_read_ahead_once_and_from_memory() {
    for len in [512, 4096, 100 * KIB] {
        run(async {
            let (_bench, store, name, data) = streams(16 << 20, 8 << 20).await;
            let mut offset = 0;
            while offset < data.len() {
                let end = data.len().min(offset + len);
                let bytes = read(&store, &name, offset as u64, len).await;
                assert_bytes(&bytes, &data[offset..end], offset);
                offset += len;
            }
            let stats = settled(&store).await;
            let all = data.len() as u64;
            assert!(stats.prefetched_bytes > all / 2, "{len}: {stats:?}");
            assert_eq!(stats.prefetch_used_bytes, stats.prefetched_bytes, "{len}");
            // A page may be read twice where a demand and what is read ahead meet.
            assert!(
                stats.device_read_bytes <= all + all / 16,
                "{len}: {stats:?}"
            );
            store.close().await.unwrap();
        });
    }
}

// scenario 130
#[test]
fn backward_and_strided_streams_are_read_ahead() {
    run(async {
        for step in [-(32 * KIB as i64), 64 * KIB as i64, -(48 * KIB as i64)] {
            let (_bench, store, name, data) = streams(16 << 20, 8 << 20).await;
            let mut offset = if step < 0 {
                4 * MIB as i64 - 32 * KIB as i64
            } else {
                0
            };
            while (0..4 * MIB as i64 - 32 * KIB as i64 + 1).contains(&offset) {
                let from = offset as usize;
                let bytes = read(&store, &name, offset as u64, 32 * KIB).await;
                assert_bytes(&bytes, &data[from..from + 32 * KIB], offset);
                offset += step;
            }
            let stats = settled(&store).await;
            assert!(stats.prefetch_used_bytes >= 1 << 20, "{step}: {stats:?}");
            assert_eq!(stats.prefetch_used_bytes, stats.prefetched_bytes, "{step}");
            store.close().await.unwrap();
        }
    });
}

// scenario 130
#[test]
fn what_is_no_stream_and_without_a_budget_nothing_is_read_ahead() {
    run(async {
        for (read_buffer, prefetch) in [(16 << 20, 0), (0, 8 << 20), (16 << 20, 8 << 20)] {
            let (_bench, store, name, data) = streams(read_buffer, prefetch).await;
            for n in 0..200_usize {
                let is_stream = read_buffer == 0 || prefetch == 0;
                // Else no two are neighbours, and no two steps are equal.
                let page = if is_stream { n } else { n * n % 340 * 3 };
                let from = page * PAGE;
                let bytes = read(&store, &name, from as u64, PAGE).await;
                assert_bytes(&bytes, &data[from..from + PAGE], page);
            }
            let stats = settled(&store).await;
            assert_eq!(stats.prefetched_bytes, 0, "{read_buffer} {prefetch}");
            store.close().await.unwrap();
        }
    });
}

// scenario 130
#[test]
fn what_is_resident_is_not_read_again() {
    run(async {
        let (_bench, store, name, data) = streams(32 << 20, 8 << 20).await;
        for pass in 0..3 {
            for offset in (0..data.len()).step_by(64 * KIB) {
                let bytes = read(&store, &name, offset as u64, 64 * KIB).await;
                assert_bytes(&bytes, &data[offset..offset + 64 * KIB], (pass, offset));
            }
        }
        let stats = settled(&store).await;
        assert!(stats.device_read_bytes <= (data.len() + data.len() / 16) as u64);
        assert!(stats.read_buffer_used <= 32 << 20);
        store.close().await.unwrap();
    });
}
