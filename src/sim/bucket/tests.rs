//! Stores and a bucket, each time with one thing wrong: who is told, what is refused, what is left.

mod figures;
mod kept;
mod pressure;
mod racing;
mod rebuilds;
mod scenarios;
mod tiers;

use super::{Bucket, BucketFaults};
use crate::config::{Config, RemoteConfig};
use crate::error::{ErrorKind, Result};
use crate::io::sim::{Disk, DiskFaults, Process, Universe};
use crate::marks::armed::take_hits;
use crate::payload_id::PayloadId;
use crate::retention::RetentionPolicy;
use crate::shard::Routes;
use crate::sim::world;
use crate::stats::{ExtentKind, HealthStatus};
use crate::store::Store;
use crate::types::{Epoch, ShardId};
use crate::upload::manifest::base_name;
use bytes::Bytes;
use futures_util::future::join;
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::time::Duration;

/// Virtual time after which an answer will not come any more.
const PATIENCE: Duration = Duration::from_secs(300);

/// A machine with a disk, and a bucket.
struct Rig {
    config: Config,
    process: RefCell<Process>,
    disk: RefCell<Disk>,
    bucket: Bucket,
    universe: Universe,
}

impl Rig {
    fn new(seed: u64, shards: usize) -> Rig {
        let universe = Universe::new(seed);
        let mut config = Config::new("disk");
        config.shards = Some(shards);
        config.segment_bytes = 64 << 10;
        config.dirty_bytes_max = (1 << 20) * shards as u64;
        config.read_buffer_bytes = 0;
        config.prefetch_bytes_max = 0;
        config.seal_after = Duration::from_millis(500);
        config.stall_timeout = Duration::from_secs(5);
        config.remote = Some(RemoteConfig::Memory("bucket".to_owned()));
        Rig {
            config,
            process: RefCell::new(universe.process()),
            disk: RefCell::new(universe.disk("disk")),
            bucket: Bucket::new(&universe, seed),
            universe,
        }
    }

    fn run<F: Future>(&self, future: F) -> F::Output {
        let ended = self.universe.run_until_within(PATIENCE, future);
        ended.expect("it has an answer")
    }

    fn sleep(&self, seconds: u64) {
        self.run(self.universe.sleep(Duration::from_secs(seconds)));
    }

    fn open_as(&self, config: Config) -> Result<Store> {
        let (universe, process) = (self.universe.clone(), self.process.borrow().clone());
        let (disk, bucket) = (self.disk.borrow().clone(), self.bucket.clone());
        self.run(world::open(
            &universe,
            &process,
            &disk,
            Some(&bucket),
            config,
        ))
    }

    fn open(&self) -> Store {
        self.open_as(self.config.clone()).expect("it opens")
    }

    fn open_without_remote(&self) -> Store {
        let mut config = self.config.clone();
        config.remote = None;
        self.open_as(config).expect("it opens")
    }

    /// The process dies.
    fn kill(&self, store: Store) {
        drop(store);
        self.process.borrow().kill();
        *self.process.borrow_mut() = self.universe.process();
    }

    /// The machine is lost, and another is rebuilt from the bucket.
    fn rebuild(&self, name: &str) -> Result<Store> {
        self.process.borrow().kill();
        self.rebuild_beside(name)
    }

    /// Another machine is rebuilt from the bucket, and this one lives on.
    fn rebuild_beside(&self, name: &str) -> Result<Store> {
        let rebuilding = self.rebuilding(name);
        self.run(rebuilding)
    }

