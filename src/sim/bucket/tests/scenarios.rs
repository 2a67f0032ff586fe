//! What a store with a bucket promises of eviction, uploads and health, one promise at a time.

use super::{BucketFaults, Rig, figures, kind, on};
use crate::error::ErrorKind;
use crate::payload_id::PayloadId;
use crate::stats::{ExtentKind, HealthStatus};
use crate::store::Store;
use bytes::Bytes;
use std::time::Duration;

/// A little less than a segment, so that each payload has one of its own.
const LEN: usize = 60_000;

/// How many bytes of a payload are on this machine.
fn here(rig: &Rig, store: &Store, id: &PayloadId) -> u64 {
    let extents = rig.run(store.extents(id, 0, 1 << 40)).expect("it is there");
    let remote = |kind: ExtentKind| kind == ExtentKind::Remote || kind == ExtentKind::Hole;
    let local = extents.iter().filter(|extent| !remote(extent.kind));
    local.map(|extent| extent.len).sum()
}

fn write_at(rig: &Rig, store: &Store, id: &PayloadId, offset: u64, fill: u8, len: usize) {
    let data = Bytes::from(vec![fill; len]);
    rig.run(store.write_at(id, offset, data))
        .expect("it is written");
}

fn read_at(rig: &Rig, store: &Store, id: &PayloadId, offset: u64, len: usize) -> Bytes {
    let read = rig.run(store.read_at(id, offset, len));
    read.expect("it is there").into_bytes()
}

// scenario 76
#[test]
fn coldest_of_three_goes_first() {
    let mut rig = Rig::new(50, 1);
    rig.config.local_bytes_max = Some(12 * (64 << 10));
    let store = rig.open();
    for nth in 0..3 {
        rig.write(&store, &on(0, nth), nth as u8, LEN);
        rig.sleep(1);
    }
    rig.run(store.drain_uploads()).expect("it is uploaded");
    rig.read(&store, &on(0, 0), LEN).expect("it is there");
    let mut nth = 3;
    while (0..3).all(|old| here(&rig, &store, &on(0, old)) == LEN as u64) {
        rig.write(&store, &on(0, nth), nth as u8, LEN);
        rig.sleep(1);
        nth += 1;
        assert!(nth < 100, "nothing is evicted");
    }
    // What lies in a segment with the next one is as warm as that.
    assert!(here(&rig, &store, &on(0, 1)) < LEN as u64 / 2, "the oldest");
    assert_eq!(here(&rig, &store, &on(0, 0)), LEN as u64, "it was read");
}

/// Writes until a writer is told that the store is full.
fn fill_up(rig: &Rig, store: &Store, from: usize) -> usize {
    for nth in from..from + 200 {
        let id = on(0, nth);
        if let Err(error) = rig.try_write(store, &id, nth as u8, LEN) {
            assert_eq!(error.kind(), ErrorKind::Full, "{error}");
            return nth;
        }
    }
    panic!("the store is not limited");
}

// scenario 78
#[test]
fn writers_of_a_full_store_wait_for_the_bucket_and_go_on_when_it_is_back() {
    let mut rig = Rig::new(51, 1);
    rig.config.local_bytes_max = Some(10 * (64 << 10));
    let store = rig.open();
    rig.bucket.set_away(true);
    rig.sleep(60);
    assert!(figures(&rig, &store).eviction_suspended);
    let began = rig.universe.now();
    let nth = fill_up(&rig, &store, 0);
    let waited = rig.universe.now().since(began);
    assert!(waited >= rig.config.stall_timeout, "{waited:?}");
    assert_eq!(figures(&rig, &store).evicted_segments, 0);
    rig.bucket.set_away(false);
    rig.sleep(60);
    assert!(!figures(&rig, &store).eviction_suspended);
    rig.write(&store, &on(0, nth), nth as u8, LEN);
    for id in 0..=nth {
        let read = rig.read(&store, &on(0, id), LEN).expect("it is there");
        assert_eq!(read, vec![id as u8; LEN], "{id}");
    }
    // What an operator has forbidden stays so, whatever becomes of the bucket.
    rig.run(store.set_eviction_enabled(false))
        .expect("it is set");
    rig.bucket.set_away(true);
    rig.sleep(60);
    rig.bucket.set_away(false);
    rig.sleep(60);
    assert!(figures(&rig, &store).eviction_suspended);
    let before = figures(&rig, &store).evicted_segments;
    let nth = fill_up(&rig, &store, nth + 1);
    assert_eq!(figures(&rig, &store).evicted_segments, before);
    rig.run(store.set_eviction_enabled(true))
        .expect("it is set");
    rig.write(&store, &on(0, nth), nth as u8, LEN);
    assert!(figures(&rig, &store).evicted_segments > before);
}

