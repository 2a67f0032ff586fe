//! idle: an open store that nobody uses, and what this program takes without one.
//!
//! It has been written to and read from before, and has been given time to settle: what it still
//! does then, it does for ever.

use crate::bench::{Bench, MIB, id};
use crate::measure::{Case, Figure, OURS, Sample, Side, alternate, histogram};
use std::thread;
use std::time::Duration;

const ROW: &str = "idle";
const STORE: &str = "idle";
const CPU_PERCENT: &str = "CPU-%";

/// After it everything that is put off has been done: `flush_after` and `seal_after` are shorter.
const SETTLED: Duration = Duration::from_secs(4);

fn nothing(bench: &Bench, span: Duration) -> Sample {
    let meter = bench.meter();
    thread::sleep(span);
    let sample = meter.stop(0, 0, histogram());
    let percent = sample.cpu.as_secs_f64() / sample.span.as_secs_f64() * 100.0;
    sample.with(CPU_PERCENT, percent)
}

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Case>> {
    let span = Duration::from_secs(bench.sized(10, 1));
    let ours = Side::ours(|| {
        let store = bench.open(bench.config(STORE, bench.driver())?)?;
        let payload = id("idle");
        bench.lay_out(&store, &payload, 4 * MIB)?;
        bench.runtime.block_on(store.read_at(&payload, 0, 4096))?;
        thread::sleep(if bench.quick { span } else { SETTLED });
        let before = bench.stats(&store)?;
        let sample = nothing(bench, span);
        let after = bench.stats(&store)?;
        bench.close(store)?;
        let traffic = |stats: &ringstore::Stats| {
            stats.device_written_bytes + stats.device_read_bytes + stats.device_syncs
        };
        let done = traffic(&after) - traffic(&before);
        Ok(sample.with("device-bytes-and-syncs", done as f64))
    });
    let without = Side::new("no store", || Ok(nothing(bench, span)));
    let mut case = alternate(ROW, "open", 1, vec![ours, without]);
    let above = case.difference(OURS, "no store", Figure::Extra(CPU_PERCENT));
    case.at_most("percent of a processor, above none", above, 0.1);
    bench.remove(STORE)?;
    Ok(vec![case])
}
