//! What every row stands on: the runtime, a directory, sizes, and stores to work with.
//!
//! Ours runs through the public interface, from tasks of a tokio runtime with as many threads as
//! there are processors, as an embedder would.
//!
//! Invariants:
//! 1. A [`Pace`] times every operation from the end of the one before it, so that nothing that its
//!    task does is left out.
//! 2. Everything that is written lies in `dir`, which goes away with this.

use crate::machine::{Device, Who};
use crate::measure::{Meter, Sample, histogram};
use anyhow::Context;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hdrhistogram::Histogram;
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use ringstore::{Config, PayloadId, Stats, Store};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;
pub const PAGE: u64 = 4096;

/// Bytes that writes are cut from; they do not repeat within what any layer might compress.
const NOISE_BYTES: u64 = 4 * MIB;

/// Pieces of a layout, and how many are under way.
const LAYOUT_BYTES: u64 = MIB;
const LAYOUT_IN_FLIGHT: usize = 8;

pub struct Bench {
    pub runtime: Runtime,
    pub device: Device,
    pub quick: bool,
    pub rounds: usize,
    /// How long a side of a round that is ended by the clock takes.
    pub span: Duration,
    /// As they were typed: one that the engine refuses is a side that says so.
    pub drivers: Vec<String>,
    pub noise: Bytes,
    dir: TempDir,
}

impl Bench {
    pub fn new(
        parent: &Path,
        quick: bool,
        rounds: usize,
        span: Duration,
        drivers: Vec<String>,
    ) -> anyhow::Result<Bench> {
        let dir = tempfile::Builder::new()
            .prefix("ringstore-perf-")
            .tempdir_in(parent)
            .with_context(|| format!("no place to work in: dir={}", parent.display()))?;
        let mut noise = vec![0; NOISE_BYTES as usize];
        SmallRng::seed_from_u64(1).fill_bytes(&mut noise);
        Ok(Bench {
            runtime: Builder::new_multi_thread().enable_all().build()?,
            device: Device::of(dir.path()),
            quick,
            rounds,
            span,
            drivers,
            noise: noise.into(),
            dir,
        })
    }

    /// A size that a smoke run makes smaller.
    pub fn sized(&self, full: u64, quick: u64) -> u64 {
        if self.quick { quick } else { full }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn meter(&self) -> Meter<'_> {
        Meter::start(&self.device, Who::Us)
    }

    /// The first driver that was asked for: it stands for us where drivers are not compared.
    pub fn driver(&self) -> &str {
        self.drivers.first().map_or("auto", String::as_str)
    }

    /// The defaults, with a driver, in a directory of that name.
    pub fn config(&self, name: &str, driver: &str) -> anyhow::Result<Config> {
        let mut config = Config::new(self.path(name));
        config.driver = driver.parse()?;
        Ok(config)
    }

    pub fn open(&self, config: Config) -> anyhow::Result<Store> {
        Ok(self.runtime.block_on(Store::open(config))?)
    }

    pub fn close(&self, store: Store) -> anyhow::Result<()> {
        Ok(self.runtime.block_on(store.close())?)
    }

    pub fn stats(&self, store: &Store) -> anyhow::Result<Stats> {
        Ok(self.runtime.block_on(store.stats())?)
    }

    /// Writes a payload from beginning to end, and flushes it.
    pub fn lay_out(&self, store: &Store, id: &PayloadId, len: u64) -> anyhow::Result<()> {
        self.runtime.block_on(async {
            write_through(store, id, len, &self.noise).await?;
            store.flush(id).await?;
            Ok(())
        })
    }

    /// Overwrites single pages of a payload at random, as many as it has times `share`, and
    /// flushes it.
    pub fn fragment(&self, store: &Store, id: &PayloadId, len: u64, share: f64) -> Done {
        let pages = len / PAGE;
        let writes = (pages as f64 * share) as u64;
        self.runtime.block_on(async {
            let mut rng = SmallRng::seed_from_u64(2);
            let mut writing = FuturesUnordered::new();
            for _ in 0..writes {
                let page = rng.random_range(0..pages);
                writing.push(store.write_at(id, page * PAGE, self.page_of_noise(page)));
                if writing.len() == 64 {
                    writing.next().await.transpose()?;
                }
            }
            while writing.next().await.transpose()?.is_some() {}
            drop(writing);
            store.flush(id).await?;
            Ok(())
        })
    }

    /// A page that differs from its neighbours'.
    pub fn page_of_noise(&self, number: u64) -> Bytes {
        let at = (number * 64 % (NOISE_BYTES - PAGE)) as usize;
        self.noise.slice(at..at + PAGE as usize)
    }