    fn rebuilding(&self, name: &str) -> impl Future<Output = Result<Store>> + 'static {
        *self.process.borrow_mut() = self.universe.process();
        *self.disk.borrow_mut() = self.universe.disk(name);
        let (universe, process) = (self.universe.clone(), self.process.borrow().clone());
        let (disk, bucket) = (self.disk.borrow().clone(), self.bucket.clone());
        let config = self.config.clone();
        async move { world::rebuild(&universe, &process, &disk, Some(&bucket), config).await }
    }

    fn fail_writes(&self, per_mille: u16) {
        let faults = DiskFaults {
            write_error: per_mille,
            torn: 0,
            ..DiskFaults::default()
        };
        self.disk.borrow().set_faults(faults);
    }

    fn try_write(&self, store: &Store, id: &PayloadId, fill: u8, len: usize) -> Result<()> {
        let write = async {
            store.write_at(id, 0, Bytes::from(vec![fill; len])).await?;
            store.flush(id).await
        };
        self.run(write).map(|_| ())
    }

    fn write(&self, store: &Store, id: &PayloadId, fill: u8, len: usize) {
        let written = self.try_write(store, id, fill, len);
        written.expect("it is written");
    }

    fn read(&self, store: &Store, id: &PayloadId, len: usize) -> Result<Bytes> {
        let read = self.run(store.read_at(id, 0, len));
        read.map(|chunks| chunks.into_bytes())
    }

    /// The files of a shard whose names begin so, in order.
    fn files(&self, shard: u16, prefix: &str) -> Vec<String> {
        let prefix = format!("shard-{shard:04}/{prefix}");
        let files = self.disk.borrow().files();
        let names = files.into_iter().map(|(name, _)| name);
        names.filter(|name| name.starts_with(&prefix)).collect()
    }
}

/// The `nth` name whose home is this shard of two.
fn on(shard: u16, nth: usize) -> PayloadId {
    let routes = Routes::new(2);
    let names = (0..).map(|n| PayloadId::new(format!("p{n}")).expect("valid"));
    let mut there = names.filter(|id| routes.home(id) == ShardId(shard));
    there.nth(nth).expect("there are many")
}

fn kind<T>(result: Result<T>) -> ErrorKind {
    result.map(|_| ()).expect_err("it cannot succeed").kind()
}

/// Two shards with bytes here that the bucket, which is away, does not have.
fn behind(rig: &Rig) -> Store {
    rig.bucket.set_away(true);
    let store = rig.open();
    rig.write(&store, &on(0, 0), 1, 10_000);
    rig.write(&store, &on(1, 0), 2, 10_000);
    rig.run(store.close()).expect_err("the bucket is away");
    rig.open()
}

// S-19, S-25
#[test]
fn who_waits_for_a_poisoned_shard_is_told() {
    let rig = Rig::new(5, 2);
    let store = behind(&rig);
    rig.fail_writes(1000);
    let written = rig.try_write(&store, &on(0, 0), b'x', 1);
    assert_eq!(kind(written), ErrorKind::Poisoned);
    rig.fail_writes(0);
    rig.bucket.set_away(false);
    rig.sleep(30);
    let waited = rig.run(store.wait_remote(&on(1, 0)));
    assert_eq!(kind(waited), ErrorKind::Poisoned);
    assert_eq!(kind(rig.run(store.drain_uploads())), ErrorKind::Poisoned);
}

#[test]
fn who_waits_for_a_segment_that_cannot_be_read_is_told() {
    let rig = Rig::new(6, 2);
    let store = behind(&rig);
    for name in rig.files(0, "seg-") {
        rig.disk.borrow().break_page(&name, 2).expect("it is there");
    }
    rig.bucket.set_away(false);
    rig.sleep(30);
    let waited = rig.run(store.wait_remote(&on(1, 0)));
    assert_eq!(kind(waited), ErrorKind::Corrupt);
    assert_eq!(kind(rig.run(store.drain_uploads())), ErrorKind::Corrupt);
}

#[test]
fn who_waits_for_a_shard_that_the_bucket_refuses_is_told() {
    let rig = Rig::new(7, 2);
    let store = rig.open();
    rig.write(&store, &on(0, 0), 1, 30_000);
    rig.write(&store, &on(1, 0), 2, 30_000);
    rig.run(store.close()).expect("it closes");
    // The directory of one shard has lost everything.
    for name in rig.files(0, "") {
        rig.disk.borrow().remove_file(&name).expect("it is there");
    }
    let store = rig.open();
    rig.write(&store, &on(0, 1), 3, 5000);
    // The name moves to the shard that is behind; what comes later at its home needs that.
    rig.run(store.copy(&on(0, 1), &on(1, 0)))
        .expect("it is copied");
    rig.write(&store, &on(1, 1), 4, 5000);
    let waited = rig.run(store.wait_remote(&on(1, 1)));
    assert_eq!(kind(waited), ErrorKind::Corrupt);
}

