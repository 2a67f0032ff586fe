//! read-hit: single pages that are in the read buffer, by one task and by two at once.
//!
//! Equalised: foyer's in-memory cache holds the same pages as `Bytes`, and both hand out a
//! reference without a copy. Each read draws a page and takes one reading of the clock, on either
//! side; subtract what an empty loop would take, if you must know the cost alone.

use crate::bench::{Bench, KIB, MIB, id};
use crate::measure::{Case, Figure, Sample, Side, alternate};

const ROW: &str = "read-hit";
const STORE: &str = "read-hit";

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Case>> {
    let bytes = bench.sized(64 * MIB, 256 * KIB);
    let store = bench.open(bench.config(STORE, bench.driver())?)?;
    bench.lay_out(&store, &id("hot"), bytes)?;
    bench.close(store)?;
    let mut cases: Vec<Case> = [1, 2].map(|tasks| case(bench, bytes, tasks)).into();
    let first = format!("ringstore {}", bench.driver());
    let p50 = cases[0].median(&first, Figure::LatencyUs(0.5));
    cases[0].at_most("p50, us", p50, 0.5);
    let rates = [0, 1].map(|case: usize| cases[case].median(&first, Figure::PerSecond));
    let ratio = rates[0].zip(rates[1]).map(|(one, two)| two / one);
    cases[1].at_least("two tasks' reads per s, of one's", ratio, 1.8);
    bench.remove(STORE)?;
    Ok(cases)
}

fn case(bench: &Bench, bytes: u64, tasks: usize) -> Case {
    let mut sides: Vec<Side> = Vec::new();
    for driver in &bench.drivers {
        sides.push(Side {
            is_required: sides.is_empty(),
            ..Side::new(format!("ringstore {driver}"), move || {
                ours(bench, driver, bytes, tasks)
            })
        });
    }
    #[cfg(feature = "peers")]
    sides.push(Side::new("foyer", move || {
        crate::peers::foyer_hits(bench, bytes, tasks)
    }));
    let name = format!("{tasks} tasks");
    alternate(ROW, name, bench.rounds, sides)
}

fn ours(bench: &Bench, driver: &str, bytes: u64, tasks: usize) -> anyhow::Result<Sample> {
    let mut config = bench.config(STORE, driver)?;
    config.read_buffer_bytes = 4 * bytes.max(16 * MIB);
    let store = bench.open(config)?;
    let payload = id("hot");
    bench.warm(&store, &payload, bytes)?;
    let hits = |latency: &ringstore::LatencySnapshot| latency.count("read_hit");
    let before = hits(&bench.runtime.block_on(store.latency())?);
    let sample = bench.read_pages(&store, &vec![payload; tasks], bytes, bench.span)?;
    let after = hits(&bench.runtime.block_on(store.latency())?);
    bench.close(store)?;
    let share = (after - before) as f64 / sample.ops as f64 * 100.0;
    Ok(sample.with("hits-%", share))
}
