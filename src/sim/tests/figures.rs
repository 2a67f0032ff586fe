//! Figures of a simulated store: they tell what happened, and a seed tells them.

use crate::sim::{Faults, Simulation};
use crate::stats::LatencySnapshot;
use crate::{Config, PayloadId, Stats, Store};
use std::time::Duration;

/// A machine of a seed, and a store on it that takes operations for slow after so long.
fn opened(seed: u64, slow_op: Option<Duration>) -> (Simulation, Store) {
    let machine = Simulation::new(seed);
    let mut config = Config::new("store");
    config.shards = Some(2);
    config.segment_bytes = 64 << 10;
    config.read_buffer_bytes = 0;
    config.slow_op = slow_op;
    let store = machine.run(machine.open(config)).unwrap().unwrap();
    (machine, store)
}

fn id(number: u64) -> PayloadId {
    PayloadId::new(format!("payload {number}")).unwrap()
}

/// Writes, flushes and reads payloads on both shards.
fn work(machine: &Simulation, store: &Store) {
    let all = async {
        for number in 0..8 {
            let id = id(number);
            store.write_at(&id, 0, vec![7; 20_000].into()).await?;
            store.flush(&id).await?;
            store.read_at(&id, 4096, 4096).await?;
        }
        Ok::<(), crate::Error>(())
    };
    machine.run(all).unwrap().unwrap();
}

fn stats(machine: &Simulation, store: &Store) -> Stats {
    machine.run(store.stats()).unwrap().unwrap()
}

#[test]
fn shards_say_how_long_they_were_busy() {
    let run = |seed| {
        let (machine, store) = opened(seed, None);
        let before = stats(&machine, &store);
        work(&machine, &store);
        let after = stats(&machine, &store);
        let busy = |stats: &Stats| -> Vec<f64> {
            let shards = stats.per_shard.iter();
            shards.map(|shard| shard.shard_busy_seconds).collect()
        };
        let (before, each) = (busy(&before), busy(&after));
        assert!(before.iter().all(|seconds| *seconds > 0.0), "{before:?}");
        // A poll takes nanoseconds, a flush waits for the device: most of the time they rest.
        for (before, after) in before.iter().zip(&each) {
            let spent = after - before;
            assert!(spent > 1e-6 && spent < 1e-3, "{spent}");
        }
        assert_eq!(after.shard_busy_seconds, each.iter().sum::<f64>());
        each
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

fn latency(machine: &Simulation, store: &Store) -> LatencySnapshot {
    machine.run(store.latency()).unwrap().unwrap()
}

/// Everything that is told of some names.
fn all_of(
    latency: &LatencySnapshot,
    names: impl Iterator<Item = &'static str>,
) -> Vec<(&'static str, u64, Duration, Option<Duration>)> {
    let one = |name| {
        let count = latency.count(name);
        (name, count, latency.total(name), latency.max(name))
    };
    names.map(one).collect()
}

#[test]
fn stages_say_where_the_time_goes() {
    let run = |seed| {
        let (machine, store) = opened(seed, None);
        let before = latency(&machine, &store);
        work(&machine, &store);
        let after = latency(&machine, &store);
        let more = |name| after.count(name) - before.count(name);
        // 8 times a write, a flush, a read, and one question by each shard for its figures.
        assert_eq!(more("queue_wait"), 24 + 2);
        assert_eq!(more("group_commit_wait"), 8);
        assert_eq!(more("device_write"), 8);
        assert_eq!(more("device_read"), 8);
        for name in ["sync", "fetch", "upload", "checkpoint"] {
            assert_eq!(more(name), 0, "{name}");
        }
        // A read of the device is most of a read, and no more than all of it.
        let total = |name| after.total(name) - before.total(name);
        let (read, device) = (total("read_local"), total("device_read"));
        assert!(device <= read && device > read / 2, "{device:?} {read:?}");
        let commit = total("group_commit_wait") + total("device_write");
        let flush = total("flush");
        assert!(
            commit <= flush && commit > flush / 2,
            "{commit:?} {flush:?}"
        );
        all_of(&after, after.stages())
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

#[test]
fn slow_operations_say_by_what() {
    let run = |seed| {
        let (machine, store) = opened(seed, Some(Duration::from_secs(1)));
        work(&machine, &store);
        let quick = latency(&machine, &store);
        assert!(
            quick.operations().all(|op| quick.slow(op) == 0),
            "{quick:?}"
        );
        // Every I/O takes three seconds longer.
        let faults = Faults {
            slow: 1000,
            ..Faults::default()
        };
        machine.set_faults("store", &faults);
        work(&machine, &store);
        let slow = latency(&machine, &store);
        assert_eq!(slow.slow_by("read_local", "device_read"), 8);
        assert_eq!(slow.slow("read_local"), 8);
        // A writer that waits for a new file is in no stage.
        assert_eq!(slow.slow_by("write", "other"), slow.slow("write"));
        // What is written may have grown old on the way, and is then synced for the flush.
        let device = slow.slow_by("flush", "device_write") + slow.slow_by("flush", "sync");
        assert_eq!((slow.slow("flush"), device), (8, 8));
        assert_eq!(slow.slow_by("flush", "unknown"), 0);
        let by = |op| slow.causes().map(move |cause| (op, cause));
        let all: Vec<u64> = slow
            .operations()
            .flat_map(by)
            .map(|(op, cause)| slow.slow_by(op, cause))
            .collect();
        (all, all_of(&slow, slow.stages()))
    };
    assert_eq!(run(5), run(5));
}