// S-17: either of the two newest checkpoints may be lost
#[test]
fn number_of_an_evicted_file_is_not_used_again() {
    let rig = Rig::new(8, 1);
    let store = rig.open();
    write_each(&rig, &store, 0..6);
    rig.run(store.drain_uploads()).expect("it is uploaded");
    // At rest there are no other files.
    rig.sleep(60);
    for nth in 0..6 {
        rig.run(store.evict(&on(0, nth))).expect("it is evicted");
    }
    rig.run(store.close()).expect("it closes");
    assert_eq!(rig.files(0, "seg-"), Vec::<String>::new());
    let store = rig.open();
    for nth in 6..12 {
        rig.write(&store, &on(0, nth), nth as u8, 60_000);
    }
    rig.kill(store);
    let newest = rig.files(0, "checkpoint-").pop().expect("there are two");
    rig.disk
        .borrow()
        .flip_bit(&newest, 8000)
        .expect("it is there");
    let store = rig.open();
    let stats = rig.run(store.stats()).expect("it has figures");
    assert_eq!(stats.batches_lost, 0);
    for nth in 0..12 {
        let read = rig.read(&store, &on(0, nth), 60_000).expect("it is there");
        assert!(read.iter().all(|byte| *byte == nth as u8), "{nth}");
    }
}

// S-23, S-24: what is there under a name is compared, not believed
#[test]
fn anothers_checkpoint_is_not_taken_for_ours() {
    let rig = Rig::new(9, 1);
    for sequence in 1..4 {
        let name = base_name(ShardId(0), sequence, Epoch(1));
        rig.bucket.plant(name, b"another's");
    }
    let store = rig.open();
    rig.write(&store, &on(0, 0), 1, 10_000);
    assert_eq!(kind(rig.run(store.close())), ErrorKind::Corrupt);
    let store = rig.rebuild("another").expect("it is rebuilt");
    assert_eq!(
        rig.read(&store, &on(0, 0), 100).expect("read"),
        vec![1; 100]
    );
}

// S-29: a checkpoint says of a segment that it is uploaded only if it was begun later
#[test]
fn checkpoint_that_is_tried_again_keeps_its_number() {
    let rig = Rig::new(10, 1);
    let store = rig.open();
    drop(take_hits());
    for round in 0..6u8 {
        rig.write(&store, &on(0, 0), round, 10_000);
        rig.run(store.drain_uploads()).expect("it is uploaded");
        let used = rig.disk.borrow().used();
        rig.disk.borrow().set_capacity(used);
        rig.run(store.evict(&on(0, 0))).expect("it is evicted");
        rig.disk.borrow().set_capacity(u64::MAX);
    }
    assert!(take_hits()["older checkpoint given up for a checkpoint"] > 0);
    let checkpoints = rig.run(store.stats()).expect("it has figures").checkpoints;
    let newest = format!("shard-0000/checkpoint-{checkpoints:016x}");
    assert_eq!(rig.files(0, "checkpoint-").pop(), Some(newest));
}

/// Writes payloads that are a number again and again.
fn write_each(rig: &Rig, store: &Store, numbers: Range<usize>) {
    for nth in numbers {
        rig.write(store, &on(0, nth), nth as u8, 60_000);
    }
}

/// A store that has lost what the bucket has of the first six refuses, at every opening, and the
/// bucket still has them.
fn refuses_to_replace_what_the_bucket_has(rig: &Rig) {
    for _ in 0..2 {
        let store = rig.open();
        let drained = rig.run(store.drain_uploads());
        assert_eq!(kind(drained), ErrorKind::Corrupt);
        let closed: Result<()> = rig.run(store.close());
        assert_eq!(kind(closed), ErrorKind::Corrupt);
    }
    let store = rig.rebuild("another").expect("it is rebuilt");
    for nth in 0..6 {
        let read = rig.read(&store, &on(0, nth), 60_000).expect("it is there");
        assert!(read.iter().all(|byte| *byte == nth as u8), "{nth}");
    }
}

