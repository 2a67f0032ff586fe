//! truncate, delete: a GiB is cut to half, grown again and deleted; and how long its space takes.
//!
//! The reference is a hop, as in copy. Many clones of one fragmented GiB are cut, so that there
//! are enough operations for a percentile. The last case deletes the only owner of a GiB: its
//! extents have to be given up one by one, and then the segments come back.

use crate::bench::{Bench, GIB, MIB, Pace, id};
use crate::measure::{Case, Figure, OURS, Sample, Side, alternate, histogram};
use anyhow::ensure;
use ringstore::{PayloadId, Store};
use std::time::{Duration, Instant};

const ROW: &str = "truncate";
const STORE: &str = "truncate";
const HOP: &str = "hop";
const SPACE_BACK: &str = "space-back-ms";

/// A cleaning pass that takes longer has not happened.
const SPACE_BACK_MAX: Duration = Duration::from_secs(20);

/// What is done to a payload that has `bytes`.
#[derive(Clone, Copy)]
enum Act {
    Shrink,
    Grow,
    Delete,
}

async fn act(store: &Store, payload: &PayloadId, bytes: u64, act: Act) -> ringstore::Result<()> {
    match act {
        Act::Shrink => store.truncate(payload, bytes / 2).await,
        Act::Grow => store.truncate(payload, bytes).await,
        Act::Delete => store.delete(payload).await,
    }
}

struct Clones<'a> {
    bench: &'a Bench,
    store: &'a Store,
    source: PayloadId,
    bytes: u64,
    count: u64,
}

impl Clones<'_> {
    fn name(n: u64) -> PayloadId {
        id(&format!("clone/{n}"))
    }

    /// Makes clones, brings them to where the act is meant for, and times the act alone.
    fn run(&self, last: Act) -> anyhow::Result<Sample> {
        let before: &[Act] = match last {
            Act::Shrink => &[],
            Act::Grow | Act::Delete => &[Act::Shrink],
        };
        self.bench.runtime.block_on(async {
            for n in 0..self.count {
                let clone = Clones::name(n);
                self.store.copy(&self.source, &clone).await?;
                for step in before {
                    act(self.store, &clone, self.bytes, *step).await?;
                }
            }
            anyhow::Ok(())
        })?;
        let sample = self.bench.tasks(1, 0, |_| {
            let (store, bytes, count) = (self.store.clone(), self.bytes, self.count);
            async move {
                let mut pace = Pace::count(count);
                while pace.goes_on() {
                    let clone = Clones::name(pace.ops);
                    pace.skip();
                    act(&store, &clone, bytes, last).await?;
                    pace.done();
                }
                Ok(pace)
            }
        })?;
        if !matches!(last, Act::Delete) {
            self.bench.runtime.block_on(async {
                for n in 0..self.count {
                    self.store.delete(&Clones::name(n)).await?;
                }
                anyhow::Ok(())
            })?;
        }
        Ok(sample)
    }
}

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Case>> {
    let bytes = bench.sized(GIB, 8 * MIB);
    let store = bench.open(bench.config(STORE, bench.driver())?)?;
    let source = id("source");
    bench.lay_out(&store, &source, bytes)?;
    bench.fragment(&store, &source, bytes, 0.5)?;
    let clones = Clones {
        bench,
        store: &store,
        source: source.clone(),
        bytes,
        count: bench.sized(500, 20),
    };
    let acts = [
        ("shrink", Act::Shrink),
        ("grow", Act::Grow),
        ("delete", Act::Delete),
    ];
    let mut cases = Vec::new();
    for (name, act) in acts {
        let sides = vec![
            Side::ours(|| clones.run(act)),
            Side::new(HOP, || bench.hop(&store, &source, clones.count)),
        ];
        cases.push(alternate(ROW, name, bench.rounds, sides));
    }
    let sides = vec![
        Side::ours(|| only_owner(bench, &store, bytes)),
        Side::new(HOP, || bench.hop(&store, &source, clones.count)),
    ];
    let name = "delete the only owner";
    cases.push(alternate(ROW, name, bench.rounds, sides));
    for case in &mut cases {
        let above = case.difference(OURS, HOP, Figure::LatencyUs(0.5));
        case.at_most("p50 above a hop's, us", above, 20.0);
    }
    bench.close(store)?;
    bench.remove(STORE)?;
    Ok(cases)
}

/// Deletes a payload that shares nothing, and waits until what it took is free.
fn only_owner(bench: &Bench, store: &Store, bytes: u64) -> anyhow::Result<Sample> {
    let owner = id("owner");
    let before = bench.stats(store)?.segments;
    bench.lay_out(store, &owner, bytes)?;
    let full = bench.stats(store)?.segments;
    let mut latency = histogram();
    let meter = bench.meter();
    bench.runtime.block_on(store.delete(&owner))?;
    let deleted = Instant::now();
    let mut sample = meter.stop(1, 0, histogram());
    latency.saturating_record(sample.span.as_nanos() as u64);
    sample.latency = latency;
    bench.runtime.block_on(store.flush_all())?;
    // Nine tenths of it: the rest may share segments with what lives.
    let enough = full - (full - before.min(full)) * 9 / 10;
    while bench.stats(store)?.segments > enough {
        ensure!(
            deleted.elapsed() < SPACE_BACK_MAX,
            "the space has not come back: segments before={before} full={full} now={}",
            bench.stats(store)?.segments
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    let ms = deleted.elapsed().as_secs_f64() * 1e3;
    Ok(sample.with(SPACE_BACK, ms))
}
