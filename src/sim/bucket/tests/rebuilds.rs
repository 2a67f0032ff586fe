//! Rebuilds that others get in the way of, and how long one takes that has the bucket to itself.

use super::{Rig, kind, on};
use crate::error::{ErrorKind, Result};
use crate::io::sim::DiskFaults;
use crate::marks::armed::take_hits;
use crate::payload_id::PayloadId;
use crate::store::Store;
use bytes::Bytes;
use futures_util::future::join;
use std::time::Duration;

/// A little less than a segment, so that each payload has one of its own.
const LEN: usize = 60_000;

/// Whoever writes meanwhile publishes more often than manifests are kept.
const ROUNDS: u8 = 100;

fn assert_all(rig: &Rig, store: &Store, id: &PayloadId, fill: u8) {
    let read = rig.read(store, id, LEN).expect("it is there");
    assert!(read.len() == LEN && read.iter().all(|byte| *byte == fill));
}

// S-18: the listing, the manifest, and then everything else
#[test]
fn a_rebuild_waits_for_three_requests_one_after_the_other() {
    let rig = Rig::new(84, 8);
    let store = rig.open();
    let ids: Vec<PayloadId> = (0..32).map(|nth| on(0, nth)).collect();
    for id in &ids {
        rig.write(&store, id, 7, LEN);
    }
    rig.run(store.drain_uploads()).expect("it is uploaded");
    drop(store);
    rig.bucket.set_latency(Duration::from_secs(1));
    let began = rig.universe.now();
    let store = rig.rebuild("new").expect("it is rebuilt");
    let took = rig.universe.now().since(began);
    assert_eq!(took.as_secs(), 3, "{took:?}");
    for id in &ids {
        assert_all(&rig, &store, id, 7);
    }
}

// S-24
#[test]
fn of_two_rebuilds_at_once_both_come_up_and_one_has_the_bucket() {
    let rig = Rig::new(85, 2);
    let store = rig.open();
    rig.write(&store, &on(0, 0), 7, LEN);
    rig.run(store.drain_uploads()).expect("it is uploaded");
    rig.process.borrow().kill();
    take_hits();
    let (one, other) = (rig.rebuilding("one"), rig.rebuilding("other"));
    let (one, other) = rig.run(join(one, other));
    assert!(take_hits().contains_key("somebody was faster than a rebuild"));
    let stores = [one.expect("it is rebuilt"), other.expect("it is rebuilt")];
    for store in &stores {
        assert_all(&rig, store, &on(0, 0), 7);
    }
    let counts = |store: &Store| {
        rig.write(store, &on(0, 1), 8, LEN);
        rig.run(store.wait_remote(&on(0, 1))).is_ok()
    };
    assert_eq!(stores.iter().filter(|store| counts(store)).count(), 1);
}

/// What a rebuild puts into the bucket before its claim.
const PROBE_BYTES: f64 = 11.0;

/// Bytes a second with which a claim, which has some 200, comes too late: soon all the same, so
/// that nobody looks whether it does, or after so long that it is looked for.
const SOON: u64 = 120;
const LONG: u64 = 5;

/// A rebuild whose claim comes only when the old engine has long gone on. So does what it fetches,
/// on a disk that is slow.
fn overtaken(rig: &Rig, disk: DiskFaults, claim: u64) -> (Store, Result<Store>) {
    rig.bucket.set_latency(Duration::from_millis(1));
    let old = rig.open();
    rig.write(&old, &on(0, 0), 1, LEN);
    rig.run(old.drain_uploads()).expect("it is uploaded");
    let step = match disk.slow {
        0 => Duration::ZERO,
        _ => disk.slow_for,
    };
    let rebuilding = rig.rebuilding("another");
    rig.disk.borrow().set_faults(disk);
    let rebuilding = rig.universe.spawn(rebuilding);
    rig.bucket.set_uplink(Some(claim));
    // What it asks before goes the same way.
    let asking = Duration::from_secs_f64(PROBE_BYTES / claim as f64);
    rig.run(
        rig.universe
            .sleep(step + asking + Duration::from_millis(100)),
    );
    rig.bucket.set_uplink(None);
    for round in 0..ROUNDS {
        let data = Bytes::from(vec![round; LEN]);
        rig.run(old.write_at(&on(0, 0), 0, data)).expect("written");
        rig.run(old.drain_uploads()).expect("it is uploaded");
    }
    rig.disk.borrow().set_faults(DiskFaults::default());
    let rebuilt = rig.run(rebuilding).expect("it is not dropped");
    (old, rebuilt)
}

// S-24
#[test]
fn a_claim_that_comes_too_late_fences_who_made_it() {
    let rig = Rig::new(86, 1);
    let (old, rebuilt) = overtaken(&rig, DiskFaults::default(), SOON);
    let rebuilt = rebuilt.expect("it has what it fetched");
    assert_all(&rig, &rebuilt, &on(0, 0), 1);
    rig.write(&rebuilt, &on(0, 0), 200, LEN);
    let waited = rig.run(rebuilt.wait_remote(&on(0, 0)));
    assert_eq!(kind(waited), ErrorKind::Poisoned);
    rig.write(&old, &on(0, 0), 201, LEN);
    rig.run(old.wait_remote(&on(0, 0))).expect("it counts");
}

// S-24
#[test]
fn a_rebuild_whose_objects_went_meanwhile_begins_anew() {
    let rig = Rig::new(87, 1);
    let slow = DiskFaults {
        slow: 1000,
        slow_for: Duration::from_secs(10),
        ..DiskFaults::default()
    };
    take_hits();
    let (old, rebuilt) = overtaken(&rig, slow, SOON);
    assert!(take_hits().contains_key("objects went while a rebuild fetched them"));
    has_the_bucket(&rig, &rebuilt.expect("it is rebuilt"), &old);
}

/// A store has all that another one has published, and has taken the bucket from it.
fn has_the_bucket(rig: &Rig, store: &Store, old: &Store) {
    assert_all(rig, store, &on(0, 0), ROUNDS - 1);
    rig.write(store, &on(0, 0), 200, LEN);
    rig.run(store.wait_remote(&on(0, 0))).expect("it counts");
    rig.write(old, &on(0, 0), 201, LEN);
    let waited = rig.run(old.wait_remote(&on(0, 0)));
    assert_eq!(kind(waited), ErrorKind::Poisoned);
}

// S-18, S-24
#[test]
fn a_rebuild_whose_claim_took_long_looks_whether_it_came_too_late() {
    let rig = Rig::new(88, 1);
    take_hits();
    let (old, rebuilt) = overtaken(&rig, DiskFaults::default(), LONG);
    assert!(take_hits().contains_key("number of a deleted manifest made again"));
    has_the_bucket(&rig, &rebuilt.expect("it is rebuilt"), &old);
}