// S-24: what a store has lost is not lost in the bucket for that
#[test]
fn store_that_has_lost_records_does_not_replace_what_the_bucket_has() {
    let rig = Rig::new(11, 1);
    let store = rig.open();
    write_each(&rig, &store, 0..6);
    rig.run(store.close()).expect("it closes");
    // An opening, so that something stands behind the checkpoints.
    let store = rig.open();
    rig.write(&store, &on(0, 6), 6, 60_000);
    rig.kill(store);
    for name in rig.files(0, "checkpoint-") {
        rig.disk.borrow().remove_file(&name).expect("it is there");
    }
    for name in rig.files(0, "seg-").iter().take(3) {
        rig.disk.borrow().remove_file(name).expect("it is there");
    }
    let store = rig.open_without_remote();
    write_each(&rig, &store, 7..12);
    rig.run(store.close()).expect("it closes");
    refuses_to_replace_what_the_bucket_has(&rig);
}

// S-32: short commands leave no more than a long one
#[test]
fn closing_takes_what_nothing_needs_out_of_the_bucket() {
    let rig = Rig::new(12, 1);
    for round in 0..30u8 {
        let store = rig.open();
        rig.write(&store, &on(0, 0), round, 60_000);
        rig.run(store.close()).expect("it closes");
    }
    let count = |prefix: &str| {
        let names = rig.bucket.names();
        names.iter().filter(|name| name.starts_with(prefix)).count()
    };
    let segments = rig.bucket.data_bytes();
    assert!(
        segments <= 60_000 * 3 / 2 + 2 * (64 << 10) + 2 * 4096,
        "{segments}"
    );
    assert_eq!((count("c-"), count("probe-")), (1, 0));
}

#[test]
fn manifests_of_old_openings_go() {
    let rig = Rig::new(13, 1);
    for round in 0..100u8 {
        let store = rig.open();
        rig.write(&store, &on(0, 0), round, 1000);
        rig.run(store.close()).expect("it closes");
    }
    let names = rig.bucket.names();
    let manifests = names.iter().filter(|name| name.starts_with("m-")).count();
    assert!(manifests <= 64 + 16, "{manifests}");
}

// S-25, S-28: where nothing can be made, what is there can be read
#[test]
fn bucket_that_takes_nothing_is_bad_and_is_read_all_the_same() {
    let rig = Rig::new(14, 1);
    let store = rig.open();
    let (cold, warm) = (on(0, 0), on(0, 1));
    rig.write(&store, &cold, 1, 60_000);
    rig.run(store.evict(&cold)).expect("it is evicted");
    rig.bucket.set_faults(BucketFaults {
        deaf: 1000,
        ..BucketFaults::default()
    });
    rig.write(&store, &warm, 2, 60_000);
    rig.sleep(60);
    let health = rig.run(store.health());
    assert_eq!(health.remote, Some(HealthStatus::Degraded));
    let waited = rig.run(store.wait_remote(&warm));
    assert_eq!(kind(waited), ErrorKind::Unavailable);
    assert_eq!(
        rig.read(&store, &cold, 100).expect("it is there"),
        vec![1; 100]
    );
    rig.bucket.set_faults(BucketFaults::default());
    rig.sleep(70);
    let health = rig.run(store.health());
    assert_eq!(health.remote, Some(HealthStatus::Healthy));
    rig.run(store.wait_remote(&warm)).expect("it is back");
}

// S-24: who was away for so long that its number is free again
#[test]
fn engine_that_was_away_for_long_is_fenced() {
    let rig = Rig::new(15, 1);
    let old = rig.open();
    rig.write(&old, &on(0, 0), 1, 1000);
    rig.run(old.drain_uploads()).expect("it is uploaded");
    let new = rig.rebuild_beside("another").expect("it is rebuilt");
    for round in 0..150u8 {
        rig.write(&new, &on(0, 0), round, 1000);
        rig.run(new.drain_uploads()).expect("it is uploaded");
    }
    rig.run(new.close()).expect("it closes");
    let new = rig.open();
    rig.write(&old, &on(0, 0), 200, 1000);
    let waited = rig.run(old.wait_remote(&on(0, 0)));
    assert_eq!(kind(waited), ErrorKind::Poisoned);
    assert_eq!(rig.read(&new, &on(0, 0), 1).expect("read"), vec![149]);
    rig.write(&new, &on(0, 0), 201, 1000);
    rig.run(new.drain_uploads()).expect("it is uploaded");
}

