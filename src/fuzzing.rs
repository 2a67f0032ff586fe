//! What the fuzz targets under `fuzz/` check: one function for each, over any bytes at all.
//!
//! They are here because the decoders are private; the targets themselves only pass bytes on. The
//! same functions run as ordinary tests, over what fuzzing has found and kept under `fuzz/corpus`.
//!
//! Rules that every one of them keeps:
//! 1. It returns for every input, or panics because a promise was broken: there is no third way.
//! 2. What it does depends on its input alone, so that a finding can be run again.
//! 3. A checksum keeps a fuzzer out, so what is refused for its checksum alone is tried again with
//!    the sum set right ([`seal`]): a decoder must survive forged bytes, too.
//!
//! Deliberately not here: what a decoder should accept. The tests beside each decoder say that.

// Only the fuzzer sees it from outside.
#![cfg_attr(not(fuzzing), allow(unreachable_pub))]

mod open_dir;
mod plant;
mod seal;
mod trees;

pub use open_dir::open_dir;
pub use trees::map;

use crate::log::checkpoint::{CHUNK_BYTES_MAX, Encoder, decode_chunk};
use crate::log::checksum::{Identity, StoreId};
use crate::log::record;
use crate::log::segment::{BATCH_HEAD, BatchHead, Footer, SUM, SegmentHead, mutations};
use crate::map::Map;
use crate::mutation::Mutation;
use crate::payload_id::PayloadId;
use crate::shard::load_checkpoint;
use crate::superblock::Superblock;
use crate::types::{Epoch, Lsn, PAGE, SegmentId, ShardId};
use crate::upload::manifest::{Manifest, manifest_name, parse_manifest_name};
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

/// The store that everything here belongs to, so that inputs mean the same in every run.
pub(crate) const STORE: StoreId = *b"a store to fuzz.";

/// What the pages of the decoders' targets are bound to.
fn identity() -> Identity {
    Identity::new(&STORE, ShardId(0), SegmentId(1), Epoch(1))
}

/// Records, one behind the other: what decodes is canonical, and a map survives it.
pub fn record(data: &[u8]) {
    let mut map = Map::new();
    let mut rest = data;
    let mut lsn = Lsn(1);
    while let Ok((mutation, after)) = record::decode(rest) {
        let encoded = &rest[..rest.len() - after.len()];
        let mut again = Vec::new();
        record::encode(&mutation, &mut again);
        assert_eq!(again, encoded, "a record has one form only");
        assert_eq!(record::encoded_len(&mutation), encoded.len());
        // A record that does not fit the map is refused as a whole; that is no failure.
        let _ = map.apply(&mutation, lsn);
        (rest, lsn) = (after, lsn.next());
    }
    map.finish_replay();
    let names: Vec<PayloadId> = map.names_after(None).cloned().collect();
    for id in names {
        let plan = map.plan_delete(&id);
        plan.iter()
            .for_each(|mutation: &Mutation| map.apply(mutation, lsn).expect("it is there"));
    }
    map.live.lose_discarded(usize::MAX);
    assert_eq!(
        (map.live.total(), map.live.extents()),
        (0, 0),
        "what nobody refers to is not counted"
    );
}

/// A segment's head, a batch's head page and a footer, as they come and with their sums set right.
pub fn segment(data: &[u8]) {
    let mut bytes = data.to_vec();
    segment_head(&bytes);
    batch_head(&bytes);
    footer(&bytes);
    seal::segment_head(&mut bytes);
    segment_head(&bytes);
    bytes = data.to_vec();
    bytes.resize(PAGE, 0);
    seal::batch_head(identity(), 1, &mut bytes);
    batch_head(&bytes);
    bytes = data.to_vec();
    seal::footer(identity(), &mut bytes);
    footer(&bytes);
}

fn segment_head(page: &[u8]) {
    let Ok(head) = SegmentHead::parse(page) else {
        return;
    };
    let mut again = vec![0xff; PAGE];
    head.write(&mut again);
    assert_eq!(SegmentHead::parse(&again), Ok(head));
    // Replay counts on from these.
    let _ = (head.segment.next(), head.first_lsn.next(), head.identity());
}

