//! What one caller sees of one store on real files: reads, writes, holes, truncates, deletes, and a
//! random model test. Contract sections 2 and 4, scenarios 1 to 20, 41 to 49 and 53 to 58.

mod common;

use bytes::Bytes;
use common::*;
use ringstore::{ErrorKind, ExtentKind, PayloadId, Store};
use std::collections::BTreeMap;

/// Largest `offset + len`.
const END_MAX: u64 = 1 << 62;

async fn write(store: &Store, id: &PayloadId, offset: u64, data: &[u8]) {
    let data = Bytes::copy_from_slice(data);
    store.write_at(id, offset, data).await.unwrap();
}

async fn read(store: &Store, id: &PayloadId, offset: u64, len: usize) -> Bytes {
    store.read_at(id, offset, len).await.unwrap().into_bytes()
}

// scenario 1, scenario 5, scenario 9, scenario 10
// S-4, S-6
#[test]
fn reads_return_what_was_written_up_to_the_end() {
    each(setups(), async |bench| {
        let store = bench.open().await;
        let a = id("a");
        let data = pattern(1, 500);
        write(&store, &a, 0, &data).await;
        assert_payload(&store, &a, &data).await;
        write(&store, &id("hex"), 0, b"0123456789abcdef").await;
        for _ in 0..2 {
            assert_eq!(read(&store, &id("hex"), 4, 8).await, "456789ab");
        }
        assert_bytes(&read(&store, &a, 400, 200).await, &data[400..], "the end");
        for offset in [500, 501, 1 << 40, END_MAX - 10] {
            assert!(read(&store, &a, offset, 10).await.is_empty(), "{offset}");
        }
        store.close().await.unwrap();
    });
}

// scenario 2
// S-4, S-10
#[test]
fn unknown_payloads_are_not_found_and_not_made() {
    each(setups(), async |bench| {
        let store = bench.open().await;
        let (none, end) = (id("none"), u64::MAX);
        assert_kind(store.read_at(&none, 0, 1).await, ErrorKind::NotFound);
        assert_kind(
            store.read_into(&none, 0, &mut [0]).await,
            ErrorKind::NotFound,
        );
        assert_kind(store.size(&none).await, ErrorKind::NotFound);
        assert_kind(store.flush(&none).await, ErrorKind::NotFound);
        assert_kind(store.punch_hole(&none, 0, 1).await, ErrorKind::NotFound);
        assert_kind(store.extents(&none, 0, 1).await, ErrorKind::NotFound);
        let cow = store
            .read_with_cow_source(&none, &id("neither"), 0, 1)
            .await;
        assert_kind(cow, ErrorKind::NotFound);
        assert_kind(store.extents(&none, end, 1).await, ErrorKind::InvalidInput);
        assert!(!store.exists(&none).await.unwrap());
        assert!(store.list(None, 10).await.unwrap().is_empty());
        let store = bench.reopen(store).await;
        assert!(!store.exists(&none).await.unwrap());
        store.close().await.unwrap();
    });
}

// scenario 3, scenario 4, scenario 11
// S-4
#[test]
fn large_writes_are_read_back_whole() {
    each(setups(), async |bench| {
        let store = bench.open().await;
        let (a, b) = (id("a"), id("b"));
        let data = pattern(3, 8 * MIB + 4 * KIB);
        write(&store, &a, 0, &data).await;
        assert_payload(&store, &a, &data).await;
        let twenty = pattern(4, 20 * MIB);
        write(&store, &b, 0, &twenty).await;
        assert_eq!(store.size(&b).await.unwrap(), 20 << 20);
        let mut target = vec![0xEE; 21 * MIB];
        let len = store.read_into(&b, 0, &mut target).await.unwrap();
        assert_bytes(&target[..len], &twenty, "read_into");
        assert!(target[len..].iter().all(|&byte| byte == 0xEE));
        let store = bench.reopen(store).await;
        assert_payload(&store, &a, &data).await;
        assert_payload(&store, &b, &twenty).await;
        store.close().await.unwrap();
    });
}