// scenario 91: what fails is tried again, and holds up nobody else's upload
// S-15
#[test]
fn segment_that_could_not_be_uploaded_is_tried_again() {
    let rig = Rig::new(16, 1);
    rig.bucket.set_away(true);
    let store = rig.open();
    rig.write(&store, &on(0, 0), 1, 10_000);
    // Until it is sealed.
    rig.sleep(2);
    let harmed = rig.files(0, "seg-");
    let flip = || {
        let disk = rig.disk.borrow();
        let flip = |name: &String| disk.flip_bit(name, 8 * 8192).expect("it is there");
        harmed.iter().for_each(flip);
    };
    flip();
    rig.write(&store, &on(0, 1), 2, 10_000);
    rig.bucket.set_away(false);
    rig.sleep(30);
    assert_eq!(kind(rig.run(store.drain_uploads())), ErrorKind::Corrupt);
    let failed = || rig.run(store.stats()).expect("it has figures").failed_syncs;
    assert_eq!(failed(), 1);
    assert!(rig.bucket.data_bytes() > 0, "the other one is there");
    let oldest = || figures(&rig, &store).oldest_unsynced_seconds;
    assert!(oldest() >= 30.0);
    flip();
    rig.sleep(70);
    rig.run(store.drain_uploads()).expect("it is uploaded");
    assert_eq!((failed(), oldest()), (0, 0.0));
    let store = rig.rebuild("another").expect("it is rebuilt");
    for (nth, fill) in [(0, 1), (1, 2)] {
        let read = rig.read(&store, &on(0, nth), 10_000).expect("it is there");
        assert!(read.iter().all(|byte| *byte == fill), "{nth}");
    }
}

/// A store with a payload of 60,000 bytes in the remote, of which the first were read.
fn with_something_kept(rig: &Rig) -> Store {
    let (store, id) = (rig.open(), on(0, 0));
    rig.write(&store, &id, 1, 60_000);
    rig.run(store.evict(&id)).expect("it is evicted");
    assert_eq!(rig.read(&store, &id, 4096).expect("read"), vec![1; 4096]);
    // Until it is written.
    rig.sleep(1);
    assert_eq!(rig.files(0, "kept-").len(), 1);
    store
}

fn figures(rig: &Rig, store: &Store) -> crate::Stats {
    rig.run(store.stats()).expect("it has figures")
}

// S-26: what was fetched is there after a restart, also without the remote
#[test]
fn fetched_bytes_are_kept_over_a_restart() {
    let (rig, id) = (Rig::new(17, 1), on(0, 0));
    let store = with_something_kept(&rig);
    let extents = rig.run(store.extents(&id, 0, 1 << 20)).expect("extents");
    let kinds: Vec<_> = extents.iter().map(|extent| extent.kind).collect();
    assert_eq!(kinds, [ExtentKind::Local, ExtentKind::Remote]);
    let kept = figures(&rig, &store).kept_bytes;
    rig.kill(store);
    rig.bucket.set_away(true);
    let store = rig.open();
    rig.sleep(1);
    assert_eq!(figures(&rig, &store).kept_bytes, kept);
    assert_eq!(rig.read(&store, &id, 4096).expect("read"), vec![1; 4096]);
    assert_eq!(figures(&rig, &store).remote_read_bytes, 0);
    let cold = rig.run(store.read_at(&id, 50_000, 100));
    assert_eq!(kind(cold), ErrorKind::Unavailable);
    rig.bucket.set_away(false);
    rig.sleep(30);
    // Given up like other local bytes, and with the segment.
    assert_eq!(rig.run(store.evict(&id)).expect("it is evicted"), kept);
    assert_eq!(rig.read(&store, &id, 100).expect("read"), vec![1; 100]);
    rig.sleep(1);
    rig.run(store.delete(&id)).expect("it is deleted");
    rig.sleep(60);
    assert_eq!(rig.files(0, "kept-"), Vec::<String>::new());
}

