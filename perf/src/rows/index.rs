//! index: what the map takes in memory, for pages written at random and for pages in order.
//!
//! The random ones are 64 bytes at the beginnings of pages: no two can be joined, and the disk does
//! not become the limit. Whole pages take less, for their places are told in pages. Beside the
//! engine's own figure stands what the process grew by, which includes what else it took for them
//! and is the upper bound. How long a lookup takes is in `benches/pure.rs`: a caller cannot tell it
//! from the rest.

use crate::bench::{Bench, GIB, MIB, PAGE, Pace, id};
use crate::machine;
use crate::measure::{Case, Figure, OURS, Sample, Side, alternate};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use ringstore::Store;

const ROW: &str = "index";
const STORE: &str = "index";
const WRITERS: u64 = 32;
const EXTENT_BYTES: u64 = 64;
const MAP_BYTES: &str = "map-B/extent";
const GROWN_BYTES: &str = "process-B/extent";
const PER_PAGE: &str = "map-B/page";

fn random(bench: &Bench, extents: u64) -> anyhow::Result<Sample> {
    let store = fresh(bench)?;
    let payload = id("random");
    let data = bench.noise.slice(..EXTENT_BYTES as usize);
    let (grown, before) = (machine::resident_bytes(), bench.stats(&store)?);
    // A hundred times as many pages: few are met twice.
    let pages = 100 * extents;
    let sample = bench.tasks(WRITERS as usize, EXTENT_BYTES, |task| {
        let (store, payload, data) = (store.clone(), payload.clone(), data.clone());
        async move {
            let mut rng = SmallRng::seed_from_u64(task as u64);
            let mut pace = Pace::count(extents / WRITERS);
            while pace.goes_on() {
                let at = rng.random_range(0..pages) * PAGE;
                store.write_at(&payload, at, data.clone()).await?;
                pace.done();
            }
            Ok(pace)
        }
    })?;
    bench.runtime.block_on(store.flush(&payload))?;
    let after = bench.stats(&store)?;
    let count = (after.extents - before.extents) as f64;
    let map = (after.map_bytes - before.map_bytes) as f64;
    let mut sample = sample.with(MAP_BYTES, map / count);
    if let Some((before, after)) = grown.zip(machine::resident_bytes()) {
        let grown = after.saturating_sub(before) as f64;
        sample = sample.with(GROWN_BYTES, grown / count);
    }
    bench.close(store)?;
    Ok(sample)
}

fn in_order(bench: &Bench, bytes: u64) -> anyhow::Result<Sample> {
    let store = fresh(bench)?;
    let payload = id("sequential");
    let before = bench.stats(&store)?.map_bytes;
    let data = bench.page_of_noise(1);
    let sample = bench.tasks(1, PAGE, |_| {
        let (store, payload, data) = (store.clone(), payload.clone(), data.clone());
        async move {
            let mut pace = Pace::count(bytes / PAGE);
            while pace.goes_on() {
                let at = pace.ops * PAGE;
                store.write_at(&payload, at, data.clone()).await?;
                pace.done();
            }
            Ok(pace)
        }
    })?;
    bench.runtime.block_on(store.flush(&payload))?;
    let map = bench.stats(&store)?.map_bytes.saturating_sub(before);
    bench.close(store)?;
    Ok(sample.with(PER_PAGE, map as f64 / (bytes / PAGE) as f64))
}

fn fresh(bench: &Bench) -> anyhow::Result<Store> {
    bench.remove(STORE)?;
    let mut config = bench.config(STORE, bench.driver())?;
    config.read_buffer_bytes = 0;
    bench.open(config)
}

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Case>> {
    let extents = bench.sized(1_000_000, 20_000);
    let bytes = bench.sized(GIB / 4, 4 * MIB);
    // Memory does not depend on what else runs: one round is enough.
    let ours = Side::ours(|| random(bench, extents));
    let mut scattered = alternate(ROW, "random", 1, vec![ours]);
    let each = scattered.median(OURS, Figure::Extra(MAP_BYTES));
    scattered.at_most("bytes of memory an extent", each, 12.0);
    let ours = Side::ours(|| in_order(bench, bytes));
    let mut joined = alternate(ROW, "in order", 1, vec![ours]);
    let each = joined.median(OURS, Figure::Extra(PER_PAGE));
    joined.at_most("bytes of memory a page", each, 0.1);
    bench.remove(STORE)?;
    Ok(vec![scattered, joined])
}
