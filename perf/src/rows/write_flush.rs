//! write-flush: single pages at random places, each durable before the next.
//!
//! Equalised: the same durability, that is, acknowledged when the device has it; files that were
//! written before, on both sides. The bare ring has as many `RWF_DSYNC` writes in flight as there
//! are writers. fjall and redb get a page as a value under a random key, `fjall` with a sync of its
//! journal, `redb` with a durable commit; so many writers are so many threads. Ours writes a
//! payload each, so that all shards have work.

use crate::bench::{Bench, MIB, PAGE, Pace, id};
use crate::measure::{Case, Figure, OURS, Sample, Side, alternate};
use crate::raw;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use ringstore::Store;

const ROW: &str = "write-flush";
const STORE: &str = "write-flush";
const FILE: &str = "write-flush.dat";
const RING: &str = "bare ring";

/// Most writers at once.
const WRITERS: usize = 32;

/// Five times the slower of two figures, 6.7 k/s, that the engine before this one was measured at.
const BATCHED_PER_SECOND: f64 = 33_500.0;

struct Work {
    name: &'static str,
    writers: usize,
    /// Writes that one flush makes durable.
    batch: u64,
}

fn ours(bench: &Bench, store: &Store, bytes: u64, work: &Work) -> anyhow::Result<Sample> {
    let (span, batch, writers) = (bench.span, work.batch, work.writers);
    let pages = bytes / writers as u64 / PAGE;
    bench.tasks(writers, PAGE, |task| {
        let (store, payload) = (store.clone(), id(&format!("{writers}/{task}")));
        let data = bench.page_of_noise(task as u64);
        async move {
            let mut rng = SmallRng::seed_from_u64(task as u64);
            let mut pace = Pace::time(span);
            while pace.goes_on() {
                let at = rng.random_range(0..pages) * PAGE;
                store.write_at(&payload, at, data.clone()).await?;
                if (pace.ops + 1).is_multiple_of(batch) {
                    store.flush(&payload).await?;
                }
                pace.done();
            }
            store.flush(&payload).await?;
            Ok(pace)
        }
    })
}

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Case>> {
    let bytes = bench.sized(256 * MIB, 8 * MIB);
    let store = bench.open(bench.config(STORE, bench.driver())?)?;
    for writers in [1, WRITERS] {
        for task in 0..writers {
            let payload = id(&format!("{writers}/{task}"));
            bench.lay_out(&store, &payload, bytes / writers as u64)?;
        }
    }
    let works = [
        Work {
            name: "1 writer",
            writers: 1,
            batch: 1,
        },
        Work {
            name: "32 writers",
            writers: WRITERS,
            batch: 1,
        },
        Work {
            name: "1 writer, flush every 32",
            writers: 1,
            batch: 32,
        },
    ];
    let mut cases: Vec<Case> = works
        .iter()
        .map(|work| case(bench, &store, bytes, work))
        .collect();
    bench.close(store)?;
    bench.remove(STORE)?;
    bench.remove(FILE)?;
    let ratio = cases[0].ratio(OURS, RING, Figure::PerSecond);
    cases[0].at_least("durable writes per s, of the bare ring's", ratio, 0.8);
    let rates = [0, 1].map(|case: usize| cases[case].median(OURS, Figure::PerSecond));
    let ratio = rates[0].zip(rates[1]).map(|(one, many)| many / one);
    cases[1].at_least("durable writes per s, of one writer's", ratio, 8.0);
    let rate = cases[2].median(OURS, Figure::PerSecond);
    cases[2].at_least("writes per s", rate, BATCHED_PER_SECOND);
    Ok(cases)
}

fn case(bench: &Bench, store: &Store, bytes: u64, work: &Work) -> Case {
    let mut sides = vec![Side::ours(|| ours(bench, store, bytes, work))];
    if work.batch == 1 {
        sides.push(Side::new(RING, || {
            raw::durable_writes(bench, FILE, bytes, work.writers)
        }));
    }
    #[cfg(feature = "peers")]
    {
        use crate::peers;
        let load = peers::Puts {
            keys: bytes / PAGE,
            writers: work.writers,
            batch: work.batch,
        };
        sides.push(Side::new("fjall", move || peers::fjall_puts(bench, &load)));
        sides.push(Side::new("redb", move || peers::redb_puts(bench, &load)));
    }
    alternate(ROW, work.name, bench.rounds, sides)
}