// scenario 79
#[test]
fn evicting_what_is_dirty_uploads_it_first_or_is_refused() {
    let rig = Rig::new(52, 1);
    let (store, id) = (rig.open(), on(0, 0));
    write_at(&rig, &store, &id, 0, 1, LEN);
    rig.run(store.evict(&id)).expect("it is evicted");
    assert_eq!(here(&rig, &store, &id), 0);
    assert!(rig.bucket.data_bytes() >= LEN as u64);
    rig.bucket.set_away(true);
    rig.sleep(60);
    let other = on(0, 1);
    write_at(&rig, &store, &other, 0, 2, LEN);
    assert_eq!(kind(rig.run(store.evict(&other))), ErrorKind::Unavailable);
    assert_eq!(read_at(&rig, &store, &other, 0, LEN), vec![2; LEN]);
    rig.kill(store);
    let store = rig.open();
    rig.bucket.set_away(false);
    rig.sleep(60);
    assert_eq!(read_at(&rig, &store, &id, 0, LEN), vec![1; LEN]);
}

// scenario 81
#[test]
fn what_was_overwritten_in_the_bucket_reads_as_it_is_now() {
    let mut rig = Rig::new(53, 1);
    rig.config.local_bytes_max = Some(10 * (64 << 10));
    let (store, id) = (rig.open(), on(0, 0));
    rig.write(&store, &id, 1, LEN);
    rig.run(store.drain_uploads()).expect("it is uploaded");
    write_at(&rig, &store, &id, 10_000, 2, 20_000);
    for nth in 1..40 {
        rig.write(&store, &on(0, nth), nth as u8, LEN);
    }
    assert_eq!(here(&rig, &store, &id), 0, "it is evicted by now");
    let expected = [vec![1; 10_000], vec![2; 20_000], vec![1; 30_000]].concat();
    assert_eq!(read_at(&rig, &store, &id, 0, LEN), expected);
}

// scenario 82, scenario 83
#[test]
fn writes_into_evicted_bytes_leave_their_neighbours() {
    let rig = Rig::new(54, 1);
    let id = on(0, 0);
    let mut store = rig.open();
    let mut expected = vec![1; 300_000];
    write_at(&rig, &store, &id, 0, 1, 300_000);
    rig.run(store.evict(&id)).expect("it is evicted");
    for (round, len) in [100, 4096, 64 << 10].into_iter().enumerate() {
        let (offset, fill) = (50_000 + 8192 * round, 2 + round as u8);
        expected[offset..offset + len].fill(fill);
        write_at(&rig, &store, &id, offset as u64, fill, len);
        rig.run(store.flush(&id)).expect("it is flushed");
        let neighbour = read_at(&rig, &store, &id, (offset + len) as u64, 1);
        assert_eq!(neighbour[0], expected[offset + len]);
        assert!(
            figures(&rig, &store).unsynced_bytes > 0,
            "it is yet to be uploaded"
        );
        assert_eq!(read_at(&rig, &store, &id, 0, 300_000), expected);
    }
    rig.kill(store);
    store = rig.open();
    assert_eq!(read_at(&rig, &store, &id, 0, 300_000), expected);
    rig.run(store.evict(&id)).expect("it is evicted");
    assert_eq!(read_at(&rig, &store, &id, 0, 300_000), expected);
    rig.run(store.close()).expect("it closes");
    let store = rig.rebuild("another").expect("it is rebuilt");
    assert_eq!(read_at(&rig, &store, &id, 0, 300_000), expected);
}

