//! The parts of the engine that do no I/O, each alone: map, record codec, checksum, read buffer,
//! mailbox.
//!
//! They are private to the library, and no benchmark is worth a door in its public interface. What
//! is pure names only what is pure, `tests/tidy.rs` sees to that; so those modules stand on their
//! own, and this file is a second crate of the very same sources. A new arrow out of them breaks
//! its build, which is one more reason to think twice about it.
//!
//! A sample is far below a microsecond: read these for the ratio of two runs on one machine
//! (`--save-baseline`, `--baseline`), and never for tails, which criterion does not report.
//!
//! Deliberately not here: anything that needs a disk or a shard's thread. `perf/` has that.

// Of each module a part is used, and what is private to the library needs no documents here.
#![allow(dead_code, unused_imports, unreachable_pub, missing_docs)]

#[path = "../src/buf.rs"]
mod buf;
#[path = "../src/cache/mod.rs"]
mod cache;
#[path = "../src/chunks.rs"]
mod chunks;
#[path = "../src/error.rs"]
mod error;
#[path = "../src/log/mod.rs"]
mod log;
#[path = "../src/map/mod.rs"]
mod map;
#[path = "../src/marks.rs"]
mod marks;
#[path = "../src/mutation.rs"]
mod mutation;
#[path = "../src/payload_id.rs"]
mod payload_id;
#[path = "../src/retention.rs"]
mod retention;
#[path = "../src/sync/mod.rs"]
mod sync;
#[path = "../src/types.rs"]
mod types;

use bytes::Bytes;
use cache::read_buffer::{Page, ReadBuffer};
use cache::table::{Origin, Table};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use futures_util::FutureExt;
use log::checksum::Identity;
use log::record;
use log::segment::mutations;
use map::Map;
use map::extent::Mapped;
use map::tree::{Entry, Tree};
use mutation::Mutation;
use payload_id::PayloadId;
use std::collections::VecDeque;
use std::hint::black_box;
use std::thread;
use sync::Arc;
use sync::mailbox::mailbox;
use sync::slot::{Reply, slot};
use types::{Epoch, Generation, Location, Lsn, PAGE, PayloadNo, SegmentId, ShardId};

/// Extents of the map: 4 GiB of a payload in pages, none of which continues another.
const EXTENTS: u64 = 1 << 20;

/// Records that stand in one page, about: what a commit of many small writes holds.
const RECORDS: u64 = 100;

/// Pages of the read buffer.
const PAGES: u64 = 4096;

/// A fixed sequence in which every number below `limit` is as likely as any other.
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: u64) -> u64 {
        // Knuth's MMIX generator; its upper half is good enough to defeat the caches.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 32) * limit) >> 32
    }
}

/// A page in the log that is not behind any other: pages of a segment are taken in odd steps.
fn place(number: u64) -> Location {
    let pages = 2048;
    let offset = number % pages * 2 * PAGE as u64;
    Location::new(SegmentId(1 + number / pages), offset as u32)
}

fn extent(page: u64, at: u64) -> Mapped {
    Mapped::new(page * PAGE as u64, PAGE as u32, place(at))
}

/// A payload of so many extents, written at random.
fn fragmented(extents: u64) -> Tree<Mapped> {
    let mut tree = Tree::new();
    let mut draw = Draw(1);
    for page in 0..extents {
        tree.insert(extent(page, page), &mut ());
    }
    for at in 0..extents {
        tree.insert(extent(draw.below(extents), extents + at), &mut ());
    }
    tree
}

