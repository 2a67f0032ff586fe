//! copy: a clone of a GiB, once in long extents and once in single pages, and of a single page.
//!
//! The reference is a hop: a request to the same shard that has nothing to do there, in the same
//! run. What is above it is the clone. Clones are independent of the size if the three cases agree.
//!
//! Memory is what the process has grown by: the engine's own figure counts the nodes of its trees,
//! of which a clone has none.

use crate::bench::{Bench, GIB, MIB, PAGE, Pace, id};
use crate::machine;
use crate::measure::{Case, Figure, OURS, Sample, Side, alternate};
use ringstore::{PayloadId, Store};

const ROW: &str = "copy";
const STORE: &str = "copy";
const HOP: &str = "hop";
const GROWN_BYTES: &str = "process-B/clone";
const LOG_BYTES: &str = "log-B/clone";

fn clones(
    bench: &Bench,
    store: &Store,
    source: &PayloadId,
    count: u64,
    round: u64,
) -> anyhow::Result<Sample> {
    let written = bench.stats(store)?.device_written_bytes;
    let resident = machine::resident_bytes();
    let name = move |n: u64| id(&format!("clone/{round}/{n}"));
    let sample = bench.tasks(1, 0, |_| {
        let (store, source) = (store.clone(), source.clone());
        async move {
            let mut pace = Pace::count(count);
            while pace.goes_on() {
                let target = name(pace.ops);
                pace.skip();
                store.copy(&source, &target).await?;
                pace.done();
            }
            Ok(pace)
        }
    })?;
    bench.runtime.block_on(store.flush_all())?;
    let written = bench.stats(store)?.device_written_bytes - written;
    let grown = resident.zip(machine::resident_bytes());
    bench.runtime.block_on(async {
        for n in 0..count {
            store.delete(&name(n)).await?;
        }
        anyhow::Ok(())
    })?;
    let sample = sample.with(LOG_BYTES, written as f64 / count as f64);
    Ok(match grown {
        Some((before, after)) => {
            let grown = after.saturating_sub(before) as f64;
            sample.with(GROWN_BYTES, grown / count as f64)
        }
        None => sample,
    })
}

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Case>> {
    let large = bench.sized(GIB, 8 * MIB);
    let count = bench.sized(2000, 50);
    let store = bench.open(bench.config(STORE, bench.driver())?)?;
    let sources = [
        ("1 page", PAGE, 0.0),
        ("whole", large, 0.0),
        ("fragmented", large, 1.0),
    ];
    let mut cases = Vec::new();
    for (name, bytes, share) in sources {
        let source = id(name);
        bench.lay_out(&store, &source, bytes)?;
        bench.fragment(&store, &source, bytes, share)?;
        let mut round = 0;
        let sides = vec![
            Side::ours(|| {
                round += 1;
                clones(bench, &store, &source, count, round)
            }),
            Side::new(HOP, || bench.hop(&store, &source, count)),
        ];
        let mut case = alternate(ROW, name, bench.rounds, sides);
        let above = case.difference(OURS, HOP, Figure::LatencyUs(0.5));
        case.at_most("p50 above a hop's, us", above, 20.0);
        let memory = case.median(OURS, Figure::Extra(GROWN_BYTES));
        case.at_most("bytes of memory a clone", memory, 256.0);
        cases.push(case);
        bench.runtime.block_on(store.delete(&source))?;
    }
    bench.close(store)?;
    bench.remove(STORE)?;
    Ok(cases)
}
