//! read-seq: 128 KiB at a time from beginning to end, nothing of it in memory.
//!
//! Equalised: O_DIRECT on both sides, the read buffer emptied before each round. Ours is one task
//! that asks for one piece after the other, as a program would; what keeps the disk busy is the
//! engine's own reading ahead. fio keeps 8 reads in flight.

use crate::bench::{Bench, GIB, KIB, MIB, Pace, id};
use crate::fio::{self, End, Job};
use crate::measure::{Case, Figure, OURS, Side, alternate};

const ROW: &str = "read-seq";
const STORE: &str = "read-seq";
const FILE: &str = "read-seq.dat";
const PIECE: u64 = 128 * KIB;

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Case>> {
    let bytes = bench.sized(GIB, 16 * MIB);
    let payload = id("sequential");
    let store = bench.open(bench.config(STORE, bench.driver())?)?;
    bench.lay_out(&store, &payload, bytes)?;
    let _ = fio::prepare(bench, FILE, bytes);
    let span = bench.span;
    let ours = Side::ours(|| {
        bench.runtime.block_on(store.evict_read_buffer())?;
        bench.tasks(1, PIECE, |_| {
            let (store, payload) = (store.clone(), payload.clone());
            async move {
                let mut pace = Pace::time(span);
                while pace.goes_on() {
                    let at = pace.ops * PIECE % bytes;
                    store.read_at(&payload, at, PIECE as usize).await?;
                    pace.done();
                }
                Ok(pace)
            }
        })
    });
    let job = Job {
        rw: "read",
        block_bytes: PIECE,
        depth: 8,
        file_bytes: bytes,
        end: End::After(span),
        options: &[],
    };
    let fio = Side::new("fio", || fio::run(bench, FILE, &job));
    let mut case = alternate(ROW, "128 KiB", bench.rounds, vec![ours, fio]);
    let ratio = case.ratio(OURS, "fio", Figure::BytesPerSecond);
    case.at_least("bytes per s, of fio's", ratio, 0.95);
    bench.close(store)?;
    bench.remove(STORE)?;
    bench.remove(FILE)?;
    Ok(vec![case])
}
