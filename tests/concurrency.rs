//! Many callers on one store on real files. Contract clauses 6, 20 and 21, scenarios 21 to 28 and
//! 30.

mod common;

use bytes::Bytes;
use common::*;
use ringstore::{ErrorKind, PayloadId, Store};
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::task::{Context, Poll, Waker};

/// Runs tasks on the runtime's threads, all at once, and waits for all.
async fn all<F>(count: u64, store: &Store, task: impl Fn(Store, u64) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let tasks: Vec<_> = (0..count)
        .map(|n| tokio::spawn(task(store.clone(), n)))
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

// scenario 21
// S-6
#[test]
fn writers_of_disjoint_pages_do_not_disturb_each_other() {
    each_threaded(setups(), async |bench| {
        let store = bench.open().await;
        all(8, &store, |store, writer| async move {
            for page in 0..40 {
                let offset = (page * 8 + writer) * 4096;
                let data = pattern(offset, 4096);
                store.write_at(&id("shared"), offset, data).await.unwrap();
            }
        })
        .await;
        let model: Vec<u8> = (0..320)
            .flat_map(|page| pattern(page * 4096, 4096))
            .collect();
        assert_payload(&store, &id("shared"), &model).await;
        let store = bench.reopen(store).await;
        assert_payload(&store, &id("shared"), &model).await;
        store.close().await.unwrap();
    });
}

// scenario 22, scenario 23
// S-6, S-15
#[test]
fn payloads_are_written_and_flushed_in_parallel() {
    each_threaded(setups(), async |bench| {
        let store = bench.open().await;
        all(10, &store, |store, n| async move {
            let name = id(&format!("p{n}"));
            for part in 0..16 {
                let data = pattern(n * 100 + part, 64 * KIB);
                store.write_at(&name, part << 16, data).await.unwrap();
                if n < 8 {
                    store.flush(&name).await.unwrap();
                }
            }
        })
        .await;
        let check = async |store: &Store, until: u64| {
            for n in 0..until {
                let parts = (0..16).flat_map(|part| pattern(n * 100 + part, 64 * KIB));
                let model: Vec<u8> = parts.collect();
                assert_payload(store, &id(&format!("p{n}")), &model).await;
            }
        };
        check(&store, 10).await;
        let store = bench.crash(store).await;
        check(&store, 8).await;
        store.close().await.unwrap();
    });
}

// scenario 24, scenario 27
// S-5, S-6
#[test]
fn more_payloads_and_segments_than_open_files_stay_right() {
    each_threaded(few_setups(), async |bench| {
        let store = bench.open().await;
        all(16, &store, |store, writer| async move {
            let mut rng = Rng(writer);
            for round in 0..120 {
                let n = writer + 16 * rng.below(44);
                let name = id(&format!("p{n}"));
                let data = pattern(n, 15_000 + rng.below(3) as usize);
                store.write_at(&name, 0, data).await.unwrap();
                if round % 4 == 0 {
                    store.flush(&name).await.unwrap();
                }
                // Segments are cleaned while this reads from them.
                let found = store.read_at(&name, 0, 15_000).await.unwrap().into_bytes();
                assert_bytes(&found, &pattern(n, 15_000), &name);
            }
        })
        .await;
        let stats = store.stats().await.unwrap();
        assert!(stats.cleaned_bytes > 0, "nothing was cleaned meanwhile");
        let store = bench.reopen(store).await;
        for name in store.list(None, 1000).await.unwrap() {
            let n: u64 = name.as_str()[1..].parse().unwrap();
            let found = store.read_at(&name, 0, 15_000).await.unwrap().into_bytes();
            assert_bytes(&found, &pattern(n, 15_000), &name);
        }
        store.close().await.unwrap();
    });
}

// scenario 25
// S-6
#[test]
fn a_reader_sees_a_page_before_or_after_a_write() {
    each_threaded(setups(), async |bench| {
        let store = bench.open().await;
        let name = id("page");
        store
            .write_at(&name, 0, vec![1; 8192].into())
            .await
            .unwrap();
        let written = Arc::new(AtomicU64::new(1));
        let (writer, done) = (store.clone(), written.clone());
        let writing = tokio::spawn(async move {
            for round in 2..=200u8 {
                let data = Bytes::from(vec![round; 8192]);
                writer.write_at(&id("page"), 0, data).await.unwrap();
                done.store(u64::from(round), Ordering::SeqCst);
                if round % 16 == 0 {
                    writer.flush(&id("page")).await.unwrap();
                }
            }
        });
        while !writing.is_finished() {
            let before = written.load(Ordering::SeqCst);
            let found = store.read_at(&name, 0, 8192).await.unwrap().into_bytes();
            for page in found.chunks(4096) {
                assert!(page.iter().all(|byte| *byte == page[0]), "a torn page");
                assert!(u64::from(page[0]) >= before, "an old page");
            }
        }
        writing.await.unwrap();
        assert_payload(&store, &name, &[200; 8192]).await;
        store.close().await.unwrap();
    });
}

// scenario 28
// S-20
#[test]
fn operations_during_close_are_done_or_refused() {
    each_threaded(setups(), async |bench| {
        let store = bench.open().await;
        let tasks: Vec<_> = (0..100u64)
            .map(|n| {
                let store = store.clone();
                tokio::spawn(async move {
                    let mut done = 0;
                    for part in 0..50 {
                        let data = pattern(n * 100 + part, 3000);
                        let name = id(&format!("p{n}"));
                        match store.write_at(&name, part * 3000, data).await {
                            Ok(()) => done += 1,
                            Err(error) => {
                                assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
                                break;
                            }
                        }
                    }
                    done
                })
            })
            .collect();
        tokio::task::yield_now().await;
        let again = store.clone();
        store.close().await.unwrap();
        again.close().await.unwrap();
        let mut done = Vec::new();
        for task in tasks {
            done.push(task.await.unwrap());
        }
        let store = bench.open().await;
        for (n, done) in (0..).zip(done) {
            let name = id(&format!("p{n}"));
            let parts = (0..done).flat_map(|part| pattern(n * 100 + part, 3000));
            let model: Vec<u8> = parts.collect();
            match model.is_empty() {
                true => assert!(!store.exists(&name).await.unwrap()),
                false => assert_payload(&store, &name, &model).await,
            }
        }
        store.close().await.unwrap();
    });
}

// scenario 30
// S-6
#[test]
fn any_thread_and_any_executor_can_use_the_store() {
    each_threaded(setups(), async |bench| {
        let store = bench.open().await;
        let barrier = Barrier::new(8);
        std::thread::scope(|scope| {
            for thread in 0..8u64 {
                let (store, barrier) = (&store, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    // One executor per thread, all on the same store.
                    runtime().block_on(order_of_one_caller(store, thread));
                });
            }
        });
        store.close().await.unwrap();
    });
}

