//! Writers of a store that is nearly full, while the bucket takes less than they could write.

use super::{BucketFaults, RetentionPolicy, Rig, figures, on};
use crate::marks::armed::take_hits;
use crate::store::Store;
use bytes::Bytes;
use futures_util::future::join_all;
use std::time::Duration;

const WRITERS: u64 = 8;
const PAGES: u64 = 512;
const PAGE: u64 = 4096;

/// What one writer has seen: bytes written, and how long each write took, in order of length.
struct Seen {
    bytes: u64,
    spans: Vec<Duration>,
}

/// Overwrites pages of a payload for so many seconds, each writer one after the other.
fn overwrite(rig: &Rig, store: &Store, seconds: u64) -> Seen {
    let (payload, universe) = (on(0, 0), &rig.universe);
    let end = universe.now().after(Duration::from_secs(seconds));
    let writers = (0..WRITERS).map(|writer| {
        let payload = &payload;
        async move {
            let (mut spans, mut page) = (Vec::new(), writer);
            while universe.now() < end {
                page = (page * 5 + 17) % PAGES;
                let began = universe.now();
                let data = Bytes::from(vec![page as u8; PAGE as usize]);
                let written = store.write_at(payload, page * PAGE, data).await;
                written.expect("it is slowed, and does not fail");
                spans.push(universe.now().since(began));
            }
            spans
        }
    });
    let mut spans = rig.run(join_all(writers)).concat();
    spans.sort_unstable();
    Seen {
        bytes: spans.len() as u64 * PAGE,
        spans,
    }
}

// S-30: pressure slows writers by pacing
// scenario 84: progress means slow, and no error
#[test]
fn writers_go_as_fast_as_the_bucket_takes() {
    const UPLINK: u64 = 4_000_000;
    let mut rig = Rig::new(40, 1);
    rig.config.segment_bytes = 256 << 10;
    rig.config.local_bytes_max = Some(32 * rig.config.segment_bytes);
    rig.bucket.set_uplink(Some(UPLINK));
    let store = rig.open();
    overwrite(&rig, &store, 30);
    let seen = overwrite(&rig, &store, 60);
    let share = seen.bytes as f64 / 60.0 / UPLINK as f64;
    let at = |share: f64| seen.spans[(seen.spans.len() as f64 * share) as usize];
    let (half, most) = (at(0.5), at(0.99));
    assert!(
        (0.7..1.2).contains(&share),
        "{share} of what the bucket takes"
    );
    let long = half * 5;
    assert!(most <= long, "{most:?}, and one of two within {half:?}");
}

/// Overwrites a payload again and again: much is written, and little of it lives.
fn churn(rig: &Rig, store: &Store) {
    for round in 0..300 {
        rig.write(store, &on(0, 1000), round as u8, 40_000);
    }
}

// S-30, S-32: what holds up the uploads holds up no writer whose bytes die here
#[test]
fn segment_that_cannot_be_uploaded_does_not_fill_the_store() {
    let mut rig = Rig::new(41, 1);
    rig.config.local_bytes_max = Some(16 * (64 << 10));
    rig.bucket.set_away(true);
    let store = rig.open();
    // In one segment with what lives there are bytes that are dead by now, and go bad.
    let (dead, live) = (on(0, 0), on(0, 1));
    rig.write(&store, &dead, 1, 20_000);
    rig.write(&store, &live, 2, 20_000);
    rig.write(&store, &dead, 3, 20_000);
    rig.sleep(10);
    let segment = rig.files(0, "seg-").remove(0);
    let disk = rig.disk.borrow().clone();
    disk.flip_bit(&segment, (3 * 4096 + 5) * 8)
        .expect("it is there");
    rig.bucket.set_away(false);
    rig.sleep(30);
    assert!(figures(&rig, &store).failed_syncs > 0, "nothing is held up");
    // Enough lives behind it to make a gap in the log dear.
    for nth in 2..8 {
        rig.write(&store, &on(0, nth), nth as u8, 60_000);
    }
    churn(&rig, &store);
    assert_eq!(
        rig.read(&store, &live, 20_000).expect("it is there"),
        vec![2; 20_000]
    );
}