fn batch_head(page: &[u8]) {
    let Ok((head, sum)) = BatchHead::parse(identity(), 1, page) else {
        return;
    };
    let (records, sums) = (head.records(page), head.data_sums(page));
    assert_eq!(records.len(), head.records_len as usize);
    assert_eq!(sums.len(), head.data_pages as usize);
    assert!(head.committed_through < head.lsn, "it promises the past");
    let _ = head.lsn.next();
    let mut again = page.to_vec();
    let sum_again = head.write(identity(), 1, &mut again, &sums);
    let gap = BATCH_HEAD + records.len() + sums.len() * SUM..head.inline_start as usize;
    if page[gap].iter().all(|byte| *byte == 0) {
        assert_eq!((&again[..], sum_again), (page, sum), "it has one form");
    }
    if let Ok(mutations) = mutations(records) {
        let mut encoded = Vec::new();
        mutations
            .iter()
            .for_each(|mutation| record::encode(mutation, &mut encoded));
        assert_eq!(encoded, records);
    }
}

fn footer(bytes: &[u8]) {
    let pages = seal::footer_pages(bytes);
    let Ok(footer) = Footer::parse(identity(), pages, bytes) else {
        return;
    };
    assert_eq!(footer.sums.len(), pages as usize);
    let records = footer.batches.iter().map(|batch| batch.records.len()).sum();
    let len = Footer::encoded_len(pages, footer.batches.len(), records);
    assert!(len <= bytes.len(), "it holds no more than was given");
    let mut again = vec![0xff; len];
    footer.write(identity(), &mut again);
    assert_eq!(Footer::parse(identity(), pages, &again), Ok(footer));
}

/// A checkpoint of one chunk: its items, and the shard that they make.
pub fn checkpoint(data: &[u8]) {
    chunk(data);
    let mut sealed = data.to_vec();
    if seal::chunk(plant::checkpoint_identity(1), &mut sealed) {
        chunk(&sealed);
    }
}

fn chunk(bytes: &[u8]) {
    let index = seal::chunk_index(bytes);
    let decoded = decode_chunk(plant::checkpoint_identity(1), index, bytes);
    let Ok((items, last)) = decoded else { return };
    let mut encoder = Encoder::new(plant::checkpoint_identity(1));
    for item in &items {
        let full = encoder.push(item);
        assert!(full.is_none(), "what was in one chunk fits one");
    }
    let again = encoder.finish();
    assert!(again.len() <= CHUNK_BYTES_MAX);
    let decoded = decode_chunk(plant::checkpoint_identity(1), 0, &again);
    assert_eq!(decoded, Ok((items.clone(), true)), "items survive");
    if last {
        load_checkpoint(items, &plant::params());
    }
}

/// A plan of the simulator: operations, faults and crashes, compared with a model byte by byte.
#[cfg(feature = "sim")]
pub fn plan(data: &[u8]) {
    if let Some(failure) = crate::sim::Campaign::new().run_bytes(data) {
        panic!("{failure}");
    }
}

/// A copy of the superblock.
pub fn superblock(data: &[u8]) {
    let mut bytes = data.to_vec();
    copy_of_superblock(&bytes);
    seal::superblock(&mut bytes);
    copy_of_superblock(&bytes);
}

fn copy_of_superblock(bytes: &[u8]) {
    let Ok(superblock) = Superblock::parse("STORE", bytes) else {
        return;
    };
    let mut again = vec![0xff; PAGE];
    superblock.write(&mut again);
    let parsed = Superblock::parse("STORE", &again).expect("what was read can be written");
    assert_eq!(parsed, superblock);
    // Opening raises it.
    assert!(superblock.epoch.0 < u64::MAX);
}

/// A manifest of a bucket: nobody checked it before we read it.
pub fn manifest(data: &[u8]) {
    let mut bytes = data.to_vec();
    decoded_manifest(&bytes);
    seal::manifest(&mut bytes);
    decoded_manifest(&bytes);
}

fn decoded_manifest(bytes: &[u8]) {
    let Ok(manifest) = Manifest::decode(bytes) else {
        return;
    };
    let again = manifest.encode();
    assert_eq!(again.len(), bytes.len(), "it holds what was given");
    assert_eq!(Manifest::decode(&again), Ok(manifest.clone()));
    assert_eq!(
        parse_manifest_name(&manifest_name(manifest.number)),
        Some(manifest.number)
    );
}

/// Wakes a thread that waits for a future.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Unpark>) {
        self.0.unpark();
    }
}

/// Waits for a future, on this thread.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[cfg(test)]
mod tests;
