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
        let (read, fetch) = (total("read_remote"), total("fetch"));
        assert!(fetch <= read && fetch > read / 2, "{fetch:?} {read:?}");
        all_of(&after, after.stages())
    };
    assert_eq!(run(), run());
}

#[test]
fn requests_are_counted_whatever_comes_of_them() {
    let run = || {
        let rig = Rig::new(8, 2);
        let store = rig.open();
        rig.write(&store, &on(0, 0), 1, 100_000);
        rig.write(&store, &on(1, 0), 1, 100_000);
        rig.run(store.drain_uploads()).unwrap();
        rig.run(store.evict(&on(1, 0))).unwrap();
        let well = latency(&rig, &store);
        // What is there was made.
        let made = rig.bucket.names().len() as u64;
        assert!(well.count("remote_create") >= made, "{made} {well:?}");
        assert!(well.count("remote_list") > 0, "{well:?}");
        let slowest = well.max("remote_create").unwrap();
        assert!(slowest < Duration::from_millis(40), "{slowest:?}");
        for name in well.requests() {
            // Manifests are looked for that are not there: those were answered.
            assert_eq!((well.failed(name), well.given_up(name)), (0, 0), "{name}");
        }

        rig.read(&store, &on(1, 0), 4096).unwrap();
        let read = latency(&rig, &store);
        assert_eq!(read.count("remote_get") - well.count("remote_get"), 1);

        rig.bucket.set_away(true);
        rig.read(&store, &on(1, 0), 100_000).unwrap_err();
        let away = latency(&rig, &store);
        assert!(away.failed("remote_get") > 0, "{away:?}");
        assert_eq!(away.given_up("remote_get"), 0);

        rig.bucket.set_away(false);
        rig.sleep(10);
        let hangs = BucketFaults {
            hangs: 1000,
            ..BucketFaults::default()
        };
        rig.bucket.set_faults(hangs);
        rig.read(&store, &on(1, 0), 100_000).unwrap_err();
        let hung = latency(&rig, &store);
        assert!(hung.given_up("remote_get") > 1, "{hung:?}");
        all_of(&hung, hung.requests())
    };
    assert_eq!(run(), run());
}

#[test]
fn what_is_slow_by_the_remote_says_so() {
    let mut rig = Rig::new(9, 1);
    rig.config.slow_op = Some(Duration::from_micros(400));
    let store = rig.open();
    rig.write(&store, &on(0, 0), 1, 100_000);
    rig.run(store.wait_remote(&on(0, 0))).unwrap();
    let waited = latency(&rig, &store);
    assert_eq!(waited.slow_by("meta", "upload"), 1, "{waited:?}");
    rig.run(store.evict(&on(0, 0))).unwrap();
    rig.read(&store, &on(0, 0), 4096).unwrap();
    let read = latency(&rig, &store);
    assert_eq!(read.slow_by("read_remote", "fetch"), 1, "{read:?}");
    assert_eq!(read.slow("read_remote"), 1);
}