// S-25, S-30: what was fetched is kept as long as nobody needs the room
#[test]
fn kept_bytes_make_room_for_writers_while_the_bucket_is_away() {
    let mut rig = Rig::new(42, 1);
    rig.config.local_bytes_max = Some(16 * (64 << 10));
    let store = rig.open();
    for nth in 0..30 {
        rig.write(&store, &on(0, nth), nth as u8, 60_000);
    }
    for nth in 0..30 {
        rig.run(store.evict(&on(0, nth))).expect("it is evicted");
    }
    for nth in 0..30 {
        rig.read(&store, &on(0, nth), 60_000)
            .expect("it is fetched");
        rig.sleep(1);
    }
    let kept = figures(&rig, &store).kept_bytes;
    assert!(kept > 6 * (64 << 10), "{kept} bytes are kept");
    rig.bucket.set_away(true);
    rig.sleep(60);
    for nth in 100..110 {
        rig.write(&store, &on(0, nth), nth as u8, 60_000);
    }
    assert!(
        figures(&rig, &store).kept_bytes < kept,
        "nothing was given up"
    );
}

/// A small store that has been in use for a while with its bucket there.
fn small(seed: u64, segments: u64, rounds: u8) -> (Rig, Store) {
    let mut rig = Rig::new(seed, 1);
    rig.config.local_bytes_max = Some(segments * (64 << 10));
    let store = rig.open();
    rig.write(&store, &on(0, 0), 1, 40_000);
    for round in 0..rounds {
        rig.write(&store, &on(0, 1000), round, 40_000);
    }
    (rig, store)
}

// S-25, S-30: what waits to be uploaded, or for a checkpoint to count, is no use to who waits for
// its room
#[test]
fn uploads_that_are_only_tried_again_do_not_fill_the_store() {
    for segments in [6, 12] {
        for rounds in [0, 3, 7, 12, 18, 25] {
            let (rig, store) = small(43, segments, rounds);
            rig.bucket.set_away(true);
            churn(&rig, &store);
            rig.bucket.set_away(false);
            rig.sleep(30);
            rig.run(store.drain_uploads()).expect("it is uploaded");
            let store = rig.rebuild("another").expect("it is rebuilt");
            let read = |nth, fill| {
                let read = rig.read(&store, &on(0, nth), 40_000).expect("it is there");
                assert_eq!(read, vec![fill; 40_000], "{segments} {rounds}");
            };
            read(0, 1);
            read(1000, 43);
        }
    }
}

// S-30: nor is it while nobody knows yet that the bucket does not answer
#[test]
fn bucket_that_does_not_answer_fills_no_store() {
    for rounds in [0, 4, 9, 15] {
        let (rig, store) = small(44, 8, rounds);
        rig.bucket.set_faults(BucketFaults {
            deaf: 1000,
            ..BucketFaults::default()
        });
        churn(&rig, &store);
        rig.bucket.set_faults(BucketFaults::default());
        rig.sleep(100);
        rig.run(store.drain_uploads()).expect("it is uploaded");
    }
}

// S-25, S-29: what a policy keeps here is no reason to look again and again, nor for ever not to
#[test]
fn eviction_that_found_nothing_while_the_bucket_was_away_looks_again() {
    let mut rig = Rig::new(46, 1);
    rig.config.local_bytes_max = Some(12 * (64 << 10));
    let (store, pinned) = (rig.open(), on(0, 0));
    rig.write(&store, &pinned, 1, 120_000);
    rig.run(store.evict(&pinned)).expect("it is evicted");
    rig.read(&store, &pinned, 120_000).expect("it is fetched");
    rig.sleep(5);
    let pin = store.set_retention(Some(&pinned), RetentionPolicy::Pin);
    rig.run(pin).expect("it is set");
    for nth in 1..4 {
        rig.write(&store, &on(0, nth), nth as u8, 60_000);
    }
    // Its checkpoints cover the others, too: they could go, if the bucket were there.
    rig.run(store.evict(&on(0, 1))).expect("it is evicted");
    rig.sleep(30);
    assert!(figures(&rig, &store).kept_bytes > 0);
    drop(take_hits());
    rig.bucket.set_away(true);
    rig.run(store.health());
    rig.sleep(30);
    let full = (4..40).find(|nth| rig.try_write(&store, &on(0, *nth), 4, 60_000).is_err());
    let full = full.expect("it is limited");
    // Nobody reads: nothing is to be waited for, but the bucket.
    assert!(!take_hits().contains_key("eviction waits for readers"));
    rig.bucket.set_away(false);
    rig.sleep(30);
    for nth in full..full + 20 {
        rig.write(&store, &on(0, nth), 5, 60_000);
    }
}