// S-26, S-33: what is kept is checked, and no more than a copy
#[test]
fn kept_bytes_that_went_bad_are_fetched_again() {
    for harm in 0..4 {
        let (rig, id) = (Rig::new(18, 1), on(0, 0));
        let store = with_something_kept(&rig);
        rig.kill(store);
        let name = rig.files(0, "kept-").remove(0);
        let disk = rig.disk.borrow().clone();
        let done = match harm {
            0 => disk.flip_bit(&name, 8 * 8192),
            1 => disk.break_page(&name, 2),
            2 => disk.truncate_file(&name, 9000),
            _ => disk.remove_file(&name),
        };
        done.expect("it is there");
        let store = rig.open();
        rig.sleep(1);
        let read = rig.read(&store, &id, 60_000).expect("it is there");
        assert!(read.iter().all(|byte| *byte == 1), "{harm}");
        let figures = figures(&rig, &store);
        assert!(figures.remote_read_bytes > 0, "{harm}");
        assert_eq!(figures.checksum_failures, 0, "{harm}");
    }
}

// S-29: what is kept counts as local
#[test]
fn what_is_kept_stays_within_the_limit() {
    let mut rig = Rig::new(19, 1);
    rig.config.local_bytes_max = Some(12 * (64 << 10));
    let store = rig.open();
    let within = |store: &Store| {
        let figures = figures(&rig, store);
        let checkpoints = 2 * (16 << 10);
        let most = 13 * (64 << 10) + checkpoints;
        assert!(figures.local_disk_used <= most, "{figures:?}");
        figures.kept_bytes
    };
    for nth in 0..40 {
        rig.write(&store, &on(0, nth), nth as u8, 50_000);
        within(&store);
    }
    rig.run(store.drain_uploads()).expect("it is uploaded");
    let mut kept = 0;
    for round in 0..3 {
        for nth in 0..40 {
            let read = rig.read(&store, &on(0, nth), 50_000).expect("it is there");
            assert!(read.iter().all(|byte| *byte == nth as u8), "{nth}");
            kept = kept.max(within(&store));
            rig.write(&store, &on(0, 100), round, 5000);
        }
    }
    assert!(kept > 0);
}

// S-29: what may be evicted of a payload is kept with it
#[test]
fn policy_of_a_payload_survives_restarts_and_rebuilds() {
    let (rig, id) = (Rig::new(21, 1), on(0, 0));
    let evicted = |store: &Store| rig.run(store.evict(&id)).expect("it is there") > 0;
    let store = rig.open();
    rig.write(&store, &id, 1, 60_000);
    rig.run(store.set_retention(Some(&id), RetentionPolicy::Pin))
        .expect("it is there");
    rig.run(store.flush(&id)).expect("it is flushed");
    rig.kill(store);
    let store = rig.open();
    assert!(!evicted(&store), "after a crash");
    rig.run(store.close()).expect("it closes");
    let store = rig.open();
    assert!(!evicted(&store), "from a checkpoint");
    rig.write(&store, &id, 2, 30_000);
    rig.run(store.wait_remote(&id)).expect("it is uploaded");
    let store = rig.rebuild("another").expect("it is rebuilt");
    assert!(!evicted(&store), "on another machine");
    // A clone has none, and neither has another payload of the name.
    let clone = on(0, 1);
    rig.run(store.copy(&id, &clone)).expect("it is copied");
    rig.run(store.delete(&id)).expect("it is deleted");
    rig.write(&store, &id, 3, 60_000);
    assert!(evicted(&store), "made anew");
}

