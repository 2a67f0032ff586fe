//! Figures of a store that has a bucket.

use super::*;
use crate::stats::LatencySnapshot;

fn latency(rig: &Rig, store: &Store) -> LatencySnapshot {
    rig.run(store.latency()).unwrap()
}

/// Everything that is told of some names.
fn all_of(
    latency: &LatencySnapshot,
    names: impl Iterator<Item = &'static str>,
) -> Vec<(&'static str, u64, Duration)> {
    let one = |name| (name, latency.count(name), latency.total(name));
    names.map(one).collect()
}

#[test]
fn stages_of_the_remote_and_of_the_upkeep_are_told() {
    let run = || {
        let rig = Rig::new(7, 1);
        let store = rig.open();
        rig.write(&store, &on(0, 0), 1, 100_000);
        rig.run(store.drain_uploads()).unwrap();
        rig.run(store.evict(&on(0, 0))).unwrap();
        let before = latency(&rig, &store);
        assert!(before.count("upload") > 0, "{before:?}");
        assert!(before.count("checkpoint") > 0, "{before:?}");
        rig.read(&store, &on(0, 0), 4096).unwrap();
        let after = latency(&rig, &store);
        assert_eq!(after.count("fetch") - before.count("fetch"), 1);
        assert_eq!(after.count("device_read"), before.count("device_read"));
        let total = |name| after.total(name) - before.total(name);
        let (read, fetch) = (total("read_local"), total("fetch"));
        assert!(fetch <= read && fetch > read / 2, "{fetch:?} {read:?}");
        all_of(&after, after.stages())
    };
    assert_eq!(run(), run());
}
