//! What is in both tiers, or should be: bytes that are bad in one of them, a bucket that is away, a
//! link that is slow, and directories that are copies of others.

use super::{Rig, figures, kind, on};
use crate::error::ErrorKind;
use crate::marks::armed::take_hits;
use crate::payload_id::PayloadId;
use crate::sim::bucket::BucketFaults;
use crate::stats::VerifyReport;
use crate::store::Store;
use futures_util::future::join;
use std::time::Duration;

/// A little less than a segment, so that each payload has one of its own.
const LEN: usize = 60_000;

/// Payloads that are here and in the bucket.
fn in_both(rig: &Rig, count: usize) -> Store {
    let store = rig.open();
    for nth in 0..count {
        rig.write(&store, &on(0, nth), nth as u8 + 1, LEN);
    }
    rig.run(store.drain_uploads()).expect("it is uploaded");
    store
}

fn assert_all(rig: &Rig, store: &Store, count: usize) {
    for nth in 0..count {
        let read = rig.read(store, &on(0, nth), LEN).expect("it is there");
        assert_eq!(read, vec![nth as u8 + 1; LEN], "{nth}");
    }
}

/// Breaks a page of every segment on the disk.
fn break_all(rig: &Rig) {
    for name in rig.files(0, "seg-") {
        rig.disk.borrow().break_page(&name, 5).expect("it is there");
    }
}

/// The bucket goes away, and that is known.
fn lose_bucket(rig: &Rig, store: &Store) {
    rig.bucket.set_away(true);
    rig.sleep(20);
    rig.run(store.health());
    rig.sleep(20);
}

fn verified(rig: &Rig, store: &Store) -> VerifyReport {
    rig.run(store.verify()).expect("it is verified")
}

fn objects(rig: &Rig) -> Vec<String> {
    let mut names = rig.bucket.names();
    names.retain(|name| name.starts_with("d-"));
    names
}

// S-25, S-31
#[test]
fn nothing_is_evicted_while_the_bucket_is_away() {
    let rig = Rig::new(90, 1);
    let store = in_both(&rig, 2);
    lose_bucket(&rig, &store);
    let evicted = rig.run(store.evict(&on(0, 0)));
    assert_eq!(kind(evicted), ErrorKind::Unavailable);
    assert_all(&rig, &store, 2);
    rig.bucket.set_away(false);
    rig.sleep(60);
    assert!(rig.run(store.evict(&on(0, 0))).expect("it is evicted") > 0);
    assert_all(&rig, &store, 2);
}

// S-24, S-31
#[test]
fn an_engine_that_is_fenced_evicts_nothing() {
    let rig = Rig::new(91, 1);
    let old = in_both(&rig, 2);
    let (process, disk) = (rig.process.borrow().clone(), rig.disk.borrow().clone());
    let new = rig.rebuild_beside("another").expect("it is rebuilt");
    rig.write(&old, &on(0, 9), 9, LEN);
    assert_eq!(
        kind(rig.run(old.wait_remote(&on(0, 9)))),
        ErrorKind::Poisoned
    );
    let evicted = rig.run(old.evict(&on(0, 0)));
    assert_eq!(kind(evicted), ErrorKind::Unavailable);
    rig.run(new.close()).expect("it closes");
    (*rig.process.borrow_mut(), *rig.disk.borrow_mut()) = (process, disk);
    assert_all(&rig, &old, 2);
}

// S-27, S-33
#[test]
fn bad_bytes_are_not_lost_before_the_bucket_has_answered() {
    let rig = Rig::new(92, 1);
    let store = in_both(&rig, 2);
    break_all(&rig);
    lose_bucket(&rig, &store);
    let read = rig.read(&store, &on(0, 0), LEN);
    assert_eq!(kind(read), ErrorKind::Unavailable);
    assert_eq!(figures(&rig, &store).offline_reads_blocked, 1);
    assert_eq!(kind(rig.run(store.verify())), ErrorKind::Unavailable);
    rig.bucket.set_away(false);
    rig.sleep(60);
    assert_all(&rig, &store, 2);
}

// S-33
#[test]
fn verifying_mends_what_is_bad_here_and_says_so() {
    let rig = Rig::new(93, 1);
    let store = in_both(&rig, 3);
    break_all(&rig);
    let report = verified(&rig, &store);
    assert!(report.corrupt.is_empty(), "{report:?}");
    assert!(
        (1..=4 * 4096).contains(&report.bytes_repaired),
        "{report:?}"
    );
    assert!(report.remote_bytes_checked >= 3 * LEN as u64, "{report:?}");
    assert_eq!(verified(&rig, &store).bytes_repaired, 0);
    lose_bucket(&rig, &store);
    assert_all(&rig, &store, 3);
    let report = verified(&rig, &store);
    let unreachable = report.remote_bytes_unreachable;
    assert!(unreachable >= 3 * LEN as u64, "{report:?}");
}

// S-27, S-33: an object that is missing, or altered in its pages or in its table
#[test]
fn verifying_mends_what_is_bad_in_the_bucket() {
    let harms: [fn(&Rig, &str); 3] = [
        |rig, name| rig.bucket.lose(name),
        |rig, name| rig.bucket.flip(name, 30_000),
        |rig, name| rig.bucket.flip(name, 40),
    ];
    for (seed, harm) in (94..).zip(harms) {
        let rig = Rig::new(seed, 1);
        let store = in_both(&rig, 4);
        harm(&rig, &objects(&rig)[1]);
        let report = verified(&rig, &store);
        assert!(report.corrupt.is_empty(), "{report:?}");
        assert!(report.bytes_repaired >= LEN as u64 / 2, "{report:?}");
        assert_eq!(verified(&rig, &store).bytes_repaired, 0);
        let rebuilt = rig.rebuild("another").expect("it is rebuilt");
        assert_all(&rig, &rebuilt, 4);
    }
}

