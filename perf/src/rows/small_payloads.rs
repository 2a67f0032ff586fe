//! small-payloads: ten thousand of 16 KiB, made durable one by one, read, deleted; 32 in flight.
//!
//! Equalised: the reference are files of the same size, made, written and synced by 32 threads on
//! the same file system, and removed by them. Their directory is not synced, so they promise a bit
//! less. Reading has no reference: files would come from the page cache. The targets are absolute:
//! five times what the engine before this one was measured at.

use crate::bench::{Bench, KIB, Pace, id};
use crate::measure::{Case, Figure, OURS, Sample, Side, alternate, histogram};
use bytes::Bytes;
use ringstore::Store;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::thread;

const ROW: &str = "small-payloads";
const STORE: &str = "small-payloads";
const FILES: &str = "small-files";
const IN_FLIGHT: u64 = 32;
const BYTES: u64 = 16 * KIB;

/// Five times 1,833 and 2,600.
const CREATED_PER_SECOND: f64 = 9_165.0;
const DELETED_PER_SECOND: f64 = 13_000.0;

#[derive(Clone, Copy, PartialEq)]
enum Act {
    Create,
    Read,
    Delete,
}

fn ours(bench: &Bench, store: &Store, count: u64, round: u64, act: Act) -> anyhow::Result<Sample> {
    bench.tasks(IN_FLIGHT as usize, BYTES, |task| {
        let store = store.clone();
        let data = bench.noise.slice(..BYTES as usize);
        async move {
            let mut pace = Pace::count(count / IN_FLIGHT);
            while pace.goes_on() {
                let payload = id(&format!("{round}/{task}/{}", pace.ops));
                match act {
                    Act::Create => {
                        store.write_at(&payload, 0, data.clone()).await?;
                        store.flush(&payload).await?;
                    }
                    Act::Read => {
                        store.read_at(&payload, 0, BYTES as usize).await?;
                    }
                    Act::Delete => store.delete(&payload).await?,
                }
                pace.done();
            }
            Ok(pace)
        }
    })
}

fn file(dir: &std::path::Path, round: u64, task: u64, n: u64) -> PathBuf {
    dir.join(format!("{round}-{task}-{n}"))
}

fn files(bench: &Bench, count: u64, round: u64, act: Act) -> anyhow::Result<Sample> {
    let dir = bench.path(FILES);
    fs::create_dir_all(&dir)?;
    let data: Bytes = bench.noise.slice(..BYTES as usize);
    let work = |task: u64| {
        let mut pace = Pace::count(count / IN_FLIGHT);
        while pace.goes_on() {
            let path = file(&dir, round, task, pace.ops);
            match act {
                Act::Create => {
                    let mut file = File::create(path)?;
                    file.write_all(&data)?;
                    file.sync_all()?;
                }
                Act::Read => drop(fs::read(path)?),
                Act::Delete => fs::remove_file(path)?,
            }
            pace.done();
        }
        anyhow::Ok(pace)
    };
    let meter = bench.meter();
    let mut latency = histogram();
    let mut ops = 0;
    thread::scope(|scope| {
        let work = &work;
        let tasks: Vec<_> = (0..IN_FLIGHT)
            .map(|task| scope.spawn(move || work(task)))
            .collect();
        for task in tasks {
            let pace = task.join().expect("no task panics")?;
            latency.add(&pace.latency)?;
            ops += pace.ops;
        }
        anyhow::Ok(())
    })?;
    Ok(meter.stop(ops, ops * BYTES, latency))
}

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Case>> {
    let count = bench.sized(10_000, 320);
    let mut config = bench.config(STORE, bench.driver())?;
    config.read_buffer_bytes = 0;
    let store = bench.open(config)?;
    let acts = [
        ("create, write, flush", Act::Create),
        ("read", Act::Read),
        ("delete", Act::Delete),
    ];
    let mut cases = Vec::new();
    for (name, act) in acts {
        let (mut our_round, mut their_round) = (0, 0);
        let mut sides = vec![Side::ours(|| {
            our_round += 1;
            ours(bench, &store, count, our_round, act)
        })];
        if act != Act::Read {
            sides.push(Side::new("files", || {
                their_round += 1;
                files(bench, count, their_round, act)
            }));
        }
        cases.push(alternate(ROW, name, bench.rounds, sides));
    }
    let rate = cases[0].median(OURS, Figure::PerSecond);
    cases[0].at_least("per s", rate, CREATED_PER_SECOND);
    let rate = cases[2].median(OURS, Figure::PerSecond);
    cases[2].at_least("per s", rate, DELETED_PER_SECOND);
    bench.close(store)?;
    bench.remove(STORE)?;
    bench.remove(FILES)?;
    Ok(cases)
}
