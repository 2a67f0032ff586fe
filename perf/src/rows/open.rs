//! open: after a clean close and after a kill, a GiB in one payload and in ten thousand.
//!
//! A store that is killed is filled by this program in a process of its own, which is then killed
//! with signal 9, for each round anew. How much of the log is behind the last checkpoint is the
//! engine's affair; what the device read at opening stands beside the time, as the bytes of the
//! operation. Where there is a tail, fio reads as much in order.
//!
//! Not equalised: the kernel may still have the directory's entries in memory. What is read of
//! files is read with O_DIRECT, so their bytes come from the disk.

use crate::bench::{Bench, GIB, MIB, PAGE, id, write_through};
use crate::fio::{self, End, Job};
use crate::measure::{Case, Figure, OURS, Sample, Side, alternate, histogram};
use anyhow::{Context, ensure};
use clap::Args;
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use ringstore::{Config, Store};
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};

const ROW: &str = "open";
const STORE: &str = "open";
const FILE: &str = "open.dat";

/// What a store is filled with.
#[derive(Args, Clone)]
pub struct Fill {
    dir: PathBuf,
    driver: String,
    /// Bytes of all payloads
    bytes: u64,
    /// Payloads
    payloads: u64,
    /// Bytes that are overwritten in single pages behind it
    tail: u64,
}

/// Runs in the child: fills the store, says so, and waits to be killed.
pub fn fill(fill: &Fill) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let store = runtime.block_on(fill_store(fill))?;
    println!("filled");
    // Until the parent is gone, if it does not kill.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    drop(store);
    Ok(())
}

async fn fill_store(fill: &Fill) -> anyhow::Result<Store> {
    let mut config = Config::new(&fill.dir);
    config.driver = fill.driver.parse()?;
    let store = Store::open(config).await?;
    let mut noise = vec![0; MIB as usize];
    SmallRng::seed_from_u64(4).fill_bytes(&mut noise);
    let noise = noise.into();
    let each = fill.bytes / fill.payloads;
    for n in 0..fill.payloads {
        write_through(&store, &id(&format!("payload/{n}")), each, &noise).await?;
    }
    store.flush_all().await?;
    let (payload, page) = (id("payload/0"), noise.slice(..PAGE as usize));
    let mut rng = SmallRng::seed_from_u64(5);
    for _ in 0..fill.tail / PAGE {
        let at = rng.random_range(0..each.div_ceil(PAGE)) * PAGE;
        store.write_at(&payload, at, page.clone()).await?;
    }
    store.flush_all().await?;
    Ok(store)
}

/// Fills a store in a process of its own, and kills that.
fn fill_and_kill(fill: &Fill) -> anyhow::Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("fill")
        .arg(&fill.dir)
        .arg(&fill.driver)
        .args([fill.bytes, fill.payloads, fill.tail].map(|number| number.to_string()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let said = child.stdout.take().context("it was piped")?;
    let mut line = String::new();
    let read = BufReader::new(said).read_line(&mut line);
    child.kill()?;
    child.wait()?;
    read?;
    ensure!(line.trim() == "filled", "the child did not fill the store");
    Ok(())
}

struct Work<'a> {
    bench: &'a Bench,
    fill: Fill,
    is_killed: bool,
}

impl Work<'_> {
    fn open(&self) -> anyhow::Result<Sample> {
        if self.is_killed {
            self.bench.remove(STORE)?;
            fill_and_kill(&self.fill)?;
        }
        let config = self.bench.config(STORE, &self.fill.driver)?;
        let meter = self.bench.meter();
        let store = self.bench.open(config)?;
        let mut sample = meter.stop(1, 0, histogram());
        let ns = sample.span.as_nanos() as u64;
        sample.latency.saturating_record(ns);
        self.bench.close(store)?;
        sample.bytes = sample.device.map_or(0, |traffic| traffic.read);
        Ok(sample)
    }
}

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Case>> {
    let bytes = bench.sized(GIB, 16 * MIB);
    let many = bench.sized(10_000, 100);
    let tail = bench.sized(256 * MIB, 4 * MIB);
    let works = [
        ("clean, one payload", 1, 0, false),
        ("clean, many payloads", many, 0, false),
        ("killed, one payload", 1, 0, true),
        ("killed, many payloads", many, 0, true),
        ("killed, one payload and a tail", 1, tail, true),
    ];
    let mut cases = Vec::new();
    for (name, payloads, tail, is_killed) in works {
        let work = Work {
            bench,
            fill: Fill {
                dir: bench.path(STORE),
                driver: bench.driver().to_owned(),
                bytes,
                payloads,
                tail,
            },
            is_killed,
        };
        bench.remove(STORE)?;
        if !is_killed {
            let store = bench.runtime.block_on(fill_store(&work.fill))?;
            bench.close(store)?;
        }
        let mut case = match tail {
            0 => alternate(ROW, name, bench.rounds, vec![Side::ours(|| work.open())]),
            tail => with_tail(bench, name, &work, tail),
        };
        if !is_killed {
            let ms = case.median(OURS, Figure::Seconds).map(|it| it * 1e3);
            case.at_most("to open, ms", ms, 100.0);
        }
        cases.push(case);
    }
    bench.remove(STORE)?;
    bench.remove(FILE)?;
    Ok(cases)
}

fn with_tail(bench: &Bench, name: &str, work: &Work, tail: u64) -> Case {
    let _ = fio::prepare(bench, FILE, tail);
    let job = Job {
        rw: "read",
        block_bytes: MIB,
        depth: 8,
        file_bytes: tail,
        end: End::Bytes(tail),
        options: &[],
    };
    let sides = vec![
        Side::ours(|| work.open()),
        Side::new("fio, 1 MiB reads", || fio::run(bench, FILE, &job)),
    ];
    let mut case = alternate(ROW, name, bench.rounds, sides);
    let ratio = case.ratio(OURS, "fio, 1 MiB reads", Figure::BytesPerSecond);
    case.at_least("bytes read per s, of fio's", ratio, 0.9);
    case
}