// S-24: a copy goes its own way, and what the original has published stays
#[test]
fn a_copy_of_a_directory_is_told_from_the_original_at_every_opening() {
    let rig = Rig::new(97, 1);
    let store = in_both(&rig, 2);
    rig.run(store.close()).expect("it closes");
    let image = rig.disk.borrow().clone_image();
    let original = rig.open();
    for nth in 2..4 {
        rig.write(&original, &on(0, nth), nth as u8 + 1, LEN);
    }
    rig.run(original.drain_uploads()).expect("it is uploaded");
    rig.kill(original);
    *rig.disk.borrow_mut() = rig.universe.disk("copy");
    rig.disk.borrow().restore(&image);
    for round in 0..4 {
        let copy = rig.open();
        for nth in 10..15 {
            rig.write(&copy, &on(0, nth), round, LEN);
        }
        let drained = rig.run(copy.drain_uploads());
        assert_eq!(kind(drained), ErrorKind::Poisoned, "{round}");
        rig.kill(copy);
    }
    let rebuilt = rig.rebuild("another").expect("it is rebuilt");
    assert_all(&rig, &rebuilt, 4);
    let none: Vec<PayloadId> = (4..15).map(|nth| on(0, nth)).collect();
    for id in none {
        assert_eq!(kind(rig.run(rebuilt.size(&id))), ErrorKind::NotFound);
    }
}

// S-15, S-25: streams that share a slow link are all late, until there are fewer of them
#[test]
fn uploads_get_through_a_link_that_is_too_slow_for_all_of_them() {
    let rig = Rig::new(98, 1);
    rig.bucket.set_away(true);
    let store = rig.open();
    for nth in 0..32 {
        rig.write(&store, &on(0, nth), nth as u8 + 1, LEN);
    }
    rig.bucket.share_uplink(8000);
    rig.bucket.set_away(false);
    let drained = async {
        while store.drain_uploads().await.is_err() {
            rig.universe.sleep(Duration::from_secs(5)).await;
        }
    };
    // A segment takes 8 s, and a try at most 61.
    let ended = rig
        .universe
        .run_until_within(Duration::from_secs(3600), drained);
    ended.expect("they get through");
}

// S-18, S-33: what a rebuild stands on is checked before it is there
#[test]
fn a_checkpoint_that_went_bad_does_not_get_to_the_bucket() {
    let rig = Rig::new(99, 1);
    let store = in_both(&rig, 2);
    take_hits();
    let breaking = async {
        let mut before = rig.files(0, "checkpoint-").pop();
        while !take_hits().contains_key("bad checkpoint kept from the remote") {
            rig.universe.sleep(Duration::from_micros(20)).await;
            let newest = rig.files(0, "checkpoint-").pop();
            if newest != before {
                let newest = newest.as_ref().expect("it was written");
                rig.disk
                    .borrow()
                    .flip_bit(newest, 1000)
                    .expect("it is there");
            }
            before = newest;
        }
    };
    let (closed, ()) = rig.run(join(store.close(), breaking));
    assert_eq!(kind(closed), ErrorKind::Corrupt);
    let rebuilt = rig.rebuild("another").expect("it is rebuilt");
    assert_all(&rig, &rebuilt, 2);
}

// S-18
#[test]
fn a_rebuild_waits_for_a_bucket_that_is_away_for_a_moment() {
    let rig = Rig::new(100, 1);
    let store = in_both(&rig, 4);
    rig.kill(store);
    rig.bucket.set_latency(Duration::from_millis(500));
    take_hits();
    let rebuilding = rig.rebuilding("another");
    let outage = async {
        // The manifest has come by then, and nothing of the segments.
        rig.universe.sleep(Duration::from_millis(1300)).await;
        rig.bucket.set_away(true);
        rig.universe.sleep(Duration::from_secs(4)).await;
        rig.bucket.set_away(false);
    };
    let (rebuilt, ()) = rig.run(join(rebuilding, outage));
    assert!(take_hits().contains_key("asked again for what a rebuild needs"));
    assert_all(&rig, &rebuilt.expect("it is rebuilt"), 4);
}

// S-27, S-33
#[test]
fn a_manifest_that_is_altered_is_corrupt() {
    let rig = Rig::new(101, 1);
    let store = in_both(&rig, 2);
    rig.kill(store);
    let mut manifests = rig.bucket.names();
    manifests.retain(|name| name.starts_with("m-"));
    rig.bucket.flip(&manifests[0], 60);
    assert_eq!(kind(rig.rebuild("another")), ErrorKind::Corrupt);
    rig.bucket.flip(&manifests[0], 60);
    rig.bucket.set_faults(BucketFaults {
        flips: 300,
        ..BucketFaults::default()
    });
    let rebuilt = rig.rebuild("third").expect("it was so on its way only");
    rig.bucket.set_faults(BucketFaults::default());
    assert_all(&rig, &rebuilt, 2);
}