// scenario 6
// S-6
#[test]
fn small_overwrite_changes_only_its_bytes() {
    each(setups(), async |bench| {
        let store = bench.open().await;
        let a = id("a");
        let mut model = pattern(6, 8 * MIB).to_vec();
        write(&store, &a, 0, &model).await;
        store.flush(&a).await.unwrap();
        model_write(&mut model, 100, b"changed!");
        write(&store, &a, 100, b"changed!").await;
        assert_payload(&store, &a, &model).await;
        store.flush(&a).await.unwrap();
        assert_payload(&store, &a, &model).await;
        let store = bench.reopen(store).await;
        assert_payload(&store, &a, &model).await;
        store.close().await.unwrap();
    });
}

// scenario 7
// S-3
#[test]
fn nothing_is_read_or_written_by_zero_bytes() {
    each(setups(), async |bench| {
        let store = bench.open().await;
        let (a, none) = (id("a"), id("none"));
        write(&store, &a, 0, b"abc").await;
        for offset in [0, 1, 3, 4, END_MAX, u64::MAX] {
            store.write_at(&a, offset, Bytes::new()).await.unwrap();
            store.write_at(&none, offset, Bytes::new()).await.unwrap();
            assert!(read(&store, &a, offset, 0).await.is_empty());
            assert!(read(&store, &none, offset, 0).await.is_empty());
            assert_eq!(store.read_into(&a, offset, &mut []).await.unwrap(), 0);
            let cow = store.read_with_cow_source(&none, &a, offset, 0).await;
            assert!(cow.unwrap().is_empty());
        }
        assert_eq!(store.size(&a).await.unwrap(), 3);
        assert!(!store.exists(&none).await.unwrap());
        let again = store.clone();
        store.close().await.unwrap();
        let write = again.write_at(&a, 0, Bytes::new()).await;
        assert_kind(write, ErrorKind::Closed);
        assert_kind(again.read_at(&a, 0, 0).await, ErrorKind::Closed);
    });
}

// scenario 8
// S-2
#[test]
fn ranges_past_the_largest_size_are_refused() {
    each(setups(), async |bench| {
        let store = bench.open().await;
        let a = id("a");
        write(&store, &a, 0, b"abc").await;
        for offset in [END_MAX, END_MAX - 1, u64::MAX, u64::MAX - 1] {
            let data = Bytes::from_static(b"xy");
            let result = store.write_at(&a, offset, data).await;
            assert_kind(result, ErrorKind::InvalidInput);
            let result = store.read_at(&a, offset, 2).await;
            assert_kind(result, ErrorKind::InvalidInput);
            let result = store.read_with_cow_source(&a, &id("b"), offset, 2).await;
            assert_kind(result, ErrorKind::InvalidInput);
            let result = store.punch_hole(&a, offset, 2).await;
            assert_kind(result, ErrorKind::InvalidInput);
            let result = store.extents(&a, offset, 2).await;
            assert_kind(result, ErrorKind::InvalidInput);
        }
        let result = store.read_at(&a, u64::MAX, usize::MAX).await;
        assert_kind(result, ErrorKind::InvalidInput);
        for size in [END_MAX + 1, u64::MAX] {
            let result = store.truncate(&a, size).await;
            assert_kind(result, ErrorKind::InvalidInput);
        }
        assert_payload(&store, &a, b"abc").await;

        // The very end is still a place.
        write(&store, &a, END_MAX - 2, b"xy").await;
        assert_eq!(store.size(&a).await.unwrap(), END_MAX);
        assert_eq!(read(&store, &a, END_MAX - 3, 3).await, &b"\0xy"[..]);
        store.truncate(&a, END_MAX).await.unwrap();
        let store = bench.reopen(store).await;
        assert_eq!(store.size(&a).await.unwrap(), END_MAX);
        assert_eq!(read(&store, &a, END_MAX - 3, 3).await, &b"\0xy"[..]);
        store.truncate(&a, 3).await.unwrap();
        assert_payload(&store, &a, b"abc").await;
        store.close().await.unwrap();
    });
}

