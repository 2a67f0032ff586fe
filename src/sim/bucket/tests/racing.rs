//! What happens to a payload while its bytes are on their way to the bucket, or from it.

use super::{Rig, figures, kind, on};
use crate::error::ErrorKind;
use crate::payload_id::PayloadId;
use crate::store::Store;
use bytes::Bytes;
use futures_util::future::{join, join_all};
use std::time::Duration;

/// A store with a payload of so many bytes that is in the remote only.
fn cold(rig: &Rig, len: usize) -> (Store, PayloadId) {
    let (store, id) = (rig.open(), on(0, 0));
    rig.write(&store, &id, 1, len);
    rig.run(store.evict(&id)).expect("it is evicted");
    (store, id)
}

fn is_all(bytes: &Bytes, fill: u8) -> bool {
    bytes.iter().all(|byte| *byte == fill)
}

// scenario 29: who has begun a fetch goes, and who follows gets the bytes
// scenario 107: for one request
#[test]
fn dropped_leader_of_a_fetch_fails_nobody() {
    let rig = Rig::new(30, 1);
    let (store, id) = cold(&rig, 60_000);
    let before = figures(&rig, &store).remote_read_bytes;
    let followed = async {
        let mut leader = Box::pin(store.read_at(&id, 0, 4096));
        let sleep = rig.universe.sleep(Duration::from_micros(100));
        futures_util::future::select(&mut leader, Box::pin(sleep)).await;
        let follower = store.read_at(&id, 4096, 4096);
        drop(leader);
        follower.await
    };
    let read = rig.run(followed).expect("it is there").into_bytes();
    assert!(read.len() == 4096 && is_all(&read, 1));
    // One chunk; the sums are at hand still.
    let fetched = figures(&rig, &store).remote_read_bytes - before;
    assert_eq!(fetched, 32 << 10);
}

// scenario 86: readers do not wait for room to keep what they have fetched
#[test]
fn cold_readers_do_not_wait_for_room() {
    let mut rig = Rig::new(31, 1);
    rig.config.local_bytes_max = Some(6 * (64 << 10));
    let store = rig.open();
    for nth in 0..20 {
        rig.write(&store, &on(0, nth), nth as u8, 50_000);
    }
    rig.run(store.drain_uploads()).expect("it is uploaded");
    let used = rig.disk.borrow().used();
    rig.disk.borrow().set_capacity(used);
    let names: Vec<PayloadId> = (0..3).map(|nth| on(0, nth)).collect();
    let began = rig.universe.now();
    let reads = join_all(names.iter().map(|id| store.read_at(id, 0, 50_000)));
    for (nth, read) in rig.run(reads).into_iter().enumerate() {
        let read = read.expect("it is there").into_bytes();
        assert!(read.len() == 50_000 && is_all(&read, nth as u8), "{nth}");
    }
    let took = rig.universe.now().since(began);
    assert!(took < Duration::from_secs(2), "{took:?}");
}

// scenario 106: a cold read of several segments fetches them side by side
#[test]
fn cold_read_of_many_segments_fetches_them_at_once() {
    let rig = Rig::new(32, 1);
    let (store, id) = cold(&rig, 16 * 60_000);
    let began = rig.universe.now();
    let read = rig.read(&store, &id, 16 * 60_000).expect("it is there");
    let took = rig.universe.now().since(began);
    assert!(read.len() == 16 * 60_000 && is_all(&read, 1));
    // One by one, 16 tables and 16 times data would take 15 ms each.
    assert!(took < Duration::from_millis(200), "{took:?}");
}

// scenario 109: what is asked about a payload that is in the remote only needs no byte of it
#[test]
fn questions_about_cold_payloads_fetch_nothing() {
    let rig = Rig::new(33, 1);
    let (store, id) = (rig.open(), on(0, 0));
    let write = store.write_at(&id, 100_000, Bytes::from(vec![1; 60_000]));
    rig.run(write).expect("it is written");
    rig.run(store.evict(&id)).expect("it is evicted");
    let ask = async || {
        assert_eq!(store.size(&id).await?, 160_000);
        assert!(store.exists(&id).await?);
        assert_eq!(store.list(None, 10).await?, std::slice::from_ref(&id));
        assert!(store.extents(&id, 0, 200_000).await?.len() >= 2);
        Ok::<(), crate::Error>(())
    };
    rig.run(ask()).expect("it answers");
    assert_eq!(figures(&rig, &store).remote_read_bytes, 0);
    let part = rig.run(store.read_at(&id, 100_000, 100));
    assert!(is_all(&part.expect("it is there").into_bytes(), 1));
    let fetched = figures(&rig, &store).remote_read_bytes;
    rig.run(ask()).expect("it answers");
    assert_eq!(figures(&rig, &store).remote_read_bytes, fetched);
}

