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
const ROUNDS: u8 = 150;

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

/// A rebuild whose claim comes only when the old engine has long gone on. So does what it fetches,
/// on a disk that is slow.
fn overtaken(rig: &Rig, disk: DiskFaults) -> (Store, Result<Store>) {
    let old = rig.open();
    rig.write(&old, &on(0, 0), 1, LEN);
    rig.run(old.drain_uploads()).expect("it is uploaded");
    let step = disk.slow_for;
    let rebuilding = rig.rebuilding("another");
    rig.disk.borrow().set_faults(disk);
    let rebuilding = rig.universe.spawn(rebuilding);
    // Claims are of some 200 bytes.
    rig.bucket.set_uplink(Some(5));
    rig.run(rig.universe.sleep(step + Duration::from_millis(200)));
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
    let (old, rebuilt) = overtaken(&rig, DiskFaults::default());
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
    let (old, rebuilt) = overtaken(&rig, slow);
    assert!(take_hits().contains_key("objects went while a rebuild fetched them"));
    let rebuilt = rebuilt.expect("it is rebuilt");
    assert_all(&rig, &rebuilt, &on(0, 0), ROUNDS - 1);
    rig.write(&rebuilt, &on(0, 0), 200, LEN);
    rig.run(rebuilt.wait_remote(&on(0, 0))).expect("it counts");
    rig.write(&old, &on(0, 0), 201, LEN);
    let waited = rig.run(old.wait_remote(&on(0, 0)));
    assert_eq!(kind(waited), ErrorKind::Poisoned);
}