    /// Runs so many tasks to their ends and measures them together.
    pub fn tasks<F>(
        &self,
        count: usize,
        bytes_per_op: u64,
        task: impl Fn(usize) -> F,
    ) -> anyhow::Result<Sample>
    where
        F: Future<Output = anyhow::Result<Pace>> + Send + 'static,
    {
        let meter = self.meter();
        let (ops, latency) = self.runtime.block_on(async {
            let running: Vec<_> = (0..count).map(|n| tokio::spawn(task(n))).collect();
            let mut ops = 0;
            let mut latency = histogram();
            for running in running {
                let pace = running.await??;
                ops += pace.ops;
                latency.add(&pace.latency)?;
            }
            anyhow::Ok((ops, latency))
        })?;
        Ok(meter.stop(ops, ops * bytes_per_op, latency))
    }

    /// Reads a payload page by page, so that it is in the read buffer.
    pub fn warm(&self, store: &Store, id: &PayloadId, len: u64) -> anyhow::Result<()> {
        self.runtime.block_on(async {
            for page in 0..len / PAGE {
                store.read_at(id, page * PAGE, PAGE as usize).await?;
            }
            Ok(())
        })
    }

    /// A task for each of these payloads reads single pages of its own at random, for `span`.
    pub fn read_pages(
        &self,
        store: &Store,
        payloads: &[PayloadId],
        len: u64,
        span: Duration,
    ) -> anyhow::Result<Sample> {
        self.tasks(payloads.len(), PAGE, |task| {
            let (store, payload) = (store.clone(), payloads[task].clone());
            async move {
                let mut rng = SmallRng::seed_from_u64(task as u64);
                let mut pace = Pace::time(span);
                while pace.goes_on() {
                    let at = rng.random_range(0..len / PAGE) * PAGE;
                    store.read_at(&payload, at, PAGE as usize).await?;
                    pace.done();
                }
                Ok(pace)
            }
        })
    }

    /// What a round trip to the shard costs that has nothing to do there.
    pub fn hop(&self, store: &Store, id: &PayloadId, ops: u64) -> anyhow::Result<Sample> {
        self.tasks(1, 0, |_| {
            let (store, id) = (store.clone(), id.clone());
            async move {
                let mut pace = Pace::count(ops);
                while pace.goes_on() {
                    store.size(&id).await?;
                    pace.done();
                }
                Ok(pace)
            }
        })
    }

    /// Removes what a row has left behind, so that the next has the room.
    pub fn remove(&self, name: &str) -> anyhow::Result<()> {
        let path = self.path(name);
        match path.is_dir() {
            true => fs::remove_dir_all(path)?,
            false if path.exists() => fs::remove_file(path)?,
            false => {}
        }
        Ok(())
    }
}

type Done = anyhow::Result<()>;

/// Writes `len` bytes in order, a MiB at once, some at the same time.
pub async fn write_through(
    store: &Store,
    id: &PayloadId,
    len: u64,
    noise: &Bytes,
) -> ringstore::Result<()> {
    let mut writing = FuturesUnordered::new();
    let mut at = 0;
    while at < len {
        let piece = LAYOUT_BYTES.min(len - at);
        writing.push(store.write_at(id, at, noise.slice(..piece as usize)));
        at += piece;
        if writing.len() == LAYOUT_IN_FLIGHT {
            writing.next().await.transpose()?;
        }
    }
    while writing.next().await.transpose()?.is_some() {}
    Ok(())
}

pub fn id(name: &str) -> PayloadId {
    PayloadId::new(name).expect("the names here are short")
}

/// When a task stops, and how long each of its operations took.
pub struct Pace {
    until: Option<Instant>,
    left: u64,
    last: Instant,
    pub ops: u64,
    pub latency: Histogram<u64>,
}

impl Pace {
    pub fn time(span: Duration) -> Pace {
        Pace {
            until: Some(Instant::now() + span),
            left: u64::MAX,
            ..Pace::count(0)
        }
    }

    pub fn count(ops: u64) -> Pace {
        Pace {
            until: None,
            left: ops,
            last: Instant::now(),
            ops: 0,
            latency: histogram(),
        }
    }

    pub fn goes_on(&self) -> bool {
        self.left > 0 && self.until.is_none_or(|until| self.last < until)
    }

    pub fn done(&mut self) {
        self.done_since(self.last);
    }

    /// The time as of the last operation.
    pub fn now(&self) -> Instant {
        self.last
    }

    /// As [`Pace::done`], for one of several that overlap.
    pub fn done_since(&mut self, began: Instant) {
        let now = Instant::now();
        let ns = (now - began).as_nanos() as u64;
        self.latency.saturating_record(ns);
        self.last = now;
        self.left -= 1;
        self.ops += 1;
    }

    /// Leaves out what has happened since the last operation.
    pub fn skip(&mut self) {
        self.last = Instant::now();
    }
}
