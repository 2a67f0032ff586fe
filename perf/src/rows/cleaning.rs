//! cleaning: what those who read and write feel of segments that are being cleaned.
//!
//! Before each round two payloads are written in turn, a MiB of one and three of the other, and the
//! larger one is deleted, so that every segment is mostly garbage. The reference is the same work on
//! the same store at rest. How much was moved meanwhile stands beside it: without it, nothing was
//! measured.

use crate::bench::{Bench, MIB, PAGE, Pace, id};
use crate::measure::{Case, Figure, Sample, Side, alternate};
use anyhow::ensure;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use ringstore::{PayloadId, Store};
use std::time::{Duration, Instant};

const ROW: &str = "cleaning";
const STORE: &str = "cleaning";
const CLEANING: &str = "ringstore, cleaning";
const AT_REST: &str = "ringstore, at rest";
const MOVED: &str = "moved-MiB/s";

/// So small that hits do not show.
const READ_BUFFER_BYTES: u64 = 4 * MIB;

/// MiB of garbage for each that lives.
const GARBAGE: u64 = 3;

/// Nothing was moved for so long: the store is at rest.
const QUIET: Duration = Duration::from_millis(500);

/// Cleaning that takes longer has gone wrong.
const QUIET_MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Copy)]
enum Work {
    Read,
    WriteAndFlush,
}

struct Ours<'a> {
    bench: &'a Bench,
    store: &'a Store,
    payload: PayloadId,
    bytes: u64,
    /// MiB that are to be moved.
    kept: u64,
}

impl Ours<'_> {
    /// Fills segments with what lives and what does not.
    fn litter(&self) -> anyhow::Result<()> {
        let (kept, dropped) = (id("kept"), id("dropped"));
        let piece = self.bench.noise.slice(..MIB as usize);
        self.bench.runtime.block_on(async {
            for n in 0..self.kept {
                self.store.write_at(&kept, n * MIB, piece.clone()).await?;
                for m in 0..GARBAGE {
                    let at = (n * GARBAGE + m) * MIB;
                    self.store.write_at(&dropped, at, piece.clone()).await?;
                }
            }
            self.store.flush_all().await?;
            self.store.delete(&dropped).await?;
            self.store.flush_all().await?;
            anyhow::Ok(())
        })
    }

    fn wait_until_quiet(&self) -> anyhow::Result<()> {
        let began = Instant::now();
        let moved = || Ok::<_, anyhow::Error>(self.bench.stats(self.store)?.cleaned_bytes);
        let mut last = moved()?;
        loop {
            std::thread::sleep(QUIET);
            let now = moved()?;
            if now == last {
                return Ok(());
            }
            last = now;
            ensure!(began.elapsed() < QUIET_MAX, "cleaning does not end");
        }
    }

    fn work(&self, work: Work) -> anyhow::Result<Sample> {
        let before = self.bench.stats(self.store)?.cleaned_bytes;
        let (span, pages) = (self.bench.span, self.bytes / PAGE);
        let data = self.bench.page_of_noise(1);
        let sample = self.bench.tasks(1, PAGE, |_| {
            let (store, payload) = (self.store.clone(), self.payload.clone());
            let data = data.clone();
            async move {
                let mut rng = SmallRng::seed_from_u64(3);
                let mut pace = Pace::time(span);
                while pace.goes_on() {
                    let at = rng.random_range(0..pages) * PAGE;
                    match work {
                        Work::Read => drop(store.read_at(&payload, at, PAGE as usize).await?),
                        Work::WriteAndFlush => {
                            store.write_at(&payload, at, data.clone()).await?;
                            store.flush(&payload).await?;
                        }
                    }
                    pace.done();
                }
                Ok(pace)
            }
        })?;
        let moved = self.bench.stats(self.store)?.cleaned_bytes - before;
        let rate = moved as f64 / MIB as f64 / sample.span.as_secs_f64();
        Ok(sample.with(MOVED, rate))
    }

    fn while_cleaning(&self, work: Work) -> anyhow::Result<Sample> {
        self.litter()?;
        let sample = self.work(work)?;
        self.wait_until_quiet()?;
        self.bench
            .runtime
            .block_on(self.store.delete(&id("kept")))?;
        Ok(sample)
    }

    fn at_rest(&self, work: Work) -> anyhow::Result<Sample> {
        self.wait_until_quiet()?;
        self.work(work)
    }
}

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Case>> {
    let bytes = bench.sized(128 * MIB, 8 * MIB);
    let mut config = bench.config(STORE, bench.driver())?;
    // What is to be moved is to lie where the work is done.
    config.shards = Some(1);
    config.read_buffer_bytes = READ_BUFFER_BYTES;
    let store = bench.open(config)?;
    let payload = id("payload");
    bench.lay_out(&store, &payload, bytes)?;
    let ours = Ours {
        bench,
        store: &store,
        payload,
        bytes,
        kept: bench.sized(256, 16),
    };
    let works = [
        ("reads", Work::Read),
        ("durable writes", Work::WriteAndFlush),
    ];
    let mut cases = Vec::new();
    for (name, work) in works {
        let sides = vec![
            Side {
                is_required: true,
                ..Side::new(CLEANING, || ours.while_cleaning(work))
            },
            Side::new(AT_REST, || ours.at_rest(work)),
        ];
        let mut case = alternate(ROW, name, bench.rounds, sides);
        let ratio = case.ratio(CLEANING, AT_REST, Figure::LatencyUs(0.99));
        case.at_most("p99, of that at rest", ratio, 1.15);
        let moved = case.median(CLEANING, Figure::Extra(MOVED));
        case.at_least("MiB moved per s meanwhile", moved, 1.0);
        cases.push(case);
    }
    bench.close(store)?;
    bench.remove(STORE)?;
    Ok(cases)
}
