//! read-random: single pages of a flushed payload that is far larger than the read buffer.
//!
//! Equalised: the same bytes on the same file system, both with O_DIRECT, uniform draws with
//! replacement, so many reads in flight. fio has them in one thread; ours are as many tasks, which
//! hop to the shards and back. A small read buffer stays on, so that filling it is paid for.

use crate::bench::{Bench, GIB, MIB, PAGE, id};
use crate::fio::{self, End, Job};
use crate::machine;
use crate::measure::{Case, Figure, Sample, Side, alternate};
use ringstore::PayloadId;
use std::time::Duration;

const ROW: &str = "read-random";
const STORE: &str = "read-random";
const FILE: &str = "read-random.dat";

/// A 256th of the payload: hits do not show.
const READ_BUFFER_BYTES: u64 = 4 * MIB;

/// Longer than a read takes on any NVMe disk, so that a shard that spins never parks here.
const SPIN: Duration = Duration::from_micros(500);

const ENGINE_CPU: &str = "engine-CPU-us/op";

struct Ours<'a> {
    bench: &'a Bench,
    driver: &'a str,
    spin: Duration,
    payload: PayloadId,
    bytes: u64,
    depth: usize,
}

impl Ours<'_> {
    fn run(&self) -> anyhow::Result<Sample> {
        let mut config = self.bench.config(STORE, self.driver)?;
        config.read_buffer_bytes = READ_BUFFER_BYTES;
        config.idle_spin = self.spin;
        let store = self.bench.open(config)?;
        let payloads = vec![self.payload.clone(); self.depth];
        let reads = |span: Duration| self.bench.read_pages(&store, &payloads, self.bytes, span);
        reads(self.bench.span / 10)?;
        let before = machine::engine_time();
        let sample = reads(self.bench.span)?;
        let engine = machine::engine_time().saturating_sub(before);
        self.bench.close(store)?;
        let us = engine.as_secs_f64() * 1e6 / sample.ops as f64;
        Ok(sample.with(ENGINE_CPU, us))
    }
}

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Case>> {
    let bytes = bench.sized(GIB, 32 * MIB);
    let payload = id("random");
    let store = bench.open(bench.config(STORE, bench.driver())?)?;
    bench.lay_out(&store, &payload, bytes)?;
    bench.close(store)?;
    // If it fails, so does the side, which says why.
    let _ = fio::prepare(bench, FILE, bytes);
    let cases = [1, 8, 32].map(|depth| case(bench, &payload, bytes, depth));
    bench.remove(STORE)?;
    bench.remove(FILE)?;
    Ok(cases.into())
}

fn case(bench: &Bench, payload: &PayloadId, bytes: u64, depth: usize) -> Case {
    let ours = |driver, spin| Ours {
        bench,
        driver,
        spin,
        payload: payload.clone(),
        bytes,
        depth,
    };
    let mut sides: Vec<Side> = Vec::new();
    for driver in &bench.drivers {
        let side = ours(driver, Duration::ZERO);
        sides.push(Side {
            is_required: sides.is_empty(),
            ..Side::new(format!("ringstore {driver}"), move || side.run())
        });
    }
    let first = format!("ringstore {}", bench.driver());
    let spinning = format!("{first}, spinning");
    if depth == 1 {
        let side = ours(bench.driver(), SPIN);
        sides.push(Side::new(spinning.clone(), move || side.run()));
    }
    let job = Job {
        rw: "randread",
        block_bytes: PAGE,
        depth,
        file_bytes: bytes,
        end: End::After(bench.span),
        options: &[],
    };
    sides.push(Side::new("fio", || fio::run(bench, FILE, &job)));
    let mut case = alternate(ROW, format!("QD {depth}"), bench.rounds, sides);
    match depth {
        1 => {
            let p50 = Figure::LatencyUs(0.5);
            let above = case.difference(&first, "fio", p50);
            case.at_most("p50 above fio's, parked, us", above, 40.0);
            let above = case.difference(&spinning, "fio", p50);
            case.at_most("p50 above fio's, spinning, us", above, 5.0);
        }
        _ => {
            let ratio = case.ratio(&first, "fio", Figure::PerSecond);
            case.at_least("reads per s, of fio's", ratio, 0.95);
        }
    }
    let engine = case.median(&first, Figure::Extra(ENGINE_CPU));
    let fio = case.median("fio", Figure::CpuUsPerOp);
    let ratio = engine.zip(fio).map(|(engine, fio)| engine / fio);
    case.at_most("the engine's CPU a read, of fio's", ratio, 1.3);
    case
}