// S-29: what may be evicted of a payload stays as it was said when a copy onto it fails half way
#[test]
fn policy_of_a_payload_survives_a_copy_that_fails() {
    let rig = Rig::new(24, 2);
    let store = rig.open();
    let (source, target) = (on(0, 0), on(1, 0));
    rig.write(&store, &source, 1, 30_000);
    rig.write(&store, &target, 2, 30_000);
    let pinned = store.set_retention(Some(&target), RetentionPolicy::Pin);
    rig.run(pinned).expect("it is there");
    rig.run(store.drain_uploads()).expect("it is uploaded");
    // Both have a segment open, and nobody needs another one.
    rig.write(&store, &on(0, 1), 3, 100);
    rig.write(&store, &on(1, 1), 3, 100);
    rig.fail_writes(1000);
    // The disk fails the source's shard, and is well when the other one goes on.
    let copied = Cell::new(false);
    let mend = async {
        while !take_hits().contains_key("payload outranks a failed copy") {
            assert!(!copied.get(), "it failed in another way");
            rig.universe.sleep(Duration::from_micros(5)).await;
        }
        rig.fail_writes(0);
    };
    let copy = async {
        let result = store.copy(&source, &target).await;
        copied.set(true);
        result
    };
    let (result, ()) = rig.run(join(copy, mend));
    assert_eq!(kind(result), ErrorKind::Poisoned);
    let is_as_before = |store: &Store| {
        let read = rig.read(store, &target, 30_000).expect("it is there");
        assert!(read.iter().all(|byte| *byte == 2));
        let evicted = rig.run(store.evict(&target)).expect("it is there");
        assert_eq!(evicted, 0, "it is pinned");
    };
    is_as_before(&store);
    rig.kill(store);
    is_as_before(&rig.open());
}

// S-24: who has lost the end of its log does not write over what the bucket has of it
#[test]
fn store_that_has_lost_the_end_of_its_log_does_not_replace_what_the_bucket_has() {
    let rig = Rig::new(20, 1);
    let store = rig.open();
    write_each(&rig, &store, 0..6);
    rig.run(store.close()).expect("it closes");
    for name in rig.files(0, "checkpoint-") {
        rig.disk.borrow().remove_file(&name).expect("it is there");
    }
    for name in rig.files(0, "seg-").iter().skip(2) {
        rig.disk.borrow().remove_file(name).expect("it is there");
    }
    // What is left looks like a log that ends here.
    let store = rig.open_without_remote();
    write_each(&rig, &store, 7..20);
    rig.run(store.close()).expect("it closes");
    refuses_to_replace_what_the_bucket_has(&rig);
}

// S-29, S-32: what is written is not the coldest that there is, and near the limit the cleaner does
// not fetch what it has just seen evicted
#[test]
fn store_near_its_limit_does_not_fetch_in_circles() {
    let mut rig = Rig::new(22, 1);
    rig.config.local_bytes_max = Some(16 * (64 << 10));
    let store = rig.open();
    let live = 1200 << 10;
    for round in 0..400 {
        rig.write(&store, &on(0, 1 + round), round as u8, live / 400);
        rig.write(&store, &on(0, 0), round as u8, 40_000);
    }
    rig.sleep(250);
    rig.sleep(250);
    let fetched = figures(&rig, &store).remote_read_bytes;
    assert!(fetched <= 8 * live as u64, "{fetched}");
    for round in 0..400 {
        let read = rig.read(&store, &on(0, 1 + round), live).expect("read");
        assert!(read.iter().all(|byte| *byte == round as u8), "{round}");
    }
}

// scenario 75: a time to live counts from the last write
#[test]
fn what_was_just_written_has_its_time_to_live() {
    let mut rig = Rig::new(23, 1);
    rig.config.retention = RetentionPolicy::Ttl(Duration::from_secs(1000));
    rig.sleep(250);
    for _ in 0..8 {
        rig.sleep(250);
    }
    let (store, id) = (rig.open(), on(0, 0));
    rig.write(&store, &id, 1, 60_000);
    rig.run(store.drain_uploads()).expect("it is uploaded");
    rig.sleep(250);
    assert_eq!(figures(&rig, &store).evicted_segments, 0);
    for _ in 0..6 {
        rig.sleep(250);
    }
    assert!(figures(&rig, &store).evicted_segments > 0);
}
