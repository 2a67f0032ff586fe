//! What is kept of fetched segments: it counts, goes when it has to, and leaves nothing behind.

use super::{Rig, figures, kind, on, with_something_kept};
use crate::error::ErrorKind;
use crate::marks::armed::take_hits;
use crate::store::Store;
use bytes::Bytes;
use futures_util::future::{Either, join, select};
use std::pin::pin;
use std::time::Duration;

/// A store with so many payloads in the remote only, each in a segment of its own, of which the
/// first page was read.
fn many_kept(rig: &Rig, count: usize) -> Store {
    let (store, len) = (rig.open(), rig.config.segment_bytes as usize - 5000);
    for nth in 0..count {
        rig.write(&store, &on(0, nth), nth as u8, len);
    }
    for nth in 0..count {
        rig.run(store.evict(&on(0, nth))).expect("it is evicted");
    }
    for nth in 0..count {
        rig.read(&store, &on(0, nth), 4096).expect("it is fetched");
    }
    rig.sleep(1);
    assert_eq!(rig.files(0, "kept-").len(), count);
    store
}

// S-29: what an earlier opening has kept counts from the first moment on
#[test]
fn what_is_kept_counts_before_it_was_looked_at() {
    let rig = Rig::new(60, 1);
    let store = many_kept(&rig, 30);
    let kept = figures(&rig, &store).kept_bytes;
    rig.kill(store);
    let store = rig.open();
    let first = figures(&rig, &store).kept_bytes;
    assert!(first >= kept, "{first} of {kept}");
    rig.sleep(1);
    assert_eq!(figures(&rig, &store).kept_bytes, kept);
}

// S-29: and is not given up only because nobody knows yet how little it is
#[test]
fn what_was_not_looked_at_yet_is_not_given_up_for_it() {
    let mut rig = Rig::new(61, 1);
    rig.config.segment_bytes = 256 << 10;
    rig.config.local_bytes_max = Some(20 * (256 << 10));
    let store = many_kept(&rig, 40);
    let kept = figures(&rig, &store).kept_bytes;
    rig.kill(store);
    let store = rig.open();
    rig.write(&store, &on(0, 0), 1, 1000);
    rig.sleep(1);
    let left = figures(&rig, &store).kept_bytes;
    assert!(left >= kept - 2 * (64 << 10), "{left} of {kept}");
}

// S-29, S-32: what is kept of segments that are gone goes, remote or not
#[test]
fn leftovers_of_what_was_kept_go() {
    for remote in [true, false] {
        let rig = Rig::new(62, 1);
        let store = rig.open_without_remote();
        rig.write(&store, &on(0, 0), 1, 10_000);
        rig.run(store.close()).expect("it closes");
        let name = format!("shard-0000/kept-{:016x}-{:016x}", 7, 1);
        let disk = rig.disk.borrow().clone();
        disk.write_file(&name, &[1; 70_000]).expect("it is made");
        let store = match remote {
            true => rig.open(),
            false => rig.open_without_remote(),
        };
        rig.sleep(1);
        assert_eq!(rig.files(0, "kept-"), Vec::<String>::new());
        assert_eq!(figures(&rig, &store).kept_bytes, 0);
    }
}

// S-32: a reader that comes as a file goes does not keep its room
#[test]
fn file_that_goes_while_it_is_opened_leaves_no_room_taken() {
    let rig = Rig::new(63, 1);
    // More than stay open, so that the first ones are opened anew.
    let store = many_kept(&rig, 160);
    for nth in 0..30 {
        let id = on(0, nth);
        let evict = async {
            let delay = Duration::from_micros(8 * nth as u64);
            rig.universe.sleep(delay).await;
            store.evict(&id).await
        };
        let (read, evicted) = rig.run(join(store.read_at(&id, 0, 4096), evict));
        read.expect("it is there");
        evicted.expect("it is evicted");
    }
    rig.sleep(1);
    let used = rig.disk.borrow().used();
    rig.kill(store);
    let left = rig.disk.borrow().used();
    assert_eq!(used, left, "room without a name");
}

// S-30: a pass of the cleaner that is broken off has nothing to wait for
#[test]
fn broken_off_cleaning_walks_the_map_once() {
    let mut rig = Rig::new(66, 1);
    rig.config.local_bytes_max = Some(24 * (64 << 10));
    let store = rig.open();
    drop(take_hits());
    for round in 0..1500 {
        // Little of each segment lives; rests are worth cleaning, and bursts stop it.
        rig.write(&store, &on(0, 1 + round % 300), round as u8, 3000);
        rig.write(&store, &on(0, 0), round as u8, 20_000);
        if round % 40 == 0 {
            rig.sleep(3);
        }
    }
    let hits = take_hits();
    let (passes, broken) = (hits["cleaning"], hits["cleaning broken off"]);
    let walks = hits["places exchanged"];
    assert!(
        broken > 0 && walks < passes + broken,
        "{passes} {broken} {walks}"
    );
}

// S-30: on a full file system nobody waits for many times his patience
#[test]
fn crumbs_do_not_renew_the_patience_of_writers() {
    let mut rig = Rig::new(64, 1);
    rig.config.segment_bytes = 256 << 10;
    rig.config.stall_timeout = Duration::from_secs(2);
    let store = many_kept(&rig, 200);
    rig.bucket.set_away(true);
    rig.sleep(30);
    let disk = rig.disk.borrow().clone();
    // Whatever becomes free, others take.
    let eat = async {
        loop {
            disk.set_capacity(disk.used());
            rig.universe.sleep(Duration::from_millis(1)).await;
        }
    };
    let began = rig.universe.now();
    let fill = async {
        let mut nth = 1000;
        loop {
            let data = Bytes::from(vec![1; 60_000]);
            if let Err(error) = store.write_at(&on(0, nth), 0, data).await {
                return error;
            }
            nth += 1;
        }
    };
    let error = match rig.run(select(pin!(fill), pin!(eat))) {
        Either::Left((error, _)) => error,
        Either::Right(_) => unreachable!("it never ends"),
    };
    assert_eq!(error.kind(), ErrorKind::Full);
    let took = rig.universe.now().since(began);
    assert!(took < Duration::from_secs(6), "{took:?}");
}

// S-29, S-33: what went bad goes, for it takes room and is of no use
#[test]
fn kept_bytes_that_went_bad_take_no_room() {
    let (rig, id) = (Rig::new(65, 1), on(0, 0));
    let store = with_something_kept(&rig);
    let name = rig.files(0, "kept-").remove(0);
    let disk = rig.disk.borrow().clone();
    disk.flip_bit(&name, 8 * 8192).expect("it is there");
    // It reads, and keeps nothing of what it fetches.
    let report = rig.run(store.verify()).expect("it is verified");
    assert!(report.corrupt.is_empty());
    rig.sleep(1);
    assert_eq!(figures(&rig, &store).kept_bytes, 0);
    assert_eq!(rig.files(0, "kept-"), Vec::<String>::new());
    rig.bucket.set_away(true);
    rig.sleep(30);
    let read = rig.read(&store, &id, 4096);
    assert_eq!(kind(read), ErrorKind::Unavailable);
}