// scenario 90, scenario 91, scenario 95
#[test]
fn bad_segment_is_named_and_all_others_are_uploaded() {
    let rig = Rig::new(55, 2);
    rig.bucket.set_away(true);
    let store = rig.open();
    for nth in 0..6 {
        rig.write(&store, &on(0, nth), nth as u8, LEN);
        rig.write(&store, &on(1, nth), nth as u8, LEN);
    }
    rig.sleep(10);
    let harmed = rig.files(0, "seg-").remove(2);
    let flipped = rig.disk.borrow().flip_bit(&harmed, 8 * 30_000);
    flipped.expect("it is there");
    rig.bucket.set_away(false);
    rig.sleep(60);
    let error = rig.run(store.drain_uploads()).expect_err("one is bad");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("segment="), "{error}");
    // Twelve payloads, and a segment or two for what was written of them twice.
    assert_eq!(figures(&rig, &store).failed_syncs, 1);
    assert!(rig.bucket.data_bytes() >= 11 * LEN as u64);
    // The other shard needs nothing of it.
    rig.run(store.wait_remote(&on(1, 0))).expect("it is there");
}

// scenario 92, scenario 94
#[test]
fn each_version_that_was_waited_for_is_in_the_bucket() {
    for delay in 0..8 {
        let rig = Rig::new(56 + delay, 1);
        let (store, id) = (rig.open(), on(0, 0));
        write_at(&rig, &store, &id, 0, 1, LEN);
        rig.run(store.flush(&id)).expect("it is flushed");
        // It is sealed after half a second, and takes up to 30 ms.
        rig.run(rig.universe.sleep(Duration::from_millis(495 + 5 * delay)));
        write_at(&rig, &store, &id, 1000, 2, 5000);
        rig.run(store.wait_remote(&id)).expect("it is uploaded");
        assert_eq!(figures(&rig, &store).pending_syncs, 0);
        let store = rig.rebuild("another").expect("it is rebuilt");
        let expected = [vec![1; 1000], vec![2; 5000], vec![1; LEN - 6000]].concat();
        assert_eq!(read_at(&rig, &store, &id, 0, LEN), expected, "{delay}");
    }
}

// scenario 93
#[test]
fn object_without_a_mapping_goes_and_costs_nothing() {
    for delay in 0..10 {
        let rig = Rig::new(70 + delay, 1);
        let (store, id) = (rig.open(), on(0, 0));
        rig.write(&store, &id, 1, LEN);
        rig.run(rig.universe.sleep(Duration::from_millis(500 + 5 * delay)));
        rig.kill(store);
        let store = rig.open();
        rig.run(store.drain_uploads()).expect("it is uploaded");
        assert_eq!(read_at(&rig, &store, &id, 0, LEN), vec![1; LEN]);
        rig.run(store.delete(&id)).expect("it is deleted");
        rig.write(&store, &on(0, 1), 2, LEN);
        rig.run(store.drain_uploads()).expect("it is uploaded");
        rig.sleep(250);
        rig.sleep(250);
        let most = LEN as u64 * 3 / 2 + 2 * (64 << 10);
        assert!(
            rig.bucket.data_bytes() <= most,
            "{delay}: {:?}",
            rig.bucket.names()
        );
        let store = rig.rebuild("another").expect("it is rebuilt");
        assert_eq!(kind(rig.read(&store, &id, LEN)), ErrorKind::NotFound);
        assert_eq!(read_at(&rig, &store, &on(0, 1), 0, LEN), vec![2; LEN]);
    }
}

