//! write-seq: a GiB from beginning to end, a MiB at a time, then flush.
//!
//! Equalised: O_DIRECT and 8 writes in flight on both sides, one sync at the end. Files that were
//! written before are cheaper to write than new ones, so there are two cases: a new store beside a
//! new file, and the same bytes once more, where segments are used again, beside the same file
//! once more. What segments are made ready with counts as written; it is no payload's.

use crate::bench::{Bench, GIB, MIB, id, write_through};
use crate::fio::{self, End, Job};
use crate::measure::{Case, Figure, OURS, Sample, Side, alternate, histogram};
use ringstore::Store;

const ROW: &str = "write-seq";
const STORE: &str = "write-seq";
const FILE: &str = "write-seq.dat";

/// What the engine itself says that it has written, for each byte of the payload.
const ENGINE_WRITTEN: &str = "engine-B/B";

fn write(bench: &Bench, store: &Store, bytes: u64) -> anyhow::Result<Sample> {
    let payload = id("sequential");
    let before = bench.stats(store)?.device_written_bytes;
    let meter = bench.meter();
    bench.runtime.block_on(async {
        write_through(store, &payload, bytes, &bench.noise).await?;
        store.flush(&payload).await
    })?;
    let sample = meter.stop(bytes / MIB, bytes, histogram());
    let written = bench.stats(store)?.device_written_bytes - before;
    Ok(sample.with(ENGINE_WRITTEN, written as f64 / bytes as f64))
}

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Case>> {
    let bytes = bench.sized(GIB, 16 * MIB);
    let job = Job {
        rw: "write",
        block_bytes: MIB,
        depth: 8,
        file_bytes: bytes,
        end: End::Bytes(bytes),
        options: &["--fallocate=none", "--end_fsync=1"],
    };
    let ours = Side::ours(|| {
        bench.remove(STORE)?;
        let store = bench.open(bench.config(STORE, bench.driver())?)?;
        let sample = write(bench, &store, bytes);
        bench.close(store)?;
        sample
    });
    let fio = Side::new("fio", || {
        bench.remove(FILE)?;
        fio::run(bench, FILE, &job)
    });
    let new = alternate(ROW, "new", bench.rounds, vec![ours, fio]);
    let store = bench.open(bench.config(STORE, bench.driver())?)?;
    let ours = Side::ours(|| write(bench, &store, bytes));
    let fio = Side::new("fio", || fio::run(bench, FILE, &job));
    let again = alternate(ROW, "once more", bench.rounds, vec![ours, fio]);
    bench.close(store)?;
    bench.remove(STORE)?;
    bench.remove(FILE)?;
    let mut cases = vec![new, again];
    for case in &mut cases {
        let ratio = case.ratio(OURS, "fio", Figure::BytesPerSecond);
        case.at_least("bytes per s, of fio's", ratio, 0.9);
        let written = case.median(OURS, Figure::WrittenPerByte);
        case.at_most("bytes written by the device, each", written, 1.02);
    }
    Ok(cases)
}