// scenario 61, scenario 108: what is fetched late changes nothing that came meanwhile
#[test]
fn late_fetches_change_nothing_newer() {
    for change in 0..4 {
        for delay in [0, 1, 5, 20, 40] {
            let rig = Rig::new(34 + delay, 1);
            let (store, id) = cold(&rig, 60_000);
            let other = on(0, 1);
            let changed = async {
                rig.universe.sleep(Duration::from_millis(delay)).await;
                match change {
                    0 => store.write_at(&id, 0, Bytes::from(vec![2; 5000])).await,
                    1 => store.truncate(&id, 100).await,
                    2 => store.delete(&id).await,
                    _ => store.copy(&id, &other).await.map(|_| ()),
                }
            };
            let (read, changed) = rig.run(join(store.read_at(&id, 0, 50_000), changed));
            changed.expect("it is done");
            if let Ok(read) = read {
                let read = read.into_bytes();
                let part = read.slice(..read.len().min(5000));
                assert!(is_all(&part, 1) || is_all(&part, 2), "{change} {delay}");
            }
            rig.sleep(1);
            let after = rig.read(&store, &id, 60_000);
            match change {
                0 => assert!(is_all(&after.expect("read").slice(..5000), 2), "{delay}"),
                1 => assert_eq!(after.expect("read"), vec![1; 100], "{delay}"),
                2 => assert_eq!(kind(after), ErrorKind::NotFound, "{delay}"),
                _ => {
                    rig.write(&store, &id, 3, 60_000);
                    let clone = rig.read(&store, &other, 60_000).expect("read");
                    assert!(clone.len() == 60_000 && is_all(&clone, 1), "{delay}");
                }
            }
        }
    }
}

// scenario 47: what is cut off while it is uploaded is not in the remote's payload
#[test]
fn truncating_what_is_being_uploaded_counts_in_the_remote() {
    for delay in [0, 510, 520, 530, 600] {
        let rig = Rig::new(40 + delay, 1);
        let (store, id) = (rig.open(), on(0, 0));
        rig.write(&store, &id, 1, 60_000);
        rig.run(rig.universe.sleep(Duration::from_millis(delay)));
        rig.run(store.truncate(&id, 100)).expect("it is cut");
        rig.run(store.truncate(&id, 60_000)).expect("it is grown");
        rig.run(store.wait_remote(&id)).expect("it is uploaded");
        let store = rig.rebuild("another").expect("it is rebuilt");
        let read = rig.read(&store, &id, 60_000).expect("it is there");
        assert!(is_all(&read.slice(..100), 1) && is_all(&read.slice(100..), 0));
    }
}

// scenario 52: a payload is cut while the remote is away, and its space there comes back later
#[test]
fn truncating_while_the_remote_is_away_frees_it_later() {
    let rig = Rig::new(50, 1);
    let (store, id) = (rig.open(), on(0, 0));
    rig.write(&store, &id, 1, 600_000);
    rig.run(store.drain_uploads()).expect("it is uploaded");
    let full = rig.bucket.data_bytes();
    rig.bucket.set_away(true);
    rig.run(store.truncate(&id, 100)).expect("it is cut");
    assert_eq!(rig.read(&store, &id, 1000).expect("read"), vec![1; 100]);
    rig.sleep(60);
    assert!(rig.bucket.data_bytes() >= full, "nothing can be deleted");
    rig.bucket.set_away(false);
    rig.sleep(120);
    assert!(rig.bucket.data_bytes() <= 3 * (64 << 10));
    assert_eq!(rig.read(&store, &id, 1000).expect("read"), vec![1; 100]);
}

// scenario 54: what is deleted before it was uploaded is in no rebuilt store
#[test]
fn deleted_before_it_was_uploaded_it_does_not_appear() {
    let rig = Rig::new(51, 1);
    rig.bucket.set_away(true);
    let (store, id) = (rig.open(), on(0, 0));
    rig.write(&store, &id, 1, 200_000);
    rig.run(store.delete(&id)).expect("it is deleted");
    rig.bucket.set_away(false);
    rig.sleep(30);
    rig.run(store.drain_uploads()).expect("it is uploaded");
    rig.sleep(120);
    assert!(rig.bucket.data_bytes() <= 2 * (64 << 10) + (8 << 10));
    let store = rig.rebuild("another").expect("it is rebuilt");
    assert_eq!(rig.run(store.list(None, 10)).expect("listed"), []);
}