// scenario 12
// S-5
#[test]
fn gaps_never_show_what_the_space_held_before() {
    each(few_setups(), async |bench| {
        let store = bench.open().await;
        let (secret, other) = (id("secret"), id("other"));
        write(&store, &secret, 0, &vec![0xAA; 16 * MIB]).await;
        store.flush(&secret).await.unwrap();
        assert_eq!(read(&store, &secret, 0, MIB).await.len(), MIB);
        store.delete(&secret).await.unwrap();
        let mut model = Vec::new();
        for index in 0..64 {
            let offset = index * 256 * KIB + 1000;
            model_write(&mut model, offset, &[0x55; 100]);
            write(&store, &other, offset as u64, &[0x55; 100]).await;
        }
        assert_payload(&store, &other, &model).await;
        let store = bench.crash(store).await;
        store.truncate(&other, model.len() as u64).await.unwrap();
        let found = read_all(&store, &other).await.unwrap();
        assert!(found.iter().all(|byte| [0, 0x55].contains(byte)));
        store.close().await.unwrap();
    });
}

// scenario 13, scenario 14, scenario 15
// S-2, S-5
#[test]
fn holes_read_zero_and_take_no_space() {
    each(setups(), async |bench| {
        let store = bench.open().await;
        let (far, edge) = (id("far"), id("edge"));
        write(&store, &far, 32 << 20, b"x").await;
        assert_eq!(read(&store, &far, 0, 1).await, &b"\0"[..]);
        assert_eq!(store.size(&far).await.unwrap(), (32 << 20) + 1);
        let extents = store.extents(&far, 0, u64::MAX / 4).await.unwrap();
        let data = extents
            .iter()
            .filter(|extent| extent.kind != ExtentKind::Hole);
        assert_eq!(data.count(), 1, "{extents:?}");

        let page = pattern(14, 4096);
        let mut model = Vec::new();
        for offset in [0, 12288] {
            model_write(&mut model, offset, &page);
            write(&store, &edge, offset as u64, &page).await;
        }
        assert_payload(&store, &edge, &model).await;
        for at in [4096 - 16, 12288 - 16] {
            let found = read(&store, &edge, at as u64, 32).await;
            assert_bytes(&found, &model[at..at + 32], at);
        }
        write(&store, &id("late"), 4096, &page).await;
        let late = read(&store, &id("late"), 0, 8192).await;
        assert_bytes(&late, &[&[0; 4096][..], &page].concat(), "late");
        store.close().await.unwrap();
    });
}

// scenario 13
// S-10
#[test]
fn extents_tell_data_from_holes_and_dirty_from_local() {
    each(setups(), async |bench| {
        let store = bench.open().await;
        let a = id("a");
        write(&store, &a, 8192, &pattern(1, 4096)).await;
        write(&store, &a, 20480, &pattern(2, 100)).await;
        store.flush(&a).await.unwrap();
        let found = store.extents(&a, 0, END_MAX).await.unwrap();
        let found: Vec<_> = found.iter().map(|e| (e.offset, e.len, e.kind)).collect();
        let (hole, local) = (ExtentKind::Hole, ExtentKind::Local);
        let expected = [
            (0, 8192, hole),
            (8192, 4096, local),
            (12288, 8192, hole),
            (20480, 100, local),
        ];
        assert_eq!(found, expected);
        let part = store.extents(&a, 9000, 10).await.unwrap();
        assert_eq!((part[0].offset, part[0].len, part.len()), (9000, 10, 1));
        assert!(store.extents(&a, 20580, 10).await.unwrap().is_empty());
        assert!(store.extents(&a, 0, 0).await.unwrap().is_empty());
        store.close().await.unwrap();
    });
}

// scenario 16
// S-6
#[test]
fn newest_of_layered_writes_wins() {
    each(setups(), async |bench| {
        let store = bench.open().await;
        let a = id("a");
        let mut model = Vec::new();
        let layers = [
            (4000, 9000),
            (6000, 100),
            (3000, 2000),
            (12000, 3000),
            (6000, 100),
            (2999, 1),
            (5999, 4097),
            (0, 20000),
            (4096, 4096),
            (4095, 4098),
            (4097, 4094),
        ];
        for flush in [false, true] {
            for (index, (offset, len)) in layers.into_iter().enumerate() {
                let data = pattern(index as u64 + 100, len);
                model_write(&mut model, offset, &data);
                write(&store, &a, offset as u64, &data).await;
                assert_payload(&store, &a, &model).await;
                if flush {
                    store.flush(&a).await.unwrap();
                    assert_payload(&store, &a, &model).await;
                }
            }
        }
        let store = bench.reopen(store).await;
        assert_payload(&store, &a, &model).await;
        store.close().await.unwrap();
    });
}

