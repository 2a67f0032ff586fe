//! Figures of a simulated store: they tell what happened, and a seed tells them.

use crate::sim::Simulation;
use crate::{Config, PayloadId, Stats, Store};

/// A machine of a seed, and a store on it, opened as `change` says.
fn opened(seed: u64, change: impl Fn(&mut Config)) -> (Simulation, Store) {
    let machine = Simulation::new(seed);
    let mut config = Config::new("store");
    config.shards = Some(2);
    config.segment_bytes = 64 << 10;
    config.read_buffer_bytes = 0;
    change(&mut config);
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
        let (machine, store) = opened(seed, |_| {});
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
