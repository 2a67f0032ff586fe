//! Figures of a simulated store: they tell what happened, and a seed tells them.

use crate::sim::Simulation;
use crate::stats::LatencySnapshot;
use crate::{Config, PayloadId, Stats, Store};
use std::time::Duration;

/// A machine of a seed, and a store on it.
fn opened(seed: u64) -> (Simulation, Store) {
    let machine = Simulation::new(seed);
    let mut config = Config::new("store");
    config.shards = Some(2);
    config.segment_bytes = 64 << 10;
    config.read_buffer_bytes = 0;
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
        let (machine, store) = opened(seed);
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
        let (machine, store) = opened(seed);
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
