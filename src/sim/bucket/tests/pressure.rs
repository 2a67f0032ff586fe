//! Writers of a store that is nearly full, while the bucket takes less than they could write.

use super::{Rig, on};
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
    rig.bucket.set_uplink(UPLINK);
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
    assert!(most < 6 * half, "{most:?}, and one of two within {half:?}");
}