/// A caller sees its own operations in their order, whichever shard they go to.
async fn order_of_one_caller(store: &Store, caller: u64) {
    let names: Vec<PayloadId> = (0..6).map(|n| id(&format!("{caller}/{n}"))).collect();
    let mut rng = Rng(caller);
    for round in 0..60 {
        for name in &names {
            let data = pattern(rng.next(), 2000);
            store.write_at(name, 0, data.clone()).await.unwrap();
            let found = store.read_at(name, 0, 2000).await.unwrap().into_bytes();
            assert_bytes(&found, &data, (name, round));
        }
    }
}

/// Polls a future once, then drops it.
fn poll_once<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    match future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

// S-21
#[test]
fn a_dropped_operation_happens_whole_or_not_at_all() {
    each(setups(), async |bench| {
        let mut store = bench.open().await;
        let (name, large) = (id("dropped"), id("large"));
        for round in 1..60u8 {
            // Never polled, a future never happens.
            drop(store.write_at(&id("never"), 0, "x".into()));
            let data = Bytes::from(vec![round; 6000]);
            poll_once(store.write_at(&name, 0, data));
            // Larger than a batch, and dropped with some of its parts written.
            let data = Bytes::from(vec![round; 300_000]);
            poll_once(store.write_at(&large, 0, data));
            poll_once(store.flush(&name));
            poll_once(store.read_at(&large, 0, 300_000));
            poll_once(store.copy(&name, &id("copy")));
            if round % 20 == 0 {
                store.flush_all().await.unwrap();
                store = bench.crash(store).await;
            }
            for (name, len) in [(&name, 6000), (&large, 300_000)] {
                let Ok(found) = read_all(&store, name).await else {
                    continue;
                };
                assert_eq!(found.len(), len);
                assert!(found.iter().all(|byte| *byte == found[0]), "half a write");
            }
        }
        assert!(!store.exists(&id("never")).await.unwrap());
        store.write_at(&name, 0, "done".into()).await.unwrap();
        assert_eq!(
            store.read_at(&name, 0, 4).await.unwrap().into_bytes(),
            "done"
        );
        store.close().await.unwrap();
    });
}

// S-20, S-21
#[test]
fn dropping_an_opening_leaves_the_store_as_it_was() {
    each(few_setups(), async |bench| {
        let store = bench.open().await;
        store.write_at(&id("a"), 0, "abc".into()).await.unwrap();
        store.close().await.unwrap();
        for _ in 0..10 {
            poll_once(Store::open(bench.config()));
            let store = bench.open().await;
            assert_payload(&store, &id("a"), b"abc").await;
            poll_once(store.close());
        }
        let store = bench.open().await;
        assert_payload(&store, &id("a"), b"abc").await;
        store.close().await.unwrap();
    });
}