fn tree(criterion: &mut Criterion) {
    let mut tree = fragmented(EXTENTS);
    let mut draw = Draw(2);
    let mut group = criterion.benchmark_group("map/1M extents");
    group.bench_function("lookup 4 KiB", |bencher| {
        bencher.iter(|| {
            let start = draw.below(EXTENTS) * PAGE as u64;
            tree.range(start, start + PAGE as u64).next()
        });
    });
    group.bench_function("lookup 128 KiB", |bencher| {
        bencher.iter(|| {
            let start = draw.below(EXTENTS - 32) * PAGE as u64;
            tree.range(start, start + 32 * PAGE as u64)
                .map(|found| found.at().offset())
                .fold(0, u32::wrapping_add)
        });
    });
    let mut at = 0;
    group.bench_function("overwrite 4 KiB", |bencher| {
        bencher.iter(|| {
            at += 1;
            let entry = extent(draw.below(EXTENTS), at % EXTENTS);
            tree.insert(entry, &mut ());
        });
    });
    group.bench_function("clone", |bencher| bencher.iter(|| tree.share()));
    let clone = tree.share();
    group.bench_function("first overwrite after a clone", |bencher| {
        bencher.iter_batched(
            || (clone.share(), extent(draw.below(EXTENTS), 7)),
            |(mut clone, entry)| {
                clone.insert(entry, &mut ());
                clone
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

/// The map of a shard: what a mutation costs with its accounts, as replay and writes pay it.
fn apply(criterion: &mut Criterion) {
    let mut map = Map::new();
    let (payload, clone) = (PayloadNo(1), PayloadNo(2));
    let create = |number: PayloadNo, name: &str| Mutation::Create {
        payload: number,
        generation: Generation(number.0),
        id: Some(PayloadId::new(name).expect("a short name")),
    };
    let mut lsn = Lsn(1);
    let mut apply = |mutation: &Mutation| {
        lsn = lsn.next();
        map.apply(mutation, lsn).expect("it fits the map");
    };
    let write = |page: u64, at: u64| Mutation::Write {
        payload,
        offset: page * PAGE as u64,
        len: PAGE as u32,
        at: place(at),
    };
    apply(&create(payload, "source"));
    (0..EXTENTS).for_each(|page| apply(&write(page, page)));
    let mut group = criterion.benchmark_group("apply/1M extents");
    let mut draw = Draw(3);
    let mut at = 0;
    group.bench_function("write 4 KiB", |bencher| {
        bencher.iter(|| {
            at += 1;
            apply(&write(draw.below(EXTENTS), at % EXTENTS));
        });
    });
    let made = create(clone, "clone");
    let copy = Mutation::Copy {
        source: payload,
        target: clone,
    };
    group.bench_function("create, copy and delete a clone", |bencher| {
        bencher.iter(|| {
            apply(&made);
            apply(&copy);
            apply(&Mutation::Delete { payload: clone });
        });
    });
    group.finish();
}

fn codec(criterion: &mut Criterion) {
    let mut draw = Draw(4);
    let batch: Vec<Mutation> = (0..RECORDS)
        .map(|at| Mutation::Write {
            payload: PayloadNo(1),
            offset: draw.below(EXTENTS) * PAGE as u64,
            len: PAGE as u32,
            at: place(at),
        })
        .collect();
    let mut records = Vec::new();
    batch
        .iter()
        .for_each(|mutation| record::encode(mutation, &mut records));
    let mut group = criterion.benchmark_group("records/a write");
    group.bench_function("encode", |bencher| {
        let mut out = Vec::with_capacity(record::RECORD_BYTES_MAX);
        bencher.iter(|| {
            out.clear();
            record::encode(black_box(&batch[0]), &mut out);
        });
    });
    group.bench_function("decode", |bencher| {
        bencher.iter(|| record::decode(black_box(&records)));
    });
    group.finish();
    let mut group = criterion.benchmark_group("records/100 writes");
    group.throughput(Throughput::Elements(RECORDS));
    group.bench_function("encode", |bencher| {
        let mut out = Vec::with_capacity(records.len());
        bencher.iter(|| {
            out.clear();
            black_box(&batch)
                .iter()
                .for_each(|mutation| record::encode(mutation, &mut out));
        });
    });
    group.bench_function("decode", |bencher| {
        bencher.iter(|| mutations(black_box(&records)));
    });
    group.finish();
}

fn checksum(criterion: &mut Criterion) {
    let identity = Identity::new(&[7; 16], ShardId(0), SegmentId(1), Epoch(1));
    let bytes: Vec<u8> = (0..256 * PAGE).map(|n| (n % 251) as u8).collect();
    let mut group = criterion.benchmark_group("checksum");
    for pages in [1, 256] {
        let bytes = &bytes[..pages * PAGE];
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(format!("{pages} pages, each its own"), |bencher| {
            bencher.iter(|| {
                let sums = (1..).zip(bytes.chunks(PAGE));
                sums.map(|(page, bytes)| identity.sum(page, bytes))
                    .fold(0, |all, sum| all ^ sum)
            });
        });
    }
    group.finish();
}

/// A read buffer with all pages of one payload in it.
fn filled(id: &PayloadId) -> (Arc<Table>, ReadBuffer) {
    let table = Arc::new(Table::new(2 * PAGES * PAGE as u64));
    let mut buffer = ReadBuffer::new(table.clone(), 2 * PAGES * PAGE as u64);
    for number in 0..PAGES {
        let frame = buffer
            .reserve(&[PAGE as u64])
            .put(Bytes::from(vec![number as u8; PAGE]), PAGE as u64)
            .expect("half of it stays free");
        let page = Page {
            number,
            start: 0,
            len: PAGE as u16,
            last: false,
            at: Some(place(number)),
        };
        let pages = std::iter::once(page);
        buffer.insert((PayloadNo(1), id), &frame, pages, Origin::Demand);
    }
    (table, buffer)
}

fn read_buffer(criterion: &mut Criterion) {
    let id = PayloadId::new("a payload").expect("a short name");
    let (table, buffer) = filled(&id);
    let mut draw = Draw(5);
    let mut group = criterion.benchmark_group("read buffer");
    for (name, pages) in [("hit of 4 KiB", 1), ("hit of 128 KiB", 32)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let page = draw.below(PAGES - pages);
                let hit = table.read(&id, page * PAGE as u64, pages as usize * PAGE);
                assert!(hit.is_some());
                hit
            });
        });
    }
    group.bench_function("miss", |bencher| {
        bencher.iter(|| {
            let page = PAGES + draw.below(PAGES);
            let hit = table.read(&id, page * PAGE as u64, PAGE);
            assert!(hit.is_none());
        });
    });
    group.finish();
    drop(buffer);
}

fn round_trip(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("mailbox round trip");
    let (sender, mut receiver) = mailbox::<(u64, Reply<u64>)>(1024);
    let mut batch = VecDeque::new();
    group.bench_function("on one thread", |bencher| {
        bencher.iter(|| {
            let (reply, pending) = slot();
            let sent = sender.send((1, reply)).now_or_never();
            assert!(matches!(sent, Some(Ok(()))));
            assert_eq!(receiver.drain(&mut batch).now_or_never(), Some(true));
            let (request, reply) = batch.pop_front().expect("it was sent");
            reply.send(request + 1);
            assert_eq!(pending.now_or_never(), Some(Some(2)));
        });
    });
    let (sender, mut receiver) = mailbox::<(u64, Reply<u64>)>(1024);
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime without I/O")
    };
    let shard = thread::Builder::new();
    let shard = shard.spawn(move || {
        runtime().block_on(async move {
            let mut batch = VecDeque::new();
            while receiver.drain(&mut batch).await {
                for (request, reply) in batch.drain(..) {
                    reply.send(request + 1);
                }
            }
        });
    });
    let shard = shard.expect("a thread more");
    let caller = runtime();
    group.bench_function("to a parked thread and back", |bencher| {
        bencher.iter(|| {
            caller.block_on(async {
                let (reply, pending) = slot();
                sender.send((1, reply)).await.expect("the thread lives");
                assert_eq!(pending.await, Some(2));
            });
        });
    });
    group.finish();
    drop(sender);
    shard.join().expect("the thread ends with its last sender");
}

criterion_group!(
    benches,
    tree,
    apply,
    codec,
    checksum,
    read_buffer,
    round_trip
);
criterion_main!(benches);