// scenario 18
// S-2, S-29
#[test]
fn one_huge_write_stays_within_the_dirty_budget() {
    let mut setup = Setup::tiny(best_driver(), 1);
    setup.tiny = false;
    let bench = Bench::new(setup);
    run_threaded(async {
        let mut config = bench.config();
        config.dirty_bytes_max = 8 << 20;
        let store = open(config).await.unwrap();
        let a = id("a");
        let piece = pattern(18, 16 * MIB);
        let data = Bytes::from(piece.repeat(64));
        let offset = 5 << 30;
        let writer = store.clone();
        let writing = writer.write_at(&a, offset, data);
        let mut writing = std::pin::pin!(writing);
        loop {
            tokio::select! {
                result = &mut writing => break result.unwrap(),
                stats = store.stats() => {
                    assert!(stats.unwrap().local_mem_used <= 8 << 20);
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            }
        }
        assert_eq!(store.size(&a).await.unwrap(), offset + (1 << 30));
        for index in 0..64 {
            let at = offset + index * piece.len() as u64;
            assert_bytes(&read(&store, &a, at, piece.len()).await, &piece, index);
        }
        store.close().await.unwrap();
    });
}

// scenario 19
// S-1
#[test]
fn ids_are_bytes_and_never_paths() {
    each(setups(), async |bench| {
        let store = bench.open().await;
        let longest = "x".repeat(1024);
        let names = [
            "a",
            "a/b",
            "a/block-1",
            "..",
            "../../x",
            "/etc/passwd",
            "é𝄞",
            " ",
            "STORE",
            &longest,
        ];
        for (index, name) in names.iter().enumerate() {
            write(&store, &id(name), 0, &pattern(index as u64, 5000)).await;
        }
        let store = bench.reopen(store).await;
        for (index, name) in names.iter().enumerate() {
            assert_payload(&store, &id(name), &pattern(index as u64, 5000)).await;
        }
        let mut sorted = names.map(str::to_owned).to_vec();
        sorted.sort();
        let listed = store.list(None, 100).await.unwrap();
        let listed: Vec<&str> = listed.iter().map(PayloadId::as_str).collect();
        assert_eq!(listed, sorted);
        let above = bench.dir().parent().unwrap().to_owned();
        assert_eq!(std::fs::read_dir(above).unwrap().count(), 1);
        for bad in ["", "a\0b", "\0", &"x".repeat(1025)] {
            assert_kind(PayloadId::new(bad), ErrorKind::InvalidInput);
        }
        store.close().await.unwrap();
    });
}

// scenario 2
// S-10
#[test]
fn list_is_ordered_and_paged() {
    each(setups(), async |bench| {
        let store = bench.open().await;
        let names: Vec<String> = (0..25).map(|n| format!("p{n:03}")).collect();
        for name in names.iter().rev() {
            store.truncate(&id(name), 1).await.unwrap();
        }
        let mut listed = Vec::new();
        loop {
            let page = store.list(listed.last(), 10).await.unwrap();
            if page.is_empty() {
                break;
            }
            assert!(page.len() <= 10);
            listed.extend(page);
        }
        let listed: Vec<&str> = listed.iter().map(PayloadId::as_str).collect();
        assert_eq!(listed, names);
        assert!(store.list(None, 0).await.unwrap().is_empty());
        let after = store.list(Some(&id("p0055")), 2).await.unwrap();
        assert_eq!(after, [id("p006"), id("p007")]);
        store.close().await.unwrap();
    });
}

// scenario 41, scenario 42, scenario 43, scenario 44, scenario 45
// S-5, S-7
#[test]
fn truncate_cuts_for_good_and_grows_with_zeros() {
    each(setups(), async |bench| {
        let mut store = bench.open().await;
        let block = bench.config().block_bytes;
        let (a, b, c) = (id("a"), id("b"), id("c"));
        let data = pattern(41, 16 * MIB);
        write(&store, &a, 0, &data).await;
        assert_eq!(read(&store, &a, 4 << 20, 10).await, &data[4 << 20..][..10]);
        store.truncate(&a, 4 << 20).await.unwrap();
        assert!(read(&store, &a, 4 << 20, 10).await.is_empty());
        let extents = store.extents(&a, 0, END_MAX).await.unwrap();
        assert_eq!(
            extents.iter().map(|e| e.offset + e.len).max(),
            Some(4 << 20)
        );
        assert_payload(&store, &a, &data[..4 << 20]).await;

        let mut models = [data[..10].to_vec(), data[..10].to_vec()];
        for (index, payload) in [&b, &c].into_iter().enumerate() {
            write(&store, payload, 0, &data[..2 * block as usize]).await;
            if index == 1 {
                store.flush(payload).await.unwrap();
            }
            store.truncate(payload, 10).await.unwrap();
            for at in [50, block as usize + 100] {
                model_write(&mut models[index], at, b"late");
                write(&store, payload, at as u64, b"late").await;
                assert_payload(&store, payload, &models[index]).await;
            }
        }
        // What was written and not cut off, and nothing for what it grows by.
        let live = exact_stats(&store).await.live_bytes;
        assert_eq!(live, (4 << 20) + 2 * (10 + 4 + 4));
        store.truncate(&a, 1 << 40).await.unwrap();
        store.truncate(&a, 5 << 20).await.unwrap();
        assert_eq!(exact_stats(&store).await.live_bytes, live);
        let mut grown = data[..4 << 20].to_vec();
        grown.resize(5 << 20, 0);
        for crash in [false, true] {
            assert_payload(&store, &a, &grown).await;
            assert_payload(&store, &b, &models[0]).await;
            assert_payload(&store, &c, &models[1]).await;
            store.flush_all().await.unwrap();
            store = match crash {
                false => bench.reopen(store).await,
                true => bench.crash(store).await,
            };
        }
        assert_payload(&store, &a, &grown).await;
        store.close().await.unwrap();
    });
}

// scenario 46
// S-3, S-7
#[test]
fn truncate_of_a_missing_payload_creates_it() {
    each(setups(), async |bench| {
        let store = bench.open().await;
        store.truncate(&id("empty"), 0).await.unwrap();
        store.truncate(&id("zeros"), 9000).await.unwrap();
        assert!(store.exists(&id("empty")).await.unwrap());
        let store = bench.reopen(store).await;
        assert_payload(&store, &id("empty"), &[]).await;
        assert_payload(&store, &id("zeros"), &[0; 9000]).await;
        store.close().await.unwrap();
    });
}

// scenario 48, scenario 51
// S-7
#[test]
fn truncated_sizes_and_zeros_survive_cleaning_and_restart() {
    each(few_setups(), async |bench| {
        let mut store = bench.open().await;
        let (a, churn) = (id("a"), id("churn"));
        let mut model = Vec::new();
        // What is kept of `a` stands between what is not, so that cleaning has to move it.
        for page in 0..256 {
            write(&store, &a, page * 4096, &pattern(page, 4096)).await;
            write(&store, &churn, page * 4096, &pattern(page, 4096)).await;
            model.extend_from_slice(&pattern(page, 4096));
        }
        store.flush(&a).await.unwrap();
        store.truncate(&a, 300_000).await.unwrap();
        model.truncate(300_000);
        let mut size = 400_000;
        for round in 0..3 {
            for index in 0..40 {
                write(&store, &churn, 0, &pattern(index, 100 * KIB)).await;
            }
            store.truncate(&churn, 0).await.unwrap();
            store.flush_all().await.unwrap();
            if round == 0 {
                // It cleans by itself; a watchdog ends a wait for what never comes.
                while store.stats().await.unwrap().cleaned_bytes == 0 {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            }
            store = match round % 2 {
                0 => bench.reopen(store).await,
                _ => bench.crash(store).await,
            };
            assert_payload(&store, &a, &model).await;
            store.truncate(&a, size).await.unwrap();
            model.resize(size as usize, 0);
            assert_payload(&store, &a, &model).await;
            // Into what was cut off, and beside it.
            for at in [size - 90_000, 150_000] {
                model_write(&mut model, at as usize, b"newer");
                write(&store, &a, at, b"newer").await;
            }
            store.flush(&a).await.unwrap();
            size += 50_000;
        }
        store.close().await.unwrap();
    });
}

// scenario 49
// S-4, S-7
#[test]
fn what_is_cut_off_a_cold_payload_never_comes_back() {
    each(setups(), async |bench| {
        let store = bench.open().await;
        let a = id("a");
        let data = pattern(49, 200 * KIB);
        write(&store, &a, 0, &data).await;
        // Nothing of it is in memory from here on.
        let mut store = bench.reopen(store).await;
        let reading = store.read_at(&a, 0, 200 * KIB);
        let (read, cut) = tokio::join!(reading, store.truncate(&a, 70_000));
        cut.unwrap();
        // The read was asked for first: it has all of it, whatever happened meanwhile.
        assert_bytes(&read.unwrap().into_bytes(), &data, "before the cut");
        assert!(read_at_end(&store, &a).await.is_empty());
        store.truncate(&a, 200 << 10).await.unwrap();
        let mut model = data[..70_000].to_vec();
        model.resize(200 * KIB, 0);
        for crash in [false, true] {
            assert_payload(&store, &a, &model).await;
            store.flush(&a).await.unwrap();
            store = match crash {
                false => bench.reopen(store).await,
                true => bench.crash(store).await,
            };
        }
        assert_payload(&store, &a, &model).await;
        store.close().await.unwrap();
    });
}

/// What stands behind the place that a payload was cut at.
async fn read_at_end(store: &Store, id: &PayloadId) -> Bytes {
    read(store, id, 70_000, 4096).await
}

// scenario 14
// S-5, S-8
#[test]
fn punched_ranges_read_zero_and_free_their_pages() {
    each(setups(), async |bench| {
        let mut store = bench.open().await;
        let a = id("a");
        let mut model = pattern(8, 300 * KIB).to_vec();
        write(&store, &a, 0, &model).await;
        store.flush(&a).await.unwrap();
        let holes = [
            (0, 1),
            (4095, 2),
            (8192, 8192),
            (30000, 10),
            (30000, 0),
            (40960, 100 * KIB),
            (299 * KIB, 10 * KIB),
            (400 * KIB, 5),
        ];
        for (offset, len) in holes {
            model_punch(&mut model, offset, len);
            store
                .punch_hole(&a, offset as u64, len as u64)
                .await
                .unwrap();
            assert_payload(&store, &a, &model).await;
        }
        // Every byte that was punched out is free, and no other: 1 and 2 and 8 KiB and 10 and
        // 100 KiB and the last KiB.
        let punched = 1 + 2 + 8192 + 10 + 100 * KIB + KIB;
        let live = exact_stats(&store).await.live_bytes;
        assert_eq!(live, (300 * KIB - punched) as u64);
        model_write(&mut model, 41000, b"filled");
        write(&store, &a, 41000, b"filled").await;
        store.flush(&a).await.unwrap();
        for _ in 0..2 {
            store = bench.crash(store).await;
            assert_payload(&store, &a, &model).await;
        }
        store.punch_hole(&a, 0, END_MAX).await.unwrap();
        assert_payload(&store, &a, &vec![0; model.len()]).await;
        store.close().await.unwrap();
    });
}

// scenario 53, scenario 55, scenario 56, scenario 57, scenario 58
// S-9
#[test]
fn deleted_payloads_stay_deleted() {
    each(setups(), async |bench| {
        let mut store = bench.open().await;
        let (dir, file) = (id("dir"), id("dir/file"));
        write(&store, &dir, 0, &pattern(1, 100 * KIB)).await;
        write(&store, &file, 0, b"stays").await;
        store.flush_all().await.unwrap();
        for _ in 0..2 {
            store.delete(&dir).await.unwrap();
            store.delete(&id("never")).await.unwrap();
            assert_kind(store.read_at(&dir, 0, 1).await, ErrorKind::NotFound);
            assert_kind(store.size(&dir).await, ErrorKind::NotFound);
            assert!(!store.exists(&dir).await.unwrap());
            assert_eq!(
                store.list(None, 9).await.unwrap(),
                std::slice::from_ref(&file)
            );
        }
        store.flush_all().await.unwrap();
        for round in 0..3 {
            store = match round {
                1 => bench.reopen(store).await,
                _ => bench.crash(store).await,
            };
            assert!(!store.exists(&dir).await.unwrap());
            assert_payload(&store, &file, b"stays").await;
        }
        write(&store, &dir, 50_000, b"new").await;
        let mut model = vec![0; 50_000];
        model.extend_from_slice(b"new");
        assert_payload(&store, &dir, &model).await;
        let store = bench.reopen(store).await;
        assert_payload(&store, &dir, &model).await;
        store.close().await.unwrap();
    });
}

/// Payloads of the model test, by name.
type Model = BTreeMap<usize, Vec<u8>>;

const MODEL_PAYLOADS: u64 = 6;
const MODEL_BYTES: u64 = 200 << 10;

fn model_id(number: usize) -> PayloadId {
    id(&format!("model/{number}"))
}

/// One random operation on the store and the model.
async fn model_step(store: &Store, model: &mut Model, rng: &mut Rng) {
    let number = rng.below(MODEL_PAYLOADS) as usize;
    let name = model_id(number);
    let (offset, len) = (rng.edgy(MODEL_BYTES), rng.edgy(40_000) + 1);
    let known = model.contains_key(&number);
    match rng.below(16) {
        0..=6 => {
            let data = pattern(rng.next(), len as usize);
            write(store, &name, offset, &data).await;
            model_write(model.entry(number).or_default(), offset as usize, &data);
        }
        7 => {
            let result = store.punch_hole(&name, offset, len).await;
            match model.get_mut(&number) {
                Some(bytes) => {
                    result.unwrap();
                    model_punch(bytes, offset as usize, len as usize);
                }
                None => assert_kind(result, ErrorKind::NotFound),
            }
        }
        8 => {
            store.truncate(&name, offset).await.unwrap();
            model.entry(number).or_default().resize(offset as usize, 0);
        }
        9 if rng.one_in(2) => {
            store.delete(&name).await.unwrap();
            model.remove(&number);
        }
        10 | 11 => {
            let target = rng.below(MODEL_PAYLOADS) as usize;
            let result = store.copy(&name, &model_id(target)).await;
            match model.get(&number).cloned() {
                Some(bytes) => {
                    result.unwrap();
                    model.insert(target, bytes);
                }
                None => assert_kind(result, ErrorKind::NotFound),
            }
        }
        12 => match store.flush(&name).await {
            Ok(flushed) => assert!(known && !flushed.finalized),
            Err(error) => assert!(!known, "{error}"),
        },
        _ => match store.read_at(&name, offset, len as usize).await {
            Ok(found) => {
                let bytes = &model[&number];
                let end = bytes.len().min((offset + len) as usize);
                let expected = bytes.get(offset as usize..end).unwrap_or(&[]);
                assert_bytes(&found.into_bytes(), expected, (name, offset));
            }
            Err(error) => assert!(!known, "{error}"),
        },
    }
}

async fn model_check(store: &Store, model: &Model) {
    let names: Vec<PayloadId> = model.keys().map(|&number| model_id(number)).collect();
    assert_eq!(store.list(None, 100).await.unwrap(), names);
    for (&number, bytes) in model {
        assert_payload(store, &model_id(number), bytes).await;
    }
    let report = store.verify().await.unwrap();
    assert!(report.corrupt.is_empty(), "{report:?}");
}

// scenario 20
// S-4, S-5, S-6, S-7, S-8, S-9, S-11, S-17
#[test]
fn random_operations_equal_the_model() {
    each(setups(), async |bench| {
        let tiny = bench.setup.tiny;
        for seed in 0..if tiny { 4 } else { 1 } {
            let mut rng = Rng(seed);
            let mut store = bench.open().await;
            for number in 0..MODEL_PAYLOADS {
                store.delete(&model_id(number as usize)).await.unwrap();
            }
            let mut model = Model::new();
            for step in 0..1000 {
                model_step(&store, &mut model, &mut rng).await;
                if step % 200 == 199 {
                    store.flush_all().await.unwrap();
                    model_check(&store, &model).await;
                    store = match rng.one_in(2) {
                        true => bench.crash(store).await,
                        false => bench.reopen(store).await,
                    };
                    model_check(&store, &model).await;
                }
            }
            store.close().await.unwrap();
        }
    });
}
