//! write-random: single pages at random places, ten times the memory for what is not durable, one
//! flush at the end.
//!
//! Equalised: the payload and the file were written before; 32 writes in flight; the flush at the
//! end counts on both sides. Ours may answer from memory, but not ten times its limit of it.

use crate::bench::{Bench, GIB, MIB, PAGE, Pace, id};
use crate::fio::{self, End, Job};
use crate::measure::{Case, Figure, OURS, Sample, Side, alternate};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use ringstore::Store;

const ROW: &str = "write-random";
const STORE: &str = "write-random";
const FILE: &str = "write-random.dat";
const IN_FLIGHT: usize = 32;

fn ours(bench: &Bench, store: &Store, bytes: u64, writes: u64) -> anyhow::Result<Sample> {
    let payload = id("random");
    let meter = bench.meter();
    let written = bench.tasks(IN_FLIGHT, PAGE, |task| {
        let (store, payload) = (store.clone(), payload.clone());
        let data = bench.page_of_noise(task as u64);
        async move {
            let mut rng = SmallRng::seed_from_u64(task as u64);
            let mut pace = Pace::count(writes / IN_FLIGHT as u64);
            while pace.goes_on() {
                let at = rng.random_range(0..bytes / PAGE) * PAGE;
                store.write_at(&payload, at, data.clone()).await?;
                pace.done();
            }
            Ok(pace)
        }
    })?;
    bench.runtime.block_on(store.flush(&payload))?;
    Ok(meter.stop(written.ops, written.bytes, written.latency))
}

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Case>> {
    let bytes = bench.sized(GIB, 32 * MIB);
    let mut config = bench.config(STORE, bench.driver())?;
    config.dirty_bytes_max = bench.sized(64 * MIB, 4 * MIB);
    let writes = 10 * config.dirty_bytes_max / PAGE;
    let store = bench.open(config)?;
    bench.lay_out(&store, &id("random"), bytes)?;
    let _ = fio::prepare(bench, FILE, bytes);
    let job = Job {
        rw: "randwrite",
        block_bytes: PAGE,
        depth: IN_FLIGHT,
        file_bytes: bytes,
        end: End::Bytes(writes * PAGE),
        options: &["--end_fsync=1"],
    };
    let sides = vec![
        Side::ours(|| ours(bench, &store, bytes, writes)),
        Side::new("fio", || fio::run(bench, FILE, &job)),
    ];
    let mut case = alternate(ROW, "32 in flight", bench.rounds, sides);
    bench.close(store)?;
    bench.remove(STORE)?;
    bench.remove(FILE)?;
    let ratio = case.ratio(OURS, "fio", Figure::PerSecond);
    case.at_least("writes per s, of fio's", ratio, 1.5);
    let [p50, p99] = [0.5, 0.99].map(|it| case.median(OURS, Figure::LatencyUs(it)));
    let tail = p50.zip(p99).map(|(p50, p99)| p99 / p50);
    case.at_most("p99 over p50", tail, 5.0);
    let max = case.median(OURS, Figure::MaxUs).map(|us| us / 1e3);
    case.at_most("longest write, ms", max, 50.0);
    Ok(vec![case])
}