/// A bucket that never answers.
fn silent() -> BucketFaults {
    BucketFaults {
        hangs: 1000,
        ..BucketFaults::default()
    }
}

// scenario 98
#[test]
fn bucket_that_falls_silent_holds_up_no_reader_and_no_close_for_ever() {
    let mut rig = Rig::new(80, 1);
    rig.config.close_timeout = Duration::from_secs(20);
    let (store, id) = (rig.open(), on(0, 0));
    rig.write(&store, &id, 1, LEN);
    rig.run(store.evict(&id)).expect("it is evicted");
    rig.bucket.set_faults(silent());
    let began = rig.universe.now();
    assert_eq!(kind(rig.read(&store, &id, LEN)), ErrorKind::Unavailable);
    let waited = rig.universe.now().since(began);
    assert!(waited <= Duration::from_secs(60), "{waited:?}");
    rig.write(&store, &on(0, 1), 2, LEN);
    let began = rig.universe.now();
    assert_eq!(kind(rig.run(store.close())), ErrorKind::Unavailable);
    let waited = rig.universe.now().since(began);
    assert!(waited <= Duration::from_secs(25), "{waited:?}");
    rig.bucket.set_faults(BucketFaults::default());
    let store = rig.open();
    assert_eq!(read_at(&rig, &store, &id, 0, LEN), vec![1; LEN]);
    assert_eq!(read_at(&rig, &store, &on(0, 1), 0, LEN), vec![2; LEN]);
}

// scenario 100, scenario 101
#[test]
fn health_is_that_of_the_worst_tier() {
    let rig = Rig::new(81, 1);
    let store = rig.open();
    // Asked twice, as by who watches it: at rest nobody else asks anything of the bucket.
    let status = || {
        rig.run(store.health());
        rig.sleep(30);
        rig.run(store.health()).status
    };
    assert_eq!(status(), HealthStatus::Healthy);
    // Too short for three probes in a row.
    rig.bucket.set_away(true);
    rig.run(store.health());
    rig.run(rig.universe.sleep(Duration::from_millis(2500)));
    rig.bucket.set_away(false);
    assert_eq!(status(), HealthStatus::Healthy);
    rig.bucket.set_away(true);
    assert_eq!(status(), HealthStatus::Degraded);
    rig.fail_writes(1000);
    let written = rig.try_write(&store, &on(0, 0), b'x', 1);
    assert_eq!(kind(written), ErrorKind::Poisoned);
    assert_eq!(status(), HealthStatus::Unhealthy);
    rig.bucket.set_away(false);
    assert_eq!(status(), HealthStatus::Unhealthy);
}

// scenario 96
#[test]
fn uploads_go_side_by_side() {
    let rig = Rig::new(82, 1);
    let store = rig.open();
    let began = rig.universe.now();
    for nth in 0..200 {
        rig.write(&store, &on(0, nth), 1, LEN);
    }
    rig.run(store.drain_uploads()).expect("it is uploaded");
    let took = rig.universe.now().since(began);
    // One after the other they would take three seconds; the last is sealed after half a second.
    assert!(took < Duration::from_millis(1500), "{took:?}");
}

// scenario 134
#[test]
fn opening_does_not_wait_for_a_bucket_that_is_silent() {
    let mut rig = Rig::new(83, 2);
    rig.config.close_timeout = Duration::from_secs(2);
    rig.bucket.set_faults(silent());
    let began = rig.universe.now();
    let store = rig.open();
    let took = rig.universe.now().since(began);
    assert!(took < Duration::from_secs(1), "{took:?}");
    rig.write(&store, &on(0, 0), 1, LEN);
    let began = rig.universe.now();
    assert_eq!(kind(rig.run(store.close())), ErrorKind::Unavailable);
    let took = rig.universe.now().since(began);
    assert!(took < Duration::from_secs(4), "{took:?}");
}
